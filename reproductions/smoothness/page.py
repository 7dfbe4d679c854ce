"""One self-contained page on the linear theory: the L∞ staircase, the L2 curve, and the numbers of
the check.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curvact.errors import CurvactError
from curvact.files import atomic_write

Record = Mapping[str, Any]

NAMES = {"linf": "L∞", "l2": "L2"}
TITLE = "L∞ makes a staircase of the loss’s gradient, L2 a curve"
LIGHT = {"linf": "#d55e00", "l2": "#0072b2", "wall": "#bbbbb4"}
DARK = {"linf": "#ff9a52", "l2": "#6cc0f5", "wall": "#55585c"}
STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "font.size": 9,
    "legend.frameon": False,
    "svg.hashsalt": "curvact",
}
DARK_STYLE = {
    "text.color": "#ecebe6",
    "axes.labelcolor": "#ecebe6",
    "axes.titlecolor": "#ecebe6",
    "axes.edgecolor": "#aaa9a2",
    "axes.facecolor": "#202224",
    "figure.facecolor": "#202224",
    "savefig.facecolor": "#202224",
    "grid.color": "#3a3c3f",
    "xtick.color": "#d0cfc9",
    "ytick.color": "#d0cfc9",
}


@dataclass(frozen=True)
class Picture:
    """An image of the page: a data URI, its text for readers who do not see it, its size in
    pixels.
    """

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Panel:
    """A panel of the page, drawn for light and for dark pages."""

    light: Picture
    dark: Picture
    caption: str


def write_theory_page(
    check: Record, picture: Record, folder: str | os.PathLike[str], *, title: str = TITLE
) -> Path:
    """Write `folder/theory.html` atomically and return its path. The same arguments give the same
    bytes.

    check: of `check_theory(…).as_dict()`. picture: of `illustrate(…).as_dict()`, both in
    `linear_theory`. The page loads nothing. Its figures are SVG, one set for light pages and one
    for dark ones. Raises CurvactError for a record that lacks something, or when the file cannot be
    written.
    """
    try:
        page = _template().render(
            title=title,
            facts=_facts(check, picture),
            path_panels=[_panel(draw, picture) for draw in (_attack_path, _gradient_path)],
            ratio_panels=[_panel(draw, picture) for draw in (_ratio_by_step, _ratio_by_distance)],
            claims=[_claim(claim) for claim in check["claims"]],
            pairs=_spaced(check["pairs"]),
            violations=check["violations"],
            dimension=picture["dimension"],
            steps=len(picture["path"]["walls"]),
            linf=f"{picture['epsilon']['linf']:.3g}",
            l2=f"{picture['epsilon']['l2']:.3g}",
        )
    except KeyError as error:
        raise CurvactError(
            f"the record lacks {error} in write_theory_page: "
            "give check_theory(…).as_dict() and illustrate(…).as_dict()"
        ) from error
    path = Path(folder) / "theory.html"
    atomic_write(path, page)
    return path


def theory_figure(picture: Record, title: str = "") -> Figure:
    """The four panels of the page as one figure. picture: of `illustrate(…).as_dict()`."""
    with _style(dark=False):
        figure = Figure(figsize=(9.6, 7.0), layout="constrained")
        draws = (_attack_path, _gradient_path, _ratio_by_step, _ratio_by_distance)
        for axes, draw in zip(figure.subplots(2, 2).ravel(), draws, strict=True):
            draw(axes, picture, LIGHT)
        if title:
            figure.suptitle(title.replace("$", "\\$"), fontsize=11, fontweight="bold", ha="left", x=0.01)
        return figure


def _template() -> jinja2.Template:
    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


Draw = Callable[[Axes, Record, Mapping[str, str]], str]
"""Draws a panel and returns its caption."""


def _panel(draw: Draw, picture: Record) -> Panel:
    made, text = [], ""
    for colours, dark in ((LIGHT, False), (DARK, True)):
        with _style(dark):
            figure = Figure(figsize=(4.6, 3.5), layout="constrained")
            text = draw(figure.subplots(), picture, colours)
            made.append(_picture(figure, text))
    return Panel(made[0], made[1], text)


@contextmanager
def _style(dark: bool) -> Iterator[None]:
    """One style whatever the user's is, which comes back after."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | (DARK_STYLE if dark else {}))
        yield


def _picture(figure: Figure, alt: str) -> Picture:
    stream = io.BytesIO()
    figure.savefig(
        stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    width, height = (round(side * 96) for side in figure.get_size_inches())
    code = base64.b64encode(stream.getvalue()).decode()
    return Picture("data:image/svg+xml;base64," + code, alt, width, height)


def _attack_path(axes: Axes, picture: Record, colours: Mapping[str, str]) -> str:
    path, epsilon = picture["path"], picture["epsilon"]["linf"]
    for norm in ("l2", "linf"):
        axes.plot(path["t"], path[norm]["attack"], color=colours[norm])
    _walls(axes, picture, colours)
    count = len(path["walls"])
    highest = 2 * epsilon * math.sqrt(count)
    axes.set(
        title="How far the best attack has moved",
        xlabel="t, along a line of weights",
        ylabel="‖δ*(t) − δ*(0)‖₂",
    )
    _name(axes, path["t"], path["linf"]["attack"], 0.40, "L∞: 2ε√K", colours["linf"], above=True)
    _name(axes, path["t"], path["l2"]["attack"], 0.62, "L2", colours["l2"], above=False)
    return (
        f"Under L∞ the attack stands still and then jumps, at each of {count} sign changes of a weight: 2ε√K after K of them, "
        f"{highest:.3g} at the end. Under L2 it turns steadily."
    )


def _gradient_path(axes: Axes, picture: Record, colours: Mapping[str, str]) -> str:
    path = picture["path"]
    for norm in ("l2", "linf"):
        axes.plot(path["t"], path[norm]["gradient"], color=colours[norm])
    _walls(axes, picture, colours)
    axes.set(
        title="How far the gradient has moved", xlabel="t, along a line of weights", ylabel="‖∇L(t) − ∇L(0)‖"
    )
    _name(axes, path["t"], path["linf"]["gradient"], 0.30, "L∞", colours["linf"], above=True)
    _name(axes, path["t"], path["l2"]["gradient"], 0.72, "L2", colours["l2"], above=False)
    return "The gradient of the adversarial loss jumps where the L∞ attack does; under L2 it is continuous."


def _ratio_by_step(axes: Axes, picture: Record, colours: Mapping[str, str]) -> str:
    step = picture["step"]
    _ratio_lines(axes, step["step"], step, colours)
    axes.set(title="Ratio across one sign change", xlabel="length of the step, ‖Δw‖", ylabel="‖Δ∇L‖ / ‖Δw‖")
    first = {norm: step[norm]["ratio"][0] for norm in NAMES}
    return (
        f"As the step shrinks the L∞ ratio grows without limit, as 1/‖Δw‖ ({_spaced(round(first['linf']))} "
        f"at ‖Δw‖ = {step['step'][0]:g}); the L2 ratio settles at {first['l2']:.3g}. Dashed: the bounds."
    )


def _ratio_by_distance(axes: Axes, picture: Record, colours: Mapping[str, str]) -> str:
    distance = picture["distance"]
    _ratio_lines(axes, distance["distance"], distance, colours)
    axes.set(
        title="Ratio of small turns near w = 0", xlabel="distance from 0, r = ‖w‖", ylabel="‖Δ∇L‖ / ‖Δw‖"
    )
    return (
        "The one rough place of L2 is w = 0: near it the ratio of small turns grows as ε/r. Inside an orthant L∞ is smooth, with "
        "the same constant everywhere. Dashed: the bounds."
    )


def _ratio_lines(axes: Axes, at: Sequence[float], lines: Record, colours: Mapping[str, str]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for norm, name in NAMES.items():
        axes.plot(at, lines[norm]["ratio"], color=colours[norm], label=name)
        axes.plot(at, lines[norm]["bound"], color=colours[norm], linestyle="--", linewidth=1.2)
    axes.legend(loc="upper right")
    axes.set_xlim(at[0], at[-1])


def _walls(axes: Axes, picture: Record, colours: Mapping[str, str]) -> None:
    for wall in picture["path"]["walls"]:
        axes.axvline(wall, color=colours["wall"], linewidth=0.8, linestyle=":", zorder=0.5)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)


def _name(
    axes: Axes,
    at: Sequence[float],
    values: Sequence[float],
    where: float,
    text: str,
    colour: str,
    *,
    above: bool,
) -> None:
    """The name of a curve, beside it instead of in a legend."""
    height = float(np.interp(where, at, values))
    axes.annotate(
        text,
        (where, height),
        xytext=(-4, 6) if above else (6, -6),
        textcoords="offset points",
        ha="right" if above else "left",
        va="bottom" if above else "top",
        color=colour,
        fontweight="bold",
    )


def _facts(check: Record, picture: Record) -> list[str]:
    dimensions = ", ".join(str(d) for d in check["dimensions"])
    return [
        f"{_spaced(check['pairs'])} pairs of weights",
        f"{len(check['claims'])} claims",
        f"{_count(check['violations'], 'violation')}",
        f"dimensions {dimensions}",
        f"seed {check['seed']}",
    ]


def _count(count: int, one: str) -> str:
    return f"{'no' if count == 0 else _spaced(count)} {one}{'' if count == 1 else 's'}"


def _spaced(count: int) -> str:
    return f"{count:,}".replace(",", "\u202f")


def _claim(claim: Record) -> tuple[str, ...]:
    tightness = claim["tightness"]
    text = "–" if tightness is None else _share(tightness)
    return (
        NAMES.get(claim["norm"], str(claim["norm"])),
        claim["name"],
        claim["statement"],
        _spaced(claim["pairs"]),
        _spaced(claim["violations"]),
        text,
        claim["hardest"],
    )


def _share(value: float) -> str:
    """Six digits, never rounded up to 1."""
    if abs(value - 1) < 1e-12:
        return "1"
    return f"{math.floor(value * 1e6) / 1e6:.6f}" if value < 1 else f"{value:.9g}"
