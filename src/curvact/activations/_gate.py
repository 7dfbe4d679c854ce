"""The CPU kernels of Sparta: `_sparta.c`, built on first use by the system's C compiler and called through ctypes.

Without it (see `curvact.native_code`) the gate is computed by tensor operations. Which of the two is decided once a process.
"""

from __future__ import annotations

import ctypes
import math
import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from curvact import native_code

_SOURCE = Path(__file__).with_name("_sparta.c")


@dataclass(frozen=True)
class _Library:
    run: Callable[..., int]
    multiply: Callable[..., None]
    parallel: int | None


_lock = threading.Lock()
_library: _Library | None = None
_tried = False


def value(x: Tensor, weight: Tensor) -> Tensor | None:
    """x·sigmoid(depthwise convolution of x), or None where the kernel cannot. x: N×C×H×W in memory; weight: C×1×3×3."""
    done = _run(x, weight, None)
    return None if done is None else done[0]


def gradients(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor] | None:
    """The gradients of x and of the weight for that of the value, or None where the kernel cannot."""
    done = _run(x, weight, grad)
    if done is None or done[1] is None:
        return None
    return done[0], done[1]


def product(x: Tensor, z: Tensor) -> Tensor | None:
    """x·sigmoid(z), or None where the kernel cannot. x, z: of one shape, in memory."""
    done = _multiply(x, z, None)
    return None if done is None else done[0]


def product_gradients(x: Tensor, z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor] | None:
    """The gradients of x and of z for that of x·sigmoid(z), or None where the kernel cannot."""
    done = _multiply(x, z, grad)
    if done is None or done[1] is None:
        return None
    return done[0], done[1]


def _multiply(x: Tensor, z: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
    library = _library_for(x)
    if library is None or z.dtype != x.dtype or z.shape != x.shape:
        return None
    layout = _layout(x)
    x, z = (t.contiguous(memory_format=layout) for t in (x, z))
    out = torch.empty_like(x)
    through = None
    if grad is not None:
        grad = grad.to(x.dtype).contiguous(memory_format=layout)
        through = torch.empty_like(x)
    library.multiply(
        x.dtype is torch.float64,
        x.data_ptr(),
        z.data_ptr(),
        None if grad is None else grad.data_ptr(),
        out.data_ptr(),
        None if through is None else through.data_ptr(),
        x.numel(),
        torch.get_num_threads(),
        library.parallel,
    )
    return out, through


def _library_for(x: Tensor) -> _Library | None:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or not x.numel():
        return None
    return _library if _tried else _load()


def _layout(x: Tensor) -> torch.memory_format:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _run(x: Tensor, weight: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
    library = _library_for(x)
    if library is None:
        return None
    layout = _layout(x)
    last = layout is torch.channels_last
    x = x.contiguous(memory_format=layout)
    n, channels, rows, columns = x.shape
    taps = weight.detach().to(x.dtype).reshape(channels, 9)
    taps = taps.t().contiguous() if last else taps.contiguous()
    out = torch.empty_like(x)
    parts = None
    if grad is not None:
        grad = grad.to(x.dtype).contiguous(memory_format=layout)
        parts = torch.empty((n, 9, channels) if last else (n, channels, 9), dtype=x.dtype)
    failed = library.run(
        x.dtype is torch.float64,
        last,
        x.data_ptr(),
        taps.data_ptr(),
        None if grad is None else grad.data_ptr(),
        out.data_ptr(),
        None if parts is None else parts.data_ptr(),
        n,
        channels,
        rows,
        columns,
        torch.get_num_threads(),
        library.parallel,
    )
    if failed:
        return None
    if parts is None:
        return out, None
    whole = parts.sum(0)
    return out, (whole.t() if last else whole).reshape(weight.shape)


def _load() -> _Library | None:
    global _library, _tried
    with _lock:
        if not _tried:
            try:
                loaded = ctypes.CDLL(str(native_code.compiled(_SOURCE)))
                function = loaded.curvact_sparta
                number, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
                function.argtypes = [number] * 2 + [pointer] * 5 + [size] * 4 + [number, pointer]
                function.restype = number
                multiply = loaded.curvact_product
                multiply.argtypes = [number] + [pointer] * 5 + [size, number, pointer]
                multiply.restype = None
                if _sound(function, multiply):
                    _library = _Library(function, multiply, native_code.parallel())
            except (native_code.Unavailable, OSError, AttributeError):
                _library = None
            _tried = True
        return _library


def _sound(function: Callable[..., int], multiply: Callable[..., None]) -> bool:
    """Whether Swish(1) comes out right: a guard against a compiler that breaks floating-point rules."""
    points = [-700.0, -30.0, -1.0, -1e-3, 0.0, 0.5, 3.0, 40.0]
    x, weight, out = array("d", points), array("d", [0.0] * 4 + [1.0] + [0.0] * 4), array("d", bytes(64))
    at_x, at_weight, at_out = (a.buffer_info()[0] for a in (x, weight, out))
    swish = [u / (1 + math.exp(-u)) for u in points]

    def right() -> bool:
        return all(
            math.isclose(got, want, rel_tol=1e-14, abs_tol=1e-300)
            for want, got in zip(swish, out, strict=True)
        )

    function(1, 0, at_x, at_weight, None, at_out, None, 1, 1, 2, 4, 1, None)
    first = right()
    multiply(1, at_x, at_x, None, at_out, None, len(points), 1, None)
    return first and right()
