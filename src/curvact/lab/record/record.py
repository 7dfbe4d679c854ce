"""One evaluation as a record: the model, the images, the attack and the outcome, image by image."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from curvact.attacks import CLEAN, AutoAttack, Precision, ThreatModel, Version
from curvact.errors import CurvactError
from curvact.files import atomic_write, has_other_checksum, with_checksum
from curvact.lab.statistics.interval import Interval, interval_text, proportion
from curvact.models.hashing import model_hash as model_hash
from curvact.notebook import html_facts, html_list

if TYPE_CHECKING:
    import pandas

WHOLE: dict[str, Version] = {
    AutoAttack(version).title(precision): version
    for version in get_args(Version)
    for precision in get_args(Precision)
}
"""The names of a whole AutoAttack in a record, and the version of each."""

Masking = Literal["none", "quick", "full"]


@dataclass(frozen=True)
class RecordKey:
    """Everything that fixes the outcome of an attack. Equal keys mean the same evaluation.

    model, data: their hashes. architecture: as in the checkpoint's JSON; two networks with the same
    tensors can have different activations. attack: its name with its settings. mode: of AutoAttack,
    else None. code: the sha256 of each file of the user's code that was run, by its name.
    """

    model: str
    architecture: Mapping[str, Any]
    data: str
    threat_model: ThreatModel
    attack: str
    mode: str | None
    seed: int
    batch_size: int
    code: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The key as plain JSON. Without code it has no such entry, as before there was one."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), sort_keys=True, default=str))
        if not plain["code"]:
            del plain["code"]
        return plain

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the key's hash."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """A model. name: of its file or class. sha256: of the names, shapes and values of its tensors.

    architecture: the arguments of `curvact.models.build`, empty where they are not known.
    """

    name: str
    sha256: str
    parameters: int
    architecture: dict[str, Any] = {}


class DataEntry(_Strict):
    """The attacked images. name: data set and split. sha256: of images and labels."""

    name: str
    sha256: str
    count: int = Field(ge=1)


class ClassEntry(_Strict):
    """The images of one class, and how many are classified correctly: clean, and under the attack."""

    name: str
    count: int = Field(ge=1)
    clean_correct: int = Field(ge=0)
    robust_correct: int = Field(ge=0)


class EvaluationRecord(_Strict):
    """The outcome of one attack on one model and one set of images.

    attack: its name with its settings, such as "pgd(steps=20, step=0.25)" or "AutoAttack".
    ensemble: true only for a whole AutoAttack (standard, plus or rand), never for parts of it.
    mode: of AutoAttack and its parts, else None.
    clean_accuracy, robust_accuracy: fractions of the images.
    rounded_accuracy: the robust accuracy where attacked images are rounded to 8 bits, as a file of
        pictures holds them. None in records of schema 3.
    by_class: the same by class, for the classes that have images.
    clean_correct, robust_correct: one character an image, 1 or 0.
    broken_by: for each image the attack that broke it; "clean" if it was wrong without an attack,
        "" if no attack broke it.
    accuracy_after: robust accuracy after each attack of an ensemble.
    masking: the depth of the gradient-masking checks.
    findings: what makes the clean accuracy doubtful (`curvact.lab.record.diagnosis`), alarms of the
        masking checks and of the entry checks, and why checks could not run.
    notes: remarks of AutoAttack, and the data of the training where it had others. versions: of the
        packages behind the numbers.
    seconds: wall time of this session, and of the shards that earlier sessions finished.
    environment: code, libraries and machine.
    code: the sha256 of each file of the user's code that was run, by its name.
    checksum: of everything else, in a file; `write_record` makes it and `read_record` checks it.
    """

    schema_version: Literal[3, 4] = 4
    attack: str
    ensemble: bool
    mode: Literal["plain", "fast"] | None = None
    seed: int
    batch_size: int = Field(ge=1)
    threat_model: ThreatModel
    model: ModelEntry
    data: DataEntry
    clean_accuracy: float = Field(ge=0, le=1)
    robust_accuracy: float = Field(ge=0, le=1)
    clean_correct: str = Field(pattern="^[01]+$")
    robust_correct: str = Field(pattern="^[01]+$")
    broken_by: list[str] = []
    accuracy_after: dict[str, float] = {}
    masking: Masking
    findings: list[str] = []
    notes: list[str] = []
    versions: dict[str, str] = {}
    seconds: float = Field(ge=0)
    environment: dict[str, Any] = {}
    rounded_accuracy: float | None = Field(None, ge=0, le=1)
    by_class: list[ClassEntry] = []
    code: dict[str, str] = {}
    checksum: str = ""

    @property
    def clean(self) -> Interval:
        """The clean accuracy with its interval over the choice of images (`proportion`)."""
        return proportion(self.clean_correct.count("1"), self.data.count)

    @property
    def robust(self) -> Interval:
        """The robust accuracy with its interval over the choice of images (`proportion`)."""
        return proportion(self.robust_correct.count("1"), self.data.count)

    def as_row(self) -> dict[str, Any]:
        """The record in a line: names, accuracies with their intervals, and how many findings."""
        clean, robust = self.clean, self.robust
        return {
            "model": self.model.name,
            "data": self.data.name,
            "images": self.data.count,
            "attack": self.attack,
            "norm": self.threat_model.norm,
            "epsilon": self.threat_model.epsilon,
            "seed": self.seed,
            "clean_accuracy": clean.value,
            "clean_low": clean.low,
            "clean_high": clean.high,
            "robust_accuracy": robust.value,
            "robust_low": robust.low,
            "robust_high": robust.high,
            "rounded_accuracy": self.rounded_accuracy,
            "findings": len(self.findings),
            "model_sha256": self.model.sha256,
        }

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame with a line for each image: clean_correct, robust_correct, broken_by.

        Raises CurvactError where pandas is not installed.
        """
        from curvact.lab.frames import frame

        flagged = zip(self.clean_correct, self.robust_correct, self.broken_by, strict=True)
        return frame(
            [
                {"index": i, "clean_correct": clean == "1", "robust_correct": robust == "1", "broken_by": by}
                for i, (clean, robust, by) in enumerate(flagged)
            ]
        )

    def _repr_html_(self) -> str:
        facts = {
            "attack": f"{self.attack}, {self.threat_model}",
            "images": f"{self.data.name}, {self.data.count}",
            "clean %": interval_text(self.clean, brackets=True),
            "robust %": interval_text(self.robust, brackets=True),
        }
        return html_facts(f"Evaluation of {self.model.name}", facts) + html_list("Findings", self.findings)

    @property
    def key(self) -> RecordKey:
        return RecordKey(
            model=self.model.sha256,
            architecture=self.model.architecture,
            data=self.data.sha256,
            threat_model=self.threat_model,
            attack=self.attack,
            mode=self.mode,
            seed=self.seed,
            batch_size=self.batch_size,
            code=self.code,
        )


def model_entry(model: nn.Module, name: str | None, architecture: Mapping[str, Any] | None) -> ModelEntry:
    """The entry of a model; its class gives the name where there is none."""
    return ModelEntry(
        name=name or type(model).__name__,
        sha256=model_hash(model),
        parameters=sum(p.numel() for p in model.parameters()),
        architecture=dict(architecture or {}),
    )


def write_record(record: EvaluationRecord, path: Path) -> None:
    """Write a record as JSON with its checksum, whole or not at all. The folder is made."""
    content = with_checksum(record.model_dump(mode="json"))
    write_json(path, json.dumps(content, indent=1, sort_keys=True))


def write_json(path: Path, text: str) -> None:
    """Write text and an end of line, as `write_file` does."""
    write_file(path, text + "\n")


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all, in a folder that is made. Raises CurvactError where it cannot
    be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurvactError(f"cannot write {path}: {error.strerror}") from None
    atomic_write(path, content)


def read_record(path: Path) -> EvaluationRecord:
    """Read a record.

    Raises CurvactError for a file that is no record, a record whose checksum is not that of its
    content, and one whose parts contradict each other.
    """
    try:
        text = path.read_bytes()
        record = EvaluationRecord.model_validate_json(text)
    except OSError as error:
        raise CurvactError(f"cannot read the record {path}: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the whole file"
        if place == "schema_version":
            raise CurvactError(
                f"{path} has schema_version {problem['input']!r}, this version reads 3 and 4: evaluate again"
            ) from None
        raise CurvactError(f"{path} is no evaluation record: {place}: {problem['msg']}") from None
    why = _contradiction(record)
    if why:
        raise CurvactError(f"{path}: {why}")
    missing = record.checksum == "" and record.schema_version > 3
    if missing or has_other_checksum(json.loads(text)):
        raise CurvactError(f"{path} is damaged: its checksum is not that of its content; evaluate again")
    return record.model_copy(update={"checksum": ""})


def _contradiction(record: EvaluationRecord) -> str:
    """In what way the parts of a record contradict each other; "" where they do not."""
    count = record.data.count
    for name in ("clean", "robust"):
        flags, accuracy = getattr(record, f"{name}_correct"), getattr(record, f"{name}_accuracy")
        if len(flags) != count or abs(flags.count("1") / len(flags) - accuracy) > 1e-9:
            return (
                f"{name}_accuracy={accuracy} of {count} images, but its flags hold "
                f"{flags.count('1')} of {len(flags)}"
            )
    if record.ensemble != (record.attack in WHOLE):
        return (
            f"ensemble={str(record.ensemble).lower()} does not fit attack='{record.attack}': it is true "
            f"for {', '.join(AutoAttack(version).title() for version in get_args(Version))}, and for nothing less"
        )
    if len(record.broken_by) != count:
        return f"broken_by has {len(record.broken_by)} entries for {count} images"
    flagged = zip(record.clean_correct, record.robust_correct, record.broken_by, strict=True)
    for index, (clean, robust, by) in enumerate(flagged):
        if (by == CLEAN) != (clean == "0") or (by == "") != (robust == "1"):
            return (
                f"image {index} is broken by {by!r}, but its flags are clean_correct {clean} and "
                f"robust_correct {robust}"
            )
    for key in ("count", "clean_correct", "robust_correct") if record.by_class else ():
        total = sum(getattr(entry, key) for entry in record.by_class)
        wanted = count if key == "count" else getattr(record, key).count("1")
        if total != wanted:
            return f"by_class holds {key} = {total} in all, but the record {wanted}"
    return ""


def flags(correct: Iterable[bool]) -> str:
    """Booleans as text, one character each.

    >>> flags([True, False, True])
    '101'
    """
    return "".join("1" if value else "0" for value in correct)


# ---- where records lie ----


def file_name(text: str, longest: int = 60) -> str:
    """A text as part of a file's name: without separators or a leading dot, and not too long.

    >>> file_name("../../cifar10/test"), file_name("resnet[v2]"), file_name("..")
    ('cifar10-test', 'resnet[v2]', 'unnamed')
    """
    plain = re.sub(r"[^\w.+\-\[\]()=,]+", "-", text).strip(".-")
    return re.sub(r"[.-]{2,}", "-", plain)[:longest].strip(".-") or "unnamed"


def record_paths(
    folder: Path, key: RecordKey, masking: Masking, names: tuple[str, str, str]
) -> tuple[Path, Path]:
    """The file of a record, and the folder of the shards of an unfinished evaluation.

    The key's id is in both names, so two evaluations never share a file. The shards do not depend
    on the masking checks. names: of model, attack and images, for people who read the folder.
    """
    model, attack, images = names
    threat = key.threat_model
    parts = (model, attack, threat.norm, f"{threat.epsilon:.6g}", images, f"seed{key.seed}")
    stem = f"{'-'.join(map(file_name, parts))}-{key.id}"
    return folder / f"{stem}-masking-{masking}.evaluation.json", folder / f"{stem}.shards"


def existing_record(path: Path, key: RecordKey, masking: Masking) -> EvaluationRecord | None:
    """The record of this evaluation, or None where there is no file.

    Raises CurvactError for the record of another evaluation: it is neither shown nor replaced.
    """
    if not path.exists():
        return None
    record = read_record(path)
    found, wanted = {**record.key.as_dict(), "masking": record.masking}, {**key.as_dict(), "masking": masking}
    different = [
        f"{name} is {_short(found.get(name))} there and {_short(wanted[name])} here"
        for name in wanted
        if found.get(name) != wanted[name]
    ]
    if different:
        raise CurvactError(f"{path} holds another evaluation: {'; '.join(different)}. Move it away")
    return record


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return f"{text[:12]}…" if len(text) == 64 else text if len(text) <= 120 else f"{text[:120]}…"
