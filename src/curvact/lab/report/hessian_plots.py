"""Report room: figures of the Hessian from plain dicts: norms of the diagonal by layer, its split, the spectral density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from curvact.errors import CurvactError
from curvact.lab.report.analysis_plots import ATTACKED, CLEAN, Record, plotted
from curvact.lab.report.style import (
    NORM_LABELS,
    NORM_TITLES,
    OKABE_ITO,
    house_style,
    log_ticks,
    plain_text,
    title_text,
)

COLOURS = {"clean": CLEAN, "adversarial": ATTACKED}
MARKS = {"clean": "o", "adversarial": "s"}
BASE, REST = "#c9c9c2", "#77776f"
NOISE = 0.5
"""A share with a larger standard error says nothing. [ours]"""
NAMED_SITES = len(OKABE_ITO) - 1
"""Call sites with a colour of their own; the others share one."""


def norms_figure(losses: Mapping[str, Record], title: str = "") -> Figure:
    """The three norms of diag H by parameter tensor, on the clean and the adversarial loss, with ± 2 standard errors.

    losses: by name of the loss, the dict of a `DiagonalNorms`. The top row is the whole network. Where an estimate is 0,
    "<" is at two standard errors. Raises CurvactError for no losses.

    >>> norm = {name: {"value": 1.0, "standard_error": 0.1} for name in ("rms", "gradient_relative", "scale_invariant")}
    >>> len(norms_figure({"clean": {**norm, "layers": {"fc.weight": norm}}}).axes)
    3
    """
    _some(losses, "norms_figure")
    layers = list(next(iter(losses.values()))["layers"])
    with house_style():
        figure = Figure(figsize=(11.4, 1.9 + 0.21 * (len(layers) + 1)), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, name in zip(panels, NORM_LABELS, strict=True):
            for number, (label, record) in enumerate(losses.items()):
                entries = [record[name], *(record["layers"][layer][name] for layer in layers)]
                values = np.array([plotted(entry["value"]) for entry in entries])
                errors = np.array([2 * plotted(entry["standard_error"]) for entry in entries])
                errors[~np.isfinite(errors)] = math.nan
                seen = np.isfinite(values) & (values > 0)
                rows = np.arange(len(entries)) + 0.22 * (number - (len(losses) - 1) / 2)
                lower = np.minimum(errors, 0.95 * values)[seen]
                colour = COLOURS.get(label, OKABE_ITO[2])
                below = ~seen & (errors > 0)
                axes.plot(
                    errors[below], rows[below], linestyle="none", marker="$<$", markersize=6, color=colour
                )
                axes.errorbar(
                    values[seen],
                    rows[seen],
                    xerr=[lower, errors[seen]],
                    linestyle="none",
                    marker=MARKS.get(label, "D"),
                    markersize=4.5,
                    color=colour,
                    elinewidth=1.2,
                )
            axes.set_xscale("log")
            if any(len(line.get_xdata()) for line in axes.get_lines()):
                _wide_enough(axes)
                log_ticks(axes, "x")
            axes.axhline(0.5, color="#888888", linewidth=0.8)
            axes.set(title=NORM_TITLES[name].capitalize(), xlabel=NORM_LABELS[name])
            axes.grid(True, axis="both")
        panels[0].set_yticks(
            range(len(layers) + 1), ["whole network", *(plain_text(layer) for layer in layers)], fontsize=8
        )
        panels[0].set_ylim(len(layers) + 0.6, -0.6)
        handles = [
            Line2D(
                [],
                [],
                linestyle="none",
                marker=MARKS.get(label, "D"),
                color=COLOURS.get(label, OKABE_ITO[2]),
                label=f"{label} loss",
            )
            for label in losses
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        _heading(figure, title)
        return figure


def split_figure(losses: Mapping[str, Record], title: str = "") -> Figure:
    """Shares of diag H by layer: of diag GGN (grey) and of the σ″ part of each call site, negative ones to the left.

    losses: by name of the loss, the dict of a `DiagonalSplit`. The call sites with the largest shares have a colour each, the
    others one together. A black bar: ± 2 standard errors of the share of σ″ as a whole; layers where the standard error is above
    `NOISE` are left blank. Raises CurvactError for no losses.

    >>> share = {"value": 0.5, "standard_error": 0.0}
    >>> part = {"base_share": share, "curvature_share": share, "sites": {"act": {"share": share}}}
    >>> record = {"holds": True, "total": part, "layers": {"fc": part}, "sites": ["act"]}
    >>> [axes.get_title(loc="left") for axes in split_figure({"clean": record}).axes]
    ['Clean loss']
    """
    _some(losses, "split_figure")
    first = next(iter(losses.values()))
    layers = list(first["layers"])
    sites = _largest(losses)
    with house_style():
        figure = Figure(
            figsize=(5.4 * len(losses) + 1.2, 2.0 + 0.26 * (len(layers) + 1)), layout="constrained"
        )
        panels = figure.subplots(1, len(losses), sharey=True, squeeze=False)[0]
        others = False
        for axes, (label, record) in zip(panels, losses.items(), strict=True):
            for row, part in enumerate([record["total"], *(record["layers"][layer] for layer in layers)]):
                others |= _stack(axes, row, part, sites)
            axes.axvline(0, color="#555555", linewidth=0.8)
            axes.axhline(0.5, color="#888888", linewidth=0.8)
            axes.set(title=f"{label.capitalize()} loss", xlabel="share of diag H, %")
            axes.grid(True, axis="x")
            axes.grid(False, axis="y")
        panels[0].set_yticks(
            range(len(layers) + 1), ["whole network", *(plain_text(layer) for layer in layers)], fontsize=8
        )
        panels[0].set_ylim(len(layers) + 0.6, -0.6)
        base = "diag GGN" if all(record["holds"] for record in losses.values()) else "diag H₀"
        handles = [Patch(color=BASE, label=base)]
        handles += [Patch(color=colour, label=f"σ″ at {plain_text(site)}") for site, colour in sites.items()]
        if others:
            handles.append(Patch(color=REST, label="σ″ elsewhere" if sites else "σ″"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        _heading(figure, title)
        return figure


def density_figure(losses: Mapping[str, Record], title: str = "") -> Figure:
    """The density of H's eigenvalues on the clean and the adversarial loss, logarithmic, with the ends that were found marked.

    losses: by name of the loss: `density` with `at` and `density`, and `largest` and `smallest` eigenvalues; what is None is left
    out. Raises CurvactError for no losses, and where no density above 0 is finite.

    >>> density = {"at": [-1.0, 0.0, 1.0], "density": [0.1, 2.0, 0.1]}
    >>> record = {"density": density, "largest": [1.0], "smallest": [-1.0]}
    >>> len(density_figure({"clean": record}).axes)
    1
    """
    _some(losses, "density_figure")
    with house_style():
        figure = Figure(figsize=(6.8, 4.0), layout="constrained")
        axes = figure.subplots()
        curves = {
            label: [np.array([plotted(v) for v in record["density"][key]]) for key in ("at", "density")]
            for label, record in losses.items()
        }
        there = [v for _, values in curves.values() for v in values[np.isfinite(values)].tolist()]
        highest = max(there, default=0.0)
        if not highest > 0:
            raise CurvactError("the density of the spectrum is not finite: there is nothing to draw")
        for number, (label, record) in enumerate(losses.items()):
            colour = COLOURS.get(label, OKABE_ITO[2])
            at, values = curves[label]
            axes.plot(at, np.maximum(values, 1e-12 * highest), color=colour)
            for value in (*record["largest"], *record["smallest"]):
                axes.plot(
                    [plotted(value)],
                    [highest * 10 ** (0.35 + 0.3 * number)],
                    marker="v",
                    markersize=5,
                    color=colour,
                    linestyle="none",
                )
        axes.set_yscale("log")
        axes.set_ylim(1e-7 * highest, highest * 10 ** (0.6 + 0.3 * len(losses)))
        log_ticks(axes, "y")
        axes.grid(True, axis="both")
        axes.set(xlabel="eigenvalue λ of the Hessian", ylabel="density", title=title_text(title))
        handles = [Line2D([], [], color=COLOURS.get(x, OKABE_ITO[2]), label=f"{x} loss") for x in losses]
        handles.append(
            Line2D([], [], linestyle="none", marker="v", color="#444444", label="eigenvalues at the ends")
        )
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return figure


def _some(losses: Mapping[str, Record], where: str) -> None:
    if not losses:
        raise CurvactError(f"{where} got no records: there is nothing to draw")


def _heading(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title_text(title), fontsize=11, fontweight="bold", ha="left", x=0.01)


def _wide_enough(axes: Axes) -> None:
    low, high = axes.get_xlim()
    if high < 10 * low:
        middle = math.sqrt(low) * math.sqrt(high)
        axes.set_xlim(middle / 3.2, middle * 3.2)


def _largest(losses: Mapping[str, Record]) -> dict[str, str]:
    """The call sites with the largest share anywhere, in the order of the forward pass, and their colours."""
    most: dict[str, float] = {}
    for record in losses.values():
        for part in (record["total"], *record["layers"].values()):
            if plotted(part["curvature_share"]["standard_error"]) > NOISE:
                continue
            for site, entry in part["sites"].items():
                size = abs(plotted(entry["share"]["value"]))
                if math.isfinite(size):
                    most[site] = max(most.get(site, 0.0), size)
    order: Sequence[str] = next(iter(losses.values()))["sites"]
    chosen = sorted((s for s in most if most[s] > 0), key=lambda site: -most[site])[:NAMED_SITES]
    return dict(zip([site for site in order if site in chosen], OKABE_ITO, strict=False))


def _stack(axes: Axes, row: int, part: Mapping[str, Any], sites: Mapping[str, str]) -> bool:
    """One bar: parts > 0 to the right of 0, parts < 0 to the left. Whether there was a σ″ part without a colour of its own."""
    bent, error = (plotted(part["curvature_share"][key]) for key in ("value", "standard_error"))
    base = plotted(part["base_share"]["value"])
    if error > NOISE:
        axes.text(
            1.0,
            row,
            f"noise: ± {100 * NOISE:.0f} % or more",
            fontsize=8,
            color="#666666",
            va="center",
            ha="left",
        )
        return False
    named = {s: plotted(part["sites"][s]["share"]["value"]) for s in sites if s in part["sites"]}
    rest = bent - math.fsum(named.values())
    pieces = [(base, BASE)]
    pieces += [(value, sites[site]) for site, value in named.items()]
    shown = abs(rest) > 1e-6
    if shown:
        pieces.append((rest, REST))
    right = left = 0.0
    for value, colour in pieces:
        if not math.isfinite(value):
            continue
        start = right if value > 0 else left
        axes.barh(row, 100 * value, left=100 * start, height=0.68, color=colour, linewidth=0)
        right, left = (right + value, left) if value > 0 else (right, left + value)
    if math.isfinite(error) and error > 0 and math.isfinite(base):
        axes.errorbar([100 * base], [row], xerr=[200 * error], color="black", elinewidth=1.1, capsize=2)
    return shown
