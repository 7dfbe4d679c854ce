"""Checkpoints: weights as safetensors, and how to rebuild the model as JSON beside them. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import nn

from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.models.weights import read_sidecar as read_sidecar
from curvact.models.weights import read_tensors, rebuild, state_of


def save_checkpoint(
    path: str | Path, model: nn.Module, architecture: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Write `path` (safetensors) and the .json beside it, each by a temporary name and a rename.

    architecture: `name` and the arguments of `curvact.models.build`. about: whatever else belongs to the weights.
    """
    path = Path(path)
    sidecar = {"schema": 1, "architecture": dict(architecture), **about}
    atomic_write(path.with_suffix(".json"), json.dumps(sidecar, indent=2, sort_keys=True) + "\n")
    atomic_write(path, save_tensors(state_of(model)))


def load_checkpoint(path: str | Path) -> nn.Module:
    """The model of a checkpoint, in eval mode.

    Raises CurvactError, in one line, for a file that is missing, truncated, or does not fit its architecture.

    >>> import tempfile
    >>> from curvact.models import build
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
    return rebuild(architecture, read_tensors(path), f"the checkpoint {path}")
