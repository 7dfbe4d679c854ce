"""Report room: figures of analyses, from the plain dicts that their results write as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from curvact.errors import CurvactError
from curvact.lab.report.style import (
    DASHES,
    MARKERS,
    OKABE_ITO,
    house_style,
    log_ticks,
    plain_number,
    plain_text,
    title_text,
)

Record = Mapping[str, Any]
"""What `as_dict()` of a result gives, or the same read back from JSON."""

CLEAN, ATTACKED = OKABE_ITO[0], OKABE_ITO[1]
_LEVELS = 14


def effective_curvature_figure(record: Record, title: str = "") -> Figure:
    """Effective curvature and the share of curved units, by call site; before (hollow) and after training where there are both.

    record: of `EffectiveCurvature` or `EffectiveCurvatureChange`. Sites with a kink have ∞ at the right edge; the title says how
    many there are.
    Raises CurvactError for a record without call sites.

    >>> site = {"site": "act", "effective": 2.0, "curved_half": 0.5, "curved_tenth": 0.9, "kink": False}
    >>> len(effective_curvature_figure({"sites": [site]}).axes)
    2
    """
    moments = (
        [("after", record["after"], True), ("before", record["before"], False)] if "after" in record else []
    )
    moments = moments or [("", record, True)]
    sites = [str(site["site"]) for site in moments[0][1]["sites"]]
    if not sites:
        raise CurvactError("a record of effective curvature without call sites: there is nothing to draw")
    kinks = sum(bool(site["kink"]) for site in moments[0][1]["sites"])
    rows = np.arange(len(sites))
    with house_style():
        figure = Figure(figsize=(9.0, 1.9 + 0.24 * len(sites)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        for when, moment, filled in moments:
            at = rows + {"before": -0.13, "after": 0.13, "": 0.0}[when]
            _dots(left, moment, "effective", at, OKABE_ITO[0], "o", filled)
            _dots(right, moment, "curved_half", at, OKABE_ITO[1], "s", filled)
            _dots(right, moment, "curved_tenth", at, OKABE_ITO[2], "^", filled)
        left.set_yticks(rows, [plain_text(site) for site in sites], fontsize=8)
        left.set_ylim(len(sites) - 0.5, -0.5)
        left.set_xlim(0, 1.08 * left.get_xlim()[1])
        right.set_xlim(0, min(100.0, 1.15 * max(1.0, right.get_xlim()[1])))
        for row, entry in zip(rows, moments[0][1]["sites"], strict=True):
            if entry["kink"]:
                across = left.get_yaxis_transform()
                left.text(0.985, row, "∞", transform=across, color=OKABE_ITO[0], ha="right", va="center")
        for axes in (left, right):
            if not any(
                np.isfinite(np.asarray(line.get_xdata(), dtype=float)).any() for line in axes.get_lines()
            ):
                axes.set_xticks([])
        left.set_xlabel("effective curvature κ·s")
        right.set_xlabel("units in the curved region, %")
        for axes in (left, right):
            axes.grid(True, axis="both")
        note = f"{kinks} of {len(sites)} call sites have a kink: κ is infinite" if kinks else ""
        heading = "\n".join(filter(None, (title_text(title), note)))
        if heading:
            figure.suptitle(heading, fontsize=11, fontweight="bold", ha="left", x=0.01)
        handles = [
            _handle(OKABE_ITO[0], "o", "κ·s"),
            _handle(OKABE_ITO[1], "s", "|σ″| ≥ κ/2"),
            _handle(OKABE_ITO[2], "^", "|σ″| ≥ κ/10"),
        ]
        if len(moments) == 2:
            handles += [_handle("#444444", "o", "before", filled=False), _handle("#444444", "o", "after")]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return figure


def flatness_figure(records: Mapping[str, Record], title: str = "") -> Figure:
    """Rise of the adversarial loss by model: every draw or restart as a dot, average-case means with ± 2 standard errors.

    records: of `AverageFlatness` and `WorstFlatness`, by names; one panel for each kind.
    Raises CurvactError for no records.

    >>> record = {"kind": "worst", "flatness": 0.3, "loss": 1.0, "losses": [1.2, 1.3], "radius": 0.003}
    >>> [axes.get_title(loc="left") for axes in flatness_figure({"net": record}).axes]
    ['worst case, ξ = 0.003']
    """
    if not records:
        raise CurvactError("flatness_figure got no records: there is nothing to draw")
    kinds = [kind for kind in ("average", "worst") if any(r["kind"] == kind for r in records.values())]
    with house_style():
        most = max(sum(r["kind"] == kind for r in records.values()) for kind in kinds)
        figure = Figure(figsize=(4.8 * len(kinds), 1.6 + 0.42 * most), layout="constrained")
        for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            chosen = {name: r for name, r in records.items() if r["kind"] == kind}
            for row, record in enumerate(chosen.values()):
                loss = plotted(record["loss"])
                rises = np.array([plotted(v) for v in record["losses"]]) - loss
                colour = OKABE_ITO[row % len(OKABE_ITO)]
                axes.plot(rises, np.full(len(rises), row), ".", color=colour, alpha=0.45, markeredgewidth=0)
                error = 2 * plotted(record.get("standard_error", 0.0))
                axes.errorbar(
                    [plotted(record["flatness"])],
                    [row],
                    xerr=[error] if math.isfinite(error) and error > 0 else None,
                    marker="D",
                    color=colour,
                    capsize=3,
                )
            radii = sorted({r["radius"] for r in chosen.values()})
            axes.set_yticks(range(len(chosen)), [plain_text(name) for name in chosen])
            axes.set_ylim(len(chosen) - 0.4, -0.6)
            axes.axvline(0, color="#888888", linewidth=0.8)
            axes.grid(True, axis="x")
            axes.grid(False, axis="y")
            axes.set_xlabel("rise of the loss")
            case = "average case" if kind == "average" else "worst case"
            axes.set_title(f"{case}, ξ = {', '.join(f'{radius:g}' for radius in radii)}")
        if title:
            figure.suptitle(title_text(title), fontsize=11, fontweight="bold", ha="left", x=0.01)
        return figure


def landscape_figure(record: Record, title: str = "", *, surface: bool = False) -> Figure:
    """The loss around a model, clean and adversarial: lines for one direction, contours on one scale of colours for two.

    record: of `Landscape`. surface: two directions drawn in space instead. Where the highest loss is over 30 times the lowest,
    the scale is logarithmic. Losses that are not finite are left blank. Raises CurvactError where none is finite.

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
            figure = Figure(figsize=(5.6, 3.6), layout="constrained")
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
        figure = Figure(figsize=(4.5 * len(grids) + 0.9, 4.1), layout="constrained")
        if high == low:
            low, high = low - 0.5, high + 0.5
            logarithmic = False
        colours = LogNorm(low, high) if logarithmic else Normalize(low, high)
        levels = np.geomspace(low, high, _LEVELS) if logarithmic else np.linspace(low, high, _LEVELS)
        if surface:
            _surfaces(figure, at, grids, colours, logarithmic)
        else:
            _contours(figure, at, grids, colours, levels)
        if title:
            figure.suptitle(title_text(title), fontsize=11, fontweight="bold", ha="left", x=0.01)
        return figure


def shape_figure(record: Record, title: str = "") -> Figure:
    """What each model of a shape table reached, against the κ of its activation: accuracy, minimum radius, Lipschitz constant.

    record: of `ShapeTable`. Models with a kink stand at the right edge, marked ∞; those whose activations cannot be described
    are left out. Raises CurvactError where none is left.

    >>> row = {"model": "a", "max_curvature": 2.0, "kink": False, "clean_accuracy": 0.9, "robust_accuracy": 0.5}
    >>> row |= {"radius": 0.03, "lipschitz": 12.0}
    >>> len(shape_figure({"rows": [row]}).axes)
    3
    """
    rows = [row for row in record["rows"] if row["kink"] or (row["max_curvature"] or 0) > 0]
    if not rows:
        raise CurvactError("a shape table without a model of known curvature: there is nothing to draw")
    finite = [row["max_curvature"] for row in rows if not row["kink"]]
    edge = 3 * max(finite) if finite else 1.0
    places = [edge if row["kink"] else row["max_curvature"] for row in rows]
    panels = (
        (
            "Accuracy",
            "%",
            (("clean_accuracy", "clean", CLEAN, 100.0), ("robust_accuracy", "robust", ATTACKED, 100.0)),
        ),
        ("Minimum PGD radius", "mean, input units", (("radius", "", OKABE_ITO[2], 1.0),)),
        ("Empirical Lipschitz constant", "mean, L1 over L∞", (("lipschitz", "", OKABE_ITO[3], 1.0),)),
    )
    with house_style():
        figure = Figure(figsize=(11.4, 3.7), layout="constrained")
        for axes, (heading, label, columns) in zip(figure.subplots(1, 3), panels, strict=True):
            for number, (column, name, colour, scale) in enumerate(columns):
                values = [plotted(row[column]) * scale for row in rows]
                axes.plot(
                    places, values, linestyle="none", marker=MARKERS[number], color=colour, label=name or None
                )
                if number == len(columns) - 1:
                    _names(axes, places, values, [str(row["model"]) for row in rows])
            axes.set_xscale("log")
            low, high = min(places), max(places)
            axes.set_xlim(low / 1.8, high * 1.8)
            axes.margins(y=0.3)
            ticks = sorted({*finite})
            step = max(1, -(-len(ticks) // 6))
            marks = ticks[::step] + ([edge] if len(finite) < len(rows) else [])
            axes.set_xticks(
                marks, ["∞" if mark == edge and mark not in finite else f"{mark:.3g}" for mark in marks]
            )
            axes.set_xticks([], minor=True)
            axes.set(title=heading, xlabel="curvature κ = max|σ″|", ylabel=label)
            if len(columns) > 1:
                axes.legend(loc="best")
        if title:
            figure.suptitle(title_text(title), fontsize=11, fontweight="bold", ha="left", x=0.01)
        return figure


def plotted(value: Any) -> float:
    """A number of a record; None is NaN."""
    return math.nan if value is None else float(value)


def _handle(colour: str, marker: str, label: str, *, filled: bool = True) -> Line2D:
    face = colour if filled else "white"
    return Line2D([], [], linestyle="none", marker=marker, color=colour, markerfacecolor=face, label=label)


def _dots(
    axes: Axes, record: Record, column: str, at: NDArray[Any], colour: str, marker: str, filled: bool
) -> None:
    scale = 1.0 if column == "effective" else 100.0
    values = [plotted(site[column]) * scale for site in record["sites"]]
    face = colour if filled else "white"
    axes.plot(
        values,
        at,
        linestyle="none",
        color=colour,
        marker=marker,
        markerfacecolor=face,
        zorder=3,
        clip_on=False,
    )


def _names(axes: Axes, places: Sequence[float], values: Sequence[float], names: Sequence[str]) -> None:
    for x, y, name in zip(places, values, names, strict=True):
        if math.isfinite(y):
            axes.annotate(
                plain_text(name),
                (x, y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color="#444444",
            )


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
    for number, (name, grid) in enumerate(grids.items(), 1):
        axes = figure.add_subplot(1, len(grids), number, projection="3d")
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
