"""The report of a study or a comparison: their records as a table of runs, and its report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError
from curvact.lab.comparison import ComparisonSpec, load_comparison
from curvact.lab.report.sweep.about import SweepAbout, SweepReport
from curvact.lab.report.sweep.page import report_sweep
from curvact.lab.statistics.curve import Curve
from curvact.lab.statistics.paired import Paired
from curvact.lab.statistics.question import Question
from curvact.lab.store import finished, read_study
from curvact.lab.study_spec import StudySpec
from curvact.lab.table import Row, Table, Value


def summarize(folder: Path) -> SweepReport:
    """Write tables, figures and report.html from the records in a folder.

    Raises CurvactError for a folder without a study or comparison, without a finished trial, or with a damaged one.
    """
    table, about = finished_table(folder)
    if not table.rows:
        raise CurvactError(f"{folder} has no finished trial: --resume goes on with it")
    return report_sweep(table, about, folder)


def finished_table(folder: Path) -> tuple[Table, SweepAbout]:
    """The finished runs of a study or a comparison, and what is known of it."""
    spec: StudySpec | ComparisonSpec
    questions: dict[str, Question]
    titles: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    if (folder / ComparisonSpec.FILE).is_file():
        spec = load_comparison(folder)
        axes: tuple[str, ...] = ("row", "column", "seed") if len(spec.columns) > 1 else ("row", "seed")
        wanted = (spec.baseline or spec.cells()[0]).split(" / ")
        questions = {"paired": Paired(baseline=dict(zip(axes, wanted, strict=False)))}
        steps, parts = spec.evaluation.steps, " + ".join(spec.evaluation.autoattack_parts)
        images = spec.evaluation.autoattack_images
        titles = {
            "robust_accuracy": f"PGD-{steps}",
            "train_robust_accuracy": f"PGD-{steps}, training images",
            "subset_robust_accuracy": f"{parts}, {images} images",
            "subset_pgd_accuracy": f"PGD-{steps}, the same {images}",
        }
        if spec.budget is not None:
            notes = (f"Every run stops at {spec.budget} gradient evaluations, the attack's included.",)
    else:
        spec = read_study(folder)
        axes = ("activation", "curvature", "centered", "epochs", "seed")
        questions = {"curve": Curve()}
    records = [r for config in spec.trials() if (r := finished(folder / "trials", config)) is not None]
    table = Table(axes, tuple(_row(record, axes) for record in records))
    about = SweepAbout(
        spec.name,
        spec.question,
        spec.to_yaml(),
        questions,
        _provenance(records, folder / "trials"),
        len(spec.trials()),
        titles,
        notes,
    )
    return table, about


def _row(record: Mapping[str, Any], axes: Sequence[str]) -> Row:
    config = record["config"]
    cell = str(config.get("cell", "")).split(" / ")
    known: dict[str, Value] = {
        "row": cell[0],
        "column": cell[1] if len(cell) > 1 else None,
        "activation": config.get("family"),
        **{key: config.get(key) for key in ("curvature", "centered", "epochs", "seed")},
    }
    metrics = {
        key: float(value)
        for key, value in record["metrics"].items()
        if isinstance(value, (int, float)) and not math.isnan(value)
    }
    return Row(
        record["trial"],
        {axis: known[axis] for axis in axes},
        record["status"],
        record["cause"] or "",
        metrics,
        record["gradient_evaluations"],
        record["seconds"],
    )


def _provenance(records: Sequence[Mapping[str, Any]], trials: Path) -> dict[str, str]:
    environments = [json.loads((trials / r["trial"] / "environment.json").read_text()) for r in records]
    keys = {"commit": "commit", "curvact": "curvact", "torch": "torch", "hardware": "processor"}
    found = {name: ", ".join(sorted({str(e[key]) for e in environments})) for name, key in keys.items()}
    evaluations = sum(r["gradient_evaluations"] for r in records)
    seconds = sum(r["seconds"] for r in records)
    return {**found, "cost": f"{evaluations:,} gradient evaluations; {seconds:,.0f} s of one thread in all"}
