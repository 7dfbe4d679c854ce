"""A family's formula at unit scale, and its evaluation in plain, differentiable tensor code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvact.activations.kernels.native import Native
from curvact.errors import CurvactError
from curvact.names import shortened

Scale = float | Tensor
"""α: a positive number, or a tensor that broadcasts against the input without enlarging it."""

SATURATED = 40.0
"""Beyond |u| = 40 every gate differs from 0 or 1 by less than e⁻⁴⁰ = 4e-18."""

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Shape:
    """A family σ(x) = φ(αx)/α at unit scale.

    value: `(x, alpha) -> φ(αx)/α`, finite for every finite x.
    slope: `u -> φ'(u)`.
    curvature: `u -> φ''(u)`.
    peak: max|φ''|.
    peak_at: the u where it is attained.
    at_zero: φ(0).
    even: whether φ(u) − relu(u) is an even function.
    native: the family and its parameter in the native CPU kernel, None if it has none.
    centered: whether φ(0)/α is subtracted, so that σ(0) = 0.
    """

    value: Callable[[Tensor, Scale], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]
    peak: float
    peak_at: float
    at_zero: float
    even: bool = False
    native: Native | None = None
    centered: bool = False


def evaluate(x: Tensor, alpha: Scale, shape: Shape, order: int) -> Tensor:
    """The derivative of σ of that order, 0 to 2, at x. Half precision is rounded once."""
    dtype = x.dtype
    x = wide(x)
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
    return x.float() if x.dtype in HALF else x


def floating(x: Tensor) -> Tensor:
    """x. Raises CurvactError if it holds integers, or is no tensor."""
    if not isinstance(x, Tensor):
        raise CurvactError(f"an activation got {shortened(x)}: it takes a tensor")
    if not x.is_floating_point():
        raise CurvactError(f"an activation got a tensor of {x.dtype}: it takes floating-point tensors")
    return x


def transformed() -> bool:
    """Whether a functorch transform (grad, vmap, jvp) runs: then nothing is written in place."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def traced_for_script() -> bool:
    """Whether torch.jit.trace runs: a saved trace holds operations, no functions of Python."""
    return torch._C._get_tracing_state() is not None


def compiled_once() -> bool:
    """Whether torch.compile traces the formula and no transform differentiates it.

    Then many small operations are cheap and an exponential is not, and a formula may be a
    polynomial fitted to the function.
    """
    return torch.compiler.is_compiling() and not transformed()
