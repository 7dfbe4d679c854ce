"""Report room, the page: one self-contained `report.html` that opens offline, from rows, verdicts and provenance."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2

from curvact.files import atomic_write
from curvact.lab.report.plots import (
    NORM_LABELS,
    OKABE_ITO,
    PUBLISHED_BAND,
    TITLES,
    Band,
    Chart,
    Verdict,
    accuracy_chart,
    hessian_chart,
    legend_figures,
    looks_of,
    panel_figure,
    to_svg,
    train_test_chart,
)
from curvact.lab.report.table import (
    HESSIAN_LOSSES,
    HESSIAN_NORMALIZATIONS,
    Intervals,
    Row,
    Summary,
    estimate_text,
    finished,
    group_of,
    groups_of,
    level_names,
    number,
    row_order,
    seeds_text,
    student_intervals,
    summaries,
)

TITLE = "How robustness depends on the curvature of the activation"
INTERVAL_TEXT = "95 % confidence interval of the mean over seeds (Student’s t, each curvature by itself)"
ACCURACY_HEADS = {
    "robust_accuracy": "robust, test",
    "clean_accuracy": "clean, test",
    "train_robust_accuracy": "robust, training",
    "train_clean_accuracy": "clean, training",
}


@dataclass(frozen=True)
class Picture:
    """An image of the page: a data URI, its text for readers who do not see it, its size in pixels."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Plate:
    """A chart on the page: panels side by side on a laptop, one below the other on a phone."""

    columns: int
    legend: tuple[Picture, ...]
    panels: tuple[Picture, ...]
    hidden: int
    cut: bool


@dataclass(frozen=True)
class Block:
    """The lines of one group in a table of means."""

    heading: str
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Opinion:
    """A verdict as the page shows it."""

    heading: str
    kind: str
    sentences: tuple[str, ...]
    details: tuple[str, ...]
    colour: str


def write_page(
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    calibration_rows: Sequence[tuple[str, str, str]],
    provenance: Mapping[str, str],
    folder: str | os.PathLike[str],
    *,
    spec_yaml: str,
    across: Sequence[str] = (),
    band: Band | None = PUBLISHED_BAND,
    title: str = TITLE,
    intervals: Intervals = student_intervals,
    interval_text: str = INTERVAL_TEXT,
) -> Path:
    """Write `folder/report.html` atomically and return its path; the same arguments give the same bytes.

    rows: one a trial (`curvact.lab.report.table.COLUMNS`), failed ones too; none at all is allowed.
    verdicts: one a family (and level); their sentences are shown as they are. across: sentences that compare families.
    calibration_rows: (what, figure, required or meaning) of the verdict procedure, by simulation.
    provenance: what the study ran on and cost, in the order to show. spec_yaml: the resolved spec.
    intervals, interval_text: how intervals over seeds are computed, and that in words.
    Raises CurvactError for numbers that are none, two trials in one cell, or a file that cannot be written.
    """
    template = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).from_string(resources.files("curvact.lab.report").joinpath("page.html").read_text(encoding="utf-8"))
    lines = summaries(rows, intervals)
    accuracies = _measured(lines, tuple(ACCURACY_HEADS))
    page = template.render(
        title=title,
        band=None if band is None else f"{band[0]:g} to {band[1]:g}",
        facts=_facts(rows),
        opinions=_opinions(rows, verdicts),
        across=tuple(across),
        accuracy=_plate(accuracy_chart(rows, verdicts, band=band, intervals=intervals)),
        hessian=_plate(hessian_chart(rows, band=band, intervals=intervals)),
        train_test=_plate(train_test_chart(rows, band=band, intervals=intervals)),
        accuracy_heads=[ACCURACY_HEADS[column] for column in accuracies],
        accuracy_blocks=_blocks(rows, lines, accuracies, percent=True),
        hessian_heads=[
            (loss, TITLES[norm], NORM_LABELS[norm])
            for loss in HESSIAN_LOSSES
            for norm in HESSIAN_NORMALIZATIONS
            if _measured(lines, (f"{loss}_hessian_{norm}",))
        ],
        hessian_blocks=_blocks(
            rows,
            lines,
            _measured(
                lines,
                [f"{loss}_hessian_{norm}" for loss in HESSIAN_LOSSES for norm in HESSIAN_NORMALIZATIONS],
            ),
            percent=False,
        ),
        calibration=tuple(calibration_rows),
        failures=_failures(rows),
        provenance=dict(provenance),
        spec_yaml=spec_yaml,
        interval_text=interval_text,
    )
    path = Path(folder) / "report.html"
    atomic_write(path, page)
    return path


def _facts(rows: Sequence[Row]) -> list[str]:
    """What was run, in a line: trials, families, curvatures, seeds."""
    curvatures = sorted({kappa for row in rows if not math.isnan(kappa := number(row, "curvature"))})
    seeds = {seed for row in rows if not math.isnan(seed := number(row, "seed"))}
    done = len(finished(rows))
    facts = [f"{_count(len(rows), 'trial')}" + (" done" if done == len(rows) else f", {done} done")]
    facts.append(_count(len({group.family for group in groups_of(rows)}), "family", "families"))
    if len(curvatures) > 1:
        facts.append(f"{len(curvatures)} curvatures from {curvatures[0]:g} to {curvatures[-1]:g}")
    elif curvatures:
        facts.append(f"one curvature, {curvatures[0]:g}")
    facts.append(_count(len(seeds), "seed"))
    names = level_names(rows)
    ordered = sorted(names, key=lambda group: (group.centered, group.epochs))
    levels = list(dict.fromkeys(names[group] for group in ordered if names[group]))
    if levels:
        facts.append(f"{len(levels)} levels: {'; '.join(levels)}")
    return facts if rows else ["no trials"]


def _count(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _opinions(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[Opinion]:
    families = sorted({group.family for group in groups_of(rows)} | {verdict.family for verdict in verdicts})
    colours = {name: look.colour for name, look in looks_of(families).items()}
    several = any(level_names(rows).values())
    opinions = []
    for verdict in verdicts:
        centered, epochs = getattr(verdict, "centered", None), getattr(verdict, "epochs", None)
        heading = [verdict.family]
        if several and centered is not None:
            heading.append("centred" if centered else "not centred")
        if several and epochs is not None:
            heading.append(f"{epochs} epochs")
        kind = str(verdict.robustness.kind).replace("_", " ")
        # with several levels the charts colour the levels, not the families
        colour = OKABE_ITO[0] if several else colours[verdict.family]
        details = tuple(getattr(verdict, "details", ()))
        opinions.append(Opinion(", ".join(heading), kind, tuple(verdict.sentences), details, colour))
    return opinions


def _plate(chart: Chart) -> Plate | None:
    if not chart.panels:
        return None
    legend = tuple(_picture(to_svg(figure, tight=True), text) for text, figure in legend_figures(chart))
    panels = []
    for panel in chart.panels:
        curves = "; ".join(
            f"{curve.label}: {_value(curve.mean[0], panel.logarithmic)} at κ = {curve.curvatures[0]:g}"
            + (
                f" to {_value(curve.mean[-1], panel.logarithmic)} at κ = {curve.curvatures[-1]:g}"
                if len(curve.mean) > 1
                else ""
            )
            for curve in panel.curves
        )
        alt = f"{panel.title.replace(chr(10), ', ')}, {panel.label}, against curvature. {curves}"
        panels.append(_picture(to_svg(panel_figure(panel, chart.band)), alt))
    return Plate(
        2 if chart.columns == 4 else chart.columns,
        legend,
        tuple(panels),
        chart.hidden,
        any(panel.cut for panel in chart.panels),
    )


def _value(value: float, logarithmic: bool) -> str:
    return f"{value:.3g}" if logarithmic else f"{value:.1f} %"


def _picture(svg: bytes, alt: str) -> Picture:
    head = svg[svg.index(b"<svg") :].split(b">", 1)[0].decode()
    width, height = (
        round(float(head.split(f' {side}="')[1].split('pt"')[0]) * 4 / 3) for side in ("width", "height")
    )
    return Picture("data:image/svg+xml;base64," + base64.b64encode(svg).decode(), alt, width, height)


def _measured(lines: Sequence[Summary], columns: Sequence[str]) -> list[str]:
    return [column for column in columns if any(column in line.estimates for line in lines)]


def _blocks(
    rows: Sequence[Row], lines: Sequence[Summary], columns: Sequence[str], *, percent: bool
) -> list[Block]:
    names = level_names(rows)
    blocks = []
    for group in groups_of(rows):
        body = tuple(
            (
                f"{line.curvature:g}",
                seeds_text(line),
                *(estimate_text(line.estimates.get(column), percent=percent) for column in columns),
            )
            for line in lines
            if line.group == group
        )
        if body and columns:
            blocks.append(Block(", ".join(filter(None, (group.family, names[group]))), body))
    return blocks


def _failures(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    names = level_names(rows)
    return [
        (
            str(row.get("trial", "")),
            ", ".join(filter(None, (str(row.get("family", "")), names[group_of(row)]))),
            f"{number(row, 'curvature'):g}",
            f"{number(row, 'seed'):g}",
            str(row.get("cause") or "no cause was recorded"),
        )
        for row in sorted(rows, key=row_order)
        if row.get("status") != "done"
    ]
