"""The Hessian of clean and adversarial loss: norms of the diagonal, its split, its spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.markup import escape
from rich.table import Table

from curvact.errors import CurvactError
from curvact.lab.report.analysis.common import (
    ATTACKED,
    CLEAN,
    NOISE,
    Record,
    check_not_empty,
    estimate,
    handle,
    headline,
    legend,
    log_axis,
    new_table,
    number,
    percent,
    plotted,
)
from curvact.lab.report.style import (
    NORM_LABELS,
    NORM_TITLES,
    OKABE_ITO,
    canvas,
    house_style,
    log_ticks,
    plain_text,
    title_text,
)

COLOURS = {"clean": CLEAN, "adversarial": ATTACKED}
MARKS = {"clean": "o", "adversarial": "s"}
BASE, REST = "#c9c9c2", "#77776f"
NAMED_SITES = len(OKABE_ITO) - 1
"""So many call sites have a colour of their own; the others share one."""
WHOLE = "[bold]whole network[/]"


def norms_figure(losses: Mapping[str, Record], title: str = "", ax: Axes | None = None) -> Figure:
    """Three norms of diag H by parameter tensor, with ± 2 standard errors.

    losses: records of `DiagonalNorms` by name of the loss. The top row is the whole network. A mark
    "<" at two standard errors stands for an estimate of 0. Raises CurvactError for no losses.

    >>> norm = {name: {"value": 1.0, "standard_error": 0.1} for name in ("rms", "gradient_relative", "scale_invariant")}
    >>> len(norms_figure({"clean": {**norm, "layers": {"fc.weight": norm}}}).axes)
    3
    """
    check_not_empty(losses, "norms_figure")
    layers = list(next(iter(losses.values()))["layers"])
    with house_style():
        figure = canvas((11.4, 1.9 + 0.21 * (len(layers) + 1)), ax)
        panels = figure.subplots(1, 3, sharey=True)
        for axes, name in zip(panels, NORM_LABELS, strict=True):
            for index, (label, record) in enumerate(losses.items()):
                entries = [record[name], *(record["layers"][layer][name] for layer in layers)]
                values = np.array([plotted(entry["value"]) for entry in entries])
                errors = np.array([2 * plotted(entry["standard_error"]) for entry in entries])
                errors[~np.isfinite(errors)] = math.nan
                seen = np.isfinite(values) & (values > 0)
                rows = np.arange(len(entries)) + 0.22 * (index - (len(losses) - 1) / 2)
                lower = np.minimum(errors, 0.95 * values)[seen]
                colour = _colour(label)
                below = ~seen & (errors > 0)
                axes.plot(errors[below], rows[below], ls="none", marker="$<$", markersize=6, color=colour)
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
                log_axis(axes, "x", room=3.2)
            axes.axhline(0.5, color="#888888", linewidth=0.8)
            axes.set(title=NORM_TITLES[name].capitalize(), xlabel=NORM_LABELS[name])
            axes.grid(True, axis="both")
        _rows(panels[0], layers)
        handles = [handle(f"{label} loss", _colour(label), MARKS.get(label, "D")) for label in losses]
        legend(figure, handles, len(handles))
        headline(figure, title)
        return figure


def split_figure(losses: Mapping[str, Record], title: str = "", ax: Axes | None = None) -> Figure:
    """Shares of diag H by layer: diag GGN in grey, and the σ″ part of each call site.

    Negative shares go to the left. The call sites with the largest shares have a colour each.
    losses: records of `DiagonalSplit` by name of the loss. A black bar is ± 2 standard errors of
    the whole σ″ part. Layers with a standard error above `NOISE` are left blank. Raises
    CurvactError for no losses.

    >>> share = {"value": 0.5, "standard_error": 0.0}
    >>> part = {"base_share": share, "curvature_share": share, "sites": {"act": {"share": share}}}
    >>> record = {"holds": True, "total": part, "layers": {"fc": part}, "sites": ["act"]}
    >>> [axes.get_title(loc="left") for axes in split_figure({"clean": record}).axes]
    ['Clean loss']
    """
    check_not_empty(losses, "split_figure")
    first = next(iter(losses.values()))
    layers = list(first["layers"])
    sites = _largest(losses)
    with house_style():
        figure = canvas((5.4 * len(losses) + 1.2, 2.0 + 0.26 * (len(layers) + 1)), ax)
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
        _rows(panels[0], layers)
        base = "diag GGN" if all(record["holds"] for record in losses.values()) else "diag H₀"
        handles = [Patch(color=BASE, label=base)]
        handles += [Patch(color=colour, label=f"σ″ at {plain_text(site)}") for site, colour in sites.items()]
        if others:
            handles.append(Patch(color=REST, label="σ″ elsewhere" if sites else "σ″"))
        legend(figure, handles, min(4, len(handles)))
        headline(figure, title)
        return figure


def density_figure(losses: Mapping[str, Record], title: str = "", ax: Axes | None = None) -> Figure:
    """The density of the eigenvalues of H, with marks at the eigenvalues of both ends.

    losses: the spectrum of `hessian_analysis` by name of the loss. Numbers that are None are left
    out.
    Raises CurvactError for no losses, and where no density above 0 is finite.

    >>> density = {"at": [-1.0, 0.0, 1.0], "density": [0.1, 2.0, 0.1]}
    >>> record = {"density": density, "largest": [1.0], "smallest": [-1.0]}
    >>> len(density_figure({"clean": record}).axes)
    1
    """
    check_not_empty(losses, "density_figure")
    with house_style():
        figure = canvas((6.8, 4.0), ax)
        axes = figure.subplots()
        curves = {
            label: [np.array([plotted(v) for v in record["density"][key]]) for key in ("at", "density")]
            for label, record in losses.items()
        }
        there = [v for _, values in curves.values() for v in values[np.isfinite(values)].tolist()]
        highest = max(there, default=0.0)
        if not highest > 0:
            raise CurvactError("the density of the spectrum is not finite: there is nothing to draw")
        for index, (label, record) in enumerate(losses.items()):
            colour = _colour(label)
            at, values = curves[label]
            axes.plot(at, np.maximum(values, 1e-12 * highest), color=colour)
            for value in (*record["largest"], *record["smallest"]):
                place = [highest * 10 ** (0.35 + 0.3 * index)]
                axes.plot([plotted(value)], place, "v", markersize=5, color=colour)
        axes.set_yscale("log")
        axes.set_ylim(1e-7 * highest, highest * 10 ** (0.6 + 0.3 * len(losses)))
        log_ticks(axes, "y")
        axes.grid(True, axis="both")
        axes.set(xlabel="eigenvalue λ of the Hessian", ylabel="density", title=title_text(title))
        handles = [handle(f"{label} loss", _colour(label)) for label in losses]
        handles.append(handle("eigenvalues at the ends", marker="v"))
        legend(figure, handles, len(handles))
        return figure


def hessian_tables(name: str, result: Record) -> list[Table]:
    """The result of `hessian_analysis` for one model: a table for each part and loss."""
    losses = result["losses"]
    tables = [
        _norms_table(f"{name}, {label} loss", entry["norms"])
        for label, entry in losses.items()
        if "norms" in entry
    ]
    for label, entry in losses.items():
        if "split" in entry:
            tables.append(_split_table(f"{name}, {label} loss", entry["split"]))
    if "spectrum" in next(iter(losses.values())):
        table = new_table(
            f"{name}: spectrum of H", ["loss", "trace", "mean eigenvalue", "largest", "smallest", "residuals"]
        )
        for label, entry in losses.items():
            found = entry["spectrum"]
            worst = max((*found["largest_residuals"], *found["smallest_residuals"]))
            table.add_row(
                label,
                estimate(found["trace"]),
                number(found["trace"]["mean_eigenvalue"]),
                ", ".join(map(number, found["largest"])),
                ", ".join(map(number, found["smallest"])),
                f"≤ {number(worst, 1)}" + ("" if found["converged"] else ", not converged"),
            )
        tables.append(table)
    return tables


def _norms_table(title: str, norms: Record) -> Table:
    columns = ["", "‖diag H‖/√P", "‖diag H‖/‖∇L‖", "‖θ²⊙diag H‖"]
    table = new_table(f"{title}: norms of diag H ± standard error", columns)
    for layer, entry in (("", norms), *norms["layers"].items()):
        cells = [estimate(entry[norm]) for norm in ("rms", "gradient_relative", "scale_invariant")]
        table.add_row(escape(layer) or WHOLE, *cells)
    return table


def _split_table(title: str, split: Record) -> Table:
    base = "diag GGN" if split["holds"] else "diag H₀"
    heading = f"{title}: diag H = g + c, g = {base}, c the σ″ part; shares ± standard error"
    if not split["holds"]:
        heading += "\ng is not diag GGN: " + "; ".join(split["why"])
    table = new_table(heading, ["", "g %", "c %", "‖g‖", "‖c‖", "cos(g, c)", "largest call site"])
    for layer, part in (("", split["total"]), *split["layers"].items()):
        shown = not _noise(part["curvature_share"])
        sites = {
            site: entry["share"]["value"]
            for site, entry in part["sites"].items()
            if shown and entry["share"]["value"]
        }
        most = max(sites, key=lambda site: abs(sites[site]), default=None)
        table.add_row(
            escape(layer) or WHOLE,
            estimate(part["base_share"], 100) if shown else "noise",
            estimate(part["curvature_share"], 100) if shown else "noise",
            estimate(part["base"]),
            estimate(part["curvature"]),
            _cosine(part["cosine"]),
            "" if most is None else f"{escape(most)} {percent(sites[most])} %",
        )
    return table


def _noise(share: Record) -> bool:
    return share["standard_error"] is None or share["standard_error"] > NOISE


def _cosine(cosine: Record) -> str:
    if cosine["value"] is None:
        return "–"
    return "noise" if _noise(cosine) else estimate(cosine)


def _colour(label: str) -> str:
    return COLOURS.get(label, OKABE_ITO[2])


def _rows(axes: Axes, layers: Sequence[str]) -> None:
    """The whole network, a line under it, then every layer."""
    names = ["whole network", *(plain_text(layer) for layer in layers)]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(layers) + 0.6, -0.6)


def _largest(losses: Mapping[str, Record]) -> dict[str, str]:
    """The call sites with the largest shares, in the order of the forward pass, with colours."""
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


def _stack(axes: Axes, row: int, part: Record, sites: Mapping[str, str]) -> bool:
    """One bar, positive parts to the right of 0, negative ones to the left.

    Returns whether a σ″ part has no colour of its own.
    """
    bent, error = (plotted(part["curvature_share"][key]) for key in ("value", "standard_error"))
    base = plotted(part["base_share"]["value"])
    if error > NOISE:
        text = f"noise: ± {100 * NOISE:.0f} % or more"
        axes.text(1.0, row, text, fontsize=8, color="#666666", va="center", ha="left")
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
