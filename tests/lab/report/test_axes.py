"""Every plot can stand in the place of an axes of the user's own figure."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curvact.errors import CurvactError
from curvact.lab.report.activation_plot import activations_figure
from curvact.lab.report.analysis.hessian import split_figure
from curvact.lab.report.analysis.landscape import landscape_figure
from curvact.lab.report.style import to_png
from curvact.lab.report.sweep.comparison import comparison_figure
from curvact.lab.report.sweep.curves import charts, optimum_figure, panel_figure
from curvact.lab.report.training_curves import curves_figure
from curvact.lab.statistics import ask
from curvact.lab.statistics.curve import Curve
from curvact.lab.table import Table

EPOCH = {
    "epoch": 1,
    "loss": 2.0,
    "train_accuracy": 0.3,
    "validation_accuracy": 0.4,
    "validation_robust_accuracy": 0.2,
}
LINE = {"dimensions": 1, "coordinates": [-1, 0, 1], "clean": [[2], [1], [2]], "adversarial": [[3], [2], [4]]}
SHARE = {"value": 0.5, "standard_error": 0.0}
PART = {"base_share": SHARE, "curvature_share": SHARE, "sites": {"act": {"share": SHARE}}}
SPLIT = {"clean": {"holds": True, "total": PART, "layers": {"fc": PART}, "sites": ["act"]}}
GRID = {"dimensions": 2, "coordinates": [-1, 0, 1], "clean": [[2, 3, 4], [1, 2, 3], [2, 5, 4]]}


def _curve_plots(table: Table) -> dict[str, Callable[[Axes], Any]]:
    answer = Curve(norms=()).answer(table)
    chart = charts(answer)[0]
    return {
        "panel": lambda ax: panel_figure(chart, chart.panels[0], ax),
        "optimum": lambda ax: optimum_figure(answer, ax),
    }


@pytest.mark.parametrize(
    "name",
    ["panel", "optimum", "comparison", "training", "activations", "landscape line", "landscape", "split"],
)
def test_a_plot_takes_the_place_of_an_axes(name: str, curves: Callable[..., Table]) -> None:
    table = curves({("a",): np.array([0.5, 0.6, 0.5]), ("b",): np.array([0.5, 0.6, 0.7])}, points=(1, 4, 20))
    plots: dict[str, Callable[[Axes], Any]] = {
        "training": lambda ax: curves_figure([EPOCH], "one", ax),
        "activations": lambda ax: activations_figure(["relu", "silu"], ax=ax),
        "landscape line": lambda ax: landscape_figure(LINE, ax=ax),
        "landscape": lambda ax: landscape_figure(GRID, ax=ax),
        "split": lambda ax: split_figure(SPLIT, ax=ax),
    }
    if name == "comparison":
        rows = [r for r in table.rows if r.labels["curvature"] == 4]
        cells = ask(Table(("data.name", "seed"), tuple(rows)))["paired"].cells  # type: ignore[attr-defined]
        plots[name] = lambda ax: comparison_figure(cells, ax=ax)
    if name in ("panel", "optimum"):
        plots = _curve_plots(table)
    figure = Figure(figsize=(12, 5))
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1])
    plots[name](right)
    assert left in figure.axes
    assert len(figure.axes) > 1
    figure.savefig(io.BytesIO(), format="png")
    there = [axes for axes in figure.axes if axes is not left]
    assert any(axes.has_data() for axes in there)
    assert min(axes.get_tightbbox().x0 for axes in there) >= left.get_position().x1 * figure.bbox.width - 1, (
        "it stays in its place"
    )


def test_axes_without_a_place_are_refused() -> None:
    figure = Figure()
    with pytest.raises(CurvactError, match="ax has no place in a grid"):
        activations_figure(["relu"], ax=figure.add_axes((0, 0, 1, 1)))
    assert to_png(activations_figure(["relu"]))[1:4] == b"PNG"
