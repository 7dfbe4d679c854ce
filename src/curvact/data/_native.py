"""The CPU kernel of the input pipeline: `_augment.c` gathers, flips, shifts and converts in one pass over memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from curvact import native_code

_SOURCE = Path(__file__).with_name("_augment.c")


def gather(images: Tensor, index: Tensor, shift: Tensor, flip: Tensor) -> Tensor | None:
    """The chosen images, flipped and shifted, as float32 in [0, 1]; None where the kernel cannot.

    images: uint8, N×C×H×W. index: int64, M, in 0 … N − 1. shift: int64, M×2, down and right. flip: bool, M.
    """
    if images.device.type != "cpu" or images.dtype != torch.uint8 or not images.is_contiguous():
        return None
    kernel = _kernel()
    if kernel is None:
        return None
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < len(images)):
        raise IndexError(f"index beyond the {len(images)} images")
    down, right = shift.T.contiguous()
    index, flip = index.contiguous(), flip.contiguous()
    out = torch.empty(len(index), *images.shape[1:], dtype=torch.float32)
    failed = kernel(
        *(t.data_ptr() for t in (images, index, down, right, flip, out)),
        len(index),
        *images.shape[1:],
    )
    return None if failed else out


@cache
def _kernel() -> Callable[..., int] | None:
    try:
        run = ctypes.CDLL(str(native_code.compiled(_SOURCE))).curvact_augment
    except (native_code.Unavailable, OSError, AttributeError):
        return None
    run.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 4
    return cast(Callable[..., int], run)
