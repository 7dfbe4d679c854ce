"""The leaderboard: a table for each version of AutoAttack, and one for weaker attacks."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from curvact.attacks import radius_text
from curvact.errors import CurvactError
from curvact.lab.record.record import WHOLE, EvaluationRecord, file_name, read_record, write_json

STANDARD = "AutoAttack"
ROBUSTBENCH_NORMS = {"linf": "Linf", "l2": "L2"}


class SkippedRecordWarning(UserWarning):
    """A file that is no record is skipped."""


@dataclass(frozen=True)
class Board:
    """One table: records of one data set, threat model and version of AutoAttack, the best first.

    version: None for records of weaker attacks.
    """

    data: str
    norm: str
    epsilon: float
    version: str | None
    records: tuple[EvaluationRecord, ...]

    @property
    def ensemble(self) -> bool:
        return self.version is not None

    @property
    def title(self) -> str:
        kind = {
            None: "Less than AutoAttack: an upper bound that stronger attacks lower",
            "standard": "AutoAttack",
            "plus": "AutoAttack (plus)",
            "rand": "AutoAttack (rand): APGD alone, for randomized models; no FAB-T, no Square",
        }[self.version]
        return f"{self.data}, {self.norm} ε = {radius_text(self.epsilon)}: {kind}"


def read_records(folder: Path) -> list[EvaluationRecord]:
    """Every record under a folder, by path. Warns (`SkippedRecordWarning`) of other files."""
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
    """The records as tables, each sorted by robust accuracy, then by clean accuracy."""
    order = ("standard", "plus", "rand", None)
    groups: dict[tuple[str, str, float, int], list[EvaluationRecord]] = {}
    for record in records:
        threat = record.threat_model
        version = WHOLE.get(record.attack) if record.ensemble else None
        key = (record.data.name, threat.norm, threat.epsilon, order.index(version))
        groups.setdefault(key, []).append(record)
    return [
        Board(
            data,
            norm,
            epsilon,
            order[place],
            tuple(sorted(group, key=lambda r: (-r.robust_accuracy, -r.clean_accuracy, r.model.name))),
        )
        for (data, norm, epsilon, place), group in sorted(groups.items())
    ]


def model_info(record: EvaluationRecord, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A record in the form of RobustBench's model_info files: accuracies in percent, as text.

    about: what a record cannot know: link, name, authors, venue, additional_data, reported.
    Raises CurvactError for records of anything but standard AutoAttack in float32 under L∞ or L2,
    since this is what `autoattack_acc` means, and for keys that the form does not have.
    """
    if not exportable(record):
        raise CurvactError(
            f"{record.model.name}: {record.attack} under {record.threat_model.norm} cannot be exported: "
            f"autoattack_acc means standard {STANDARD} under {' or '.join(ROBUSTBENCH_NORMS)}"
        )
    given = dict(about or {})
    info: dict[str, Any] = {
        "link": "",
        "name": record.model.name,
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": record.data.name.rpartition("/")[0] or record.data.name,
        "venue": "Unpublished",
        "architecture": str(record.model.architecture.get("name", record.model.name)),
        "eps": radius_text(record.threat_model.epsilon),
        "clean_acc": f"{100 * record.clean_accuracy:.2f}",
        "reported": f"{100 * record.robust_accuracy:.2f}",
        "autoattack_acc": f"{100 * record.robust_accuracy:.2f}",
        "unreliable": bool(record.findings),
        "footnote": f"curvact, {record.attack}{_mode(record)} on {record.data.count} images, seed {record.seed}"
        + ("; " + "; ".join(record.findings) if record.findings else ""),
    }
    measured = ("clean_acc", "autoattack_acc", "eps", "dataset", "unreliable")
    wrong = [key for key in given if key not in info or key in measured]
    if wrong:
        allowed = ", ".join(key for key in info if key not in measured)
        raise CurvactError(f"'{wrong[0]}' cannot be given for a model_info: allowed are {allowed}")
    return {**info, **given}


def exportable(record: EvaluationRecord) -> bool:
    """Whether a record is of standard AutoAttack under a norm that RobustBench has."""
    return record.ensemble and record.attack == STANDARD and record.threat_model.norm in ROBUSTBENCH_NORMS


def export_model_info(
    record: EvaluationRecord, folder: Path, about: Mapping[str, Any] | None = None, name: str | None = None
) -> Path:
    """Write `folder/<data set>/<Linf|L2>/<model>.json`, RobustBench's layout, and return its path.

    name: of the file; by default the name of the model.
    """
    info = model_info(record, about)
    path = _target(record, folder, record.model.name if name is None else name)
    write_json(path, json.dumps(info, indent=2))
    return path


def export_boards(tables: Iterable[Board], folder: Path) -> list[Path]:
    """Export every record that can be exported, a file each, and return the files.

    Several records of one model are called `<model>-<id of the record's key>`. Twins of one key are
    counted.
    """
    records = [record for table in tables for record in table.records if exportable(record)]
    plain = Counter(_target(record, folder, record.model.name) for record in records)
    paths: list[Path] = []
    for record in records:
        name = record.model.name
        if plain[_target(record, folder, name)] > 1:
            name = f"{file_name(name)}-{record.key.id}"
        places = (_target(record, folder, name if k == 1 else f"{name}-{k}") for k in count(1))
        path = next(place for place in places if place not in paths)
        paths.append(export_model_info(record, folder, name=path.stem))
    return paths


def _target(record: EvaluationRecord, folder: Path, name: str) -> Path:
    data = record.data.name.rpartition("/")[0] or record.data.name
    return (
        folder
        / file_name(data)
        / ROBUSTBENCH_NORMS[record.threat_model.norm]
        / f"{file_name(name, 100)}.json"
    )


def _mode(record: EvaluationRecord) -> str:
    return " (fast mode)" if record.mode == "fast" else ""
