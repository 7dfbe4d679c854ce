"""What a comparison shows: a table of cells with intervals, paired differences to the baseline, in Markdown, LaTeX and csv."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pylatexenc.latexencode import UnicodeToLatexEncoder
from rich.table import Table

from curvact.files import atomic_write
from curvact.lab.comparison import ComparisonSpec, load_comparison
from curvact.lab.report.analysis_plots import write_figure
from curvact.lab.report.comparison_plots import CellLine, Interval, comparison_figure, roughness_figure
from curvact.lab.statistics.paired import Mean, PairedDifference, mean_interval, paired_differences
from curvact.lab.store import finished


@dataclass(frozen=True)
class Measure:
    """A column: where it is in a record's metrics, its heading, how a number is written, and whether it is a fraction."""

    key: str
    title: str
    form: str = "{:.3g}"
    percent: bool = False


MEASURES = (
    Measure("clean_accuracy", "clean", "{:.1f}", percent=True),
    Measure("robust_accuracy", "PGD", "{:.1f}", percent=True),
    Measure("subset_robust_accuracy", "part of AutoAttack", "{:.1f}", percent=True),
    Measure("subset_pgd_accuracy", "PGD, the same images", "{:.1f}", percent=True),
    Measure("train_robust_accuracy", "PGD, training images", "{:.1f}", percent=True),
    Measure("curvature_start", "κ at start"),
    Measure("curvature_end", "κ at end"),
    Measure("effective_curvature_start", "κ effective, start"),
    Measure("effective_curvature_end", "κ effective, end"),
    Measure("clean_hessian_rms", "Hessian norm, clean"),
    Measure("adversarial_hessian_rms", "Hessian norm, adversarial"),
    Measure("hessian_adversarial_curvature_share", "share of σ″ in diag H, adversarial"),
    Measure("flatness_average", "flatness, average"),
    Measure("flatness_worst", "flatness, worst"),
    Measure("smoothness_linf_ratio", "gradient Lipschitz, L∞"),
    Measure("smoothness_l2_ratio", "gradient Lipschitz, L2"),
    Measure("extra_parameters", "extra parameters", "{:.0f}"),
    Measure("gradient_evaluations", "gradients", "{:.0f}"),
    Measure("seconds_per_epoch", "seconds an epoch, median", "{:.2f}"),
    Measure("relative_seconds", "time, relative, median", "{:.2f}"),
)
ROUGHNESS = ("top_eigenvalue", "top eigenvalue of the input Hessian, mean over images")
COMPARED = (
    "clean_accuracy",
    "robust_accuracy",
    "subset_robust_accuracy",
    "subset_pgd_accuracy",
    "smoothness_linf_ratio",
    "smoothness_l2_ratio",
    "flatness_average",
    "flatness_worst",
)


@dataclass(frozen=True)
class ComparisonSummary:
    """means: cell → measure key → mean over seeds, of times the median.

    differences: measure key → cell → paired difference to the baseline.

    failed: trial label → cause. missing: trials not yet run.
    """

    spec: ComparisonSpec
    means: dict[str, dict[str, Mean]]
    differences: dict[str, dict[str, PairedDifference]]
    failed: dict[str, str]
    missing: int
    provenance: dict[str, str]


def summarize_comparison(folder: Path) -> ComparisonSummary:
    """Read a comparison's folder and write its tables and figures into it.

    results.csv, table.md, table.tex; comparison.png and .svg; with smoothness among the analyses roughness.png and .svg.
    """
    spec = load_comparison(folder)
    values: dict[str, dict[str, dict[int, float]]] = {}
    failed: dict[str, str] = {}
    missing = 0
    records = []
    for config in spec.trials():
        record = finished(folder / "trials", config)
        cell = values.setdefault(config["cell"], {})
        if record is None:
            missing += 1
        elif record["status"] == "failed":
            failed[spec.label(config)] = record["cause"]
        else:
            records.append(record)
            for key, value in _numbers(record).items():
                cell.setdefault(key, {})[config["seed"]] = value
    _add_relative_time(values, spec.baselines())
    means = {
        name: {key: _middle(key, list(seeds.values())) for key, seeds in cell.items()}
        for name, cell in values.items()
    }
    differences = {
        key: paired_differences({name: cell.get(key, {}) for name, cell in values.items()}, spec.baselines())
        for key in COMPARED
    }
    summary = ComparisonSummary(spec, means, differences, failed, missing, _provenance(folder, records))
    atomic_write(folder / "results.csv", _csv(records))
    atomic_write(folder / "table.md", to_markdown(summary))
    atomic_write(folder / "table.tex", to_latex(summary))
    _draw(folder, summary, values)
    return summary


def _draw(
    folder: Path, summary: ComparisonSummary, values: Mapping[str, Mapping[str, Mapping[int, float]]]
) -> None:
    spec = summary.spec
    lines, rough = [], {}
    for name, cell in values.items():
        clean, robust = (
            [100 * value for value in cell.get(f"{kind}_accuracy", {}).values()]
            for kind in ("clean", "robust")
        )
        found = summary.differences["robust_accuracy"].get(name)
        difference = None
        if found is not None:
            mean = found.mean
            difference = Interval(100 * mean.value, 100 * mean.low, 100 * mean.high)
        lines.append(CellLine(name, clean, robust, difference, found is not None and found.shown))
        flat = cell.get(f"smoothness_input_{ROUGHNESS[0]}", {})
        ratios = {attack: cell.get(f"smoothness_{attack}_ratio", {}) for attack in ("linf", "l2")}
        rough[name] = [
            (flat[seed], {a: ratios[a][seed] for a in ratios if seed in ratios[a]}) for seed in flat
        ]
    title = spec.question or spec.name
    if any(line.robust for line in lines):
        write_figure(comparison_figure(lines, f"PGD-{spec.evaluation.steps}", title), folder / "comparison")
    if any(rough.values()):
        write_figure(roughness_figure(rough, ROUGHNESS[1]), folder / "roughness")


def _middle(key: str, values: list[float]) -> Mean:
    """The mean; of times the median, as one trial beside other work says nothing of the rest."""
    if "seconds" in key:
        return Mean(statistics.median(values), math.nan, math.nan, len(values))
    return mean_interval(values)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    found = {**record["metrics"], "gradient_evaluations": record["gradient_evaluations"]}
    return {key: float(value) for key, value in found.items() if isinstance(value, (int, float))}


def _add_relative_time(values: dict[str, dict[str, dict[int, float]]], baselines: Mapping[str, str]) -> None:
    for name, baseline in baselines.items():
        cell = values.get(name, {})
        own = values.get(baseline, {}).get("seconds_per_epoch", {})
        times = cell.get("seconds_per_epoch", {})
        ratios = {seed: times[seed] / own[seed] for seed in times if own.get(seed)}
        if ratios:
            cell["relative_seconds"] = ratios


def _provenance(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    commits, processors = set(), set()
    for record in records:
        about = json.loads((folder / "trials" / record["trial"] / "environment.json").read_text())
        commits.add(str(about["commit"]))
        processors.add(str(about["processor"]))
    return {
        "commit": ", ".join(sorted(commits)),
        "hardware": ", ".join(sorted(processors)),
        "cost": f"{sum(r['seconds'] for r in records):.0f} s of one thread in all",
    }


def _shown(summary: ComparisonSummary) -> list[Measure]:
    return [m for m in MEASURES if any(m.key in cell for cell in summary.means.values())]


def _text(mean: Mean | None, measure: Measure) -> str:
    if mean is None:
        return "–"
    scale = 100.0 if measure.percent else 1.0
    text = "∞" if math.isinf(mean.value) else measure.form.format(scale * mean.value)
    half = scale * (mean.high - mean.value)
    if math.isnan(half) or half == 0 or not measure.percent:
        return text
    return f"{text} ± {half:.1f}"


def _difference(difference: PairedDifference | None, measure: Measure) -> str:
    """With its interval, accuracies in points; a star where it is shown after Holm's correction."""
    if difference is None:
        return "–"
    mean = difference.mean
    scale, form = (100, "{:+.1f}") if measure.percent else (1, "{:+.3g}")
    text, low, high = (form.format(scale * number) for number in (mean.value, mean.low, mean.high))
    if math.isnan(mean.low):
        return text
    return f"{text} [{low}, {high}]{'*' if difference.shown else ''}"


def _grid(summary: ComparisonSummary) -> tuple[list[str], list[list[str]]]:
    measures = _shown(summary)
    evaluation = summary.spec.evaluation
    steps = evaluation.steps
    titles = {
        "robust_accuracy": f"PGD-{steps}",
        "train_robust_accuracy": f"PGD-{steps}, training images",
        "subset_robust_accuracy": " + ".join(evaluation.autoattack_parts)
        + f", {evaluation.autoattack_images} images",
        "subset_pgd_accuracy": f"PGD-{steps}, the same {evaluation.autoattack_images}",
    }
    compared = [m for m in measures if m.key in COMPARED]
    heads = ["", *[titles.get(m.key, m.title) for m in measures]]
    heads += [f"{titles.get(m.key, m.title)} − baseline" for m in compared]
    lines = []
    for name, cell in summary.means.items():
        own = "baseline" if summary.spec.baselines().get(name) == name else None
        differences = [own or _difference(summary.differences[m.key].get(name), m) for m in compared]
        lines.append([name, *[_text(cell.get(m.key), m) for m in measures], *differences])
    return heads, lines


def _notes(summary: ComparisonSummary) -> list[str]:
    spec = summary.spec
    against = " and ".join(f"'{name}'" for name in dict.fromkeys(spec.baselines().values()))
    notes = [
        f"{spec.name}: {len(spec.seeds)} seeds, mean ± half of a 95 % interval; accuracies in %.",
        f"Differences to {against} are paired by seed, in points with a 95 % interval.",
        "* where a difference is shown after Holm's correction over all cells.",
    ]
    if spec.budget is not None:
        notes.append(f"Every trial stops at {spec.budget} gradient evaluations, the attack's included.")
    notes.append("; ".join(f"{key}: {value}" for key, value in summary.provenance.items()))
    notes += [f"failed: {label}: {cause}" for label, cause in summary.failed.items()]
    if summary.missing:
        notes.append(f"{summary.missing} trials have not run: --resume goes on")
    return notes


def to_markdown(summary: ComparisonSummary) -> str:
    """The table with its notes as Markdown; what would end a cell early is escaped."""
    heads, lines = _grid(summary)
    rows = [[_cell(text) for text in heads], ["---", *["---:"] * (len(heads) - 1)]]
    rows += [[_cell(text) for text in line] for line in lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return table + "\n\n" + "\n\n".join(_notes(summary)) + "\n"


def _cell(text: str) -> str:
    r"""
    >>> print(_cell("a|b"))
    a\|b
    """
    return " ".join(text.split()).replace("\\", r"\\").replace("|", r"\|")


def to_latex(summary: ComparisonSummary) -> str:
    """The table as a LaTeX tabular (booktabs) that pdfLaTeX sets, its notes as comments."""
    heads, lines = _grid(summary)
    rows = [[_latex(text) for text in row] for row in [heads, *lines]]
    for row in rows:
        if row[0].startswith(("[", "*")):  # \\ before it would take it for its argument
            row[0] = f"{{}}{row[0]}"
    body = [" & ".join(row) + r" \\" for row in rows]
    comments = "\n".join(f"% {' '.join(note.split())}" for note in _notes(summary))
    return "\n".join(
        [
            comments,
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


_LATEX = UnicodeToLatexEncoder(unknown_char_policy="replace", unknown_char_warning=False)


def _latex(text: str) -> str:
    r"""
    >>> print(_latex("κ ± 1 % of a_b"))
    \ensuremath{\kappa} \ensuremath{\pm} 1 \% of a\_b
    """
    return str(_LATEX.unicode_to_latex(" ".join(text.split())))


def to_tables(summary: ComparisonSummary, width: int) -> list[Table]:
    """The table for a terminal of so many columns: as many tables as it takes, each with the names of the cells."""
    heads, lines = _grid(summary)
    accuracies = sum(m.percent for m in _shown(summary))
    differences = sum(m.key in COMPARED for m in _shown(summary))
    count = len(heads)
    order = [*range(1, 1 + accuracies), *range(count - differences, count)]
    order += [column for column in range(1, count) if column not in order]

    def size(column: int) -> int:
        return max(max(len(line[column]) for line in lines), max(map(len, heads[column].split() or [""])))

    groups: list[list[int]] = []
    left = 0
    for column in order:
        if size(column) + 2 > left:
            groups.append([])
            left = width - size(0)
        groups[-1].append(column)
        left -= size(column) + 2
    tables = []
    for group in groups:
        table = Table(box=None, pad_edge=False)
        for column in (0, *group):
            table.add_column(
                heads[column],
                justify="right" if column else "left",
                width=size(column),
                no_wrap=not column,
            )
        for line in lines:
            table.add_row(*[line[column] for column in (0, *group)])
        tables.append(table)
    return tables


def notes(summary: ComparisonSummary) -> list[str]:
    """What belongs under the table, line by line."""
    return _notes(summary)


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    keys = sorted({key for record in records for key in _numbers(record)})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "cell", "seed", *keys, "seconds"])
    for record in records:
        found = _numbers(record)
        config = record["config"]
        row = [record["trial"], config["cell"], config["seed"], *[found.get(key, "") for key in keys]]
        writer.writerow([*row, record["seconds"]])
    return stream.getvalue()
