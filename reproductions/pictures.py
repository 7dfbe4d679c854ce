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
from curvact.lab.statistics.curve import norm_name
from curvact.lab.statistics.interval import difference_text, scale_of, student
from curvact.lab.statistics.strata import Stratum, by_seed, cells, label_text, name_of, strata, varying
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
    """The outcome by curvature in every stratum: means over seeds, with Student's 95 % intervals.

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
    columns = min(len(panels), 4 if len(panels) % 4 == 0 else 3 if len(panels) % 3 == 0 else 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.4, 2.7 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for ax, (title, group) in zip(axes.flat, panels.items(), strict=False):
        ax.axvspan(*rule.band, color=BAND_COLOUR, zorder=0)
        for stratum in group:
            name = _choice(stratum, inner)
            _curve(ax, rule.outcome, stratum, looks[name].colour, looks[name].marker)
        ax.set_title("\n".join(textwrap.wrap(title, 38)), fontsize=9)
        ax.set_xscale("log")
        log_ticks(ax, "x")
        if scale_of(rule.outcome) != "fraction":
            ax.set_yscale("log")
            log_ticks(ax, "y")
    for ax in list(axes.flat)[len(panels) :]:
        ax.remove()
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
    scale = scale_of(outcome)
    unit = 100.0 if scale == "fraction" else 1.0
    own = cells(stratum.rows, "curvature", outcome)
    if not len(own.points):
        return
    means = [student(line[np.isfinite(line)].tolist(), scale=scale) for line in own.values]
    ax.plot(own.points, [unit * mean.value for mean in means], color=colour, marker=marker, markersize=4)
    ends = [(unit * m.low, unit * m.high) if m.bounded else (unit * m.value,) * 2 for m in means]
    ax.fill_between(own.points, *zip(*ends, strict=True), color=colour, alpha=0.15, linewidth=0)
    for name, rows in stratum.references.items():
        values = list(by_seed(rows, outcome).values())
        if name == "relu" and values:
            ax.axhline(unit * float(np.mean(values)), color=colour, linestyle="--", linewidth=1.0)


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
        colour = COLOURS.get(verdict, GREY)
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
    """The paper, the difference and the claim, in at most two lines."""
    text = "\n".join(textwrap.wrap(f"{paper}: {claim}", 95, max_lines=1, placeholder=" …"))
    return f"{text}\n{effect.what}"


def means_table(rule: CurveJudge, table: Table) -> Sequence[str]:
    """The means of an accuracy by stratum and curvature, in per cent, as lines of Markdown."""
    if scale_of(rule.outcome) != "fraction":
        return []
    found = strata(table, "curvature")
    own = {stratum.name: cells(stratum.rows, "curvature", rule.outcome) for stratum in found}
    points = sorted({point for one in own.values() for point in one.points.tolist()})
    head = f"| κ | {' | '.join(f'{point:g}' for point in points)} | ReLU | ± |"
    lines = [head, f"|---|{'---|' * (len(points) + 2)}"]
    for stratum in found:
        at = own[stratum.name]
        by_point = dict(zip(at.points.tolist(), at.values, strict=True))
        numbers = [100 * float(np.nanmean(by_point[p])) if p in by_point else np.nan for p in points]
        relu = list(by_seed(stratum.references.get("relu", ()), rule.outcome).values())
        numbers.append(100 * float(np.mean(relu)) if relu else np.nan)
        halves = [
            100 * (m.high - m.low) / 2
            for m in (student(v[np.isfinite(v)].tolist()) for v in by_point.values())
            if m.bounded
        ]
        shown = [f"{number:.1f}" if np.isfinite(number) else "" for number in numbers]
        half = f"{np.median(halves):.1f}" if halves else ""
        lines.append(f"| {stratum.name or 'all'} | {' | '.join(shown)} | {half} |")
    return lines


def _words(metric: str) -> str:
    if "hessian" in metric:
        return norm_name(metric)
    return "robust accuracy" if metric.endswith("robust_accuracy") else metric.replace("_", " ")
