"""Which code computes a formula: a native kernel, one compiled kernel, or tensor operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from types import FunctionType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from curvact.activations.kernels import native
from curvact.activations.kernels.shape import Scale, Shape, evaluate
from curvact.errors import CurvactError
from curvact.names import shortened

CHUNK = 1 << 16
"""Elements that a thread works on at a time, so that intermediate results stay in the cache."""

Fusion = Literal["auto", "compiled", "plain"]
_fusion: Fusion = "auto"


def set_fusion(mode: Fusion) -> None:
    """Choose what computes an activation outside `torch.compile`.

    "auto" (the default): the native kernel on a CPU with a C compiler (see `kernel_info`), one
    compiled kernel on CUDA, and plain tensor operations otherwise.
    "compiled": one kernel by `torch.compile` on any device. The first call of each family compiles
    it, which takes seconds.
    "plain": tensor operations everywhere.

    The modes differ by rounding only. The mode never changes by itself, so that a run repeats bit
    for bit.
    Raises CurvactError for another mode.

    >>> set_fusion("plain"); set_fusion("auto")
    """
    global _fusion
    if not isinstance(mode, str) or mode not in ("auto", "compiled", "plain"):
        raise CurvactError(f"set_fusion got {shortened(mode)}: allowed are 'auto', 'compiled' and 'plain'")
    _fusion = mode


def kernel_info() -> str:
    """What computes activations on the CPU, for records.

    Such as `native (gcc 12.2, avx512)` or `plain (no C compiler)`.

    The first call builds the native kernel.

    >>> kernel_info().split()[0] in ("native", "plain")
    True
    """
    if _fusion == "auto":
        return native.describe()
    if _fusion == "compiled":
        return f"compiled (torch {torch.__version__})"
    return "plain (chosen by set_fusion)"


def run(x: Tensor, alpha: Scale, shape: Shape, order: int, grad: Tensor | None = None) -> Tensor:
    """The derivative of σ of that order at x, times `grad` if it is given; no autograd graph."""
    device = x.device.type
    uniform = not isinstance(alpha, Tensor) or alpha.numel() == 1
    direct = uniform and _is_memory(x) and (grad is None or (grad.dtype == x.dtype and _is_memory(grad)))
    if direct and _fusion == "auto" and device == "cpu" and shape.native is not None:
        out = native.run(x, grad, shape.native, order, float(alpha), shape.centered)
        if out is not None:
            return out
    one_kernel = _fusion == "compiled" or (_fusion == "auto" and device == "cuda" and _has_triton())
    if not direct or x.numel() <= (1 if one_kernel else CHUNK) or not (one_kernel or device == "cpu"):
        out = evaluate(x, alpha, shape, order)
        return out if grad is None else out * grad

    source, flat = _flat(x)
    out = torch.empty_like(source)
    flat_out = _flat(out)[1]
    flat_grad = None
    if grad is not None:
        matched = grad if grad.stride() == source.stride() else torch.empty_like(source).copy_(grad)
        flat_grad = _flat(matched)[1]
    if one_kernel:
        precision = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.no_grad():
            # A fill on the device, not a copy to it: nothing waits for the GPU.
            scale = (
                alpha.detach().reshape(()).to(x.device, precision)
                if isinstance(alpha, Tensor)
                else torch.full((), alpha, dtype=precision, device=x.device)
            )
            flat_out.copy_(_compiled(shape, order)(flat.detach(), scale, flat_grad))
        return out
    step = CHUNK * torch.get_num_threads()
    for start in range(0, flat.numel(), step):
        part = evaluate(flat[start : start + step], alpha, shape, order)
        if flat_grad is None:
            flat_out[start : start + step].copy_(part)
        else:
            torch.mul(part, flat_grad[start : start + step], out=flat_out[start : start + step])
    return out


@cache
def _has_triton() -> bool:
    """Whether torch.compile can make CUDA kernels here."""
    return find_spec("triton") is not None


def _is_memory(x: Tensor) -> bool:
    """Whether x lies in plain memory: no subclass, no fake or lazy tensor, no tracing."""
    return (
        type(x) in (Tensor, Parameter)
        and torch._C._has_storage(x)
        and x.layout is torch.strided
        and not x.is_neg()
        and not x._is_zerotensor()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )


def _flat(x: Tensor) -> tuple[Tensor, Tensor]:
    """x, or a contiguous copy of it, and a 1-D view of its memory."""
    if x.is_contiguous():
        return x, x.view(-1)
    if x.dim() in (4, 5):
        last = x.movedim(1, -1)
        if last.is_contiguous():
            return x, last.view(-1)
    x = x.contiguous()
    return x, x.view(-1)


@lru_cache(maxsize=256)
def _compiled(shape: Shape, order: int) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    def kernel(x: Tensor, alpha: Tensor, grad: Tensor | None) -> Tensor:
        out = evaluate(x, alpha, shape, order)
        return out if grad is None else out * grad

    # The compiler counts recompilations by code object: a copy of it keeps the families apart.
    own = FunctionType(
        kernel.__code__.replace(), kernel.__globals__, kernel.__name__, None, kernel.__closure__
    )
    return torch.compile(own, dynamic=True, fullgraph=True)
