"""The page of a sweep, and the files beside it: from a table of runs and what is known of the
sweep."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from curvact.files import atomic_write, cell_text
from curvact.lab.report.html import Plate, page_template, picture
from curvact.lab.report.interactive import Explorer, Shading, drawable, finite, script
from curvact.lab.report.style import to_svg, write_figure
from curvact.lab.report.sweep.about import SweepAbout, SweepReport
from curvact.lab.report.sweep.comparison import comparison_figure, roughness_figure
from curvact.lab.report.sweep.curves import (
    QUICK_MARK,
    Chart,
    chart_figures,
    charts,
    legend_figures,
    metric_curves,
    optimum_figure,
    panel_figure,
)
from curvact.lab.report.sweep.results import csv_lines, write_csv
from curvact.lab.report.text import to_latex, to_markdown
from curvact.lab.statistics import ask
from curvact.lab.statistics.curve import ROBUST_ACCURACIES, CurveAnswer, accuracy_head
from curvact.lab.statistics.interval import TEXTS
from curvact.lab.statistics.paired import PairedAnswer, paired_grid
from curvact.lab.statistics.question import Answer, Grid
from curvact.lab.statistics.strata import SEED, axis_name, label_text, labels_of
from curvact.lab.statistics.words import Terms, count, outcome_name, percent
from curvact.lab.table import Table

INTERVALS = "95 % confidence interval of the mean over seeds; the noise of a point is shrunk towards that of the whole curve"
MOST_LISTED = 60  # seeds in a command
LONGEST = 40  # lines of a table in the terminal, which shows the first two tables of an answer


@dataclass(frozen=True)
class Opinion:
    """The verdict on one stratum."""

    heading: str
    kind: str
    sentences: tuple[str, ...]
    details: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One answer on the page, in this order; `folded` parts open on a click."""

    title: str
    lead: tuple[str, ...] = ()
    command: str = ""
    across: tuple[str, ...] = ()
    tables: tuple[Grid, ...] = ()
    plates: tuple[Plate, ...] = ()
    opinions: tuple[Opinion, ...] = ()
    folded_plates: tuple[Plate, ...] = ()
    folded_tables: tuple[Grid, ...] = ()


def report_sweep(table: Table, about: SweepAbout, folder: Path) -> SweepReport:
    """Ask the questions of a sweep, and write report.html, results.csv, table.md, table.tex and the
    figures to `folder`.

    The same arguments give the same bytes. Raises CurvactError where a question does not fit the
    table, or a file cannot be written.
    """
    answers = ask(table, about.questions)
    answers = {name: _titled(answer, about) for name, answer in answers.items()}
    files: dict[str, Path] = {}
    sections = []
    for answer in answers.values():
        figures = _figures(answer, about)
        for name, figure in figures.items():
            files |= write_figure(figure, folder / name)
        sections.append(_section(answer, about, figures))
    grids = [grid for answer in answers.values() for grid in answer.tables]
    notes = _notes(table, about)
    if grids:
        grids = [*grids[:-1], replace(grids[-1], notes=(*grids[-1].notes, *notes))]
        markdown = [to_markdown(g) if len(grids) == 1 else f"## {g.title}\n\n{to_markdown(g)}" for g in grids]
        files["table.md"] = _write(folder / "table.md", "\n".join(markdown))
        files["table.tex"] = _write(folder / "table.tex", "\n".join(map(to_latex, grids)))
    write_csv(table, folder / "results.csv")
    files["results.csv"] = folder / "results.csv"
    code, source = script()
    page = page_template("sweep/page.html").render(
        title=about.question or about.name,
        subtitle=_subtitle(answers.values(), about),
        runs=_explorer(table, about, list(answers.values())).to_json() if table.rows else "",
        script=code,
        script_source=source,
        facts=_facts(table, about),
        sections=sections,
        failures=_failures(table),
        provenance={"sweep": about.name, **about.provenance},
        notes=about.notes,
        spec_yaml=about.spec_yaml,
    )
    files["report.html"] = _write(folder / "report.html", page)
    sentences = tuple(line for answer in answers.values() for line in answer.sentences)
    shown = tuple(grid for a in answers.values() for grid in a.tables[:2] if len(grid.lines) <= LONGEST)
    return SweepReport(shown, (*sentences, *_missing(table, about)), files)


def _subtitle(answers: Iterable[Answer], about: SweepAbout) -> str:
    """The sweep's name, and what was asked of it."""
    asked = "; ".join(answer.title for answer in answers)
    name = f"Sweep {about.name}" if about.question else "A sweep"
    return f"{name}: {asked[:1].lower()}{asked[1:]}" if asked else name


def _explorer(table: Table, about: SweepAbout, answers: Sequence[Answer]) -> Explorer:
    """The runs, and how they are drawn first: as the first question has it."""
    lines = csv_lines(table)
    heads = [str(head) for head in lines[0]]
    metrics = drawable(lines, heads[heads.index("cause") + 1 :])
    curve = next((answer for answer in answers if isinstance(answer, CurveAnswer)), None)
    paired = next((answer for answer in answers if isinstance(answer, PairedAnswer)), None)
    varied = [axis for axis in table.axes if axis != SEED and len(labels_of(table.rows, axis)) > 1]
    x = curve.question.axis if curve else next(iter((*varied, *table.axes)), "run")
    wanted = curve.question.outcome if curve else paired.judged_by if paired else "robust_accuracy"
    return Explorer(
        lines,
        tuple(dict.fromkeys((*table.axes, x))),
        metrics,
        x,
        wanted if wanted in metrics else next(iter(metrics), ""),
        "results.csv",
        frozenset({"curvature"} | ({x} if curve else set())),
        band=curve.question.shown_band if curve else None,
        titles={name: f"{outcome_name(name)}, {title}" for name, title in about.titles.items()},
        shadings=tuple(_shadings(curve)) if curve else (),
        runs=about.runs,
        add_seeds=_more_seeds(table, answers, about),
    )


def _shadings(answer: CurveAnswer) -> Iterator[Shading]:
    for metric, labels, curve in metric_curves(answer):
        at = tuple(float(point) for point in curve.points)
        low, high = (tuple(finite(float(v)) for v in part) for part in (curve.low, curve.high))
        yield Shading(metric, {k: cell_text(v) for k, v in labels.items()}, at, low, high)


def _more_seeds(table: Table, answers: Sequence[Answer], about: SweepAbout) -> str:
    """The command of the first verdict that is open, or else one that adds two seeds."""
    for answer in answers:
        command = _lead(answer, about)[1] if isinstance(answer, CurveAnswer) else ""
        if command:
            return command
    seeds = [seed for seed in labels_of(table.rows, SEED) if isinstance(seed, int)]
    if not about.more_seeds or not seeds or len(seeds) + 2 > MOST_LISTED:
        return ""
    return about.more_seeds.replace("{seeds}", ",".join(map(str, [*seeds, max(seeds) + 1, max(seeds) + 2])))


def _write(path: Path, text: str) -> Path:
    atomic_write(path, text)
    return path


def _titled(answer: Answer, about: SweepAbout) -> Answer:
    """The answer with the headings and the notes of this sweep in its tables."""
    if isinstance(answer, CurveAnswer):
        heads = {
            accuracy_head(m): f"{title} (%)" for m, title in about.titles.items() if m in ROBUST_ACCURACIES
        }
        return replace(
            answer,
            tables=tuple(replace(g, heads=tuple(heads.get(h, h) for h in g.heads)) for g in answer.tables),
        )
    if not isinstance(answer, PairedAnswer):
        return answer
    question = answer.question
    grid = paired_grid(answer.axes, answer.cells, question.outcomes, about.titles)
    against = dict.fromkeys(cell.baseline for cell in answer.cells if cell.baseline is not None)
    over = "all differences" if question.correct == "all" else "all cells"
    notes = (
        f"{TEXTS.format(level=percent(question.level))} Accuracies in %.",
        (
            f"Differences to {' and '.join(map(repr, against))} are paired by seed, in points, with a "
            f"{percent(question.level)} interval."
        ),
        f"* where a difference is shown after Holm's correction over {over}.",
    )
    return replace(answer, tables=(replace(grid, notes=notes),))


def _figures(answer: Answer, about: SweepAbout) -> dict[str, Figure]:
    """The figures of an answer as files, by name without ending."""
    if isinstance(answer, CurveAnswer):
        found = dict(pair for chart in charts(answer, about.titles) for pair in chart_figures(chart))
        optimum = optimum_figure(answer)
        return found if optimum is None else {"optimum": optimum, **found}
    if isinstance(answer, PairedAnswer):
        title = about.question or about.name
        made = {
            "comparison": comparison_figure(answer.cells, answer.judged_by, about.titles, title),
            "roughness": roughness_figure(answer.cells),
        }
        return {name: figure for name, figure in made.items() if figure is not None}
    return {}


def _section(answer: Answer, about: SweepAbout, figures: Mapping[str, Figure]) -> Section:
    if isinstance(answer, CurveAnswer):
        return _curve_section(answer, about, figures)
    caption = _judged_by(answer.judged_by, about) if isinstance(answer, PairedAnswer) else ""
    plates = tuple(
        Plate("", caption, 1, (picture(to_svg(figure, outlines=False), f"{answer.title}: {name}"),))
        for name, figure in figures.items()
    )
    return Section(answer.title, across=answer.sentences, tables=answer.tables, plates=plates)


def _curve_section(answer: CurveAnswer, about: SweepAbout, figures: Mapping[str, Figure]) -> Section:
    several = len(answer.strata) > 1
    opinions = tuple(
        Opinion(
            s.stratum.name or answer.question.terms.outcome,
            s.verdict.kind,
            (*s.sentences, *s.beside),
            s.details,
        )
        for s in answer.strata
    )
    lead, command = _lead(answer, about)
    plates = [_plate(chart, about) for chart in charts(answer, about.titles)]
    if "optimum" in figures:
        image = picture(
            to_svg(figures["optimum"], outlines=False), "Confidence sets of the optimum, one line a stratum"
        )
        caption = (
            f"{_judged_by(answer.question.outcome, about)} A line a stratum; small grey ticks are its points. "
            "Two sets that overlap do not contradict each other."
        ).strip()
        plates.insert(1, Plate("Where the optimum can be", caption, 1, (image,)))
    first = 2 if "optimum" in figures else 1
    across = tuple(
        line for line in answer.sentences if not any(line.endswith(s) for o in opinions for s in o.sentences)
    )
    tables = {grid.title: grid for grid in answer.tables}
    head = tables.pop("Verdict by stratum", None)
    against = tables.pop("Against references", None)
    folded = list(tables.values())
    if answer.calibration is not None:
        c, terms = answer.calibration, answer.question.terms
        note = (
            f"Simulated once for {c.points} points, {c.seeds} seeds and noise of sd {terms.size(c.sd)}, the nearest design "
            f"in the shipped table; {c.sweeps} simulated sweeps a figure, ± one standard error."
        )
        heads = ("what", "figure", "required")
        lines = tuple((_in_words(what, terms), *rest) for what, *rest in c.lines)
        folded.append(Grid("How often the verdict is right", heads, lines, 1, (note,)))
    return Section(
        answer.title,
        lead,
        command,
        across,
        tuple(grid for grid in (head if several else None, against) if grid is not None),
        tuple(plates[:first]),
        opinions,
        tuple(plates[first:]),
        tuple(folded),
    )


def _lead(answer: CurveAnswer, about: SweepAbout) -> tuple[tuple[str, ...], str]:
    """How many seeds decide, before everything else, and the command that adds them."""
    open_ = [s.verdict for s in answer.strata if s.verdict.kind == "inconclusive"]
    if not open_:
        return (), ""
    number = len(answer.strata)
    which = "The verdict is" if number == 1 else f"{len(open_)} of {number} verdicts are"
    have = max(v.seeds for v in open_)
    text = f"{which} inconclusive with {count(have, 'seed')}. {_power(answer)}".strip()
    known = [v.seeds_for_peak for v in open_ if v.likely]
    if not known:
        return (f"{text} An error bar needs 2 seeds, a verdict 3 or more.",), ""
    enough = [seeds for seeds in known if seeds is not None]
    margin = answer.question.terms.size(answer.question.margin)
    if not enough:
        return (f"{text} A peak of {margin} would take more than 200 seeds: lower the noise first.",), ""
    most = max(enough)
    text += f" {count(most, 'seed')} find a peak of {margin} with a power of 80 %"
    text += "." if len(enough) == len(known) else f" in {len(enough)} of them; the others need more than 200."
    if not about.more_seeds or not have < most <= MOST_LISTED:
        return (text,), ""
    seeds = sorted({seed for s in answer.strata for seed in s.cells.seeds})
    seeds += [seed for seed in range(most + len(seeds)) if seed not in seeds][: most - len(seeds)]
    return (f"{text} This command adds them:",), about.more_seeds.replace(
        "{seeds}", ",".join(map(str, seeds))
    )


def _power(answer: CurveAnswer) -> str:
    """What so many seeds find, from the nearest design that was simulated."""
    if answer.calibration is None:
        return ""
    mark, terms = "a real peak of ", answer.question.terms
    found = [
        f"{_in_words(line[0], terms).removeprefix(mark).removesuffix(' is found')} in {line[1].partition(' ')[0]} %"
        for line in answer.calibration.lines
        if line[0].startswith(mark)
    ]
    c = answer.calibration
    return f"{count(c.seeds, 'seed')} at a noise of {terms.size(c.sd)} find a peak of {', of '.join(found)} of sweeps."


def _in_words(line: str, terms: Terms) -> str:
    """What a line of the calibration is about, with its sizes as the sentences write them."""
    return re.sub(r"(?<= )0\.\d+", lambda size: terms.size(float(size[0])), line)


def _judged_by(metric: str, about: SweepAbout) -> str:
    """Which attack a robust accuracy is measured by, where that is known."""
    return (
        f"Judged by {about.titles[metric]}." if metric in ROBUST_ACCURACIES and metric in about.titles else ""
    )


def _plate(chart: Chart, about: SweepAbout) -> Plate:
    panels = []
    for panel in chart.panels:
        curves = "; ".join(
            f"{curve.label}: {curve.mean[0]:.3g} at {curve.points[0]:g} to {curve.mean[-1]:.3g} at {curve.points[-1]:g}"
            for curve in panel.curves
        )
        alt = f"{panel.title or chart.title}, {chart.label}, against {chart.axis}. {curves}"
        panels.append(picture(to_svg(panel_figure(chart, panel), outlines=False), alt))
    legend = tuple(picture(to_svg(figure, tight=True), text) for text, figure in legend_figures(chart))
    means = "geometric means" if chart.logarithmic else "means"
    caption = f"Lines: {means} over seeds. Shading: {INTERVALS}. Faint dots: single seeds."
    if not all(curve.bounded for panel in chart.panels for curve in panel.curves):
        caption += " Points of fewer than three seeds have no shading: an interval of two says nothing."
    if chart.name in ROBUST_ACCURACIES and chart.name in about.titles:
        caption = f"{_judged_by(chart.name, about)} {caption}"
    if any(curve.label.startswith(QUICK_MARK) for panel in chart.panels for curve in panel.curves):
        caption += (
            " The quick attack on the same images is a diagnostic: where it lies far above, it flatters."
        )
    if any(panel.optimum for panel in chart.panels):
        caption += " Bar below: the confidence set of the optimum, a tick at each of its points, a dot at the highest mean."
    if chart.logarithmic:
        caption += " The normalization decides what is seen; only the scale-invariant norm stays when layers are rescaled."
    if any(panel.references for panel in chart.panels):
        caption += " Horizontal lines and their bands: references, which have no place on this axis."
    if chart.cut:
        caption += " Intervals wider than the frame go on beyond it."
    if chart.hidden:
        caption += f" {count(chart.hidden, 'value')} not above 0 cannot be shown on a logarithmic axis."
    return Plate(chart.title, caption, min(3, len(panels)) if len(panels) != 4 else 2, tuple(panels), legend)


def _facts(table: Table, about: SweepAbout) -> list[str]:
    """What was run: number of runs, and the labels of each axis that varies."""
    done = sum(row.status == "done" for row in table.rows)
    expected = max(about.expected, len(table.rows))
    facts = [f"{count(done, 'run')} done" + ("" if done == expected else f" of {expected}")]
    references = list(dict.fromkeys(row.reference for row in table.references))
    if references:
        facts.append(f"references: {', '.join(references)} ({count(len(table.references), 'run')})")
    for axis in table.axes:
        labels = labels_of(table.rows, axis)
        name = axis_name(axis)
        if axis == SEED:
            facts.append(count(len(labels), "seed"))
        elif 1 < len(labels) <= 4 and all(isinstance(label, str) for label in labels):
            facts.append(f"{name}: {', '.join(map(str, labels))}")
        elif len(labels) > 1:
            numbers = [v for v in labels if isinstance(v, (int, float)) and not isinstance(v, bool)]
            span = f" from {min(numbers):g} to {max(numbers):g}" if len(numbers) > 1 else ""
            facts.append(f"{name}: {len(labels)} values{span}")
    return facts


def _failures(table: Table) -> Grid:
    axes = [axis for axis in table.axes if len(labels_of(table.rows, axis)) > 1]
    lines = tuple(
        (
            row.run,
            *(label_text(axis, row.labels.get(axis, row.reference)) for axis in axes),
            row.cause or "no cause was recorded",
        )
        for row in (*table.rows, *table.references)
        if row.status != "done"
    )
    return Grid("Failed runs", ("run", *axes, "cause"), lines, len(axes) + 2)


def _missing(table: Table, about: SweepAbout) -> tuple[str, ...]:
    missing = about.expected - len(table.rows)
    return (f"{count(missing, 'run')} not finished yet.",) if missing > 0 else ()


def _notes(table: Table, about: SweepAbout) -> list[str]:
    """What belongs under the tables."""
    seeds = count(len(labels_of(table.rows, SEED)), "seed")
    notes = [f"{about.name}: {seeds}.", *about.notes]
    if about.provenance:
        notes.append("; ".join(f"{key}: {value}" for key, value in about.provenance.items()))
    for line in _failures(table).lines:
        notes.append(f"failed: {', '.join(line[1:-1])}: {line[-1]}")
    return [*notes, *_missing(table, about)]
