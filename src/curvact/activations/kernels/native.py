"""The CPU kernel, `native.c`: built on first use by the system's C compiler, called by ctypes.

Without a kernel (see `curvact.native_code`) activations run as plain tensor operations. The first
call in a process decides.
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
from curvact.activations.kernels.polynomials import c_macros

_SOURCE = Path(__file__).with_name("native.c")
FAMILIES = {"rct": 0, "swish": 1, "squareplus": 2, "gelu": 3, "mish": 4, "power": 5}
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_SCALES = (1e-30, 1e30)
"""Beyond these 1/α or αx leaves float32: plain tensor operations compute such an α."""

Native = tuple[str, int]
"""A family of the kernel and its parameter: ("rct", β), ("power", n), or a name and 0."""


@dataclass(frozen=True)
class _Library:
    run: Callable[..., int]
    parallel: int | None
    description: str


_lock = threading.Lock()
_library: _Library | None = None
_reason: str | None = None


def run(
    x: Tensor, grad: Tensor | None, native: Native, order: int, alpha: float, centered: bool
) -> Tensor | None:
    """σ (order 0) or σ' (order 1) at x, times `grad` if given; None if the kernel cannot.

    x: a plain strided tensor on the CPU. grad: of the same dtype.
    """
    library = _library or _load()
    dtype = _DTYPES.get(x.dtype)
    if library is None or dtype is None or order > 1 or not _SCALES[0] <= alpha <= _SCALES[1]:
        return None
    out = torch.empty_like(x)
    strides = out.stride()
    # All three get the strides of a dense tensor, and are then read as flat memory.
    if x.stride() != strides:
        x = torch.empty_like(x).copy_(x)
    if grad is not None and grad.stride() != strides:
        grad = torch.empty_like(out).copy_(grad)
    family, parameter = native
    failed = library.run(
        FAMILIES[family],
        parameter,
        order,
        dtype,
        centered,
        x.data_ptr(),
        None if grad is None else grad.data_ptr(),
        out.data_ptr(),
        x.numel(),
        alpha,
        torch.get_num_threads(),
        library.parallel,
    )
    assert not failed, f"the native kernel does not know {native} at order {order}"
    return out


def describe() -> str:
    """`native (compiler, instruction set)`, or `plain (reason)`."""
    library = _library or _load()
    return f"plain ({_reason})" if library is None else f"native ({library.description})"


def _load() -> _Library | None:
    global _library, _reason
    with _lock:
        if _library is None and _reason is None:
            try:
                path = _compiled()
                try:
                    _library = _open(path)
                except OSError:  # a damaged file in the cache
                    path.unlink(missing_ok=True)
                    _library = _open(_compiled())
            except native_code.Unavailable as error:
                _reason = str(error)
            except (OSError, AttributeError):
                _reason = "the built kernel could not be loaded"
        return _library


def _compiled() -> Path:
    return native_code.compiled(_SOURCE, c_macros())


def _open(path: Path) -> _Library:
    loaded = ctypes.CDLL(str(path))
    function, text = loaded.curvact_run, loaded.curvact_describe
    number, pointer = ctypes.c_int, ctypes.c_void_p
    function.argtypes = [number] * 5 + [pointer] * 3 + [ctypes.c_int64, ctypes.c_double, number, pointer]
    text.restype = ctypes.c_char_p
    if not _sound(function):
        raise native_code.Unavailable("the built kernel computes wrongly")
    return _Library(function, native_code.parallel(), text().decode())


def _sound(function: Callable[..., int]) -> bool:
    """Whether softplus and its slope are right: a compiler may break floating-point rules."""
    points = [-math.inf, -100.0, -3.0, -0.5, 0.0, 0.5, 3.0, 100.0, math.inf]
    for order in (0, 1):
        x, out = array("d", points), array("d", bytes(8 * len(points)))
        function(0, 0, order, 1, 0, x.buffer_info()[0], None, out.buffer_info()[0], len(x), 1.0, 1, None)
        for u, got in zip(points, out, strict=True):
            e = math.exp(-abs(u))
            want = max(u, 0.0) + math.log1p(e) if order == 0 else (e if u < 0 else 1.0) / (1 + e)
            if not math.isclose(got, want, rel_tol=1e-14, abs_tol=1e-300):
                return False
    return True
