"""The files of a run's folder and of a sweep's folder: who may write, what is finished, what is
damaged.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from curvact.activations import kernel_info
from curvact.errors import CurvactError
from curvact.files import CHECKSUM, atomic_write, has_other_checksum, hash_of_file, with_checksum
from curvact.lab.imports import hashes, load_imports
from curvact.lab.layout import (
    ACTIVATION_FILE,
    CODE_FOLDER,
    ENVIRONMENT_FILE,
    LISTED_FILE,
    LOCK_FILE,
    METRICS_FILE,
    RECORD_FILE,
    RECORD_SCHEMA,
    SPEC_FILE,
    WANDB_FILE,
)
from curvact.lab.remote import is_kept_elsewhere
from curvact.lab.settings import Strict, first_problem, read_plain, read_settings
from curvact.lab.spec import RunSpec
from curvact.lab.urls import refuse_url
from curvact.notebook import html_facts

if TYPE_CHECKING:
    import torch


class NoLockWarning(UserWarning):
    """A second process that writes the same folder would not be noticed."""


OUT_OF_MEMORY = "out of memory"
"""How the cause of a run begins that failed for want of memory."""


class Record(Strict):
    """The outcome of a run.

    run: its id. spec: what ran. status: "failed" where the loss diverged or memory was short; `cause`
        says why.
    note: why training ended early, or "". metrics: numbers by name; accuracies are fractions.
    test_images: how many were attacked; 0 where another split was.
    max_curvature: κ of the activation as it is built; None where it has none.
    data_sha256: of each split. files: sha256 of each file of weights.
    seconds: wall clock of the session that wrote the record.
    checksum: of everything else, in a file; `write_record` makes it and `read_record` checks it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    schema_version: Literal[4] = RECORD_SCHEMA
    run: str
    spec: RunSpec
    status: Literal["done", "failed"]
    cause: str = ""
    note: str = ""
    metrics: dict[str, float]
    epochs: int = Field(ge=0)
    gradient_evaluations: int = Field(ge=0)
    max_curvature: float | None
    test_images: int
    data_sha256: dict[str, str]
    files: dict[str, str]
    seconds: float
    checksum: str = ""

    @property
    def last_epoch(self) -> int:
        """The epoch of the last weights. One that overfitted catastrophically is not kept, and ends training."""
        return self.epochs - bool(self.note)

    @property
    def is_final(self) -> bool:
        """False for a run that memory was too short for: it is tried again when its sweep goes on."""
        return self.status == "done" or OUT_OF_MEMORY not in self.cause

    def _repr_html_(self) -> str:
        facts = {
            "activation": self.spec.activation,
            "network, data": f"{self.spec.model.name}, {self.spec.data.name}",
            "seed, epochs": f"{self.spec.seed}, {self.epochs}",
            "cause": self.cause or self.note,
            **self.metrics,
            "gradient evaluations": self.gradient_evaluations,
            "seconds": self.seconds,
        }
        return html_facts(f"Run {self.run}: {self.status}", facts)


def write_record(folder: Path, record: Record) -> None:
    """Write the record of a run with its checksum, whole or not at all."""
    plain = with_checksum(json.loads(record.model_dump_json()))
    atomic_write(folder / RECORD_FILE, json.dumps(plain, indent=2, sort_keys=True) + "\n")


def read_record(folder: Path) -> Record:
    """The record of a run's folder. CurvactError where it is missing or damaged."""
    path = folder / RECORD_FILE
    try:
        text = path.read_bytes()
        load_imports(_spec_of(text), folder, ask=True)
        record = Record.model_validate_json(text)
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        problem = first_problem(Record, error)
        raise CurvactError(f"{path} is damaged ({problem}): delete {folder} and run it again") from None
    if has_other_checksum(json.loads(text)):
        raise CurvactError(
            f"{path} is damaged (its checksum is not that of its content): delete {folder} and run it again"
        )
    return record.model_copy(update={"checksum": ""})


def _spec_of(record: bytes) -> dict[str, Any]:
    """The plain spec in the text of a record; empty where there is none."""
    try:
        content = json.loads(record)
    except (ValueError, RecursionError):
        return {}
    spec = content.get("spec") if isinstance(content, dict) else None
    return spec if isinstance(spec, dict) else {}


def finished(folder: Path, run: str) -> Record | None:
    """The record of a run that has finished, or None. CurvactError where its files are damaged."""
    if not (folder / RECORD_FILE).exists():
        return None
    record = read_record(folder)
    if record.run != run or record.spec.id != run:
        raise CurvactError(
            f"{folder / RECORD_FILE} is the record of another run: delete {folder} and run it again"
        )
    for name, sha256 in record.files.items():
        path = folder / name
        if not path.is_file():
            if is_kept_elsewhere(path, sha256):
                continue
            raise CurvactError(f"{path} is missing: delete {folder} and run it again")
        if hash_of_file(path) != sha256:
            raise CurvactError(
                f"{path} is damaged (its sha256 is not the recorded one): delete {folder} and run it again"
            )
    history = read_history(folder)
    if record.status == "done" and history and len(history) != record.epochs:
        raise CurvactError(
            f"{folder / METRICS_FILE} is damaged: it has {len(history)} epochs and the record {record.epochs}; "
            f"delete {folder} and run it again"
        )
    return record


def hash_of(folder: Path) -> dict[str, str]:
    """sha256 of the last and the best weights in the folder."""
    files = [folder / f"{name}.safetensors" for name in ("last", "best")]
    return {file.name: hash_of_file(file) for file in files if file.is_file()}


def write_history(folder: Path, epochs: Iterable[Mapping[str, Any]]) -> None:
    """Write the epochs of a run, one a line with its checksum, whole or not at all."""
    lines = (json.dumps(with_checksum(epoch)) + "\n" for epoch in epochs)
    atomic_write(folder / METRICS_FILE, "".join(lines))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, one an epoch. CurvactError where the file is damaged."""
    file = folder / METRICS_FILE
    if not file.is_file():
        return []
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if not isinstance(line, dict) or not isinstance(line["epoch"], int) or has_other_checksum(line):
                raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CurvactError(
            f"{file} is damaged: each line is the JSON of an epoch; delete {folder} and run it again"
        ) from None
    return [{key: value for key, value in line.items() if key != CHECKSUM} for line in lines]


def read_environment(folder: Path) -> dict[str, Any]:
    """What a run's environment.json says. CurvactError where it is missing or damaged."""
    path = folder / ENVIRONMENT_FILE
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CurvactError(
            f"cannot read {path}: {error.strerror}; delete {folder} and run it again"
        ) from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or has_other_checksum(content):
        raise CurvactError(f"{path} is damaged: delete {folder} and run it again")
    return {key: value for key, value in content.items() if key != CHECKSUM}


def write_environment(folder: Path, spec: RunSpec, content: Mapping[str, Any]) -> None:
    """Write where the run of a spec was begun, with its id and a checksum, whole or not at all."""
    text = json.dumps(with_checksum({**content, "run": spec.id}), indent=2, sort_keys=True)
    atomic_write(folder / ENVIRONMENT_FILE, text + "\n")


def check_run_folder(folder: Path, spec: RunSpec) -> Record | None:
    """Check that the folder can be that of the run. The record of a run that has finished there is
    returned.

    That record is of this spec, or of one that differs in `training.epochs` alone and has fewer.
    Raises CurvactError for a folder that holds something else or cannot be written.
    """
    known = folder / SPEC_FILE
    _check_code(folder, spec)
    if (folder / RECORD_FILE).exists():
        record = read_record(folder)
        if record.run == spec.id:
            return finished(folder, spec.id)
        if _is_shorter(record.spec, spec):
            return record
        raise CurvactError(
            f"{folder} holds a run of another spec ({_difference(record.spec, spec)}): give another --out"
        )
    if known.is_file():
        present = read_settings(RunSpec, known)  # of the same code, which has been run
        if present.id != spec.id:
            raise CurvactError(
                f"{folder} holds a run of another spec ({_difference(present, spec)}): give another --out"
            )
        _check_spec(folder, spec)
    elif folder.exists() and any(not _is_ours(file) for file in folder.iterdir()):
        raise CurvactError(f"{folder} is not empty and holds no run: give another --out")
    return None


def _check_spec(folder: Path, spec: RunSpec) -> None:
    """CurvactError where the spec.yaml of an unfinished run is not the one that it was begun with."""
    if not (folder / ENVIRONMENT_FILE).exists():
        return
    begun = read_environment(folder).get("run", spec.id)
    if begun != spec.id:
        raise CurvactError(
            f"{folder / SPEC_FILE} is damaged or changed: it is the spec of the run {spec.id}, and the run "
            f"{begun} was begun here; delete {folder}, or give another --out"
        )


def check_writable(folder: Path) -> None:
    """CurvactError where a folder cannot be written: of a run, a sweep or an analysis. Leaves nothing behind."""
    refuse_url(folder, "--out")
    if folder.exists() and not folder.is_dir():
        raise CurvactError(f"{folder} is a file: --out takes a folder")
    place = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    if not place.is_dir():
        raise CurvactError(f"cannot write {folder}: {place} is no folder")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise CurvactError(f"cannot write {folder}: {error.strerror}") from None


def check_goes_on(folder: Path, device: torch.device) -> None:
    """CurvactError where the run in the folder was begun on another kind of device, or with the other
    kind of activation kernels.
    """
    if not (folder / ENVIRONMENT_FILE).exists():
        return
    before = read_environment(folder)
    place = str(before.get("device", device))
    if place.partition(":")[0] != device.type:
        raise CurvactError(
            f"{folder} was begun on {place}, and here it would run on {device}: the numbers would be a mixture; "
            f"give --device {place}, or another --out"
        )
    begun, here = str(before.get("kernels", "")), kernel_info()
    if begun and begun.partition(" ")[0] != here.partition(" ")[0]:
        raise CurvactError(
            f"{folder} was begun with the activation kernels {begun}, and here they are {here}: the numbers "
            "would be a mixture; run it as it was begun (CURVACT_NATIVE=0 is plain), or give another --out"
        )


def _check_code(folder: Path, spec: RunSpec) -> None:
    """CurvactError for the folder of a run with other code than the spec's."""
    known = folder / SPEC_FILE
    if not known.is_file():
        return
    content = read_plain(known)
    ours, theirs = hashes(spec.imports), hashes(content.get("imports") if isinstance(content, dict) else ())
    for sha256, file in [*theirs.items(), *ours.items()]:
        if sha256 not in ours or sha256 not in theirs:
            how = "another version of" if file in ours.values() and file in theirs.values() else "other code:"
            raise CurvactError(f"{folder} holds a run with {how} {file}: give another --out")


def _is_ours(file: Path) -> bool:
    """Whether the file can be what a run leaves that was killed before its spec was written."""
    return file.name in (
        LOCK_FILE,
        LISTED_FILE,
        ENVIRONMENT_FILE,
        ACTIVATION_FILE,
        CODE_FOLDER,
        WANDB_FILE,
        "activation.json",
    ) or file.name.endswith(".tmp")


def _is_shorter(present: RunSpec, wanted: RunSpec) -> bool:
    """Whether the two specs are the same but for fewer epochs in the present one."""
    a, b = present.model_dump(mode="json"), wanted.model_dump(mode="json")
    fewer = a["training"].pop("epochs") < b["training"].pop("epochs")
    for content in (a, b):
        for key in ("name", "about", "logging", "imports"):  # the code is known to be the same
            content.pop(key)
        _without_places(content)
    return fewer and a == b


def _without_places(content: dict[str, Any]) -> dict[str, Any]:
    """The settings without the paths of weights, whose hashes they hold."""
    for key in ("init_from", "helper"):
        if content[key] is not None:
            content[key].pop("path")
    return content


def _difference(present: RunSpec, wanted: RunSpec) -> str:
    """The first key in which two specs differ, in words."""

    def walk(a: Any, b: Any, place: str) -> str | None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in [*a, *(key for key in b if key not in a)]:
                found = walk(a.get(key), b.get(key), f"{place}.{key}" if place else key)
                if found:
                    return found
            return None
        return f"{place} is {a!r} there and {b!r} here" if a != b else None

    exclude = {"name", "about", "logging", "imports"}
    return (
        walk(
            _without_places(present.model_dump(mode="json", exclude=exclude)),
            _without_places(wanted.model_dump(mode="json", exclude=exclude)),
            "",
        )
        or "they differ"
    )


@contextmanager
def locked(folder: Path, *, wanted: bool = True, patience: float = 0) -> Iterator[None]:
    """Make the folder and hold it: a second process that wants it is refused in one line.

    The lock dies with its process, whatever ends it. wanted: False for processes that do not write.
    patience: seconds to wait for a process that holds it.
    """
    if not wanted:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CurvactError(f"cannot write {folder}: {error.strerror}") from None
    try:
        end = time.monotonic() + max(patience, 0.3)  # who only looks whether it is held has it for an instant
        while not _taken(descriptor, folder):
            if time.monotonic() >= end:
                raise CurvactError(f"another process is writing {folder}: wait for it, or give another --out")
            time.sleep(0.2)
        for stale in folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int, folder: Path) -> bool:
    """Whether the lock of the folder is ours now. A file system without locks is told of, once a lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system of a network, as a rule
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}): make sure that no other process "
            "writes there",
            NoLockWarning,
            stacklevel=4,
        )
    return True
