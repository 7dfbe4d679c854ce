"""Where a record lies: a file's name that holds what was asked, so that two evaluations never share one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError
from curvact.lab.record.record import EvaluationRecord, question_id, read_record

OF_A_RUN = re.compile(r"model|best|last|epoch-\d+")
"""The names that every run gives to its checkpoints."""


def checkpoint_name(checkpoint: Path) -> str:
    """The name of a checkpoint's file, after its folder's where every run has such a file.

    >>> checkpoint_name(Path("runs/swish/best.safetensors")), checkpoint_name(Path("resnet18.pt"))
    ('swish-best', 'resnet18')
    """
    folder = Path(os.path.abspath(checkpoint)).parent.name
    return (
        f"{folder}-{checkpoint.stem}" if folder and OF_A_RUN.fullmatch(checkpoint.stem) else checkpoint.stem
    )


def file_name(text: str, longest: int = 60) -> str:
    """A text as part of a file's name: no separators, no leading dot, not too long.

    >>> file_name("../../cifar10/test"), file_name("resnet[v2]"), file_name("..")
    ('cifar10-test', 'resnet[v2]', 'unnamed')
    """
    plain = re.sub(r"[^\w.+\-\[\]()=,]+", "-", text).strip(".-")
    return re.sub(r"[.-]{2,}", "-", plain)[:longest].strip(".-") or "unnamed"


def evaluation_paths(
    folder: Path, name: str, attack: str, data: str, count: int, asked: Mapping[str, Any], masking: str
) -> tuple[Path, Path]:
    """The file of a record, and the folder of the shards of an evaluation that is under way. They depend on what was asked alone.

    name, attack, data: to read, for people. asked: as `question` has it. masking: the depth of the checklist, which the shards
    do not depend on.
    """
    parts = (name, attack, asked["norm"], f"{asked['epsilon']:.6g}", f"{data}{count}", f"seed{asked['seed']}")
    stem = f"{'-'.join(map(file_name, parts))}-{question_id(asked)}"
    return folder / f"{stem}-masking-{masking}.evaluation.json", folder / f"{stem}.shards"


def record_there(path: Path, asked: Mapping[str, Any], masking: str) -> EvaluationRecord | None:
    """The record of this very evaluation, None where there is no file; CurvactError, naming what differs, for another's.

    Whatever lies there and is not of the same model, images and settings must be neither shown nor overwritten.
    """
    if not path.exists():
        return None
    record = read_record(path)
    there, here = {**record.asked, "masking": record.masking}, {**asked, "masking": masking}
    different = [key for key in here if there[key] != here[key]]
    if different:
        what = "; ".join(
            f"{key} is {_short(there[key])} there and {_short(here[key])} here" for key in different
        )
        raise CurvactError(f"{path} holds another evaluation: {what}. Move it away")
    return record


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return f"{text[:12]}…" if len(text) == 64 else text if len(text) <= 120 else f"{text[:120]}…"
