"""The power gate: an activation whose slope is sigmoid(αx)ⁿ. [derived]"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvact.activations.arguments import one_of, positive, reached
from curvact.activations.base import ScaledActivation
from curvact.activations.gates import fade, over, scaled_softplus, sigmoids
from curvact.activations.kernels.autograd import apply
from curvact.activations.kernels.shape import Scale, Shape, compiled_once

if TYPE_CHECKING:
    from typing_extensions import Self

POWERS = range(1, 17)


def _value(x: Tensor, alpha: Scale, *, n: int) -> Tensor:
    out = scaled_softplus(x, alpha)
    if n == 1:
        return out
    s = sigmoids(x * alpha)[0] if compiled_once() else torch.sigmoid(x * alpha)
    total = s / (n - 1)
    for k in range(n - 2, 0, -1):
        total = (total + 1 / k) * s
    return out - over(total, alpha)


def _slope(u: Tensor, *, n: int) -> Tensor:
    s = fade(torch.sigmoid(u), n)
    out = s
    for _ in range(n - 1):
        out = out * s
    return out


def _curvature(u: Tensor, *, n: int) -> Tensor:
    s = torch.sigmoid(u)
    return n * s**n * (1 - s)


@cache
def _shape(n: int) -> Shape:
    return Shape(
        value=partial(_value, n=n),
        slope=partial(_slope, n=n),
        curvature=partial(_curvature, n=n),
        peak=(n / (n + 1)) ** (n + 1),
        peak_at=math.log(n),
        at_zero=math.log(2) - sum(0.5**k / k for k in range(1, n)),
        native=("power", n),
    )


def power_gate(x: Tensor, alpha: Scale = 4.0, n: int = 2) -> Tensor:
    """The values of `PowerGate` at x. alpha: a number > 0, or a tensor; n: 1 to 16.

    >>> power_gate(torch.tensor([0.0, 10.0]))
    tensor([0.0483, 9.7500])
    """
    shape = _shape(one_of(n, POWERS, "n", "powergate"))
    return apply(x, positive(alpha, "alpha", "powergate"), shape)


class PowerGate(ScaledActivation):
    """σ' = sigmoid(αx)ⁿ, so σ = softplus(αx)/α − Σ_{k<n} sᵏ/(kα). [derived]

    κ = α(n/(n+1))^(n+1) at x = ln(n)/α.

    The asymptote is x − H_{n−1}/α. For x < 0 the value has an absolute, not a relative accuracy (as
    RCT-AF).

    alpha: scale, a finite number > 0.
    n: power of the gate, 1 to 16; n = 1 is softplus(αx)/α.
    learnable: α becomes a trainable scalar. centered: subtract σ(0).
    Raises CurvactError for a parameter out of range.

    >>> PowerGate.from_curvature(1, n=2).max_curvature
    Peak(value=1.0, at=0.205..., error=0.0)
    """

    others = ("n",)

    def __init__(
        self, alpha: float = 4.0, n: int = 2, *, learnable: bool = False, centered: bool = False
    ) -> None:
        self.n = one_of(n, POWERS, "n", "powergate")
        super().__init__(alpha, learnable=learnable, centered=centered)

    def unit_shape(self) -> Shape:
        return _shape(self.n)

    @classmethod
    def from_curvature(
        cls, curvature: float, n: int = 2, *, learnable: bool = False, centered: bool = False
    ) -> Self:
        """The member with κ = `curvature`: α = κ(1 + 1/n)^(n+1)."""
        kappa = positive(curvature, "curvature", "powergate")
        peak = _shape(one_of(n, POWERS, "n", "powergate")).peak
        return cls(reached(kappa / peak, kappa, "powergate"), n, learnable=learnable, centered=centered)
