"""How every figure looks: colours, marks, fonts, ticks, and figures as bytes that depend on nothing
else."""

from __future__ import annotations

import contextlib
import io
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from curvact.errors import CurvactError
from curvact.files import atomic_write

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
GREY = "#444444"
BAND_COLOUR = "#e9e9e4"
CURVATURE_LABEL = "curvature κ = max|σ″|"
NORM_TITLES: Mapping[str, str] = MappingProxyType(
    {
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


@dataclass(frozen=True)
class Look:
    """How a curve is drawn, the same wherever it appears."""

    colour: str
    marker: str
    dash: str = "-"
    hollow: bool = False


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


def legend_columns(handles: Sequence[Artist], width: float) -> int:
    """As many columns as fit into `width` inches: all in one line, or else as many as the longest
    label allows."""
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
    """A user's name as matplotlib is to draw it: no formulas, not too long, not hidden by a leading
    underscore."""
    lines = [line if len(line) <= 38 else line[:37] + "…" for line in text.splitlines()]
    shown = "\n".join(lines).replace("$", "\\$")
    return f" {shown}" if shown.startswith("_") else shown


def title_text(text: str) -> str:
    """A user's text as matplotlib draws it: no formulas, in lines of at most 70 letters."""
    return "\n".join(textwrap.wrap(text, 70)).replace("$", "\\$")


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Our style on matplotlib's defaults, whatever the user's own settings are; these come back
    afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def canvas(
    size: tuple[float, float], ax: Axes | None = None, layout: str | ConstrainedLayoutEngine = "constrained"
) -> Figure:
    """A new figure of a size in inches, or a part of the user's own figure in the place of `ax`.

    ax: an axes of `pyplot.subplots` or `subplot_mosaic`; it is replaced, and the panels and the
    legend of a picture take its place. The user's figure gets a constrained layout where it has
    none. Raises CurvactError for axes without a place in a grid.

    >>> axes = Figure().subplots(1, 2)
    >>> part = canvas((4, 3), axes[0])
    >>> len(part.subplots(1, 2)), axes[1].figure.axes.index(axes[1])
    (2, 0)
    """
    if ax is None:
        return Figure(figsize=size, layout=layout)  # type: ignore[arg-type]
    place, figure = ax.get_subplotspec(), ax.get_figure(root=False)
    if place is None or figure is None:
        raise CurvactError("ax has no place in a grid of its figure: take one of plt.subplots()")
    root = ax.get_figure(root=True)
    if isinstance(root, Figure) and root.get_layout_engine() is None:
        root.set_layout_engine("constrained")
    ax.remove()
    return cast("Figure", figure.add_subfigure(place))


def width_of(figure: Figure) -> float:
    """The width of a figure, or of a part of one, in inches."""
    return float(figure.bbox.width / figure.dpi)


def to_svg(figure: Figure, *, tight: bool = False, outlines: bool = True) -> bytes:
    """The figure as SVG: no date, ids from the content; the same figure gives the same bytes.

    outlines: text as outlines, which look the same everywhere. False: text as text, in half the bytes,
    in DejaVu Sans or in a font of the same width where the reader's machine has one.
    """
    svg = _saved(figure, "svg", tight, outlines)
    return svg if outlines else svg.replace(b"'DejaVu Sans'", b"'DejaVu Sans', Verdana, sans-serif")


def to_png(figure: Figure) -> bytes:
    """The figure as PNG at 150 dots an inch."""
    return _saved(figure, "png", False)


def write_figure(figure: Figure, where: str | os.PathLike[str]) -> dict[str, Path]:
    """Write `where` with the endings .png and .svg; the paths by file name. The folder has to
    exist.

    Raises CurvactError when a file cannot be written.
    """
    stem = Path(where)
    written = {}
    for ending, save in (("png", to_png), ("svg", to_svg)):
        path = stem.with_name(f"{stem.name}.{ending}")
        atomic_write(path, save(figure))
        written[path.name] = path
    return written


def _saved(figure: Figure, kind: str, tight: bool, outlines: bool = True) -> bytes:
    stream = io.BytesIO()
    metadata = (
        {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else {"Software": None}
    )
    options = {"bbox_inches": "tight", "pad_inches": 0.02} if tight else {}
    with house_style():
        matplotlib.rcParams["svg.fonttype"] = "path" if outlines else "none"
        figure.savefig(stream, format=kind, dpi=150, metadata=metadata, **options)  # type: ignore[arg-type]
    return stream.getvalue()
