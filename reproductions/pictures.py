"""Pictures of the results: the curves of all strata, and the effects that the claims are about."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from criteria import HERE, CurveJudge, Effect, Finding, Paper, evidence_of, read_results, together
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from curvact.lab.report.style import (
    BAND_COLOUR,
    CURVATURE_LABEL,
    GREY,
    OKABE_ITO,
    house_style,
    legend_columns,
    log_ticks,
    looks_of,
    to_png,
)
from curvact.lab.statistics.curve import curve_of, norm_name
from curvact.lab.statistics.interval import curve_intervals, difference_text, scale_of
from curvact.lab.statistics.strata import Stratum, by_seed, label_text, name_of, strata, varying
from curvact.lab.statistics.words import outcome_name
from curvact.lab.table import Table

PANELS = ("network", "data", "method")
"""A panel is a choice on these axes. Within it a colour is a choice on the others."""

COLOURS = {"supported": OKABE_ITO[0], "not supported": OKABE_ITO[1], "inconclusive": GREY}
EDGES = (-15.0, 15.0)
"""Effects beyond these points are drawn at the edge; their numbers stand beside them."""


def pictures(
    papers: Mapping[str, Paper], found: Mapping[str, Mapping[str, Finding]], results: Mapping[str, Path]
) -> dict[Path, bytes]:
    """file → PNG, of every picture of the pages: one of all effects, and one of each claim on a curve."""
    with house_style():
        drawn = {HERE / "effects.png": to_png(effects(papers, found))}
        for folder, paper in papers.items():
            for claim in paper.claims:
                files = evidence_of(claim, results)
                if isinstance(claim.judge, CurveJudge) and files:
                    table = together({name: read_results(path) for name, path in files.items()})
                    drawn[HERE / folder / f"{claim.id}.png"] = to_png(curves(claim.judge, table))
    return drawn


def curves(rule: CurveJudge, table: Table) -> Figure:
    """The outcome by curvature in every stratum: means over seeds with their 95 % intervals, as the page of a
    sweep has them (geometric means of a Hessian norm).

    ReLU is a dashed line. The band of the claim is shaded.
    """
    found = strata(table, "curvature")
    on_curve = [row for stratum in found for row in stratum.rows]
    shared = varying(on_curve, [axis for axis in table.axes if axis in PANELS])
    inner = varying(on_curve, [axis for axis in table.axes if axis not in (*PANELS, "curvature", "seed")])
    panels: dict[str, list[Stratum]] = {}
    for stratum in found:
        panels.setdefault(name_of(stratum.labels, shared), []).append(stratum)
    looks = looks_of(list(dict.fromkeys(_choice(stratum, inner) for stratum in found)))
    columns = min(len(panels), min((4, 3, 2), key=lambda count: -len(panels) % count))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.4, 2.7 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for ax, (title, group) in zip(axes.flat, panels.items(), strict=False):
        ax.axvspan(*rule.band, color=BAND_COLOUR, zorder=0)
        for stratum in group:
            name = _choice(stratum, inner)
            _curve(ax, rule.outcome, stratum, looks[name].colour, looks[name].marker)
        ax.set_title("\n".join(textwrap.wrap(title, 32)), fontsize=9)
        ax.set_xscale("log")
        log_ticks(ax, "x")
        if scale_of(rule.outcome) != "fraction":
            ax.set_yscale("log")
            log_ticks(ax, "y")
    for ax, above in zip(
        list(axes.flat)[len(panels) :], list(axes.flat)[len(panels) - columns :], strict=False
    ):
        ax.remove()
        above.tick_params(labelbottom=True)
    percent = scale_of(rule.outcome) == "fraction"
    figure.supylabel(f"{_words(rule.outcome)}{', %' if percent else ''}", fontsize=10)
    figure.supxlabel(CURVATURE_LABEL, fontsize=10)
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, label=name or "mean over seeds")
        for name, look in looks.items()
    ]
    handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1.0, label="ReLU"))
    figure.legend(handles=handles, loc="outside upper center", ncols=legend_columns(handles, 3.1 * columns))
    return figure


def _choice(stratum: Stratum, axes: Sequence[str]) -> str:
    """The labels of a stratum on some axes, with the names of the axes."""
    labels = {axis: stratum.labels[axis] for axis in axes}
    return ", ".join(
        f"{axis}: {label}"
        if isinstance(label, str) and axis not in ("file", "activation")
        else label_text(axis, label)
        for axis, label in labels.items()
    )


def _curve(ax: Axes, outcome: str, stratum: Stratum, colour: str, marker: str) -> None:
    unit = 100.0 if scale_of(outcome) == "fraction" else 1.0
    means = curve_of(stratum.rows, "curvature", outcome)
    if not means:
        return
    values = [unit * mean.value for mean in means.values()]
    ax.plot(list(means), values, color=colour, marker=marker, markersize=4)
    low, high = ([unit * getattr(mean, end) for mean in means.values()] for end in ("low", "high"))
    ax.fill_between(list(means), low, high, color=colour, alpha=0.15, linewidth=0)
    relu = _relu(stratum, outcome)
    if relu is not None:
        ax.axhline(unit * relu, color=colour, linestyle="--", linewidth=1.0)


def _relu(stratum: Stratum, outcome: str) -> float | None:
    """The mean of ReLU, taken as that of a point of the curve; None where it was not run."""
    values = list(by_seed(stratum.references.get("relu", ()), outcome).values())
    return float(curve_intervals(np.array([values]), scale=scale_of(outcome))[0][0]) if values else None


def effects(papers: Mapping[str, Paper], found: Mapping[str, Mapping[str, Finding]]) -> Figure:
    """The difference that each claim is about, in points of accuracy, with its 95 % interval."""
    lines = [
        (re.split(r":| \(| of ", paper.paper)[0], claim.claim, found[folder][claim.id].verdict, effect)
        for folder, paper in papers.items()
        for claim in paper.claims
        for effect in found[folder][claim.id].effects
        if effect.points and effect.mean.bounded
    ]
    figure = Figure(figsize=(11.5, 0.42 * len(lines) + 1.2), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color="#999999", linewidth=0.8)
    for place, (_, _, verdict, effect) in enumerate(lines):
        low, value, high = (100 * v for v in (effect.mean.low, effect.mean.value, effect.mean.high))
        colour = COLOURS[verdict]
        inside = np.clip([low, high], *EDGES)
        ax.plot(inside, [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        beyond = not EDGES[0] < value < EDGES[1]
        ax.plot(
            np.clip(value, *EDGES), place, marker=("<" if value < 0 else ">") if beyond else "o", color=colour
        )
        ax.annotate(
            difference_text(effect.mean, percent=True),
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    ax.set_yticks(range(len(lines)), [_line(*line[:2], line[3]) for line in lines], fontsize=8)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlim(*EDGES)
    ax.grid(visible=True, axis="x")
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("difference in points of accuracy, with its 95 % interval")
    handles = [Line2D([], [], color=colour, marker="o", label=verdict) for verdict, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure


def _line(paper: str, claim: str, effect: Effect) -> str:
    """The paper and the claim in one line, and the difference in the next."""
    return f"{textwrap.shorten(f'{paper}: {claim}', 95, placeholder=' …')}\n{effect.what}"


def means_table(rule: CurveJudge, table: Table) -> Sequence[str]:
    """The means of an accuracy by stratum and curvature, in per cent, as lines of Markdown."""
    if scale_of(rule.outcome) != "fraction":
        return []
    found = strata(table, "curvature")
    by_stratum = {stratum.name: curve_of(stratum.rows, "curvature", rule.outcome) for stratum in found}
    points = sorted({point for means in by_stratum.values() for point in means})
    head = f"| κ | {' | '.join(f'{point:g}' for point in points)} | ReLU | ± |"
    lines = [head, f"|---|{'---|' * (len(points) + 2)}"]
    for stratum in found:
        means = by_stratum[stratum.name]
        numbers = [means[point].value if point in means else None for point in points]
        shown = ["" if n is None else f"{100 * n:.1f}" for n in (*numbers, _relu(stratum, rule.outcome))]
        halves = [50 * (mean.high - mean.low) for mean in means.values() if mean.bounded]
        half = f"{np.median(halves):.1f}" if halves else ""
        lines.append(f"| {stratum.name or 'all'} | {' | '.join(shown)} | {half} |")
    return lines


def _words(metric: str) -> str:
    return norm_name(metric) if "hessian" in metric else outcome_name(metric)
