"""The figures of a search: validation robust accuracy against each key, and against what was spent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from curvact.lab.report.search.about import Point, SearchAbout
from curvact.lab.report.style import (
    BAND_COLOUR,
    CURVATURE_LABEL,
    GREY,
    OKABE_ITO,
    house_style,
    log_ticks,
    plain_text,
)

LEAST_FITTED = 6
"""Completed trials that a smooth curve needs."""

SMOOTHED = "smoothed"
"""The smooth curve's name in the legend."""

Array = NDArray[np.float64]


def key_figure(about: SearchAbout, key: str) -> Figure:
    """Every trial by its value of a key."""
    points = [p for p in about.points if p.state != "left" and key in p.settings]
    numeric = all(_is_number(p.settings[key]) for p in points)
    with house_style():
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.subplots()
        if numeric:
            place = {p.number: float(str(p.settings[key])) for p in points}
            if key in about.logarithmic:
                axes.set_xscale("log")
        else:
            names = list(dict.fromkeys(str(p.settings[key]) for p in about.points if key in p.settings))
            place = {p.number: float(names.index(str(p.settings[key]))) for p in points}
            axes.set_xticks(range(len(names)), [plain_text(name) for name in names])
            axes.set_xlim(-0.5, len(names) - 0.5)
        _draw(axes, about, points, place)
        if numeric:
            _draw_fit(axes, points, place, key in about.logarithmic)
        axes.set_xlabel(CURVATURE_LABEL if key == "curvature" else plain_text(key))
        if numeric and key in about.logarithmic:
            log_ticks(axes, "x")
        figure.legend(loc="outside lower center", ncols=6, fontsize=9, columnspacing=1.2)
    return figure


def progress_figure(about: SearchAbout) -> Figure:
    """The best accuracy so far, against the gradient evaluations that were spent."""
    points = [p for p in about.points if p.state != "left"]
    with house_style():
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.subplots()
        place = {p.number: float(p.spent) for p in points}
        _draw(axes, about, points, place)
        best, at, so_far = -1.0, [], []
        for p in points:
            if p.state == "completed":
                best = max(best, p.accuracy or 0.0)
            if best >= 0:
                at.append(p.spent)
                so_far.append(100 * best)
        axes.step(at, so_far, where="post", color=GREY, linewidth=1.4, zorder=1, label="best so far")
        axes.set(xlabel="gradient evaluations", xlim=(0, 1.02 * max([about.budget, *place.values()])))
        figure.legend(loc="outside lower center", ncols=6, fontsize=9, columnspacing=1.2)
    return figure


def _draw(axes: Axes, about: SearchAbout, points: Sequence[Point], place: dict[int, float]) -> None:
    best = next(p for p in about.points if p.number == about.best)
    high = 100 * (best.accuracy or 0.0)
    axes.axhspan(high - 100 * about.standard_error, high, color=BAND_COLOUR, zorder=0)
    if about.baseline is not None:
        name, accuracy = about.baseline
        axes.axhline(
            100 * accuracy, color=OKABE_ITO[1], linestyle="--", linewidth=1.3, label=plain_text(name)
        )
    for state, marker in (("completed", "o"), ("failed", "x")):
        drawn = [p for p in points if p.state == state and p.accuracy is not None]
        if drawn:
            x, y = [place[p.number] for p in drawn], [100 * (p.accuracy or 0.0) for p in drawn]
            axes.scatter(x, y, marker=marker, s=30, color=OKABE_ITO[0], zorder=3, label=state)
    pruned = [place[p.number] for p in points if p.state == "pruned"]
    if pruned:  # they were not attacked as the others: only their place is shown
        axes.scatter(
            pruned, [0.02] * len(pruned), marker="|", s=60, color=GREY, transform=axes.get_xaxis_transform(),
            clip_on=False, zorder=3, label="pruned",
        )  # fmt: skip
    if best.number in place:
        axes.scatter(
            [place[best.number]], [high], s=130, facecolor="none", edgecolor="black", zorder=4, label="winner"
        )
    axes.set_ylabel("validation robust accuracy, %")


def _draw_fit(axes: Axes, points: Sequence[Point], place: dict[int, float], logarithmic: bool) -> None:
    done = [p for p in points if p.state == "completed"]
    x = np.array([place[p.number] for p in done])
    if len(np.unique(x)) < LEAST_FITTED:
        return
    y = np.array([100 * (p.accuracy or 0.0) for p in done])
    scale = np.log(x) if logarithmic else x
    at = np.linspace(scale.min(), scale.max(), 100)
    curve = smooth(scale, y, at)
    axes.plot(np.exp(at) if logarithmic else at, curve, color=OKABE_ITO[2], zorder=2, label=SMOOTHED)


def smooth(x: Array, y: Array, at: Array) -> Array:
    """A local straight line through points, by Gaussian weights. The width, a part of the range of x, is
    the one of five with the least error where each point is predicted without itself. [ours]

    >>> x = np.linspace(0.0, 1.0, 9)
    >>> smooth(x, 2 * x + 1, np.array([0.25])).round(6).tolist()
    [1.5]
    """
    widths = [float(np.ptp(x)) * part for part in (0.08, 0.12, 0.2, 0.35, 0.6)]

    def predicted(width: float, targets: Array, leave_out: bool) -> Array:
        distance = targets[:, None] - x[None, :]
        weight = np.exp(-0.5 * (distance / width) ** 2) + 1e-12
        if leave_out:
            np.fill_diagonal(weight, 0.0)
        total = weight.sum(1)
        mean_x, mean_y = (weight @ x) / total, (weight @ y) / total
        centred = x[None, :] - mean_x[:, None]
        spread = (weight * centred**2).sum(1)
        slope = (weight * centred * y[None, :]).sum(1) / (spread + 1e-9 * np.ptp(x) ** 2 * total)
        return np.asarray(mean_y + slope * (targets - mean_x))

    errors = [float(((predicted(width, x, True) - y) ** 2).mean()) for width in widths]
    return predicted(widths[int(np.argmin(errors))], at, False)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
