"""A hash of a model's weights, by which records, leaderboards and resumed runs know it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def model_hash(model: nn.Module | Mapping[str, Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of a model's tensors, in the order of their names.

    >>> layer = nn.Linear(2, 2)
    >>> before = model_hash(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1e-6)
    >>> model_hash(layer) == before
    False
    """
    digest = hashlib.sha256()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().contiguous().cpu().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data if values.numel() else b"")
    return digest.hexdigest()
