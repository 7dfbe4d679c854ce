"""One evaluation as a record: what was attacked, with what, what came out, image by image, and everything needed to do it
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curvact.attacks.autoattack.ensemble import TITLES, Precision, Version, ensemble_name
from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.models.hashing import model_hash as model_hash

WHOLE: dict[str, Version] = {
    ensemble_name(version, (), precision): version
    for version in get_args(Version)
    for precision in get_args(Precision)
}
"""The names under which a whole AutoAttack may be on record, and which version each is."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """name: of file or class. sha256: of names, shapes and values of all tensors. architecture: as `curvact.models.build`
    takes it.
    """

    name: str
    sha256: str
    parameters: int
    architecture: dict[str, Any] = {}


class DataEntry(_Strict):
    """name: data set and split. sha256: of the images and labels that were attacked."""

    name: str
    sha256: str
    count: int = Field(ge=1)


class ThreatEntry(_Strict):
    norm: Literal["linf", "l2", "l1"]
    epsilon: float = Field(ge=0, allow_inf_nan=False)


class EvaluationRecord(_Strict):
    """The outcome of one attack on one model and one set of images.

    attack: the name of what ran; `ensemble` is true only for a whole AutoAttack (standard, plus or rand), never for a part
    of it.
    settings: of the attack. clean_accuracy, robust_accuracy: fractions of the images.
    clean_correct, robust_correct: one character an image, 1 or 0. broken_by: for each image the attack that broke it,
    "clean" if it was wrong before any, "" if it stood.
    accuracy_after: robust accuracy after each attack of an ensemble.
    masking: how deep the checklist for gradient masking went; None in records from before it was noted.
    findings: what the checklist for gradient masking and the entry checks reported, and that the checklist could not run.
    notes: what AutoAttack found on its way. versions: of the packages that the verdict rests on.
    seconds: of the session that wrote the record, and what the attacks took that earlier sessions had ended (those of several
    workers added up). environment: code, libraries, machine.

    Schema 1, still read, has no notes and no versions, and its seconds are the last session's alone.
    """

    schema_version: Literal[1, 2] = 2
    attack: str
    ensemble: bool
    settings: dict[str, Any]
    seed: int
    batch_size: int = Field(ge=1)
    threat_model: ThreatEntry
    model: ModelEntry
    data: DataEntry
    clean_accuracy: float = Field(ge=0, le=1)
    robust_accuracy: float = Field(ge=0, le=1)
    clean_correct: str = Field(pattern="^[01]+$")
    robust_correct: str = Field(pattern="^[01]+$")
    broken_by: list[str] = []
    accuracy_after: dict[str, float] = {}
    masking: Literal["none", "quick", "full"] | None = None
    findings: list[str] = []
    notes: list[str] = []
    versions: dict[str, str] = {}
    seconds: float = Field(ge=0)
    environment: dict[str, Any] = {}

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the robust accuracy: which images were drawn, nothing else."""
        p, n = self.robust_accuracy, self.data.count
        return float((p * (1 - p) / n) ** 0.5)

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked, as `question` has it."""
        return question(
            model=self.model.sha256,
            architecture=self.model.architecture,
            data=self.data.sha256,
            norm=self.threat_model.norm,
            epsilon=self.threat_model.epsilon,
            attack=self.attack,
            settings=self.settings,
            seed=self.seed,
            batch_size=self.batch_size,
        )

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of what was asked, but for the checklist for gradient masking."""
        return question_id(self.asked)


def question(
    *,
    model: str,
    architecture: Mapping[str, Any],
    data: str,
    norm: str,
    epsilon: float,
    attack: str,
    settings: Mapping[str, Any],
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """All that fixes an attack's outcome, as plain JSON. model, data: their hashes.

    architecture: of the checkpoint's JSON; two networks can have the same tensors and other activations.
    """
    asked = {
        "model": model,
        "architecture": dict(architecture),
        "data": data,
        "norm": norm,
        "epsilon": float(epsilon),
        "attack": attack,
        "settings": dict(settings),
        "seed": seed,
        "batch_size": batch_size,
    }
    plain: dict[str, Any] = json.loads(json.dumps(asked, sort_keys=True, default=str))
    return plain


def question_id(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def write_record(record: EvaluationRecord, path: Path) -> None:
    """Write a record as JSON, whole or not at all; the folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurvactError(f"cannot write {path}: {error.strerror}") from None
    atomic_write(path, json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")


def read_record(path: Path) -> EvaluationRecord:
    """Read a record; a file that is not one is a CurvactError that names it and the first thing wrong.

    Beyond the fields' own limits, flags and accuracies have to agree, and `ensemble` with the attack's name: a record edited by
    hand is refused.
    """
    try:
        record = EvaluationRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CurvactError(f"cannot read the record {path}: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the whole file"
        raise CurvactError(f"{path} is no evaluation record: {place}: {problem['msg']}") from None
    for name in ("clean", "robust"):
        flags, accuracy = getattr(record, f"{name}_correct"), getattr(record, f"{name}_accuracy")
        if len(flags) != record.data.count or abs(flags.count("1") / len(flags) - accuracy) > 1e-9:
            raise CurvactError(
                f"{path}: {name}_accuracy={accuracy} of {record.data.count} images, but its flags hold "
                f"{flags.count('1')} of {len(flags)}"
            )
    if record.ensemble != (record.attack in WHOLE):
        raise CurvactError(
            f"{path}: ensemble={str(record.ensemble).lower()} does not fit attack='{record.attack}': it is true for "
            f"{', '.join(TITLES.values())}, and for nothing less"
        )
    return record


def flags(correct: Iterable[bool]) -> str:
    """Booleans as text, one character each.

    >>> flags([True, False, True])
    '101'
    """
    return "".join("1" if value else "0" for value in correct)
