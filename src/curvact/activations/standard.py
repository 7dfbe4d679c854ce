"""Standard activations under the same interface: ReLU, ELU and SiLU (GELU, Mish and softplus: see `gates` and `rct`)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.activations.base import Activation, number, positive
from curvact.activations.curvature import Peak
from curvact.activations.gates import Swish


class ReLU(Activation):
    """max(x, 0): the slope jumps at 0, so κ is infinite.

    centered: accepted and without effect, since σ(0) = 0.

    >>> ReLU().max_curvature
    Peak(value=inf, at=0.0, error=0.0)
    """

    def __init__(self, *, centered: bool = False) -> None:
        super().__init__()
        self.centered = centered

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def slope(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    def curvature(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @property
    def max_curvature(self) -> Peak:
        return Peak(math.inf, 0.0)

    def extra_repr(self) -> str:
        return "centered=True" if self.centered else ""


class ELU(Activation):
    """x for x > 0, α(eˣ − 1) below. κ = 1 at α = 1, a supremum approached as x → 0 from below; otherwise the slope jumps at 0.

    alpha: a finite number > 0.
    centered: accepted and without effect, since σ(0) = 0.

    >>> ELU().max_curvature.value, ELU(0.5).max_curvature.value
    (1.0, inf)
    """

    def __init__(self, alpha: float = 1.0, *, centered: bool = False) -> None:
        super().__init__()
        self.alpha = positive(alpha, "alpha", "elu")
        self.centered = centered

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha)

    def slope(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), self.alpha * torch.exp(x.clamp(max=0)))

    def curvature(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.zeros_like(x), self.alpha * torch.exp(x.clamp(max=0)))

    @property
    def max_curvature(self) -> Peak:
        return Peak(1.0 if self.alpha == 1 else math.inf, 0.0)

    def extra_repr(self) -> str:
        return f"alpha={number(self.alpha)}" + (", centered=True" if self.centered else "")


def SiLU(*, learnable: bool = False, centered: bool = False) -> Swish:
    """x·sigmoid(x): Swish at b = 1, κ = 1/2.

    >>> SiLU().max_curvature.value
    0.5
    """
    return Swish(1.0, learnable=learnable, centered=centered)
