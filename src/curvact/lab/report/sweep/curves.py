"""Small multiples of a sweep: one panel a stratum, the same axes in all, and the optima of all
strata in one figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from curvact.lab.report.style import (
    BAND_COLOUR,
    CURVATURE_LABEL,
    GREY,
    NORM_LABELS,
    NORM_TITLES,
    OKABE_ITO,
    Look,
    canvas,
    house_style,
    legend_columns,
    log_ticks,
    looks_of,
    plain_text,
)
from curvact.lab.statistics import words
from curvact.lab.statistics.contrasts import Array
from curvact.lab.statistics.curve import CurveAnswer, StratumAnswer
from curvact.lab.statistics.interval import Interval, Scale, curve_intervals, scale_of
from curvact.lab.statistics.paired import middle
from curvact.lab.statistics.strata import BESIDE, QUICK, by_seed, cells
from curvact.lab.table import Value

PANELS = 12  # at most, in one figure; more make further figures
INTERVAL_ROOM = 0.35  # of the range of the data, above and below it
SIZE = (4.6, 3.4)  # of a panel, in inches
FIRST = Look(OKABE_ITO[0], "o")
SECOND = Look(OKABE_ITO[1], "s")
QUICK_MARK = "quick: "
"""Before the name of the quick attack, in a legend."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: points (K,), the values of every seed (K, S) with NaN where missing, mean and
    interval (K,)."""

    label: str
    look: Look
    points: Array
    values: Array
    mean: Array
    low: Array
    high: Array

    @property
    def bounded(self) -> bool:
        """Whether every point has an interval."""
        return bool(np.isfinite(self.low).all())


@dataclass(frozen=True)
class Panel:
    """One stratum. references: name → mean of runs without a place on the axis; optimum: confidence
    set and best point."""

    title: str
    curves: tuple[Curve, ...]
    references: Mapping[str, Interval]
    optimum: tuple[tuple[float, ...], float] | None = None


@dataclass(frozen=True)
class Chart:
    """Small multiples with one scale. limits, span: of the vertical and the horizontal axis.

    hidden: values that a logarithmic axis cannot show; cut: whether an interval goes on beyond the
    frame.
    """

    name: str
    title: str
    label: str
    axis: str
    logarithmic: bool
    panels: tuple[Panel, ...]
    band: tuple[float, float] | None
    limits: tuple[float, float]
    span: tuple[float, float]
    hidden: int
    cut: bool


def charts(answer: CurveAnswer, titles: Mapping[str, str] | None = None) -> list[Chart]:
    """The charts of a curve that have anything to show: the outcome, clean accuracy, each
    normalization of the norms."""
    own = dict(titles or {})
    outcome = answer.question.outcome
    accuracy = scale_of(outcome) == "fraction"
    hollow = replace(FIRST, dash="--", hollow=True)

    def named(metric: str) -> str:
        return words.outcome_name(metric) + (f", {own[metric]}" if metric in own else "")

    def chart_of(metric: str, lines: list[tuple[str, str, Look]], *, optimum: bool = False) -> Chart | None:
        name = named(metric)
        axis = own.get(metric, name)
        label = f"{axis} (%)" if scale_of(metric) == "fraction" else axis
        return _chart(answer, metric, name[:1].upper() + name[1:], label, lines, optimum=optimum)

    beside = BESIDE.get(outcome)
    lines = [
        ("test set" if accuracy and beside is None else own.get(outcome, named(outcome)), outcome, FIRST)
    ]
    if beside is not None:
        lines.append(
            (
                f"{QUICK_MARK}{own.get(beside, 'PGD on the same images')}",
                beside,
                replace(SECOND, dash="--", hollow=True),
            )
        )
    elif accuracy:
        lines.append(("training set", f"train_{outcome}", hollow))
    found = [chart_of(outcome, lines, optimum=True)]
    if beside is not None:
        found.append(
            chart_of(QUICK, [("test set", QUICK, FIRST), ("training set", f"train_{QUICK}", hollow)])
        )
    if outcome != "clean_accuracy":
        clean = own.get("clean_accuracy", "clean accuracy")
        lines = [("test set", "clean_accuracy", FIRST)]
        found.append(_chart(answer, "clean_accuracy", "Clean accuracy", f"{clean} (%)", lines))
    for norm, label in NORM_LABELS.items():
        lines = [
            (f"{loss} loss", metric, look)
            for loss, look in (("clean", FIRST), ("adversarial", SECOND))
            if (metric := f"{loss}_hessian_{norm}") in answer.question.norms
        ]
        title = f"Hessian norm, {NORM_TITLES[norm]}"
        found.append(_chart(answer, f"hessian_{norm}", title, label, lines, logarithmic=True))
    return [chart for chart in found if chart is not None]


def metric_curves(answer: CurveAnswer) -> Iterator[tuple[str, Mapping[str, Value], Curve]]:
    """The curve of every metric that the charts show, in each stratum: metric, labels, curve."""
    outcome = answer.question.outcome
    metrics = [outcome, f"train_{outcome}", BESIDE.get(outcome), QUICK, f"train_{QUICK}", "clean_accuracy"]
    for metric in dict.fromkeys(m for m in (*metrics, *answer.question.norms) if m is not None):
        for s in answer.strata:
            logarithmic = scale_of(metric) == "positive"
            curve, _ = _curve(s, answer.question.axis, metric, "", FIRST, logarithmic=logarithmic)
            if curve is not None:
                yield metric, s.stratum.labels, curve


def _chart(
    answer: CurveAnswer,
    name: str,
    title: str,
    label: str,
    lines: Sequence[tuple[str, str, Look]],
    *,
    optimum: bool = False,
    logarithmic: bool = False,
) -> Chart | None:
    question = answer.question
    panels, hidden = [], 0
    for s in answer.strata:
        curves = []
        for text, metric, look in lines:
            curve, lost = _curve(s, question.axis, metric, text, look, logarithmic=logarithmic)
            hidden += lost
            if curve is not None:
                curves.append(curve)
        if curves:
            v = s.verdict
            tested = optimum and math.isfinite(v.plateau_spread)
            references = _references(s, lines[0][1], logarithmic=logarithmic)
            panels.append(
                Panel(s.stratum.name, tuple(curves), references, (v.optimum_set, v.best) if tested else None)
            )
    if not panels:
        return None
    limits, cut = _limits(panels, logarithmic=logarithmic)
    points = [float(at) for panel in panels for curve in panel.curves for at in curve.points]
    margin = 1.6 if max(points) < 10 * min(points) else 1.3
    axis = CURVATURE_LABEL if question.axis == "curvature" else question.axis
    span = (min(points) / margin, max(points) * margin)
    return Chart(
        name, title, label, axis, logarithmic, tuple(panels), question.shown_band, limits, span, hidden, cut
    )


def _curve(
    s: StratumAnswer, axis: str, metric: str, label: str, look: Look, *, logarithmic: bool
) -> tuple[Curve | None, int]:
    """A curve in the units of its axis (accuracies in per cent), or None without data; and how many
    values it hides."""
    table = cells(s.stratum.rows, axis, metric)
    visible = np.isfinite(table.values) & ((table.values > 0) | (not logarithmic))
    hidden = int(np.isfinite(table.values).sum() - visible.sum())
    keep = visible.any(1)
    if not keep.any():
        return None, hidden
    values = np.where(visible, table.values, math.nan)[keep]
    scale: Scale = "positive" if logarithmic else scale_of(metric)
    mean, low, high = curve_intervals(values, scale=scale)
    few = np.isfinite(values).sum(1) < 3  # an interval of two says nothing
    low, high = np.where(few, math.nan, low), np.where(few, math.nan, high)
    unit = 100.0 if scale == "fraction" else 1.0
    parts = (unit * part for part in (values, mean, low, high))
    return Curve(label, look, table.points[keep], *parts), hidden


def _references(s: StratumAnswer, metric: str, *, logarithmic: bool) -> dict[str, Interval]:
    """The mean of each reference with its interval, in the units of the axis."""
    found = {}
    unit = 100.0 if scale_of(metric) == "fraction" else 1.0
    for name, rows in s.stratum.references.items():
        values = [
            v for v in by_seed(rows, metric).values() if math.isfinite(v) and (v > 0 or not logarithmic)
        ]
        if not values:
            continue
        if logarithmic:
            mean, low, high = (
                float(part[0]) for part in curve_intervals(np.array([values]), scale="positive")
            )
        else:
            one = middle(metric, values)
            mean, low, high = one.value, one.low, one.high
        if len(values) < 3:
            low = high = math.nan
        found[name] = Interval(unit * mean, unit * low, unit * high, len(values))
    return found


def _limits(panels: Sequence[Panel], *, logarithmic: bool) -> tuple[tuple[float, float], bool]:
    """One vertical range for all panels: all dots, means and references, intervals up to a limit,
    room below for the optima.

    An interval over two seeds can be many times as wide as the whole effect; it is cut off at
    INTERVAL_ROOM of the range.
    """
    curves = [curve for panel in panels for curve in panel.curves]
    references = np.array([mean.value for panel in panels for mean in panel.references.values()])
    points = _on_axis([*(part for c in curves for part in (c.values, c.mean)), references], logarithmic)
    ends = _on_axis([part for c in curves for part in (c.low, c.high)], logarithmic)
    low, high = float(points.min()), float(points.max())
    least = 0.3 if logarithmic else 2.0 if high > 1 else 1e-9
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    if len(ends):
        room = INTERVAL_ROOM * (high - low)
        low = max(min(low, float(ends.min())), low - room)
        high = min(max(high, float(ends.max())), high + room)
    if not logarithmic:
        low, high = max(low, min(0.0, float(points.min()))), min(high, max(100.0, float(points.max())))
    cut = bool(len(ends)) and (float(ends.min()) < low or float(ends.max()) > high)
    room = high - low
    bars = any(panel.optimum for panel in panels)
    low, high = low - room * (0.16 if bars else 0.05), high + 0.05 * room
    return ((10.0**low, 10.0**high) if logarithmic else (low, high)), cut


def _on_axis(parts: Sequence[Array], logarithmic: bool) -> Array:
    """The finite numbers of all parts, as their logarithms to base 10 for a logarithmic axis."""
    numbers: Array = np.concatenate([part.ravel() for part in parts])
    if logarithmic:
        numbers = np.log10(numbers[numbers > 0])
    kept: Array = numbers[np.isfinite(numbers)]
    return kept


def chart_figures(chart: Chart) -> Iterator[tuple[str, Figure]]:
    """The whole chart, at most PANELS panels a figure: file name without ending, and figure."""
    pages = [chart.panels[start : start + PANELS] for start in range(0, len(chart.panels), PANELS)]
    for number, panels in enumerate(pages, 1):
        columns = min(3, len(panels)) if len(panels) != 4 else 2
        lines = math.ceil(len(panels) / columns)
        with house_style():
            figure = Figure(
                figsize=(SIZE[0] * columns, SIZE[1] * lines + 0.5),
                layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
            )
            grid = figure.subplots(lines, columns, squeeze=False).ravel()
            for axes, panel in zip(grid, panels, strict=False):
                _draw(axes, chart, panel)
            for axes in grid[len(panels) :]:
                axes.remove()
            handles = _handles(chart)
            columns = legend_columns(handles, SIZE[0] * columns)
            figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        yield (chart.name if len(pages) == 1 else f"{chart.name}-{number}"), figure


def panel_figure(chart: Chart, panel: Panel, ax: Axes | None = None) -> Figure:
    """One panel, with the same margins for every panel, so that a page can lay them side by
    side. ax: an axes of the user to draw on."""
    if ax is not None:
        with house_style():
            _draw(ax, chart, panel)
        return cast("Figure", ax.get_figure())
    with house_style():
        figure = Figure(figsize=SIZE)
        _draw(figure.subplots(), chart, panel)
        left = 0.2 if chart.logarithmic else 0.15
        if len(chart.panels) == 1:  # the heading of the page is its title
            figure.axes[0].set_title("")
        top = 0.97 - 0.065 * (1 + plain_text(_wrapped(panel.title)).count("\n"))
        figure.subplots_adjust(left=left, right=0.97, bottom=0.16, top=top)
        return figure


def legend_figures(chart: Chart) -> list[tuple[str, Figure]]:
    """The entries of the legend one by one, text and figure, for a page that wraps them to its
    width."""
    figures = []
    with house_style():
        for handle in _handles(chart):
            label = str(handle.get_label())
            figure = Figure(figsize=(0.6 + 0.1 * len(label), 0.3))
            figure.legend(handles=[handle], loc="center", borderpad=0.1)
            figures.append((label.replace("\\$", "$").strip(), figure))
    return figures


def optimum_figure(answer: CurveAnswer, ax: Axes | None = None) -> Figure | None:
    """A line a stratum: the confidence set of its optimum and its best point; None for fewer than
    two strata. ax: see `canvas`."""
    shown = [s for s in answer.strata if math.isfinite(s.verdict.plateau_spread)]
    if len(shown) < 2:
        return None
    band = answer.question.shown_band
    with house_style():
        figure = canvas((8.6, 1.1 + 0.32 * len(shown)), ax)
        axes = figure.subplots()
        axes.set_xscale("log")
        points = [at for s in shown for at in s.verdict.curvatures]
        axes.set_xlim(min(points) / 1.3, max(points) * 1.3)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        if band is not None:
            axes.axvspan(*band, color=BAND_COLOUR, linewidth=0, zorder=0.5)
        common = answer.common.overlap if answer.common else None
        if common is not None:
            for at in {common.low, common.high}:
                axes.axvline(at, color=OKABE_ITO[2], linewidth=1.2, linestyle="--")
        for line, s in enumerate(shown):
            axes.plot(
                s.verdict.curvatures, [line] * len(s.verdict.curvatures), "|", color="#bbbbbb", markersize=5
            )
            _bar(axes, s.verdict.optimum_set, s.verdict.best, line)
        axes.set_yticks(range(len(shown)), labels=[plain_text(s.stratum.name) for s in shown])
        axes.grid(False)
        name = CURVATURE_LABEL if answer.question.axis == "curvature" else answer.question.axis
        axes.set(xlabel=name, title="Where the optimum can be (95 % confidence sets)")
        log_ticks(axes, "x")
        handles = [
            _set_handle(),
            Line2D([], [], color=GREY, marker="o", linestyle="none", label="highest mean"),
        ]
        if common is not None:
            label = "common to all strata"
            handles.append(Line2D([], [], color=OKABE_ITO[2], linestyle="--", label=label))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _wrapped(title: str, width: int = 38) -> str:
    """A title in lines, broken between the labels of a stratum."""
    lines: list[str] = []
    for part in title.split(", "):
        if lines and len(lines[-1]) + len(part) + 2 <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return "\n".join(lines)


def _draw(axes: Axes, chart: Chart, panel: Panel) -> None:
    axes.set_xscale("log")
    if chart.logarithmic:
        axes.set_yscale("log")
    axes.set_xlim(chart.span)
    axes.set_ylim(chart.limits)
    if chart.band is not None:
        axes.axvspan(*chart.band, color=BAND_COLOUR, linewidth=0, zorder=0.5)
    for name, mean in panel.references.items():
        look = _reference_looks(chart)[name]
        if mean.bounded:
            axes.axhspan(mean.low, mean.high, color=look.colour, alpha=0.1, linewidth=0, zorder=0.8)
        axes.axhline(mean.value, color=look.colour, linestyle=look.dash, linewidth=1.3, gid="reference")
        place = {
            "xy": (0.995, mean.value),
            "xycoords": axes.get_yaxis_transform(),
            "textcoords": "offset points",
        }
        text = {"ha": "right", "va": "bottom", "fontsize": 8, "color": look.colour, "xytext": (0, 1)}
        axes.annotate(plain_text(name), **place, **text)  # type: ignore[arg-type]
    for curve in panel.curves:
        _draw_curve(axes, curve)
    if panel.optimum is not None:
        _bar(axes, *panel.optimum, 0.045, axes.get_xaxis_transform())
    axes.set_title(plain_text(_wrapped(panel.title)) or _wrapped(chart.title))
    axes.set_xlabel(chart.axis)
    axes.set_ylabel(chart.label)
    log_ticks(axes, "x")
    if chart.logarithmic:
        log_ticks(axes, "y")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_curve(axes: Axes, curve: Curve) -> None:
    look = curve.look
    dots = {"marker": look.marker, "markersize": 3.2, "alpha": 0.4, "markeredgewidth": 0}
    at = np.repeat(curve.points, curve.values.shape[1])
    axes.plot(at, curve.values.ravel(), linestyle="none", color=look.colour, gid="seeds", **dots)  # type: ignore[arg-type]
    bounded = np.isfinite(curve.low) & np.isfinite(curve.high)
    if not look.hollow:
        band = {"color": look.colour, "alpha": 0.14, "linewidth": 0, "zorder": 1.5}
        axes.fill_between(curve.points, curve.low, curve.high, where=bounded, **band)  # type: ignore[arg-type]
        low, high = curve.low[bounded], curve.high[bounded]
        axes.vlines(curve.points[bounded], low, high, color=look.colour, alpha=0.45, linewidth=0.9)
    axes.plot(curve.points, curve.mean, **_line(look), zorder=3, gid="mean")  # type: ignore[arg-type]


def _bar(axes: Axes, points: Sequence[float], best: float, height: float, transform: object = None) -> None:
    where = {} if transform is None else {"transform": transform}
    bar = {"linewidth": 2.2, "marker": "|", "markersize": 7, "markeredgewidth": 1.8, "solid_capstyle": "butt"}
    axes.plot(points, [height] * len(points), color=GREY, zorder=3, gid="optimum", **bar, **where)  # type: ignore[arg-type]
    axes.plot([best], [height], linestyle="none", marker="o", color=GREY, zorder=4, **where)  # type: ignore[arg-type]


def _line(look: Look) -> dict[str, object]:
    return {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": look.dash,
        "markerfacecolor": "white" if look.hollow else look.colour,
        "markeredgewidth": 1.2,
    }


def _reference_looks(chart: Chart) -> dict[str, Look]:
    names = list(dict.fromkeys(name for panel in chart.panels for name in panel.references))
    colours = OKABE_ITO[2:]
    return {
        name: replace(look, colour=colours[i % len(colours)], dash=("-.", ":")[i // len(colours) % 2])
        for i, (name, look) in enumerate(looks_of(names).items())
    }


def _set_handle() -> Line2D:
    bar = {"linewidth": 2.2, "marker": "|", "markersize": 7, "markeredgewidth": 1.8}
    return Line2D([], [], color=GREY, label="confidence set of the optimum", **bar)  # type: ignore[arg-type]


def _handles(chart: Chart) -> list[Artist]:
    found = {curve.label: curve.look for panel in chart.panels for curve in panel.curves}
    handles: list[Artist] = [
        Line2D([], [], label=plain_text(name), **_line(look))  # type: ignore[arg-type]
        for name, look in found.items()
    ]
    for name, look in _reference_looks(chart).items():
        label = plain_text(f"{name} (reference)")
        style = {"color": look.colour, "linestyle": look.dash, "linewidth": 1.3}
        handles.append(Line2D([], [], label=label, **style))  # type: ignore[arg-type]
    if any(panel.optimum for panel in chart.panels):
        handles.append(_set_handle())
    low, high = chart.span
    if chart.band is not None and low < chart.band[1] and high > chart.band[0]:
        label = f"published optimum, {chart.band[0]:g} to {chart.band[1]:g}"
        handles.append(Patch(color=BAND_COLOUR, label=label))
    return handles
