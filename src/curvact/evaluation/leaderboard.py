"""The local leaderboard: AutoAttack verdicts and rows that ran less, never in one table; export in RobustBench's form."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError
from curvact.evaluation.record import EvaluationRecord, read_record
from curvact.files import atomic_write

ROBUSTBENCH_NORMS = {"linf": "Linf", "l2": "L2"}


class SkippedRecordWarning(UserWarning):
    """A file among the records is none; the others are shown."""


@dataclass(frozen=True)
class Board:
    """One table: all records of a data set and threat model, best robust accuracy first."""

    data: str
    norm: str
    epsilon: float
    ensemble: bool
    records: tuple[EvaluationRecord, ...]

    @property
    def title(self) -> str:
        kind = (
            "AutoAttack"
            if self.ensemble
            else "Less than AutoAttack: an upper bound that stronger attacks lower"
        )
        return f"{self.data}, {self.norm} ε = {epsilon_text(self.epsilon)}: {kind}"


def read_records(folder: Path) -> list[EvaluationRecord]:
    """Every record under a folder, by path. Files that are no records are left out with a SkippedRecordWarning."""
    if not folder.is_dir():
        raise CurvactError(f"no folder of records {folder}: `curvact evaluate` writes one")
    records = []
    for path in sorted(folder.rglob("*.evaluation.json")):
        try:
            records.append(read_record(path))
        except CurvactError as error:
            warnings.warn(str(error), SkippedRecordWarning, stacklevel=2)
    return records


def boards(records: Iterable[EvaluationRecord]) -> list[Board]:
    """The records by data set, threat model and kind; within a table by robust, then clean accuracy."""
    groups: dict[tuple[str, str, float, bool], list[EvaluationRecord]] = {}
    for record in records:
        threat = record.threat_model
        key = (record.data.name, threat.norm, threat.epsilon, not record.ensemble)
        groups.setdefault(key, []).append(record)
    return [
        Board(
            data,
            norm,
            epsilon,
            not partial,
            tuple(sorted(group, key=lambda r: (-r.robust_accuracy, -r.clean_accuracy, r.model.name))),
        )
        for (data, norm, epsilon, partial), group in sorted(groups.items())
    ]


def model_info(record: EvaluationRecord, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A record in the form of RobustBench's model_info files (accuracies in percent, as text).

    about: what a record cannot know: link, name, authors, venue, additional_data, reported.
    Raises CurvactError for anything but a whole AutoAttack under L∞ or L2, and for keys that the form does not have.
    """
    norm = record.threat_model.norm
    if not record.ensemble or norm not in ROBUSTBENCH_NORMS:
        raise CurvactError(
            f"{record.model.name}: {record.attack} under {norm} cannot be exported: "
            "RobustBench's form is for AutoAttack under linf or l2"
        )
    given = dict(about or {})
    info: dict[str, Any] = {
        "link": "",
        "name": record.model.name,
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": record.data.name.split("/")[0],
        "venue": "Unpublished",
        "architecture": str(record.model.architecture.get("name", record.model.name)),
        "eps": epsilon_text(record.threat_model.epsilon),
        "clean_acc": f"{100 * record.clean_accuracy:.2f}",
        "reported": f"{100 * record.robust_accuracy:.2f}",
        "autoattack_acc": f"{100 * record.robust_accuracy:.2f}",
        "unreliable": bool(record.findings),
        "footnote": f"curvact, AutoAttack on {record.data.count} images, seed {record.seed}"
        + ("; " + "; ".join(record.findings) if record.findings else ""),
    }
    measured = ("clean_acc", "autoattack_acc", "eps", "dataset", "unreliable")
    wrong = [key for key in given if key not in info or key in measured]
    if wrong:
        allowed = ", ".join(key for key in info if key not in measured)
        raise CurvactError(f"'{wrong[0]}' cannot be given for a model_info: allowed are {allowed}")
    return {**info, **given}


def export_model_info(record: EvaluationRecord, folder: Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write `folder/<data set>/<Linf|L2>/<model>.json`, RobustBench's layout, and return its path."""
    info = model_info(record, about)
    path: Path = (
        folder / info["dataset"] / ROBUSTBENCH_NORMS[record.threat_model.norm] / f"{record.model.name}.json"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(info, indent=2) + "\n")
    return path


def epsilon_text(epsilon: float) -> str:
    """A radius as people write it: k/255 where that is exact and the decimal is long.

    >>> epsilon_text(8 / 255), epsilon_text(0.2), epsilon_text(0.031)
    ('8/255', '0.2', '0.031')
    """
    text, steps = f"{epsilon:g}", epsilon * 255
    exact = round(steps) >= 1 and abs(steps - round(steps)) < 1e-9
    return f"{round(steps)}/255" if exact and len(text) > 5 else text
