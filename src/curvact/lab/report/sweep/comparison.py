"""Figures of a comparison: accuracies and paired differences by cell; roughness against input
flatness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from curvact.lab.report.style import (
    GREY,
    OKABE_ITO,
    canvas,
    house_style,
    legend_columns,
    log_ticks,
    looks_of,
    plain_text,
    title_text,
)
from curvact.lab.statistics.paired import Cell, Difference
from curvact.lab.statistics.strata import BESIDE, QUICK

CLEAN, ROBUST, DIFFERENCE = OKABE_ITO[:3]
QUICK_COLOUR = OKABE_ITO[4]
FLATNESS = "smoothness_input_top_eigenvalue"


def comparison_figure(
    cells: Sequence[Cell],
    judge: str = QUICK,
    titles: Mapping[str, str] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Figure | None:
    """A line for each cell, from the top: accuracies of every seed with a bar at their mean; paired
    differences.

    judge: the metric that robustness is judged by, drawn with the quick attack on the same images.
    titles: metric → attack. ax: see `canvas`. Filled marks: differences that are shown after
    correction. None where no cell has that metric.
    """
    if not any(cell.values.get(judge) for cell in cells):
        return None
    own = titles or {}
    attack, beside = own.get(judge, "PGD" if judge == QUICK else "part of AutoAttack"), BESIDE.get(judge)
    quick = own.get(beside or "", "PGD, the same images")
    with house_style():
        figure = canvas((10.2, 1.5 + 0.3 * len(cells)), ax)
        accuracies, differences = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for row, cell in enumerate(cells):
            for metric, colour, marker in (
                ("clean_accuracy", CLEAN, "s"),
                (judge, ROBUST, "o"),
                (beside or "", QUICK_COLOUR, "x"),
            ):
                values = [100 * value for value in cell.values.get(metric, {}).values()]
                if values:
                    dots = {"color": colour, "alpha": 0.45, "markersize": 4.5}
                    accuracies.plot(values, [row] * len(values), marker, **dots)
                    mean = math.fsum(values) / len(values)
                    accuracies.vlines(mean, row - 0.32, row + 0.32, color=colour, linewidth=2.2)
            if judge in cell.differences:
                _draw_difference(differences, row, cell.differences[judge])
        differences.axvline(0, color="#555555", linewidth=1.0)
        differences.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        accuracies.set_yticks(range(len(cells)), labels=[plain_text(cell.name) for cell in cells])
        accuracies.set_ylim(len(cells) - 0.4, -0.6)
        for axes in (accuracies, differences):
            axes.grid(True, axis="x")
            axes.grid(False, axis="y")
        accuracies.set(title="Accuracy on the test split", xlabel="%")
        below = "points, 95 % interval, paired by seed"
        differences.set(title=f"{attack} minus the baseline's", xlabel=below)
        mark = {"color": DIFFERENCE, "marker": "D", "linestyle": "none"}
        handles = [
            Line2D([], [], color=CLEAN, marker="s", linestyle="none", label="clean"),
            Line2D([], [], color=ROBUST, marker="o", linestyle="none", label=attack),
            *(
                [
                    Line2D(
                        [],
                        [],
                        color=QUICK_COLOUR,
                        marker="x",
                        linestyle="none",
                        label=f"{quick} (diagnostic)",
                    )
                ]
                if beside is not None
                else []
            ),
            Line2D([], [], color=GREY, marker="|", linestyle="none", markersize=10, label="mean"),
            Line2D([], [], label="shown after correction", **mark),  # type: ignore[arg-type]
            Line2D([], [], label="not shown", markerfacecolor="white", **mark),  # type: ignore[arg-type]
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns(handles, 10.0))
        if title:
            figure.suptitle(title_text(title), fontsize=11, fontweight="bold", ha="left", x=0.01)
        return figure


def _draw_difference(axes: Axes, row: int, difference: Difference) -> None:
    mean = difference.mean
    if not math.isnan(mean.low):
        axes.hlines(row, 100 * mean.low, 100 * mean.high, color=DIFFERENCE, linewidth=1.8)
    face = DIFFERENCE if difference.shown else "white"
    axes.plot([100 * mean.value], [row], "D", color=DIFFERENCE, markerfacecolor=face, zorder=3)


def roughness_figure(cells: Sequence[Cell], ax: Axes | None = None) -> Figure | None:
    """Is what is flatter in the input rougher in the parameters? A mark for each run, a panel for
    each attack.

    Across: the top eigenvalue of the input Hessian (flat left); up: the Lipschitz ratio of the
    gradient (rough above). ax: see `canvas`. None where no run has both above 0.
    """
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell in cells:
        flat = cell.values.get(FLATNESS, {})
        for attack in ("linf", "l2"):
            ratios = cell.values.get(f"smoothness_{attack}_ratio", {})
            pairs = [(flat[s], ratios[s]) for s in flat if flat[s] > 0 and ratios.get(s, 0.0) > 0]
            if pairs:
                points[cell.name, attack] = pairs
    attacks = [a for a in ("linf", "l2") if any(attack == a for _, attack in points)]
    if not attacks:
        return None
    looks = looks_of(list(dict.fromkeys(name for name, _ in points)))
    with house_style():
        figure = canvas((1.0 + 4.2 * len(attacks), 4.6), ax)
        panels = figure.subplots(1, len(attacks), sharex=True, sharey=True, squeeze=False)[0]
        for axes, attack in zip(panels, attacks, strict=True):
            for name, look in looks.items():
                if (name, attack) in points:
                    across, up = zip(*points[name, attack], strict=True)
                    axes.plot(across, up, look.marker, color=look.colour, alpha=0.8)
            axes.set(title=attack, xlabel="top eigenvalue of the input Hessian, mean over images")
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
        return figure
