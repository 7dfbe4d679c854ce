"""Standard activations: softplus, GELU, Mish, ReLU and ELU. κ is [derived]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.activations.arguments import positive
from curvact.activations.base import Activation, ScaledActivation
from curvact.activations.curvature import Peak
from curvact.activations.families.rct import rct_shape
from curvact.activations.gates import FLAT, floor, sigmoids
from curvact.activations.kernels.autograd import apply
from curvact.activations.kernels.shape import SATURATED, Scale, Shape, compiled_once

# ---- softplus ----


def softplus(x: Tensor, beta: Scale = 1.0) -> Tensor:
    """softplus(bx)/b, without the step of `F.softplus` at 20. beta: a number > 0, or a tensor."""
    return apply(x, positive(beta, "beta", "softplus"), rct_shape(0))


class Softplus(ScaledActivation):
    """softplus(bx)/b, with κ = b/4: the smooth ReLU of the literature, and RCT-AF at β = 0.

    beta: b, a finite number > 0.
    learnable: b becomes a trainable scalar. centered: subtract σ(0) = ln 2/b.

    >>> Softplus().max_curvature.value
    0.25
    """

    formula = rct_shape(0)
    scale_name = "beta"

    def __init__(self, beta: float = 1.0, *, learnable: bool = False, centered: bool = False) -> None:
        super().__init__(beta, learnable=learnable, centered=centered)


# ---- GELU ----


def _gelu_value(x: Tensor, alpha: Scale) -> Tensor:
    if compiled_once():
        x = floor(x, alpha)
        return x * (0.5 + 0.5 * torch.erf(x * alpha * math.sqrt(0.5)))
    return F.gelu((x * alpha).clamp(-SATURATED, SATURATED)) / alpha + F.relu(x - SATURATED / alpha)


def _gelu_slope(u: Tensor) -> Tensor:
    half = 0.5 + 0.5 * torch.erf(u * math.sqrt(0.5))
    density = torch.exp(-0.5 * u * u) * (1 / math.sqrt(2 * math.pi))
    if compiled_once():
        return half + torch.where(u.abs() < SATURATED, u * density, 0.0)
    return half + u.clamp(-SATURATED, SATURATED) * density


def _gelu_curvature(u: Tensor) -> Tensor:
    u = u.clamp(-SATURATED, SATURATED)
    return (2 - u * u) * torch.exp(-0.5 * u * u) * (1 / math.sqrt(2 * math.pi))


_GELU = Shape(
    value=_gelu_value,
    slope=_gelu_slope,
    curvature=_gelu_curvature,
    peak=2 / math.sqrt(2 * math.pi),
    peak_at=0.0,
    at_zero=0.0,
    even=True,
    native=("gelu", 0),
)


def gelu(x: Tensor, alpha: Scale = 1.0) -> Tensor:
    """x·Φ(αx), Φ the normal distribution. alpha: a number > 0, or a tensor."""
    return apply(x, positive(alpha, "alpha", "gelu"), _GELU)


class GELU(ScaledActivation):
    """x·Φ(αx), the exact (erf) GELU at α = 1, with κ = 2α/√(2π) at 0.

    alpha: a finite number > 0.
    learnable: α becomes a trainable scalar. centered: accepted and without effect, since σ(0) = 0.

    >>> GELU(), round(GELU().max_curvature.value, 4)
    (gelu(alpha=1.0), 0.7979)
    """

    formula = _GELU


# ---- Mish ----


def _mish_value(x: Tensor, alpha: Scale) -> Tensor:
    x = floor(x, alpha)
    return x * _mish_parts(x * alpha)[1]


def _mish_parts(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigmoid(u), t = tanh(softplus(u)) and 1 − t², without overflow or cancellation."""
    s, c = sigmoids(u)
    # With e = eᵘ = s/c: t = ((1+e)² − 1)/((1+e)² + 1) = (1 − c²)/(1 + c²).
    d = 1 / (1 + c * c)
    return s, s * (1 + c) * d, (2 * c * d) ** 2


def _mish_slope(u: Tensor) -> Tensor:
    u = u.clamp(-FLAT, FLAT)
    s, t, sech2 = _mish_parts(u)
    return t + u * s * sech2


def _mish_curvature(u: Tensor) -> Tensor:
    u = u.clamp(-FLAT, FLAT)
    s, t, sech2 = _mish_parts(u)
    return sech2 * s * (2 + u * (1 - s) - 2 * u * s * t)


_MISH = Shape(
    value=_mish_value,
    slope=_mish_slope,
    curvature=_mish_curvature,
    peak=0.644204637236972429517659047057,
    peak_at=-0.0879344313149142113266859044556,
    at_zero=0.0,
    native=("mish", 0),
)


def mish(x: Tensor, alpha: Scale = 1.0) -> Tensor:
    """x·tanh(softplus(αx)). alpha: a number > 0, or a tensor."""
    return apply(x, positive(alpha, "alpha", "mish"), _MISH)


class Mish(ScaledActivation):
    """x·tanh(softplus(αx)), Mish at α = 1, with κ = 0.6442α at x = −0.088/α.

    alpha: a finite number > 0.
    learnable: α becomes a trainable scalar. centered: accepted and without effect, since σ(0) = 0.

    >>> Mish(), round(Mish().max_curvature.value, 4)
    (mish(alpha=1.0), 0.6442)
    """

    formula = _MISH


# ---- with a kink, or a jump of the curvature, at 0 ----


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
        return self._described()


class ELU(Activation):
    """x for x > 0, α(eˣ − 1) below.

    κ = 1 at α = 1, a supremum approached as x → 0 from below. Otherwise the slope jumps at 0 and κ
    is infinite.

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
        return self._described("alpha")
