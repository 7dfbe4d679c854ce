"""A hash of a model's weights. Records, leaderboards and resumed runs identify weights by it, and files of
tensors are checked by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
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


CHECKSUM = "curvact.sha256"
"""The key of the checksum in the header of a safetensors file."""


def to_safetensors(tensors: Mapping[str, Tensor], **about: str) -> bytes:
    """Tensors as the content of a safetensors file, with a checksum of them in its header.

    about: more entries of the header, which the checksum covers.
    """
    return save(dict(tensors), metadata={**about, CHECKSUM: _checksum(tensors, about)})


def from_safetensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and the entries of its header.

    A file without a checksum, of somebody else or of an earlier version, is taken as it is.
    Raises SafetensorError for content that is no safetensors file, and for one whose checksum is not
    that of its tensors.

    >>> content = bytearray(to_safetensors({"weight": torch.ones(2)}))
    >>> from_safetensors(bytes(content))[0]
    {'weight': tensor([1., 1.])}
    >>> content[-1] ^= 1
    >>> from_safetensors(bytes(content))  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
        ...
    safetensors_rust.SafetensorError: its checksum is not that of its content
    """
    tensors = load(content)
    size = int.from_bytes(content[:8], "little")
    try:
        about = dict(json.loads(content[8 : 8 + size]).get("__metadata__") or {})
    except (ValueError, RecursionError, AttributeError):
        raise SafetensorError("its header is not JSON") from None
    checksum = about.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(tensors, about):
        raise SafetensorError("its checksum is not that of its content")
    return tensors, about


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    text = json.dumps(dict(about), sort_keys=True)
    return hashlib.sha256(f"{text}\n{model_hash(tensors)}".encode()).hexdigest()
