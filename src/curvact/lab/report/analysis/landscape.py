"""The loss around a model, as figures and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from curvact.errors import CurvactError
from curvact.lab.report.analysis.common import ATTACKED, CLEAN, Record, headline, new_table, number, plotted
from curvact.lab.report.style import DASHES, canvas, house_style, log_ticks, plain_number, title_text

LEVELS = 14


def landscape_figure(
    record: Record, title: str = "", ax: Axes | None = None, *, surface: bool = False
) -> Figure:
    """The loss around a model, clean and adversarial.

    One direction is drawn as lines, two as contours with one scale of colours, or as a surface.
    record: of `Landscape`. The scale is logarithmic where the highest loss is over 30 times the
    lowest. Losses that are not finite are left blank. Raises CurvactError where none is finite.

    >>> record = {"dimensions": 1, "coordinates": [-1, 0, 1], "clean": [[2], [1], [2]], "adversarial": [[3], [2], [4]]}
    >>> len(landscape_figure(record).axes[0].get_lines())
    3
    """
    at = np.array(record["coordinates"], dtype=float)
    grids = {
        name: np.array([[plotted(v) for v in row] for row in record[key]])
        for name, key in (("clean loss", "clean"), ("adversarial loss", "adversarial"))
        if record.get(key) is not None
    }
    seen = np.concatenate([grid[np.isfinite(grid)] for grid in grids.values()])
    if seen.size == 0:
        raise CurvactError("a landscape without a finite loss: there is nothing to draw")
    low, high = float(seen.min()), float(seen.max())
    logarithmic = low > 0 and high > 30 * low
    with house_style():
        if record["dimensions"] == 1:
            figure = canvas((5.6, 3.6), ax)
            axes = figure.subplots()
            for (name, grid), colour, dash in zip(grids.items(), (CLEAN, ATTACKED), DASHES, strict=False):
                axes.plot(at, grid[:, 0], color=colour, linestyle=dash, label=name)
            axes.axvline(0, color="#888888", linewidth=0.8)
            if logarithmic:
                axes.set_yscale("log")
                log_ticks(axes, "y")
            axes.set(xlabel="along d₁", ylabel="mean loss", title=title_text(title))
            axes.legend()
            return figure
        figure = canvas((4.5 * len(grids) + 0.9, 4.1), ax)
        if high == low:
            low, high = low - 0.5, high + 0.5
            logarithmic = False
        colours = LogNorm(low, high) if logarithmic else Normalize(low, high)
        levels = np.geomspace(low, high, LEVELS) if logarithmic else np.linspace(low, high, LEVELS)
        if surface:
            _surfaces(figure, at, grids, colours, logarithmic)
        else:
            _contours(figure, at, grids, colours, levels)
        headline(figure, title)
        return figure


def landscape_table(results: Mapping[str, Record]) -> Table:
    """Records of `Landscape` by name of the model."""
    table = new_table(
        "mean loss on the grid", ["model", "loss", "at the model", "lowest", "median", "highest"], left=2
    )
    for name, record in results.items():
        for label in ("clean", "adversarial"):
            grid = record[label]
            losses = sorted(loss for row in grid for loss in row if loss is not None)
            middle = len(record["coordinates"]) // 2
            here = grid[middle][middle if record["dimensions"] == 2 else 0]
            some = (losses[0], losses[len(losses) // 2], losses[-1]) if losses else (None, None, None)
            table.add_row(escape(name), label, *(number(value) for value in (here, *some)))
    return table


def _contours(
    figure: Figure,
    at: NDArray[Any],
    grids: Mapping[str, NDArray[Any]],
    colours: Normalize,
    levels: NDArray[Any],
) -> None:
    panels = figure.subplots(1, len(grids), squeeze=False, sharey=True)[0]
    drawn = None
    for axes, (name, grid) in zip(panels, grids.items(), strict=True):
        shown = np.ma.masked_invalid(grid.T)
        drawn = axes.contourf(at, at, shown, levels=levels, norm=colours, cmap="viridis")
        lines = axes.contour(at, at, shown, levels=levels[1:-1], colors="white", linewidths=0.5)
        if lines.levels.size:
            axes.clabel(lines, lines.levels[::3], fontsize=7, fmt=lambda v: f"{v:.2g}")
        axes.plot([0], [0], marker="+", color="white", markersize=9, markeredgewidth=1.6)
        axes.set(title=name.capitalize(), xlabel="along d₁")
        axes.set_aspect("equal")
        axes.grid(False)
    panels[0].set_ylabel("along d₂")
    _colour_bar(figure, drawn, list(panels), levels)


def _surfaces(
    figure: Figure, at: NDArray[Any], grids: Mapping[str, NDArray[Any]], colours: Normalize, logarithmic: bool
) -> None:
    from mpl_toolkits.mplot3d import Axes3D

    across, up = np.meshgrid(at, at, indexing="ij")
    for place, (name, grid) in enumerate(grids.items(), 1):
        axes = figure.add_subplot(1, len(grids), place, projection="3d")
        assert isinstance(axes, Axes3D)
        height = np.log10(grid) if logarithmic else grid
        scale = Normalize(math.log10(float(colours.vmin or 1)), math.log10(float(colours.vmax or 1)))
        norm = scale if logarithmic else colours
        axes.plot_surface(across, up, height, norm=norm, cmap="viridis", rstride=1, cstride=1, linewidth=0.1)
        axes.set_zlim(norm.vmin, norm.vmax)
        axes.set(title=name.capitalize(), xlabel="along d₁", ylabel="along d₂")
        axes.set_zlabel("log₁₀ of the loss" if logarithmic else "loss")


def _colour_bar(figure: Figure, drawn: Any, panels: list[Axes], levels: NDArray[Any]) -> None:
    bar = figure.colorbar(drawn, ax=panels, shrink=0.9)
    marks = levels[:: max(1, len(levels) // 6)]
    bar.set_ticks(list(marks), labels=[plain_number(float(f"{mark:.2g}")) for mark in marks])
    bar.set_label("mean loss")
