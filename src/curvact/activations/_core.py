"""The elementwise core: σ(x) = φ(αx)/α with analytic derivatives, saving only its input for the backward pass.

A family is a `Shape`: φ and its derivatives as plain tensor code. Everything else is common to all families. With
`D_k(x) = α^(k-1) φ⁽ᵏ⁾(αx)`, the k-th derivative of σ, one rule covers every order [derived]:

    ∂D_k/∂x = D_(k+1),    ∂D_0/∂α = (uφ'(u) − φ(u))/α²,    ∂D_1/∂α = x D_2/α      (u = αx)

Orders 0 and 1 are `autograd.Function`s, so that a network stores one tensor an activation. Order 2 is plain tensor code, which
autograd differentiates further. Inside `torch.compile` the same plain code is used throughout, and the compiler fuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from curvact.activations import _native
from curvact.errors import CurvactError

Scale = float | Tensor
"""α: a positive number, or a tensor that broadcasts against the input without enlarging it."""

SATURATED = 40.0
"""Beyond |u| = 40 every gate differs from 0 or 1 by less than e⁻⁴⁰ = 4e-18, under float64 resolution of the value."""

_CHUNK = 1 << 16
"""Elements worked on at a time per thread on the CPU, so that the intermediate results of a formula stay in the cache."""


@dataclass(frozen=True)
class Shape:
    """A family at unit scale.

    value: `(x, alpha) -> φ(αx)/α`, finite for every finite x.
    slope: `u -> φ'(u)`.
    curvature: `u -> φ''(u)`.
    peak: max|φ''|.
    peak_at: the u where it is attained.
    at_zero: φ(0).
    even: φ(u) − relu(u) is an even function.
    native: the family and its parameter in the native CPU kernel, None where it has none.
    centered: subtract φ(0)/α, so that σ(0) = 0.
    """

    value: Callable[[Tensor, Scale], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]
    peak: float
    peak_at: float
    at_zero: float
    even: bool = False
    native: _native.Native | None = None
    centered: bool = False


def evaluate(x: Tensor, alpha: Scale, shape: Shape, order: int) -> Tensor:
    """D_order(x) in plain, differentiable tensor code. Half precision is computed in float32 and rounded once."""
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if order == 0:
        out = shape.value(x, alpha)
        if shape.centered:
            out = out - shape.at_zero / alpha
    elif order == 1:
        out = shape.slope(x * alpha)
    else:
        out = shape.curvature(x * alpha) * alpha
    return out.to(dtype)


def wide(x: Tensor) -> Tensor:
    """x, half precision as float32: sums over it neither overflow nor lose small terms."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def floating(x: Tensor) -> Tensor:
    """x, or a clear error for integers."""
    if not x.is_floating_point():
        raise CurvactError(f"an activation got a tensor of {x.dtype}: it takes floating-point tensors")
    return x


def apply(x: Tensor, alpha: Scale, shape: Shape) -> Tensor:
    """σ(x), elementwise, in the dtype of x."""
    floating(x)
    if fused():
        traced: Tensor = _Traced.apply(x, alpha, shape)  # type: ignore[no-untyped-call]
        return traced
    if torch.compiler.is_compiling():
        return evaluate(x, alpha, shape, 0)
    return derivative(x, alpha, shape, 0)


def derivative(x: Tensor, alpha: Scale, shape: Shape, order: int) -> Tensor:
    """D_order(x), differentiable in x and α to any order."""
    if order >= 2:
        return evaluate(x, alpha, shape, order)
    function = _Derivative if _transformed() else _Eager
    result: Tensor = function.apply(x, alpha, shape, order)  # type: ignore[no-untyped-call]
    return result


def _scale_derivative(
    x: Tensor,
    alpha: Tensor,
    shape: Shape,
    order: int,
    d: Callable[[Tensor, Scale, Shape, int], Tensor] = derivative,
) -> Tensor:
    """∂D_order/∂α, elementwise, for order 0 or 1, from `d(x, alpha, shape, k)` = D_k(x)."""
    if order == 1:
        return x * d(x, alpha, shape, 2) / alpha
    # For an even remainder uφ' − φ is even too, and at −|u| nothing cancels: exact also where x is large.
    at = -x.abs() if shape.even else x
    return (at * d(at, alpha, shape, 1) - d(at, alpha, shape, 0)) / alpha


def _remember(ctx: Any, x: Tensor, alpha: Scale, shape: Shape, order: int) -> None:
    ctx.shape, ctx.order = shape, order
    if isinstance(alpha, Tensor):
        ctx.save_for_backward(x, alpha)
        ctx.save_for_forward(x, alpha)
    else:
        ctx.alpha = alpha
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)


def _remembered(ctx: Any) -> tuple[Tensor, Scale]:
    saved = ctx.saved_tensors
    return saved[0], saved[1] if len(saved) == 2 else ctx.alpha


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, alpha = _remembered(ctx)
    shape, order = ctx.shape, ctx.order
    grad_x = grad_alpha = None
    if ctx.needs_input_grad[0]:
        if torch.is_grad_enabled() or _transformed():
            grad_x = grad * derivative(x, alpha, shape, order + 1)
        else:
            grad_x = _run(x, alpha, shape, order + 1, grad)
    if isinstance(alpha, Tensor) and ctx.needs_input_grad[1]:
        grad_alpha = (wide(grad) * _scale_derivative(wide(x), alpha, shape, order)).sum_to_size(alpha.shape)
    return grad_x, grad_alpha, None, None


def _jvp(ctx: Any, *tangents: Any) -> Tensor:
    x, alpha = _remembered(ctx)
    shape, order = ctx.shape, ctx.order
    terms: list[Tensor] = []
    if tangents[0] is not None:
        terms.append(tangents[0] * derivative(x, alpha, shape, order + 1))
    if isinstance(alpha, Tensor) and tangents[1] is not None:
        terms.append(tangents[1] * _scale_derivative(x, alpha, shape, order))
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


class _Eager(torch.autograd.Function):
    """D_order for order 0 and 1 outside functorch transforms: the rules of `_Derivative` at a third of the call overhead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Scale, shape: Shape, order: int) -> Tensor:
        _remember(ctx, x, alpha, shape, order)
        return _run(x, alpha, shape, order)

    backward = staticmethod(_backward)
    jvp = staticmethod(_jvp)


class _Derivative(torch.autograd.Function):
    """D_order for order 0 and 1 under functorch transforms, which need `setup_context` and a rule for vmap."""

    @staticmethod
    def forward(x: Tensor, alpha: Scale, shape: Shape, order: int) -> Tensor:
        return _run(x, alpha, shape, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _remember(ctx, *inputs)

    backward = staticmethod(_backward)
    jvp = staticmethod(_jvp)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, alpha: Scale, shape: Shape, order: int
    ) -> tuple[Tensor, int]:
        x_dim, alpha_dim = in_dims[0], in_dims[1]
        if alpha_dim is None or not isinstance(alpha, Tensor):
            assert x_dim is not None
            if (
                isinstance(alpha, Tensor) and alpha.dim() > 0
            ):  # it is to meet the last dimensions of each sample
                x, x_dim = x.movedim(x_dim, 0), 0
            return derivative(x, alpha, shape, order), x_dim
        if x_dim is None:
            x = x.expand(info.batch_size, *x.shape)
        else:
            x = x.movedim(x_dim, 0)
        alpha = alpha.movedim(alpha_dim, 0)
        gap = x.dim() - alpha.dim()
        alpha = alpha.reshape(alpha.shape[0], *[1] * gap, *alpha.shape[1:])
        return derivative(x, alpha, shape, order), 0


class _Traced(torch.autograd.Function):
    """σ under `torch.compile`: plain code both ways. Under transforms there the compiler differentiates `evaluate` instead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Scale, shape: Shape) -> Tensor:
        _remember(ctx, x, alpha, shape, 0)
        return evaluate(x, alpha, shape, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha = _remembered(ctx)
        grad_alpha = None
        if isinstance(alpha, Tensor) and ctx.needs_input_grad[1]:
            by_alpha = _scale_derivative(wide(x), alpha, ctx.shape, 0, evaluate)
            grad_alpha = (wide(grad) * by_alpha).sum_to_size(alpha.shape)
        return grad * evaluate(x, alpha, ctx.shape, 1), grad_alpha, None


def _transformed() -> bool:
    """Whether a functorch transform (grad, vmap, jvp) is running: results may be wrapped, and nothing is written in place."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def fused() -> bool:
    """Whether the formulas are being compiled, and are not going to be differentiated.

    Then many small operations are cheap and an exponential is not, and a formula may be a polynomial fitted to the function.
    """
    return torch.compiler.is_compiling() and not _transformed()


# ---- how a formula is run: a native kernel on the CPU, one compiled kernel, or plain tensor operations ----


Fusion = Literal["auto", "compiled", "plain"]
_fusion: Fusion = "auto"


def set_fusion(mode: Fusion) -> None:
    """Choose what computes an activation outside `torch.compile`.

    "auto" (the default): the native kernel on the CPU where there is a C compiler (see `kernel_info`), one compiled kernel on
    CUDA, plain tensor operations elsewhere.
    "compiled": one kernel by `torch.compile` on any device. The first call of each family compiles it, which takes seconds.
    "plain": tensor operations everywhere.

    The modes differ by rounding only. The mode never changes by itself, so that a run repeats bit for bit.

    >>> set_fusion("plain"); set_fusion("auto")
    """
    global _fusion
    if mode not in ("auto", "compiled", "plain"):
        raise CurvactError(f"set_fusion got {mode!r}: allowed are 'auto', 'compiled' and 'plain'")
    _fusion = mode


def kernel_info() -> str:
    """What computes activations on the CPU, for records, such as `native (gcc 12.2, avx512)` or `plain (no C compiler)`.

    It builds the native kernel where that has not been done yet.

    >>> kernel_info().split()[0] in ("native", "plain")
    True
    """
    if _fusion == "auto":
        return _native.describe()
    if _fusion == "compiled":
        return f"compiled (torch {torch.__version__})"
    return "plain (chosen by set_fusion)"


def _run(x: Tensor, alpha: Scale, shape: Shape, order: int, grad: Tensor | None = None) -> Tensor:
    """D_order(x), times `grad` where given; no autograd graph."""
    device = x.device.type
    uniform = not isinstance(alpha, Tensor) or alpha.numel() == 1
    direct = uniform and _is_memory(x) and (grad is None or (grad.dtype == x.dtype and _is_memory(grad)))
    if direct and _fusion == "auto" and device == "cpu" and shape.native is not None:
        out = _native.run(x, grad, shape.native, order, float(alpha), shape.centered)
        if out is not None:
            return out
    fused = _fusion == "compiled" or (_fusion == "auto" and device == "cuda" and _has_triton())
    if not direct or x.numel() <= (1 if fused else _CHUNK) or not (fused or device == "cpu"):
        out = evaluate(x, alpha, shape, order)
        return out if grad is None else out * grad

    source, flat = _flat(x)
    out = torch.empty_like(source)
    flat_out = _flat(out)[1]
    flat_grad = None
    if grad is not None:
        matched = grad if grad.stride() == source.stride() else torch.empty_like(source).copy_(grad)
        flat_grad = _flat(matched)[1]
    if fused:
        precision = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.no_grad():
            # A fill on the device, not a copy to it: nothing waits for the GPU.
            scale = (
                alpha.detach().reshape(()).to(x.device, precision)
                if isinstance(alpha, Tensor)
                else torch.full((), alpha, dtype=precision, device=x.device)
            )
            flat_out.copy_(_kernel(shape, order)(flat.detach(), scale, flat_grad))
        return out
    step = _CHUNK * torch.get_num_threads()
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
    """Whether x is numbers in memory and nothing watches operations on it: no subclass, no fake or lazy tensor, no tracing."""
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
def _kernel(shape: Shape, order: int) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    def kernel(x: Tensor, alpha: Tensor, grad: Tensor | None) -> Tensor:
        out = evaluate(x, alpha, shape, order)
        return out if grad is None else out * grad

    # A code object of its own: the compiler counts recompilations by code object, and every family would share one.
    own = FunctionType(
        kernel.__code__.replace(), kernel.__globals__, kernel.__name__, None, kernel.__closure__
    )
    return torch.compile(own, dynamic=True, fullgraph=True)
