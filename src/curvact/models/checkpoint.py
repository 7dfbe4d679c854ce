"""Checkpoints: weights as safetensors, and a JSON file that says how to rebuild the model.

A checkpoint never holds a pickle. The JSON file is called the sidecar.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.models.registry import build

SIDECAR_KEYS = ("run", "epoch", "data", "threat_model", "activation_from")
"""Keys of a sidecar, beside `schema` and `architecture`, that published models keep."""

_LONGEST = 300


def save_checkpoint(
    path: str | Path, model: nn.Module, architecture: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Write the weights to `path` (safetensors) and the sidecar, each whole or not at all.

    architecture: `name` and the arguments of `curvact.models.build`. about: further entries of the
    sidecar, such as those in `SIDECAR_KEYS`.
    """
    path = Path(path)
    sidecar = {"schema": 1, "architecture": dict(architecture), **about}
    atomic_write(path.with_suffix(".json"), json.dumps(sidecar, indent=2, sort_keys=True) + "\n")
    atomic_write(path, save_tensors(state_of(model)))


def load_checkpoint(path: str | Path) -> nn.Module:
    """The model of a checkpoint file, or of a run folder (its best weights), in eval mode.

    Raises CurvactError for a file that is missing, truncated, or does not fit its architecture.

    >>> import tempfile
    >>> arguments = {"name": "mini_resnet", "activation": "silu", "width": 2, "channels": 1}
    >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_checkpoint(file, build(**arguments), arguments, {})
    >>> load_checkpoint(file).act
    swish(beta=1.0)
    """
    path = find_weights(path)
    architecture = read_sidecar(path)["architecture"]
    return rebuild(architecture, read_tensors(path), f"the checkpoint {path}")


def find_weights(path: str | Path) -> Path:
    """The file of weights: `path`, or best.safetensors (else model.safetensors) in that folder.

    Raises CurvactError if it does not exist.
    """
    path = Path(path)
    if path.is_dir():
        best, model = path / "best.safetensors", path / "model.safetensors"
        path = model if model.is_file() and not best.is_file() else best
    if not path.is_file():
        raise CurvactError(f"no checkpoint file {path}")
    return path


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """The content of the JSON file beside a checkpoint. `architecture` is always among its keys."""
    sidecar = Path(path).with_suffix(".json")
    if not sidecar.is_file():
        raise CurvactError(f"no checkpoint file {sidecar}")
    try:
        content = json.loads(sidecar.read_text())
        if not isinstance(content["architecture"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise CurvactError(
            f"the checkpoint's description {sidecar} is not readable JSON with an 'architecture'"
        ) from None
    return dict(content)


class RunRecord(NamedTuple):
    """What a run measured on its weights. spec, environment: of the run, as in its JSON files.

    clean, robust: test accuracies of just these weights. attack, images: of that test.
    data_sha256: of each split.
    """

    spec: dict[str, Any]
    environment: dict[str, Any]
    clean: float
    robust: float
    attack: str
    images: int
    data_sha256: dict[str, str]


def read_run_record(weights: Path) -> RunRecord | None:
    """The record of the run that wrote this checkpoint, from the JSON files in the same folder.

    None if there is no record, or if it is damaged, or of other weights.
    """
    folder = weights.parent
    try:
        content = json.loads((folder / "record.json").read_text())
        metrics, files, spec = content["metrics"], content["files"], dict(content["spec"])
        if files[weights.name] != hashlib.sha256(weights.read_bytes()).hexdigest():
            return None
        last = files[weights.name] == files["last.safetensors"]
        prefix = "" if last else {"best": "best_"}[weights.stem]
        clean, robust = float(metrics[f"{prefix}clean_accuracy"]), float(metrics[f"{prefix}robust_accuracy"])
        environment = dict(json.loads((folder / "environment.json").read_text()))
        attack, images = str(spec["evaluation"]["attack"]), int(content["test_images"])
        return RunRecord(spec, environment, clean, robust, attack, images, dict(content["data_sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. CurvactError if it cannot be read or is damaged."""
    try:
        return load_tensors(path.read_bytes())
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror}") from None
    except SafetensorError as error:
        raise CurvactError(
            f"the weights {path} are truncated or damaged ({path.stat().st_size} bytes; {error}): "
            "write them again"
        ) from None


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's tensors on the CPU, contiguous, by name.

    >>> sorted(state_of(nn.Linear(2, 2)))
    ['bias', 'weight']
    """
    return {name: copy_of(tensor) for name, tensor in model.state_dict().items()}


def copy_of(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, without gradient."""
    return tensor.detach().cpu().contiguous().clone()


def rebuild(
    architecture: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, *, keep_types: bool = False
) -> nn.Module:
    """The model of an architecture (arguments of `build`) with these weights, in eval mode.

    keep_types: the model has the floating-point types of the weights. Otherwise it is in float32.
    The description may come from a stranger: any fault in it is a CurvactError that begins with
    `where`.

    >>> arguments = {"name": "mini_resnet", "width": 2}
    >>> rebuild(arguments, state_of(build(**arguments)), "here").training
    False
    >>> rebuild({"width": 2}, {}, "here")
    Traceback (most recent call last):
        ...
    curvact.errors.CurvactError: here: the architecture lacks its name
    """
    arguments = dict(architecture)
    if not isinstance(arguments.get("name"), str):
        raise CurvactError(f"{where}: the architecture lacks its name")
    try:
        model = build(**arguments)
        for name, place in model.state_dict(keep_vars=True).items() if keep_types else ():
            if name in tensors and place.is_floating_point() and tensors[name].is_floating_point():
                place.data = place.data.to(tensors[name].dtype)
        model.load_state_dict(dict(tensors))
    except CurvactError as error:
        raise CurvactError(f"{where}: {error}") from None
    except (RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        short = why if len(why) <= _LONGEST else f"{why[:_LONGEST]}…"
        raise CurvactError(f"{where} does not fit its architecture: {short}") from None
    return model.eval()
