"""What figures and tables of analyses share. They are drawn from records, plain JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.markup import escape
from rich.table import Table

from curvact.errors import CurvactError
from curvact.lab.report.style import (
    GREY,
    OKABE_ITO,
    legend_columns,
    log_ticks,
    plain_text,
    title_text,
    width_of,
)

Record = Mapping[str, Any]
"""What `as_dict()` of a result gives, or the same read back from JSON. None: not finite."""

CLEAN, ATTACKED = OKABE_ITO[0], OKABE_ITO[1]
NOISE = 0.5
"""A share or a cosine with a larger standard error is shown as noise. [ours]"""


# ---- figures ----


def plotted(value: Any) -> float:
    """A number of a record; None is NaN."""
    return math.nan if value is None else float(value)


def headline(figure: Figure, title: str, note: str = "") -> None:
    """The title of a whole figure, with a note under it, where there are any."""
    lines = [line for line in (title_text(title), note) if line]
    if lines:
        figure.suptitle("\n".join(lines), fontsize=11, fontweight="bold", ha="left", x=0.01)


def handle(label: str, colour: str = GREY, marker: str = "", *, filled: bool = True) -> Line2D:
    """An entry of a legend: a mark, or a line where there is no marker."""
    face = colour if filled else "white"
    line = Line2D([], [], marker=marker, color=colour, markerfacecolor=face, label=label)
    line.set_linestyle("none" if marker else "-")
    return line


def legend(figure: Figure, handles: Sequence[Artist], columns: int | None = None) -> None:
    """The legend of a whole figure, under it; in as many columns as fit where `columns` is None."""
    if columns is None:
        columns = legend_columns(handles, width_of(figure))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def log_axis(axes: Axes, which: Literal["x", "y"], room: float = 1.5) -> None:
    """A logarithmic axis with ticks. It is widened to a factor `room` around its middle at least."""
    across = which == "x"
    (axes.set_xscale if across else axes.set_yscale)("log")
    low, high = axes.get_xlim() if across else axes.get_ylim()
    if high < room**2 * low:
        middle = math.sqrt(low) * math.sqrt(high)
        (axes.set_xlim if across else axes.set_ylim)(middle / room, middle * room)
    log_ticks(axes, which)


def annotate(axes: Axes, points: Iterable[tuple[str, float, float]], size: int = 7) -> None:
    """The names of points above them: (name, x, y). Points that are not finite have none."""
    for name, x, y in points:
        if math.isfinite(y):
            axes.annotate(
                plain_text(name),
                (x, y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=size,
                color=GREY,
            )


def check_not_empty(records: Mapping[str, Record], where: str) -> None:
    """Raises CurvactError for no records."""
    if not records:
        raise CurvactError(f"{where} got no records: there is nothing to draw")


# ---- tables ----


def new_table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    """A table without lines; the first columns are aligned left, the others right."""
    table = Table(title=escape(title) or None, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return table


def number(value: Any, digits: int = 3) -> str:
    """
    >>> number(0.012345), number(None), number(-2.0)
    ('0.0123', '–', '−2')
    """
    return "–" if value is None else f"{value:.{digits}g}".replace("-", "−")


def percent(value: Any) -> str:
    return "–" if value is None else f"{100 * value:.1f}".replace("-", "−")


def estimate(entry: Record, scale: float = 1.0) -> str:
    """A value and its standard error, both to the first digit of the error.

    >>> estimate({"value": 0.10621, "standard_error": 0.0023}), estimate({"value": -97.8, "standard_error": 23.4})
    ('0.106 ± 0.002', '−98 ± 23')
    """
    value, error = entry["value"], entry["standard_error"]
    if value is None:
        return "–"
    value, error = scale * value, scale * (error or 0.0)
    if error == 0 or error < 1e-6 * abs(value):
        return number(value)
    decimals = -math.floor(math.log10(error))
    if decimals > 5:
        return f"{number(value)} ± {number(error, 1)}"
    return f"{value:.{max(decimals, 0)}f} ± {error:.{max(decimals, 0)}f}".replace("-", "−")
