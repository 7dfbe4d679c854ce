"""Autograd for σ(x) = φ(αx)/α: analytic derivatives, and only the input is kept for backward.

A family is a `Shape`: φ and its derivatives as plain tensor code. Everything else is common to all
families. With `D_k(x) = α^(k-1) φ⁽ᵏ⁾(αx)`, the k-th derivative of σ, one rule covers every order
[derived]:

    ∂D_k/∂x = D_(k+1),    ∂D_0/∂α = (uφ'(u) − φ(u))/α²,    ∂D_1/∂α = x D_2/α      (u = αx)

Orders 0 and 1 are `autograd.Function`s, so that a network stores one tensor for each activation.
Order 2 is plain tensor code, which autograd differentiates further. Inside `torch.compile` the same
plain code is used, and the compiler fuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from curvact.activations.kernels.execution import run
from curvact.activations.kernels.shape import (
    Scale,
    Shape,
    compiled_once,
    evaluate,
    floating,
    traced_for_script,
    transformed,
    wide,
)


def apply(x: Tensor, alpha: Scale, shape: Shape) -> Tensor:
    """σ(x), elementwise, in the dtype of x."""
    floating(x)
    if compiled_once():
        traced: Tensor = _Traced.apply(x, alpha, shape)  # type: ignore[no-untyped-call]
        return traced
    if torch.compiler.is_compiling() or traced_for_script():
        return evaluate(x, alpha, shape, 0)
    return derivative(x, alpha, shape, 0)


def derivative(x: Tensor, alpha: Scale, shape: Shape, order: int) -> Tensor:
    """D_order(x), differentiable in x and α to any order."""
    if order >= 2:
        return evaluate(x, alpha, shape, order)
    function = _Derivative if transformed() else _Eager
    result: Tensor = function.apply(x, alpha, shape, order)  # type: ignore[no-untyped-call]
    return result


def scale_derivative(
    x: Tensor,
    alpha: Tensor,
    shape: Shape,
    order: int,
    d: Callable[[Tensor, Scale, Shape, int], Tensor] = derivative,
) -> Tensor:
    """∂D_order/∂α, elementwise, for order 0 or 1, from `d(x, alpha, shape, k)` = D_k(x)."""
    if order == 1:
        return x * d(x, alpha, shape, 2) / alpha
    # For an even remainder uφ' − φ is even too, and at −|u| nothing cancels, however large x is.
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
        if torch.is_grad_enabled() or transformed():
            grad_x = grad * derivative(x, alpha, shape, order + 1)
        else:
            grad_x = run(x, alpha, shape, order + 1, grad)
    if isinstance(alpha, Tensor) and ctx.needs_input_grad[1]:
        grad_alpha = (wide(grad) * scale_derivative(wide(x), alpha, shape, order)).sum_to_size(alpha.shape)
    return grad_x, grad_alpha, None, None


def _jvp(ctx: Any, *tangents: Any) -> Tensor:
    x, alpha = _remembered(ctx)
    shape, order = ctx.shape, ctx.order
    terms: list[Tensor] = []
    if tangents[0] is not None:
        terms.append(tangents[0] * derivative(x, alpha, shape, order + 1))
    if isinstance(alpha, Tensor) and tangents[1] is not None:
        terms.append(tangents[1] * scale_derivative(x, alpha, shape, order))
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


class _Eager(torch.autograd.Function):
    """D_0 and D_1 outside functorch transforms: `_Derivative` at a third of the call overhead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Scale, shape: Shape, order: int) -> Tensor:
        _remember(ctx, x, alpha, shape, order)
        return run(x, alpha, shape, order)

    backward = staticmethod(_backward)
    jvp = staticmethod(_jvp)


class _Derivative(torch.autograd.Function):
    """D_0 and D_1 under functorch transforms, which need `setup_context` and a rule for vmap."""

    @staticmethod
    def forward(x: Tensor, alpha: Scale, shape: Shape, order: int) -> Tensor:
        return run(x, alpha, shape, order)

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
            if isinstance(alpha, Tensor) and alpha.dim() > 0:  # α broadcasts against the last dimensions
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
    """σ under `torch.compile` without transforms: plain code forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Scale, shape: Shape) -> Tensor:
        _remember(ctx, x, alpha, shape, 0)
        return evaluate(x, alpha, shape, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha = _remembered(ctx)
        grad_alpha = None
        if isinstance(alpha, Tensor) and ctx.needs_input_grad[1]:
            by_alpha = scale_derivative(wide(x), alpha, ctx.shape, 0, evaluate)
            grad_alpha = (wide(grad) * by_alpha).sum_to_size(alpha.shape)
        return grad * evaluate(x, alpha, ctx.shape, 1), grad_alpha, None
