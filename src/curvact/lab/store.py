"""A study's folder: its spec, a folder a trial, and the table of them all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar, Protocol

from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.lab.settings import read_settings
from curvact.lab.study_spec import StudySpec, load_spec, trial_id
from curvact.models.checkpoint import read_tensors

METRICS = (
    "clean_accuracy",
    "robust_accuracy",
    "train_clean_accuracy",
    "train_robust_accuracy",
    *(
        f"{loss}_hessian_{norm}{suffix}"
        for loss in ("clean", "adversarial")
        for norm in ("rms", "gradient_relative", "scale_invariant")
        for suffix in ("", "_se")
    ),
)


class Spec(Protocol):
    """What a study and a comparison share."""

    FILE: ClassVar[str]

    @property
    def name(self) -> str: ...

    def trials(self) -> list[dict[str, Any]]: ...

    def label(self, config: dict[str, Any]) -> str: ...

    def to_yaml(self) -> str: ...


def open_folder(folder: Path, spec: Spec, *, resume: bool) -> Path:
    """Create or reopen the folder of a study; the folder of its trials is returned.

    CurvactError where it holds another spec, where it exists and `resume` was not asked for, or where it cannot be written.
    """
    written = folder / spec.FILE
    try:
        if written.exists():
            present = read_settings(type(spec), written)  # type: ignore[type-var]
            if present != spec:
                raise CurvactError(
                    f"{folder} holds another study ({_difference(present, spec)}): choose another --out, or delete the folder"
                )
            if not resume:
                raise CurvactError(
                    f"{folder} holds this study already: --resume goes on with it, --out chooses another folder"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise CurvactError(f"{folder} is not empty and holds no study: choose another --out")
        trials = folder / "trials"
        trials.mkdir(parents=True, exist_ok=True)
        for partial in trials.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        if not written.exists():
            atomic_write(written, spec.to_yaml())
    except OSError as error:
        raise CurvactError(f"cannot write the study folder {folder}: {error.strerror}") from None
    return trials


def read_study(folder: Path) -> StudySpec:
    """The spec of a study folder; CurvactError where there is none."""
    if not (folder / "study.yaml").is_file():
        raise CurvactError(
            f"{folder} holds no study (no study.yaml): give the folder that `curvact study run` wrote"
        )
    return load_spec(folder / "study.yaml")


def finished(trials: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a trial that has run, or None. CurvactError where its files are damaged."""
    folder = trials / trial_id(config)
    if not folder.exists():
        return None
    again = f"delete {folder} and use --resume to run that trial again"
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text())
        done = record["status"] == "done"
    except (OSError, ValueError, KeyError, TypeError):
        raise CurvactError(f"{folder / 'record.json'} is missing or damaged: {again}") from None
    if done:
        checkpoint = folder / "model.safetensors"
        if not checkpoint.is_file():
            raise CurvactError(f"{checkpoint} is missing: {again}")
        try:
            read_tensors(checkpoint)
        except CurvactError:
            raise CurvactError(f"{checkpoint} is truncated or damaged: {again}") from None
    return record


def rows_of(spec: StudySpec, trials: Path) -> list[dict[str, object]]:
    """One flat row a finished trial, in the order of the spec."""
    rows = []
    for config in spec.trials():
        record = finished(trials, config)
        if record is not None:
            rows.append(row_of(record))
    return rows


def row_of(record: dict[str, Any]) -> dict[str, object]:
    """The columns of results.csv, from a record."""
    config = record["config"]
    return {
        "trial": record["trial"],
        **{key: config[key] for key in ("family", "activation", "curvature", "centered", "epochs", "seed")},
        "status": record["status"],
        "cause": record["cause"],
        **{name: record["metrics"].get(name) for name in METRICS},
        **{k: v for k, v in record["metrics"].items() if k not in METRICS and "seconds" not in k},
        "gradient_evaluations": record["gradient_evaluations"],
        "seconds": record["seconds"],
    }


def _difference(present: Any, wanted: Any) -> str:
    """The first key in which two specs differ, in words."""

    def walk(a: Any, b: Any, place: str) -> str | None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in a:
                found = walk(a[key], b.get(key), f"{place}.{key}" if place else key)
                if found:
                    return found
            return None
        return f"{place} is {a!r} there and {b!r} here" if a != b else None

    return walk(present.model_dump(mode="json"), wanted.model_dump(mode="json"), "") or "they differ"
