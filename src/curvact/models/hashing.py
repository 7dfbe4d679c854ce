"""A hash of a model's weights. Records, leaderboards and resumed runs identify weights by it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from curvact.errors import CurvactError
from curvact.names import shortened


def model_hash(model: nn.Module | Mapping[str, Tensor]) -> str:
    """sha256 of the names, types, shapes and bytes of a model's tensors, sorted by name.

    >>> layer = nn.Linear(2, 2)
    >>> before = model_hash(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1e-6)
    >>> model_hash(layer) == before
    False
    """
    if not isinstance(model, (nn.Module, Mapping)):
        raise CurvactError(f"model_hash got {shortened(model)}: it takes an nn.Module or its tensors by name")
    digest = hashlib.sha256()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> Any:
    """The values of a tensor as a buffer of bytes, in row-major order.

    >>> bytes(tensor_bytes(torch.tensor([1, 2], dtype=torch.uint8)))
    b'\\x01\\x02'
    """
    values = tensor.detach().contiguous().cpu().reshape(-1)
    return values.view(torch.uint8).numpy().data if values.numel() else b""
