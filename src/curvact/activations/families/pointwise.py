"""More of torch's activations: tanh, CELU, leaky ReLU, SELU and hard swish. κ is [derived]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.activations.arguments import finite, positive, reached
from curvact.activations.base import Activation, ScaledActivation
from curvact.activations.curvature import Peak
from curvact.activations.kernels.shape import Scale, Shape, floating

if TYPE_CHECKING:
    from typing_extensions import Self

# ---- tanh ----


def _tanh_value(x: Tensor, alpha: Scale) -> Tensor:
    return torch.tanh(x * alpha) / alpha


def _tanh_slope(u: Tensor) -> Tensor:
    e = torch.exp(-2 * u.abs())
    return 4 * e / (1 + e) ** 2  # sech², without cancellation


def _tanh_curvature(u: Tensor) -> Tensor:
    return -2 * torch.tanh(u) * _tanh_slope(u)


class Tanh(ScaledActivation):
    """tanh(αx)/α, with κ = 4α/(3√3) at x = 0.6585/α (and −0.6585/α); tanh at α = 1.

    alpha: a finite number > 0.
    learnable: α becomes a trainable scalar. centered: accepted and without effect, since σ(0) = 0.

    >>> Tanh(), round(Tanh().max_curvature.value, 4)
    (tanh(alpha=1.0), 0.7698)
    """

    formula = Shape(
        value=_tanh_value,
        slope=_tanh_slope,
        curvature=_tanh_curvature,
        peak=4 / (3 * math.sqrt(3)),
        peak_at=math.atanh(1 / math.sqrt(3)),
        at_zero=0.0,
    )


# ---- in two pieces: σ(0) = 0 ----


class _Pieces(Activation):
    """Abstract: `centered` is accepted and without effect, since σ(0) = 0."""

    def __init__(self, *, centered: bool = False) -> None:
        super().__init__()
        self.centered = centered


class CELU(_Pieces):
    """x for x > 0, α(exp(x/α) − 1) below. κ = 1/α, a supremum approached as x → 0 from below.

    alpha: a finite number > 0. centered: without effect.

    >>> CELU(0.5).max_curvature.value, CELU.from_curvature(4)
    (2.0, celu(alpha=0.25))
    """

    def __init__(self, alpha: float = 1.0, *, centered: bool = False) -> None:
        super().__init__(centered=centered)
        self.alpha = positive(alpha, "alpha", "celu")

    @classmethod
    def from_curvature(cls, curvature: float, *, centered: bool = False) -> Self:
        """The member with κ = `curvature`: α = 1/κ."""
        kappa = positive(curvature, "curvature", "celu")
        return cls(reached(1 / kappa, kappa, "celu"), centered=centered)

    def forward(self, x: Tensor) -> Tensor:
        return F.celu(floating(x), self.alpha)

    def slope(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), torch.exp(x.clamp(max=0) / self.alpha))

    def curvature(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.zeros_like(x), torch.exp(x.clamp(max=0) / self.alpha) / self.alpha)

    @property
    def max_curvature(self) -> Peak:
        return Peak(1 / self.alpha, 0.0)

    def extra_repr(self) -> str:
        return self._described("alpha")


class LeakyReLU(_Pieces):
    """x for x > 0, ax below. The slope jumps at 0, so κ is infinite, and 0 at a = 1.

    negative_slope: a, a finite number. centered: without effect.

    >>> LeakyReLU(), LeakyReLU().max_curvature.value
    (leaky_relu(negative_slope=0.01), inf)
    """

    _family = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01, *, centered: bool = False) -> None:
        super().__init__(centered=centered)
        self.negative_slope = finite(negative_slope, "negative_slope", "leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(floating(x), self.negative_slope)

    def slope(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), torch.full_like(x, self.negative_slope))

    def curvature(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @property
    def max_curvature(self) -> Peak:
        return Peak(0.0 if self.negative_slope == 1 else math.inf, 0.0)

    def extra_repr(self) -> str:
        return self._described("negative_slope")


SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717


class SELU(_Pieces):
    """λx for x > 0, λα(eˣ − 1) below, with the constants of its paper (arXiv 1706.02515). [paper]

    α = 1.67, so the slope jumps at 0 and κ is infinite. centered: without effect.

    >>> SELU().max_curvature
    Peak(value=inf, at=0.0, error=0.0)
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(floating(x))

    def slope(self, x: Tensor) -> Tensor:
        below = SELU_SCALE * SELU_ALPHA * torch.exp(x.clamp(max=0))
        return torch.where(x > 0, torch.full_like(x, SELU_SCALE), below)

    def curvature(self, x: Tensor) -> Tensor:
        below = SELU_SCALE * SELU_ALPHA * torch.exp(x.clamp(max=0))
        return torch.where(x > 0, torch.zeros_like(x), below)

    @property
    def max_curvature(self) -> Peak:
        return Peak(math.inf, 0.0)

    def extra_repr(self) -> str:
        return self._described()


class Hardswish(_Pieces):
    """x·min(max(x + 3, 0), 6)/6 (arXiv 1905.02244). [paper]

    The slope jumps by 1/2 at −3 and 3, so κ is infinite; between them σ'' is 1/3. centered: without
    effect.

    >>> Hardswish().max_curvature
    Peak(value=inf, at=3.0, error=0.0)
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(floating(x))

    def slope(self, x: Tensor) -> Tensor:
        inside = (2 * x.clamp(-3, 3) + 3) / 6
        return torch.where(x.abs() < 3, inside, (x > 0).to(x.dtype))

    def curvature(self, x: Tensor) -> Tensor:
        return (x.abs() < 3).to(x.dtype) / 3

    @property
    def max_curvature(self) -> Peak:
        return Peak(math.inf, 3.0)

    def extra_repr(self) -> str:
        return self._described()
