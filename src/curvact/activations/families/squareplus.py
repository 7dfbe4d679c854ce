"""Squareplus, (x + √(x² + b))/2: algebraic tails, no exponentials."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvact.activations.arguments import positive, reached, trainable
from curvact.activations.base import ScaledActivation
from curvact.activations.gates import ramp
from curvact.activations.kernels.autograd import apply
from curvact.activations.kernels.shape import Scale, Shape, compiled_once

if TYPE_CHECKING:
    from typing_extensions import Self

_WIDE = 1e18
"""Beyond |u| = 1e18, u/√(1+u²) is ±1 to float64, and u² still fits float32."""


def _value(x: Tensor, alpha: Scale) -> Tensor:
    u = x * alpha
    # |u|, with slope 1 at 0 as `ramp` has, if the compiler differentiates it.
    a = torch.where(u < 0, -u, u) if torch.compiler.is_compiling() and not compiled_once() else u.abs()
    root = torch.sqrt(1 + a.clamp(max=_WIDE) ** 2)
    return ramp(x) + 0.5 / ((root + a) * alpha)


def _slope(u: Tensor) -> Tensor:
    u = u.clamp(-_WIDE, _WIDE)
    return 0.5 + 0.5 * u * torch.rsqrt(1 + u * u)


def _curvature(u: Tensor) -> Tensor:
    u = u.clamp(-_WIDE, _WIDE)
    return 0.5 * torch.rsqrt(1 + u * u) / (1 + u * u)


SQUAREPLUS = Shape(
    value=_value,
    slope=_slope,
    curvature=_curvature,
    peak=0.5,
    peak_at=0.0,
    at_zero=0.5,
    even=True,
    native=("squareplus", 0),
)


def squareplus(x: Tensor, b: Scale = 4.0) -> Tensor:
    """(x + √(x² + b))/2. b: squared width, a number > 0, or a tensor.

    >>> squareplus(torch.tensor([0.0, 1.5]))
    tensor([1., 2.])
    """
    alpha = b.rsqrt() if isinstance(b, Tensor) else 1 / math.sqrt(positive(b, "b", "squareplus"))
    return apply(x, alpha, SQUAREPLUS)


class Squareplus(ScaledActivation):
    """(x + √(x² + b))/2, with κ = 1/(2√b) at 0 [derived].

    b: squared width, a finite number > 0; α = 1/√b.
    learnable: α becomes a trainable scalar. centered: subtract σ(0) = √b/2.
    Raises CurvactError for a parameter out of range.

    >>> Squareplus.from_curvature(0.25)
    squareplus(b=4.0)
    """

    formula = SQUAREPLUS
    scale_name = "b"

    def __init__(self, b: float = 4.0, *, learnable: bool = False, centered: bool = False) -> None:
        self._b = positive(b, "b", "squareplus")
        alpha = 1 / math.sqrt(self._b)
        if learnable:
            trainable(alpha, "1/√b", "squareplus", positive)
        super().__init__(alpha, learnable=learnable, centered=centered)

    @classmethod
    def from_curvature(cls, curvature: float, *, learnable: bool = False, centered: bool = False) -> Self:
        """The member with κ = `curvature`: b = 1/(4κ²)."""
        kappa = positive(curvature, "curvature", "squareplus")
        within = 1e-154 < kappa < 1e154  # beyond, κ² leaves floating point
        return cls(
            reached(0.25 / kappa**2 if within else 0.0, kappa, "squareplus"),
            learnable=learnable,
            centered=centered,
        )

    def _constructor_scale(self) -> float:
        return 1 / self.scale**2 if self.learnable else self._b
