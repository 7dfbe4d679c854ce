"""Report room, figures: charts against curvature as plain values, drawn on matplotlib figures without global state.

A `Chart` holds everything that is drawn (panels of curves); `curve_figure`, `panel_figure` and `legend_figures` draw it, whole
or in parts, and `to_svg` and `to_png` give bytes that depend on nothing but the chart and matplotlib's version.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeAlias

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from curvact.files import atomic_write
from curvact.lab.report.table import (
    HESSIAN_LOSSES,
    HESSIAN_NORMALIZATIONS,
    Array,
    Group,
    Intervals,
    Row,
    cells,
    groups_of,
    interval_of,
    level_names,
    student_intervals,
)

Band: TypeAlias = tuple[float, float]

PUBLISHED_BAND: Band = (4.0, 10.0)  # [paper]
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
KAPPA_LABEL = "curvature κ = max|σ″|"
INTERVAL_ROOM = 0.35  # of the range of the data, above and below it
BAND_COLOUR = "#e9e9e4"
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "robust_accuracy": "Robust accuracy, test set",
        "clean_accuracy": "Clean accuracy, test set",
        "train_robust_accuracy": "Robust accuracy, training set",
        "rms": "per parameter",
        "gradient_relative": "relative to gradient",
        "scale_invariant": "scale-invariant",
    }
)
NORM_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "rms": "‖diag H‖₂ / √P",
        "gradient_relative": "‖diag H‖₂ / ‖∇L‖₂",
        "scale_invariant": "‖θ² ⊙ diag H‖₂",
    }
)
STYLE: Mapping[str, object] = MappingProxyType(
    {
        "font.family": ["DejaVu Sans"],
        "font.size": 10.0,
        "axes.titlesize": 11.0,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#555555",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "xtick.color": "#333333",
        "ytick.color": "#333333",
        "lines.linewidth": 1.8,
        "lines.markersize": 5.5,
        "legend.frameon": False,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "svg.hashsalt": "curvact",
        "svg.fonttype": "path",
    }
)


class Optimum(Protocol):
    """Confidence set of the curvature of highest robustness."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Robustness(Protocol):
    """What a verdict says of robust accuracy. `kind`: the verdict in one or two words, such as "plateau"."""

    @property
    def best(self) -> float: ...
    @property
    def optimum(self) -> Optimum | None: ...
    @property
    def kind(self) -> str: ...


class Verdict(Protocol):
    """What the report needs to know of a verdict on one family.

    Where there are `details`, sentences to unfold, the page has them too.
    Where `robustness.optimum_set` (the curvatures of the confidence set, which may have gaps) is there, it is drawn too.
    A verdict on one level of a factor also has `centered` (bool) or `epochs` (int); without them it is drawn for the family.
    """

    @property
    def family(self) -> str: ...
    @property
    def robustness(self) -> Robustness: ...
    @property
    def sentences(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Look:
    """How a curve is drawn, the same wherever it appears."""

    colour: str
    marker: str
    dash: str = "-"
    hollow: bool = False


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: curvatures (K,), the values of every seed (K, S) with NaN where missing, mean and interval (K,)."""

    label: str
    look: Look
    curvatures: Array
    values: Array
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Bar:
    """The confidence set of an optimum, drawn under the curves: a tick at each of `curvatures`; `best`: the highest mean."""

    look: Look
    curvatures: tuple[float, ...]
    best: float


@dataclass(frozen=True)
class Panel:
    """One pair of axes, for one family (None: for all).

    limits: of the vertical axis, shared between panels that are to be compared; span: of the horizontal one.
    """

    title: str
    label: str
    logarithmic: bool
    curves: tuple[Curve, ...]
    family: str | None = None
    bars: tuple[Bar, ...] = ()
    limits: tuple[float, float] | None = None
    span: tuple[float, float] | None = None

    @property
    def cut(self) -> bool:
        """Whether an interval goes on beyond the frame."""
        if self.limits is None:
            return False
        low, high = self.limits
        return any(bool((curve.low < low).any() or (curve.high > high).any()) for curve in self.curves)


@dataclass(frozen=True)
class Chart:
    """A figure of the report: `columns` panels a row, one legend for all. `hidden`: values that a log axis cannot show."""

    name: str
    panels: tuple[Panel, ...]
    columns: int
    legend: tuple[tuple[str, Look], ...]
    band: Band | None
    hidden: int = 0


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """Colour, marker and dash for each name in turn; no two of the first 28 are alike.

    >>> looks_of(["rctaf(beta=0)"])
    {'rctaf(beta=0)': Look(colour='#0072B2', marker='o', dash='-', hollow=False)}
    """
    size = len(OKABE_ITO)
    return {
        name: Look(OKABE_ITO[i % size], MARKERS[i % size], DASHES[i // size % len(DASHES)])
        for i, name in enumerate(names)
    }


def accuracy_chart(
    rows: Sequence[Row],
    verdicts: Sequence[Verdict] = (),
    *,
    band: Band | None = PUBLISHED_BAND,
    intervals: Intervals = student_intervals,
) -> Chart:
    """Robust and clean test accuracy against curvature.

    One level of every factor: a panel a measure, a curve a family. Several: a panel a measure and family, a curve a level.
    The confidence set of each verdict's optimum lies under the robust curves.
    """
    panels, hidden = [], 0
    for column in ("robust_accuracy", "clean_accuracy"):
        made, lost = _panels(rows, column, TITLES[column], "accuracy (%)", intervals, logarithmic=False)
        if column == "robust_accuracy":
            made = [_with_bars(panel, rows, verdicts) for panel in made]
        panels += _same_limits(made)
        hidden += lost
    columns = len({panel.family for panel in panels})
    return Chart("accuracy", _same_span(panels), 3 if columns == 3 else 2, _legend(panels), band, hidden)


def hessian_chart(
    rows: Sequence[Row], *, band: Band | None = PUBLISHED_BAND, intervals: Intervals = student_intervals
) -> Chart:
    """The three normalizations of the Hessian diagonal's norm, on the clean and the adversarial loss, log-log."""
    panels: list[Panel] = []
    hidden = 0
    for loss in HESSIAN_LOSSES:
        across: list[Panel] = []
        for norm in HESSIAN_NORMALIZATIONS:
            title = f"{loss.capitalize()} loss, {TITLES[norm]}"
            made, lost = _panels(
                rows, f"{loss}_hessian_{norm}", title, NORM_LABELS[norm], intervals, logarithmic=True
            )
            across += _same_limits(made)
            hidden += lost
        panels += sorted(
            across, key=lambda panel: panel.family or ""
        )  # a line a family, a column a normalization
    return Chart("hessian", _same_span(panels), 3, _legend(panels), band, hidden)


def train_test_chart(
    rows: Sequence[Row], *, band: Band | None = PUBLISHED_BAND, intervals: Intervals = student_intervals
) -> Chart:
    """Robust accuracy on the training set (dashed) beside the test set (solid): a panel a family and level."""
    names = level_names(rows)
    levels = len(set(names.values()))
    looks = looks_of(sorted({group.family for group in groups_of(rows)}))
    panels, hidden = [], 0
    for group in groups_of(rows):
        curves = []
        for column, text in (("train_robust_accuracy", "training set"), ("robust_accuracy", "test set")):
            look = looks[group.family]
            look = (
                replace(look, dash="--", hollow=True)
                if column.startswith("train")
                else replace(look, dash="-")
            )
            curve, lost = _curve(rows, group, column, text, look, intervals, logarithmic=False)
            hidden += lost
            if curve is not None:
                curves.append(curve)
        if any(curve.label == "training set" for curve in curves):
            title = "\n".join(filter(None, (group.family, names[group])))
            panels.append(Panel(title, "robust accuracy (%)", False, tuple(curves), group.family))
    panels = _same_limits(panels)
    grey = Look("#444444", "o")
    legend = (("training set", replace(grey, dash="--", hollow=True)), ("test set", grey)) if panels else ()
    return Chart("train_test", _same_span(panels), levels if 1 < levels < 5 else 2, legend, band, hidden)


def charts(
    rows: Sequence[Row],
    verdicts: Sequence[Verdict] = (),
    *,
    band: Band | None = PUBLISHED_BAND,
    intervals: Intervals = student_intervals,
) -> list[Chart]:
    """The charts of the report that have anything to show, in its order."""
    every = (
        accuracy_chart(rows, verdicts, band=band, intervals=intervals),
        hessian_chart(rows, band=band, intervals=intervals),
        train_test_chart(rows, band=band, intervals=intervals),
    )
    return [chart for chart in every if chart.panels]


def curve_figure(chart: Chart) -> Figure:
    """The whole chart as one figure: panels in a grid, the legend above."""
    with house_style():
        columns = min(chart.columns, len(chart.panels)) or 1
        lines = math.ceil(len(chart.panels) / columns) or 1
        figure = Figure(
            figsize=(4.6 * columns, 3.4 * lines + 0.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        )
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, chart.panels, strict=False):
            _draw(axes, panel, chart.band)
        for axes in grid[len(chart.panels) :]:
            axes.remove()
        handles = _handles(chart)
        figure.legend(
            handles=handles, loc="outside upper center", ncols=legend_columns(handles, 4.6 * columns)
        )
        return figure


def panel_figure(panel: Panel, band: Band | None = PUBLISHED_BAND) -> Figure:
    """One panel on its own, with the same margins for every panel, so that a page can lay them side by side."""
    with house_style():
        figure = Figure(figsize=(4.6, 3.4))
        _draw(figure.subplots(), panel, band)
        lines = 1 + panel.title.count("\n")
        left = 0.2 if panel.logarithmic else 0.15
        figure.subplots_adjust(left=left, right=0.97, bottom=0.16, top=0.97 - 0.065 * lines)
        return figure


def legend_figures(chart: Chart) -> list[tuple[str, Figure]]:
    """The entries of a chart's legend one by one, text and figure, for a page that wraps them to its width."""
    figures = []
    with house_style():
        for handle in _handles(chart):
            label = str(handle.get_label())
            figure = Figure(figsize=(0.6 + 0.1 * len(label), 0.3))
            figure.legend(handles=[handle], loc="center", borderpad=0.1)
            figures.append((label.replace("\\$", "$").strip(), figure))
    return figures


def to_svg(figure: Figure, *, tight: bool = False) -> bytes:
    """The figure as SVG: text as outlines, no date, ids from the content; the same figure gives the same bytes."""
    return _saved(figure, "svg", tight)


def to_png(figure: Figure) -> bytes:
    """The figure as PNG at 150 dots an inch."""
    return _saved(figure, "png", False)


def write_figures(
    rows: Sequence[Row],
    folder: str | os.PathLike[str],
    band: Band | None = PUBLISHED_BAND,
    verdicts: Sequence[Verdict] = (),
    *,
    intervals: Intervals = student_intervals,
) -> dict[str, Path]:
    """Write `accuracy`, `hessian` and `train_test` as PNG and SVG, those that have data; paths by file name."""
    written: dict[str, Path] = {}
    for chart in charts(rows, verdicts, band=band, intervals=intervals):
        figure = curve_figure(chart)
        for ending, save in (("png", to_png), ("svg", to_svg)):
            path = Path(folder) / f"{chart.name}.{ending}"
            atomic_write(path, save(figure))
            written[path.name] = path
    return written


def _curve(
    rows: Sequence[Row],
    group: Group,
    column: str,
    label: str,
    look: Look,
    intervals: Intervals,
    *,
    logarithmic: bool,
) -> tuple[Curve | None, int]:
    """A curve in the units of its axis (accuracies in per cent), or None without data; and how many values it hides."""
    table = cells(rows, group, column)
    shown = np.isfinite(table.curvatures) & (table.curvatures > 0)
    present = np.isfinite(table.values)
    visible = present & shown[:, None] & ((table.values > 0) | (not logarithmic))
    hidden = int(present.sum() - visible.sum())
    keep = visible.any(1)
    if not keep.any():
        return None, hidden
    values = np.where(visible, table.values, math.nan)[keep] * (1.0 if logarithmic else 100.0)
    return Curve(
        label, look, table.curvatures[keep], values, *interval_of(values, intervals, logarithmic=logarithmic)
    ), hidden


def _panels(
    rows: Sequence[Row], column: str, title: str, label: str, intervals: Intervals, *, logarithmic: bool
) -> tuple[list[Panel], int]:
    """Panels of one measure, one for all families or, with several levels, one a family; and how many values they hide."""
    names = level_names(rows)
    families = sorted({group.family for group in names})
    several = any(names.values())
    by_level = sorted(names, key=lambda group: (group.centered, group.epochs, group.family))
    looks = looks_of(list(dict.fromkeys(names[group] for group in by_level)) if several else families)
    panels: list[Panel] = []
    hidden = 0
    for family in families if several else [None]:
        curves = []
        for group in by_level:
            if family not in (None, group.family):
                continue
            key = names[group] if several else group.family
            curve, lost = _curve(rows, group, column, key, looks[key], intervals, logarithmic=logarithmic)
            hidden += lost
            if curve is not None:
                curves.append(curve)
        if curves:
            heading = title if family is None or len(families) == 1 else f"{title}\n{family}"
            panels.append(Panel(heading, label, logarithmic, tuple(curves), family))
    return panels, hidden


def _with_bars(panel: Panel, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> Panel:
    names, family = level_names(rows), panel.family
    bars = []
    for verdict in verdicts:
        if family not in (None, verdict.family):
            continue
        optimum = verdict.robustness.optimum
        if optimum is None or not all(_drawable(value) for value in (optimum.low, optimum.high)):
            continue
        centered, epochs = getattr(verdict, "centered", None), getattr(verdict, "epochs", None)
        groups = [
            group
            for group in names
            if group.family == verdict.family
            and (centered is None or group.centered == centered)
            and (epochs is None or group.epochs == epochs)
        ]
        labels = {names[group] if family is not None else group.family for group in groups}
        curves = [curve for curve in panel.curves if curve.label in labels]
        if curves:
            inside = (
                float(kappa) for kappa in getattr(verdict.robustness, "optimum_set", ()) if _drawable(kappa)
            )
            members = tuple(sorted({float(optimum.low), float(optimum.high), *inside}))
            look = curves[0].look if len(curves) == 1 else Look("#444444", "o")
            bars.append(Bar(look, members, float(verdict.robustness.best)))
    return replace(panel, bars=tuple(bars))


def _drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _same_limits(panels: list[Panel]) -> list[Panel]:
    """The panels with one vertical range: all dots and means, intervals up to a limit, and room below for the bars.

    An interval over two seeds can be many times as wide as the whole effect; it is cut off at INTERVAL_ROOM of the range.
    """
    if not panels:
        return panels
    logarithmic = panels[0].logarithmic
    curves = [curve for panel in panels for curve in panel.curves]
    points = _on_axis([part for curve in curves for part in (curve.values, curve.mean)], logarithmic)
    ends = _on_axis([part for curve in curves for part in (curve.low, curve.high)], logarithmic)
    low, high = float(points.min()), float(points.max())
    least = 0.3 if logarithmic else 2.0
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    if len(ends):
        room = INTERVAL_ROOM * (high - low)
        low, high = (
            max(min(low, float(ends.min())), low - room),
            min(max(high, float(ends.max())), high + room),
        )
    if not logarithmic:
        low, high = max(low, min(0.0, float(points.min()))), min(high, max(100.0, float(points.max())))
    room = high - low
    lines = max(len(panel.bars) for panel in panels)
    low, high = low - room * (0.05 + (0.06 * lines + 0.05 if lines else 0.0)), high + 0.05 * room
    limits = (10.0**low, 10.0**high) if logarithmic else (low, high)
    return [replace(panel, limits=limits) for panel in panels]


def _on_axis(parts: Sequence[Array], logarithmic: bool) -> Array:
    """The finite numbers of all parts, as their logarithms to base 10 for a logarithmic axis."""
    numbers: Array = np.concatenate([part.ravel() for part in parts])
    if logarithmic:
        numbers = np.log10(numbers[numbers > 0])
    kept: Array = numbers[np.isfinite(numbers)]
    return kept


def _same_span(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    curvatures = [kappa for panel in panels for curve in panel.curves for kappa in curve.curvatures]
    if not curvatures:
        return tuple(panels)
    margin = 1.6 if max(curvatures) < 10 * min(curvatures) else 1.3
    span = (float(min(curvatures)) / margin, float(max(curvatures)) * margin)
    return tuple(replace(panel, span=span) for panel in panels)


def _legend(panels: Sequence[Panel]) -> tuple[tuple[str, Look], ...]:
    found = {curve.label: curve.look for panel in panels for curve in panel.curves}
    return tuple((name, look) for name, look in found.items() if name)


def _draw(axes: Axes, panel: Panel, band: Band | None) -> None:
    axes.set_xscale("log")
    if panel.logarithmic:
        axes.set_yscale("log")
    if panel.span is not None:
        axes.set_xlim(panel.span)
    if panel.limits is not None:
        axes.set_ylim(panel.limits)
    if band is not None:
        axes.axvspan(*band, color=BAND_COLOUR, linewidth=0, zorder=0.5)
    for curve in panel.curves:
        _draw_curve(axes, curve, shade=0.14 if len(panel.curves) < 3 else 0.08)
    for index, bar in enumerate(panel.bars):
        _draw_bar(axes, bar, 0.045 + 0.06 * (len(panel.bars) - 1 - index))
    axes.set_title(plain_text(panel.title))
    axes.set_xlabel(KAPPA_LABEL)
    axes.set_ylabel(panel.label)
    log_ticks(axes, "x")
    if panel.logarithmic:
        log_ticks(axes, "y")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_curve(axes: Axes, curve: Curve, shade: float) -> None:
    look = curve.look
    kappa = np.repeat(curve.curvatures, curve.values.shape[1])
    axes.plot(
        kappa,
        curve.values.ravel(),
        linestyle="none",
        marker=look.marker,
        markersize=3.2,
        color=look.colour,
        alpha=0.4,
        markeredgewidth=0,
        gid="seeds",
    )
    bounded = np.isfinite(curve.low) & np.isfinite(curve.high)
    axes.fill_between(
        curve.curvatures,
        curve.low,
        curve.high,
        where=bounded,
        color=look.colour,
        alpha=shade,
        linewidth=0,
        zorder=1.5,
    )
    axes.vlines(
        curve.curvatures[bounded],
        curve.low[bounded],
        curve.high[bounded],
        color=look.colour,
        alpha=0.45,
        linewidth=0.9,
    )
    axes.plot(curve.curvatures, curve.mean, **_line(look), zorder=3, gid="mean")  # type: ignore[arg-type]


def _draw_bar(axes: Axes, bar: Bar, height: float) -> None:
    where = axes.get_xaxis_transform()
    axes.plot(
        bar.curvatures,
        [height] * len(bar.curvatures),
        transform=where,
        color=bar.look.colour,
        linewidth=2.2,
        marker="|",
        markersize=7,
        markeredgewidth=1.8,
        solid_capstyle="butt",
        zorder=3,
        gid="optimum",
    )
    if _drawable(bar.best):
        axes.plot(
            [bar.best],
            [height],
            transform=where,
            linestyle="none",
            marker=bar.look.marker,
            color=bar.look.colour,
            zorder=4,
        )


def _line(look: Look) -> dict[str, object]:
    return {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": look.dash,
        "markerfacecolor": "white" if look.hollow else look.colour,
        "markeredgewidth": 1.2,
    }


def _handles(chart: Chart) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], label=plain_text(name), **_line(look))  # type: ignore[arg-type]
        for name, look in chart.legend
    ]
    if any(panel.bars for panel in chart.panels):
        bar = {"linewidth": 2.2, "marker": "|", "markersize": 7, "markeredgewidth": 1.8}
        handles.append(Line2D([], [], color="#444444", label="confidence set of the optimum", **bar))  # type: ignore[arg-type]
    spans = [panel.span for panel in chart.panels if panel.span is not None]
    if chart.band is not None and any(low < chart.band[1] and high > chart.band[0] for low, high in spans):
        low, high = chart.band
        handles.append(Patch(color=BAND_COLOUR, label=f"published optimum, {low:g} to {high:g}"))
    return handles


def legend_columns(handles: Sequence[Artist], width: float) -> int:
    """As many columns as fit into `width` inches: all in one line, or else as many as the longest label allows."""
    widths = [0.6 + 0.08 * len(str(handle.get_label())) for handle in handles]
    if sum(widths) <= width:
        return max(1, len(handles))
    return max(1, int(width / max(widths)))


def log_ticks(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.2 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8 if len(subs) == 1 else 12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))


def plain_number(value: float) -> str:
    """A tick's text: a plain number where that is short, else a power of ten.

    >>> [plain_number(value) for value in (0.1, 1.0, 200.0, 1e-5, 2e6)]
    ['0.1', '1', '200', '$10^{-5}$', '$2\\\\cdot10^{6}$']
    """
    if 1e-4 <= abs(value) < 1e5 or value == 0:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    factor = "" if float(mantissa) == 1 else f"{float(mantissa):g}\\cdot"
    return f"${factor}10^{{{int(exponent)}}}$"


def plain_text(text: str) -> str:
    """A user's name as matplotlib is to draw it: no formulas, not too long, not hidden by a leading underscore."""
    lines = [line if len(line) <= 38 else line[:37] + "…" for line in text.splitlines()]
    shown = "\n".join(lines).replace("$", "\\$")
    return f" {shown}" if shown.startswith("_") else shown


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Our style on matplotlib's defaults, whatever the user's own settings are; these come back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def _saved(figure: Figure, kind: str, tight: bool) -> bytes:
    stream = io.BytesIO()
    metadata = (
        {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else {"Software": None}
    )
    options = {"bbox_inches": "tight", "pad_inches": 0.02} if tight else {}
    with house_style():
        figure.savefig(stream, format=kind, dpi=150, metadata=metadata, **options)  # type: ignore[arg-type]
    return stream.getvalue()
