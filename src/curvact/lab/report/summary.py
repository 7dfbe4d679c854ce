"""A study's folder into its verdict: results.csv, plots, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from curvact.errors import CurvactError
from curvact.lab.report import (
    cells,
    groups_of,
    level_names,
    results_table,
    write_csv,
    write_figures,
    write_page,
)
from curvact.lab.report.table import HESSIAN_NORMS, Group
from curvact.lab.statistics.calibration import calibrate
from curvact.lab.statistics.paired import holm
from curvact.lab.statistics.shape import ShapeVerdict, mean_intervals
from curvact.lab.statistics.verdict import Verdict, compare_families, sweep_verdict
from curvact.lab.store import finished, read_study, row_of
from curvact.lab.study_spec import StudySpec

BAND = (4.0, 10.0)
"""Where the paper sees the best curvatures. [paper]"""

_INTERVALS = "95 % confidence interval of the mean over seeds, with noise variances shrunk towards those of all curvatures"


@dataclass(frozen=True)
class Summary:
    """What was written, and what the terminal shows."""

    table: Table
    sentences: tuple[str, ...]
    page: Path
    csv: Path


@dataclass(frozen=True)
class _Shown:
    """A verdict and the level of the factors it holds for, as the page draws it."""

    family: str
    robustness: ShapeVerdict
    sentences: tuple[str, ...]
    details: tuple[str, ...]
    centered: bool
    epochs: int


def summarize(folder: Path) -> Summary:
    """Write results.csv, the plots and report.html from the records in a study's folder.

    Raises CurvactError for a folder without a study, without a finished trial, or with a damaged one.
    """
    spec = read_study(folder)
    records = [
        record for config in spec.trials() if (record := finished(folder / "trials", config)) is not None
    ]
    if not records:
        raise CurvactError(f"{folder} has no finished trial: `curvact study run … --resume` goes on with it")
    rows = [row_of(record) for record in records]
    csv = folder / "results.csv"
    write_csv(rows, csv)
    shown, across, calibration = _verdicts(rows)
    write_figures(rows, folder, BAND, shown, intervals=mean_intervals)
    page = write_page(
        rows,
        shown,
        calibration,
        _provenance(spec, records, folder / "trials"),
        folder,
        spec_yaml=spec.to_yaml(),
        across=across,
        band=BAND,
        title=spec.question or f"{spec.name}: how robustness depends on the curvature of the activation",
        intervals=mean_intervals,
        interval_text=_INTERVALS,
    )
    # The terminal shows where the optimum is, whether a peak is supported, what fits best, and the norms; the page shows all.
    short = tuple(
        f"{_heading(rows, v)}: {line}" for v in shown for line in (*v.sentences[:3], *v.sentences[-1:])
    )
    return Summary(results_table(rows, mean_intervals), short + across, page, csv)


def _verdicts(
    rows: list[dict[str, object]],
) -> tuple[list[_Shown], tuple[str, ...], tuple[tuple[str, str, str], ...]]:
    whole: dict[tuple[bool, int], list[Verdict]] = {}
    found: list[tuple[Verdict, Group]] = []
    for group in groups_of(rows):
        verdict = _verdict(rows, group)
        if verdict is not None:
            found.append((verdict, group))
            whole.setdefault((group.centered, group.epochs), []).append(verdict)
    # The U tests of all families and norms together are corrected for their number.
    corrected = holm(
        {f"{i} {name}": norm.peak_p for i, (v, _) in enumerate(found) for name, norm in v.norms.items()}
    )
    shown = [
        _show(v, group, {name: corrected[f"{i} {name}"] for name in v.norms}, len(corrected))
        for i, (v, group) in enumerate(found)
    ]
    across = tuple(
        line if len(whole) == 1 else f"{'centred' if centered else 'not centred'}, {epochs} epochs: {line}"
        for (centered, epochs), verdicts in whole.items()
        if len(verdicts) > 1
        for line in compare_families(verdicts)
    )
    return shown, across, _calibration(shown)


def _verdict(rows: list[dict[str, object]], group: Group) -> Verdict | None:
    robust = cells(rows, group, "robust_accuracy")
    if len(robust.curvatures) == 0:
        return None
    norms = {}
    for column in HESSIAN_NORMS:
        table = cells(rows, group, column)
        if table.seeds == robust.seeds and np.array_equal(table.curvatures, robust.curvatures):
            norms[_in_words(column)] = _log10(table.values)
    return sweep_verdict(group.family, robust.curvatures.tolist(), robust.values, norms, band=BAND)


def _calibration(shown: list[_Shown]) -> tuple[tuple[str, str, str], ...]:
    """Figures of the verdict procedure for the study's largest design and its noise; none for one seed or curvature."""
    able = [v.robustness for v in shown if v.robustness.seeds > 1 and len(v.robustness.curvatures) > 2]
    if not able:
        return ()
    widest = max(able, key=lambda v: (len(v.curvatures), v.seeds))
    sd = float(np.sqrt(np.mean([(v.noise.low**2 + v.noise.high**2) / 2 for v in able])))
    if not sd > 0:
        return ()
    return calibrate(widest.curvatures, widest.seeds, sd).rows


def _log10(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log10, NaN where an estimate came out as 0 (its noise exceeded it)."""
    return np.log10(np.where(values > 0, values, np.nan))


def _show(verdict: Verdict, group: Group, corrected: Mapping[str, float], tests: int) -> _Shown:
    """The sentences on robustness and one on the norms first; a sentence a norm to unfold.

    corrected: the p-values of the U shapes of the norms after Holm's correction for all `tests` of the study.
    """
    split = len(verdict.sentences) - len(verdict.norms)
    sentences = [_capital(line.removeprefix(f"{verdict.family}: ")) for line in verdict.sentences[:split]]
    if verdict.norms:
        supported = [name for name, shape in verdict.norms.items() if shape.kind == "U shape"]
        count = f"{len(supported)} of {len(verdict.norms)} norms"
        left = ", ".join(name for name in supported if corrected[name] <= 1 - verdict.norms[name].level)
        sentences.append(
            f"A U shape of the Hessian norm is supported for {count}: {', '.join(supported)}. After Holm's correction for the "
            f"{tests} such tests of this study " + (f"this is left: {left}." if left else "none is left.")
            if supported
            else f"No U shape of the Hessian norm is shown, for none of {len(verdict.norms)} norms."
        )
    return _Shown(
        group.family,
        verdict.robustness,
        tuple(sentences),
        verdict.sentences[split:],
        group.centered,
        group.epochs,
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_NORMS = {
    "rms": "‖diag H‖₂/√P",
    "gradient_relative": "‖diag H‖₂/‖∇L‖₂",
    "scale_invariant": "‖θ²⊙diag H‖₂",
}


def _in_words(column: str) -> str:
    loss, _, norm = column.partition("_hessian_")
    return f"{_NORMS[norm]} of the {loss} loss"


def _heading(rows: list[dict[str, object]], verdict: _Shown) -> str:
    level = level_names(rows)[Group(verdict.family, verdict.centered, verdict.epochs)]
    return f"{verdict.family}, {level}" if level else verdict.family


def _provenance(spec: StudySpec, records: list[dict[str, Any]], trials: Path) -> Mapping[str, str]:
    environments = [json.loads((trials / r["trial"] / "environment.json").read_text()) for r in records]

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(e[key]) for e in environments}))

    evaluations = sum(r["gradient_evaluations"] for r in records)
    seconds = sum(r["seconds"] for r in records)
    return {
        "study": spec.name,
        "seeds": ", ".join(map(str, spec.factors.seed)),
        "trials": f"{sum(r['status'] == 'done' for r in records)} done of {len(spec.trials())}",
        "commit": all_of("commit"),
        "curvact": all_of("curvact"),
        "torch": all_of("torch"),
        "python": all_of("python"),
        "hardware": all_of("processor"),
        "activation kernels": all_of("kernels"),
        "data": ", ".join(
            sorted({f"{spec.data.name} (test sha256 {r['data_sha256']['test'][:12]})" for r in records})
        ),
        "cost": f"{evaluations:,} gradient evaluations of a batch in training; {seconds:,.0f} core-seconds in all",
    }
