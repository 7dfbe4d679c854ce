"""The unit of Curvature Tuning: a mean of Swish and softplus that tends to ReLU.

The formula is [paper, arXiv 2502.07783]; κ is [derived].
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvact.activations.arguments import fraction, positive, proper_fraction, reached
from curvact.activations.base import Activation
from curvact.activations.curvature import Peak
from curvact.activations.families.rct import rct_shape
from curvact.activations.families.swish import SWISH
from curvact.activations.gates import scaled_softplus
from curvact.activations.kernels.autograd import apply, derivative
from curvact.activations.kernels.shape import Scale, Shape
from curvact.errors import CurvactError

if TYPE_CHECKING:
    from typing_extensions import Self

SOFTPLUS = rct_shape(0)
_ACCURACY = 1e-9
"""How far κ of the nearest float β may be from the κ that was asked for, in relation to it."""


# At unit scale, φ(u) = c·u·sigmoid(βu) + (1 − c)·softplus(u), and σ(x) = φ(αx)/α with α = 1/(1 − β).


def _value(x: Tensor, alpha: Scale, *, beta: float, c: float) -> Tensor:
    swish = SWISH.value(x, alpha * beta) if beta > 0 else 0.5 * x
    if c == 1:
        return swish
    softplus = (1 - c) * scaled_softplus(x, alpha)
    return softplus if c == 0 else c * swish + softplus  # 0·swish is NaN at −∞


def _slope(u: Tensor, *, beta: float, c: float) -> Tensor:
    return c * SWISH.slope(beta * u) + (1 - c) * torch.sigmoid(u)


def _curvature(u: Tensor, *, beta: float, c: float) -> Tensor:
    return c * beta * SWISH.curvature(beta * u) + (1 - c) * SOFTPLUS.curvature(u)


def _shape(beta: float, c: float) -> Shape:
    return Shape(
        value=partial(_value, beta=beta, c=c),
        slope=partial(_slope, beta=beta, c=c),
        curvature=partial(_curvature, beta=beta, c=c),
        peak=0.5 * c * beta + 0.25 * (1 - c),
        peak_at=0.0,
        at_zero=(1 - c) * SOFTPLUS.at_zero,
        even=True,
    )


def ctu(x: Tensor, beta: Scale = 0.9, c: Scale = 0.5) -> Tensor:
    """c·x·sigmoid(bx) + (1 − c)(1 − β)·softplus(x/(1 − β)) with b = β/(1 − β) [paper].

    beta: a number, 0 ≤ β < 1, or a tensor. c: a number, 0 ≤ c ≤ 1, or a tensor.

    >>> ctu(torch.tensor([-1.0, 0.0, 1.0]), 0.5)
    tensor([-0.1027,  0.1733,  0.8973])
    """
    beta, c = proper_fraction(beta, "beta", "ctu"), fraction(c, "c", "ctu")
    if isinstance(beta, Tensor) or isinstance(c, Tensor):
        alpha = 1 / (1 - beta)
        softplus = apply(x, alpha, SOFTPLUS)
        return c * _swish(x, torch.as_tensor(alpha * beta, device=x.device).to(x.dtype)) + (1 - c) * softplus
    return apply(x, 1 / (1 - beta), _shape(beta, c))


def _swish(x: Tensor, b: Tensor) -> Tensor:
    """x·sigmoid(bx), b ≥ 0. The kernel of SWISH divides its derivative in b by b, which may be 0 here."""
    infinite = x.isinf()
    finite = x.masked_fill(infinite, 0)
    return torch.where(infinite, torch.where(b > 0, x.relu(), 0.5 * x), finite * torch.sigmoid(b * finite))


class CTU(Activation):
    """The unit of Curvature Tuning [paper, arXiv 2502.07783].

    σ(x) = c·x·sigmoid(bx) + (1 − c)(1 − β)·softplus(x/(1 − β)), b = β/(1 − β). It tends to ReLU as
    β → 1: |σ − relu| < 0.7(1 − β) for β ≥ ½ [derived].
    κ = (2cβ + 1 − c)/(4(1 − β)) at 0 [derived].

    beta: 0 ≤ β < 1. The default is ours.
    c: the share of Swish, 0 ≤ c ≤ 1; ½ in the paper. c = 0 is softplus(αx)/α, c = 1 is Swish.
    centered: subtract σ(0) = (1 − c)(1 − β)·ln 2.
    Raises CurvactError for a parameter out of range.

    >>> CTU.from_curvature(6), CTU(0.75).max_curvature.value
    (ctu(beta=0.94), 1.25)
    """

    def __init__(self, beta: float = 0.9, c: float = 0.5, *, centered: bool = False) -> None:
        super().__init__()
        self.beta = proper_fraction(beta, "beta", "ctu")
        self.c = fraction(c, "c", "ctu")
        self.centered = centered
        self.scale = 1 / (1 - self.beta)
        self.shape = replace(_shape(self.beta, self.c), centered=centered)

    @classmethod
    def from_curvature(cls, curvature: float, c: float = 0.5, *, centered: bool = False) -> Self:
        """The member with κ = `curvature`: β = (4κ − 1 + c)/(4κ + 2c) [derived].

        Raises CurvactError for κ < (1 − c)/4, which no β ≥ 0 has, and for κ so large that the float
        β nearest to it misses κ by more than 1e-9 of it: above some millions.

        >>> CTU.from_curvature(0.125), CTU.from_curvature(0.5, c=1.0)
        (ctu(beta=0.0), ctu(beta=0.5, c=1.0))
        """
        kappa, c = positive(curvature, "curvature", "ctu"), fraction(c, "c", "ctu")
        least = (1 - c) / 4
        if kappa < least:
            raise CurvactError(f"curvature={curvature!r} in ctu: at c={c:g} it must be >= {least:g}")
        width = reached((1 + c) / (4 * kappa + 2 * c), kappa, "ctu")  # 1 − β, without cancellation
        beta = max(1 - width, 0.0)
        made = cls(beta, c, centered=centered) if beta < 1 else None
        if made is None or abs(made.max_curvature.value - kappa) > _ACCURACY * kappa:
            raise CurvactError(
                f"curvature={curvature!r} in ctu: no β gives it to 9 digits; take a smaller one"
            )
        return made

    def forward(self, x: Tensor) -> Tensor:
        return apply(x, self.scale, self.shape)

    def slope(self, x: Tensor) -> Tensor:
        return derivative(x, self.scale, self.shape, 1)

    def curvature(self, x: Tensor) -> Tensor:
        return derivative(x, self.scale, self.shape, 2)

    @property
    def max_curvature(self) -> Peak:
        return Peak(self.scale * self.shape.peak, 0.0)

    def extra_repr(self) -> str:
        names = ["beta"] if self.c == 0.5 else ["beta", "c"]
        return self._described(*names)
