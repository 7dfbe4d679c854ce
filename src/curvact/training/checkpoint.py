"""Checkpoints: weights as safetensors, and how to rebuild the model as JSON beside them. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.models import build


def save_checkpoint(
    path: Path, model: nn.Module, architecture: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Write `path` (safetensors) and `path.with_suffix(".json")`, each by a temporary name and a rename.

    architecture: `name` and the arguments of `curvact.models.build`. about: whatever else belongs to the weights.
    """
    tensors = {
        name: tensor.detach().contiguous().cpu().clone() for name, tensor in model.state_dict().items()
    }
    sidecar = {"schema": 1, "architecture": dict(architecture), **about}
    atomic_write(path.with_suffix(".json"), json.dumps(sidecar, indent=2, sort_keys=True) + "\n")
    atomic_write(path, save_tensors(tensors))


def load_checkpoint(path: str | Path) -> nn.Module:
    """The model of a checkpoint, in eval mode.

    Raises CurvactError, in one line, for a file that is missing, truncated, or does not fit its architecture.

    >>> import tempfile
    >>> from curvact.models import MiniResNet
    >>> arguments = {"name": "mini_resnet", "activation": "silu", "width": 2, "channels": 1}
    >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_checkpoint(file, build(**arguments), arguments, {})
    >>> load_checkpoint(file).act
    swish(beta=1.0)
    """
    path = Path(path)
    if not path.is_file():
        raise CurvactError(f"no checkpoint file {path}")
    architecture = read_sidecar(path)["architecture"]
    tensors = read_tensors(path)
    model = build(**architecture)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise CurvactError(f"the checkpoint {path} does not fit its architecture: {detail}") from None
    return model.eval()


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """What the JSON beside a checkpoint says: `architecture`, and whatever was written with it."""
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


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file; CurvactError if it is truncated or no such file."""
    try:
        return load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise CurvactError(
            f"the checkpoint {path} is truncated or damaged ({path.stat().st_size} bytes; {error}): write it again"
        ) from None
