"""Swish, x·sigmoid(bx), and SiLU, which is Swish at b = 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.activations.arguments import positive
from curvact.activations.base import ScaledActivation
from curvact.activations.gates import FLAT, floor, sigmoids
from curvact.activations.kernels.autograd import apply
from curvact.activations.kernels.shape import Scale, Shape


def _value(x: Tensor, alpha: Scale) -> Tensor:
    x = floor(x, alpha)
    if not isinstance(alpha, Tensor) and alpha == 1:
        return F.silu(x)
    return x * torch.sigmoid(x * alpha)


def _slope(u: Tensor) -> Tensor:
    u = u.clamp(-FLAT, FLAT)
    s, c = sigmoids(u)
    return s * (1 + u * c)


def _curvature(u: Tensor) -> Tensor:
    u = u.clamp(-FLAT, FLAT)
    s, c = sigmoids(u)
    return s * c * (2 + u * (c - s))


SWISH = Shape(
    value=_value,
    slope=_slope,
    curvature=_curvature,
    peak=0.5,
    peak_at=0.0,
    at_zero=0.0,
    even=True,
    native=("swish", 0),
)


def swish(x: Tensor, beta: Scale = 1.0) -> Tensor:
    """x·sigmoid(bx). beta: b, a number > 0, or a tensor.

    >>> swish(torch.tensor([-1.0, 2.0]), 12.0)
    tensor([-6.1442e-06,  2.0000e+00])
    """
    return apply(x, positive(beta, "beta", "swish"), SWISH)


class Swish(ScaledActivation):
    """x·sigmoid(bx), with κ = b/2 at 0 [derived]; b = 1 is SiLU.

    beta: b, a finite number > 0.
    learnable: b becomes a trainable scalar. centered: accepted and without effect, since σ(0) = 0.
    Raises CurvactError for a parameter out of range.

    >>> Swish.from_curvature(6)
    swish(beta=12.0)
    """

    formula = SWISH
    scale_name = "beta"

    def __init__(self, beta: float = 1.0, *, learnable: bool = False, centered: bool = False) -> None:
        super().__init__(beta, learnable=learnable, centered=centered)


def SiLU(*, learnable: bool = False, centered: bool = False, inplace: bool = False) -> Swish:
    """x·sigmoid(x): Swish at b = 1, κ = 1/2. inplace: ignored.

    >>> SiLU().max_curvature.value
    0.5
    """
    return Swish(1.0, learnable=learnable, centered=centered)
