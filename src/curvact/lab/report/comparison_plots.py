"""Report room: figures of a comparison, from plain numbers by cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from curvact.errors import CurvactError
from curvact.lab.report.analysis_plots import title_text
from curvact.lab.report.plots import OKABE_ITO, house_style, legend_columns, log_ticks, looks_of, plain_text

CLEAN, ROBUST, DIFFERENCE = OKABE_ITO[:3]


@dataclass(frozen=True)
class Interval:
    """A number with its interval; low and high are NaN where one seed alone gives none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CellLine:
    """A cell of a comparison. clean, robust: accuracies in per cent by seed. difference: of robust accuracy to the baseline in
    points, None for the baseline itself and for a source; shown: after correction.
    """

    name: str
    clean: Sequence[float]
    robust: Sequence[float]
    difference: Interval | None
    shown: bool = False


def comparison_figure(cells: Sequence[CellLine], attack: str, title: str = "") -> Figure:
    """A line for each cell, from the top: accuracies of every seed with a bar at their mean; paired differences with intervals.

    attack: what robust accuracy was measured by. Filled marks: differences that are shown after correction.
    Raises CurvactError for no cells.

    >>> cell = CellLine("silu", [90.0, 91.0], [40.0, 42.0], Interval(1.0, -1.0, 3.0))
    >>> len(comparison_figure([cell], "PGD-20").axes)
    2
    """
    if not cells:
        raise CurvactError("comparison_figure got no cells: there is nothing to draw")
    with house_style():
        figure = Figure(figsize=(10.2, 1.5 + 0.3 * len(cells)), layout="constrained")
        accuracies, differences = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for row, cell in enumerate(cells):
            for values, colour, marker in ((cell.clean, CLEAN, "s"), (cell.robust, ROBUST, "o")):
                if len(values):
                    accuracies.plot(
                        values, [row] * len(values), marker, color=colour, alpha=0.45, markersize=4.5
                    )
                    mean = math.fsum(values) / len(values)
                    accuracies.vlines(mean, row - 0.32, row + 0.32, color=colour, linewidth=2.2)
            if cell.difference is not None:
                _difference(differences, row, cell.difference, cell.shown)
        differences.axvline(0, color="#555555", linewidth=1.0)
        differences.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        accuracies.set_yticks(range(len(cells)), labels=[plain_text(cell.name) for cell in cells])
        accuracies.invert_yaxis()
        for axes in (accuracies, differences):
            axes.grid(True, axis="x")
            axes.grid(False, axis="y")
        accuracies.set(title="Accuracy on the test split", xlabel="%")
        differences.set(
            title=f"{attack} minus the baseline's", xlabel="points, 95 % interval, paired by seed"
        )
        handles = [
            Line2D([], [], color=CLEAN, marker="s", linestyle="none", label="clean"),
            Line2D([], [], color=ROBUST, marker="o", linestyle="none", label=attack),
            Line2D([], [], color="#444444", marker="|", linestyle="none", markersize=10, label="mean"),
            Line2D([], [], color=DIFFERENCE, marker="D", linestyle="none", label="shown after correction"),
            Line2D(
                [],
                [],
                color=DIFFERENCE,
                marker="D",
                markerfacecolor="white",
                linestyle="none",
                label="not shown",
            ),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns(handles, 10.0))
        if title:
            figure.suptitle(title_text(title), fontsize=11, fontweight="bold", ha="left", x=0.01)
        return figure


def _difference(axes: Axes, row: int, difference: Interval, shown: bool) -> None:
    if not math.isnan(difference.low):
        axes.hlines(row, difference.low, difference.high, color=DIFFERENCE, linewidth=1.8)
    face = DIFFERENCE if shown else "white"
    axes.plot([difference.value], [row], "D", color=DIFFERENCE, markerfacecolor=face, zorder=3)


def roughness_figure(
    cells: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]], flatness: str, title: str = ""
) -> Figure:
    """Is what is flatter in the input rougher in the parameters? A mark for each trial, a panel for each attack.

    cells: by name, for each trial its input flatness (flat left) and the Lipschitz ratio of the gradient by attack (rough above).
    Raises CurvactError where nothing is positive.

    >>> figure = roughness_figure({"sgd": [(0.5, {"linf": 2.0})], "awp": [(0.2, {"linf": 3.0})]}, "top eigenvalue")
    >>> figure.axes[0].get_xlabel()
    'top eigenvalue'
    """
    attacks = list(dict.fromkeys(a for trials in cells.values() for _, ratios in trials for a in ratios))
    points = {
        (name, attack): [(x, r[attack]) for x, r in trials if x > 0 and r.get(attack, 0) > 0]
        for name, trials in cells.items()
        for attack in attacks
    }
    if not any(points.values()):
        raise CurvactError(
            "roughness_figure got no trial with input flatness > 0 and a ratio > 0: nothing to draw"
        )
    looks = looks_of(list(cells))
    with house_style():
        figure = Figure(figsize=(1.0 + 4.2 * len(attacks), 4.6), layout="constrained")
        panels = figure.subplots(1, len(attacks), sharex=True, sharey=True, squeeze=False)[0]
        for axes, attack in zip(panels, attacks, strict=True):
            for name, look in looks.items():
                found = points[name, attack]
                if found:
                    across, up = zip(*found, strict=True)
                    axes.plot(across, up, look.marker, color=look.colour, alpha=0.8)
            axes.set(title=plain_text(attack), xlabel=flatness)
            axes.grid(True, axis="both")
            axes.set_xscale("log")
            axes.set_yscale("log")
        for which in ("x", "y"):
            log_ticks(panels[0], which)
        panels[0].set_ylabel("‖Δ∇L‖ / ‖Δθ‖")
        handles = [
            Line2D([], [], linestyle="none", marker=look.marker, color=look.colour, label=plain_text(name))
            for name, look in looks.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns(handles, 9.0))
        if title:
            figure.suptitle(title_text(title), fontsize=11, fontweight="bold", ha="left", x=0.01)
        return figure
