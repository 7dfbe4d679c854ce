"""Figures of analyses draw what the records say, in files that repeat bit for bit."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from curvact.errors import CurvactError
from curvact.lab.report.analysis.curvature import effective_curvature_figure
from curvact.lab.report.analysis.flatness import flatness_figure
from curvact.lab.report.analysis.landscape import landscape_figure
from curvact.lab.report.analysis.shape import shape_figure
from curvact.lab.report.style import to_png, write_figure


def site(name: str, effective: float | None, half: float | None, tenth: float | None) -> dict[str, Any]:
    return {
        "site": name,
        "effective": effective,
        "curved_half": half,
        "curved_tenth": tenth,
        "kink": effective is None,
    }


BEFORE = {
    "sites": [
        site("act", 3.0, 0.2, 0.4),
        site("stages.0.act1", None, None, None),
        site("_last$", 2.0, 0.1, 0.5),
    ]
}
AFTER = {
    "sites": [
        site("act", 5.0, 0.1, 0.3),
        site("stages.0.act1", None, None, None),
        site("_last$", 1.0, 0.3, 0.6),
    ]
}


def flat(kind: str, *losses: float | None, error: float | None = 0.1) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": kind,
        "loss": 1.0,
        "losses": list(losses),
        "radius": 0.5 if kind == "average" else 0.003,
    }
    record["flatness"] = None if None in losses else sum(losses) / len(losses) - 1  # type: ignore[arg-type]
    if kind == "average":
        record["standard_error"] = error
    return record


FLAT = {
    "relu": flat("average", 1.5, 1.7),
    "silu": flat("average", 1.2, 1.4),
    "broken $x$": flat("average", None, 2.0, error=None),
    "silu, worst": flat("worst", 1.01, 1.02),
}
AT = [-1.0, -0.5, 0.0, 0.5, 1.0]
SQUARE = {
    "dimensions": 2,
    "coordinates": AT,
    "clean": [[1 + a * a + 3 * b * b for b in AT] for a in AT],
    "adversarial": [[2 + 2 * a * a + 3 * b * b for b in AT] for a in AT],
}
LINE = {
    "dimensions": 1,
    "coordinates": AT,
    "clean": [[1 + a * a] for a in AT],
    "adversarial": [[2 + 2 * a * a] for a in AT],
}


def row(name: str, kappa: float | None, robust: float, kink: bool = False) -> dict[str, Any]:
    return {
        "model": name,
        "max_curvature": kappa,
        "kink": kink,
        "clean_accuracy": 0.9,
        "robust_accuracy": robust,
        "radius": robust / 10,
        "lipschitz": 10 / robust,
    }


SHAPES = {
    "rows": [
        row("a", 0.5, 0.4),
        row("b_b$", 6.0, 0.5),
        row("relu", None, 0.45, kink=True),
        row("unknown", None, 0.3),
        row("linear", 0.0, 0.3),
    ]
}
FIGURES: dict[str, Callable[[], Figure]] = {
    "effective": lambda: effective_curvature_figure(AFTER, "one"),
    "change": lambda: effective_curvature_figure(
        {"before": BEFORE, "after": AFTER, "ratio": {}}, "both $ends$"
    ),
    "flatness": lambda: flatness_figure(FLAT, "flat"),
    "line": lambda: landscape_figure(LINE, "line"),
    "square": lambda: landscape_figure(SQUARE, "square"),
    "surface": lambda: landscape_figure(SQUARE, "square", surface=True),
    "shape": lambda: shape_figure(SHAPES, "shapes"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_files_are_whole_and_the_same_every_time(name: str, tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    written = write_figure(FIGURES[name](), tmp_path / "a.figure")
    assert set(written) == {"a.figure.png", "a.figure.svg"}
    again = write_figure(FIGURES[name](), tmp_path / "b")
    assert [p.read_bytes() for p in written.values()] == [p.read_bytes() for p in again.values()]
    assert written["a.figure.png"].read_bytes().startswith(b"\x89PNG")
    assert ElementTree.fromstring(written["a.figure.svg"].read_text()).tag.endswith("svg")
    assert dict(matplotlib.rcParams) == settings


def points(figure: Figure, panel: int) -> list[tuple[list[float], bool]]:
    """The horizontal places of each line of marks, and whether they are filled."""
    return [
        ([float(v) for v in np.asarray(line.get_xdata(), dtype=float)], line.get_markerfacecolor() != "white")
        for line in figure.axes[panel].get_lines()
        if line.get_marker() not in ("None", "none", "", None)
    ]


def test_effective_curvature_of_every_site_before_and_after() -> None:
    figure = FIGURES["change"]()
    drawn = points(figure, 0)
    np.testing.assert_equal(drawn, [([5.0, math.nan, 1.0], True), ([3.0, math.nan, 2.0], False)])
    shares = points(figure, 1)
    np.testing.assert_allclose(
        [s[0] for s in shares],
        [[10, math.nan, 30], [30, math.nan, 60], [20, math.nan, 10], [40, math.nan, 50]],
    )
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["act", "stages.0.act1", " _last\\$"]
    assert figure.axes[0].yaxis_inverted()
    assert "1 of 3 call sites have a kink" in figure.get_suptitle()
    assert [(t.get_text(), t.get_position()[1]) for t in figure.axes[0].texts] == [("∞", 1)]
    kinks = effective_curvature_figure({"sites": [BEFORE["sites"][1]] * 2})
    assert not any(len(axes.get_xticks()) for axes in kinks.axes)
    assert figure.get_suptitle().startswith("both \\$ends\\$")
    with pytest.raises(CurvactError, match="without call sites"):
        effective_curvature_figure({"sites": []})


def test_flatness_has_a_panel_a_kind() -> None:
    figure = FIGURES["flatness"]()
    assert [a.get_title(loc="left") for a in figure.axes] == [
        "average case, ξ = 0.5",
        "worst case, ξ = 0.003",
    ]
    average = [xs for xs, _ in points(figure, 0)]
    np.testing.assert_allclose(average[0], [0.5, 0.7])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "relu",
        "silu",
        "broken \\$x\\$",
    ]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["silu, worst"]
    bars = [c for c in figure.axes[0].containers if c.has_xerr]  # type: ignore[attr-defined]
    low, high = bars[0][2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((0.6 - 0.2, 0.6 + 0.2))
    assert len(bars) == 2
    with pytest.raises(CurvactError, match="no records"):
        flatness_figure({})


def test_contours_share_one_scale_and_the_first_direction_runs_across() -> None:
    figure = FIGURES["square"]()
    sets = [axes.collections[0] for axes in figure.axes[:2]]
    assert {c.get_clim() for c in sets} == {(1.0, 7.0)}
    # The bowl is steeper along d₂: from 1 the contour of 2 reaches 1 across and 0.58 up.
    filled = sets[0]
    level = int(np.searchsorted(filled.levels, 2.0))  # type: ignore[attr-defined]
    region = filled.get_paths()[level - 1]
    inside = filled.get_paths()[0].get_extents()
    assert inside.width > 1.3 * inside.height
    assert region.vertices.size
    assert [a.get_title(loc="left") for a in figure.axes[:2]] == ["Clean loss", "Adversarial loss"]


def test_surfaces_stand_over_the_same_axes() -> None:
    figure = FIGURES["surface"]()
    assert len(figure.axes) == 2
    assert {tuple(axes.get_zlim()) for axes in figure.axes} == {(1.0, 7.0)}  # type: ignore[attr-defined]


def test_a_line_a_loss() -> None:
    lines = FIGURES["line"]().axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), [2, 1.25, 1, 1.25, 2])
    np.testing.assert_allclose(lines[1].get_ydata(), [4, 2.5, 2, 2.5, 4])
    assert FIGURES["line"]().axes[0].get_yscale() == "linear"
    steep = {**LINE, "clean": [[0.01 + a * a] for a in AT]}
    assert landscape_figure(steep).axes[0].get_yscale() == "log"


@pytest.mark.parametrize("surface", [False, True])
@pytest.mark.parametrize("case", ["holes", "constant", "steep", "clean only"])
def test_awkward_landscapes_are_drawn_without_a_warning(case: str, surface: bool) -> None:
    record: dict[str, Any] = {**SQUARE}
    if case == "holes":
        record["clean"] = [[None if a == 1 else 2.0 + a + b for b in AT] for a in AT]
    elif case == "constant":
        record["clean"] = record["adversarial"] = [[3.0] * 5] * 5
    elif case == "steep":
        record["clean"] = [[10 ** (3 * a + b) for b in AT] for a in AT]
    else:
        record["adversarial"] = None
    figure = landscape_figure(record, surface=surface)
    assert to_png(figure)
    with pytest.raises(CurvactError, match="without a finite loss"):
        landscape_figure({**record, "clean": [[None] * 5] * 5, "adversarial": None})


def test_models_stand_at_their_curvature_and_kinks_at_infinity() -> None:
    figure = FIGURES["shape"]()
    clean, robust = figure.axes[0].get_lines()
    np.testing.assert_allclose(clean.get_xdata(), [0.5, 6, 18])
    np.testing.assert_allclose(robust.get_ydata(), [40, 50, 45])
    np.testing.assert_allclose(figure.axes[1].get_lines()[0].get_ydata(), [0.04, 0.05, 0.045])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0.5", "6", "∞"]
    assert {t.get_text() for t in figure.axes[1].texts} == {"a", "b_b\\$", "relu"}
    assert len(shape_figure({"rows": [row("relu", None, 0.4, kink=True)]}).axes) == 3
    with pytest.raises(CurvactError, match="of known curvature"):
        shape_figure({"rows": SHAPES["rows"][3:]})
