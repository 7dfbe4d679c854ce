"""Other smooth families with one scale: Swish, the power gate, squareplus, GELU and Mish, matched to RCT-AF by κ. [derived]"""

from __future__ import annotations

import math
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.activations._core import SATURATED, Scale, Shape, fused
from curvact.activations.base import ScaledActivation, number, one_of, positive
from curvact.activations.rct import fade, over, ramp, sigmoids, softplus

_FLAT = 1e3
"""Beyond |u| = 1000 the gates are exactly 0 or 1 in float64: inputs are cut there where 0·inf would give NaN."""


def _floor(x: Tensor, alpha: Scale) -> Tensor:
    """x cut from below where σ is 0, so that −inf gives 0 and not NaN."""
    if isinstance(alpha, Tensor):
        return torch.maximum(x, (-_FLAT / alpha).to(x.dtype))
    return x.clamp(min=-_FLAT / alpha)


# ---- Swish ----


def _swish_value(x: Tensor, alpha: Scale) -> Tensor:
    if not isinstance(alpha, Tensor) and alpha == 1:
        return F.silu(_floor(x, alpha))
    x = _floor(x, alpha)
    return x * torch.sigmoid(x * alpha)


def _swish_slope(u: Tensor) -> Tensor:
    u = u.clamp(-_FLAT, _FLAT)
    s, c = sigmoids(u)
    return s * (1 + u * c)


def _swish_curvature(u: Tensor) -> Tensor:
    u = u.clamp(-_FLAT, _FLAT)
    s, c = sigmoids(u)
    return s * c * (2 + u * (c - s))


_SWISH = Shape(
    value=_swish_value,
    slope=_swish_slope,
    curvature=_swish_curvature,
    peak=0.5,
    peak_at=0.0,
    at_zero=0.0,
    even=True,
    native=("swish", 0),
)


class Swish(ScaledActivation):
    """x·sigmoid(bx), with κ = b/2 at 0; b = 1 is SiLU.

    beta: b, a finite number > 0.

    >>> Swish.from_curvature(6)
    swish(beta=12.0)
    """

    def __init__(self, beta: float = 1.0, *, learnable: bool = False, centered: bool = False) -> None:
        super().__init__(_SWISH, positive(beta, "beta", "swish"), learnable=learnable, centered=centered)

    @classmethod
    def from_curvature(cls, curvature: float, *, learnable: bool = False, centered: bool = False) -> Swish:
        """The member with κ = `curvature`: b = 2κ."""
        return cls(2 * positive(curvature, "curvature", "swish"), learnable=learnable, centered=centered)

    def _parameters_text(self) -> str:
        return f"beta={number(self.scale)}"


# ---- squareplus ----

_WIDE = 1e18
"""Beyond |u| = 1e18, u/√(1+u²) is ±1 to float64, and u² still fits float32."""


def _squareplus_value(x: Tensor, alpha: Scale) -> Tensor:
    u = x * alpha
    # |u|, with slope 1 at 0 as `ramp` has, where it may be differentiated.
    a = torch.where(u < 0, -u, u) if torch.compiler.is_compiling() and not fused() else u.abs()
    root = torch.sqrt(1 + a.clamp(max=_WIDE) ** 2)
    return ramp(x) + 0.5 / ((root + a) * alpha)


def _squareplus_slope(u: Tensor) -> Tensor:
    u = u.clamp(-_WIDE, _WIDE)
    return 0.5 + 0.5 * u * torch.rsqrt(1 + u * u)


def _squareplus_curvature(u: Tensor) -> Tensor:
    u = u.clamp(-_WIDE, _WIDE)
    return 0.5 * torch.rsqrt(1 + u * u) / (1 + u * u)


_SQUAREPLUS = Shape(
    value=_squareplus_value,
    slope=_squareplus_slope,
    curvature=_squareplus_curvature,
    peak=0.5,
    peak_at=0.0,
    at_zero=0.5,
    even=True,
    native=("squareplus", 0),
)


class Squareplus(ScaledActivation):
    """(x + √(x² + b))/2, with κ = 1/(2√b) at 0: algebraic tails, no exponentials.

    b: squared width, a finite number > 0.

    >>> Squareplus.from_curvature(0.25)
    squareplus(b=4.0)
    """

    def __init__(self, b: float = 4.0, *, learnable: bool = False, centered: bool = False) -> None:
        self._b = positive(b, "b", "squareplus")
        super().__init__(_SQUAREPLUS, 1 / math.sqrt(self._b), learnable=learnable, centered=centered)

    @classmethod
    def from_curvature(
        cls, curvature: float, *, learnable: bool = False, centered: bool = False
    ) -> Squareplus:
        """The member with κ = `curvature`: b = 1/(4κ²)."""
        kappa = positive(curvature, "curvature", "squareplus")
        return cls(0.25 / kappa**2, learnable=learnable, centered=centered)

    def _parameters_text(self) -> str:
        return f"b={number(1 / self.scale**2 if self.learnable else self._b)}"


# ---- power gate ----

GATE_POWERS = range(1, 17)


def _power_value(x: Tensor, alpha: Scale, *, n: int) -> Tensor:
    out = softplus(x, alpha)
    if n == 1:
        return out
    s = sigmoids(x * alpha)[0] if fused() else torch.sigmoid(x * alpha)
    total = s / (n - 1)
    for k in range(n - 2, 0, -1):
        total = (total + 1 / k) * s
    return out - over(total, alpha)


def _power_slope(u: Tensor, *, n: int) -> Tensor:
    s = fade(torch.sigmoid(u), n)
    out = s
    for _ in range(n - 1):
        out = out * s
    return out


def _power_curvature(u: Tensor, *, n: int) -> Tensor:
    s = torch.sigmoid(u)
    return n * s**n * (1 - s)


@cache
def _power_shape(n: int) -> Shape:
    return Shape(
        value=partial(_power_value, n=n),
        slope=partial(_power_slope, n=n),
        curvature=partial(_power_curvature, n=n),
        peak=(n / (n + 1)) ** (n + 1),
        peak_at=math.log(n),
        at_zero=math.log(2) - sum(0.5**k / k for k in range(1, n)),
        native=("power", n),
    )


class PowerGate(ScaledActivation):
    """σ' = sigmoid(αx)ⁿ: softplus(αx)/α − Σ_{k<n} sᵏ/(kα), with κ = α(n/(n+1))^(n+1) at x = ln(n)/α. [derived]

    The asymptote is x − H_{n−1}/α. For x < 0 the value has an absolute, not a relative accuracy (as RCT-AF).

    alpha: scale, a finite number > 0.
    n: power of the gate, 1 to 16; n = 1 is softplus(αx)/α.

    >>> PowerGate.from_curvature(1, n=2).max_curvature
    Peak(value=1.0, at=0.205..., error=0.0)
    """

    def __init__(
        self, alpha: float = 4.0, n: int = 2, *, learnable: bool = False, centered: bool = False
    ) -> None:
        self_n = one_of(n, GATE_POWERS, "n", "powergate")
        super().__init__(
            _power_shape(self_n),
            positive(alpha, "alpha", "powergate"),
            learnable=learnable,
            centered=centered,
        )
        self.n = self_n

    @classmethod
    def from_curvature(
        cls, curvature: float, n: int = 2, *, learnable: bool = False, centered: bool = False
    ) -> PowerGate:
        """The member with κ = `curvature`: α = κ(1 + 1/n)^(n+1)."""
        kappa = positive(curvature, "curvature", "powergate")
        n = one_of(n, GATE_POWERS, "n", "powergate")
        return cls(kappa / (n / (n + 1)) ** (n + 1), n, learnable=learnable, centered=centered)

    def _parameters_text(self) -> str:
        return f"alpha={number(self.scale)}, n={self.n}"


# ---- GELU and Mish: standard at α = 1 ----


def _gelu_value(x: Tensor, alpha: Scale) -> Tensor:
    if fused():
        x = _floor(x, alpha)
        return x * (0.5 + 0.5 * torch.erf(x * alpha * math.sqrt(0.5)))
    return F.gelu((x * alpha).clamp(-SATURATED, SATURATED)) / alpha + F.relu(x - SATURATED / alpha)


def _gelu_slope(u: Tensor) -> Tensor:
    half = 0.5 + 0.5 * torch.erf(u * math.sqrt(0.5))
    density = torch.exp(-0.5 * u * u) * (1 / math.sqrt(2 * math.pi))
    if fused():
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


class GELU(ScaledActivation):
    """x·Φ(αx), the exact (erf) GELU at α = 1, with κ = 2α/√(2π) at 0.

    >>> GELU(), round(GELU().max_curvature.value, 4)
    (gelu(alpha=1.0), 0.7979)
    """

    def __init__(self, alpha: float = 1.0, *, learnable: bool = False, centered: bool = False) -> None:
        super().__init__(_GELU, positive(alpha, "alpha", "gelu"), learnable=learnable, centered=centered)

    @classmethod
    def from_curvature(cls, curvature: float, *, learnable: bool = False, centered: bool = False) -> GELU:
        """The member with κ = `curvature`."""
        kappa = positive(curvature, "curvature", "gelu")
        return cls(kappa / _GELU.peak, learnable=learnable, centered=centered)

    def _parameters_text(self) -> str:
        return f"alpha={number(self.scale)}"


def _mish_value(x: Tensor, alpha: Scale) -> Tensor:
    x = _floor(x, alpha)
    return x * _mish_parts(x * alpha)[1]


def _mish_parts(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigmoid(u), t = tanh(softplus(u)) and 1 − t², all from the sigmoid: nothing overflows or cancels."""
    s, c = sigmoids(u)
    # With e = eᵘ = s/c: t = ((1+e)² − 1)/((1+e)² + 1) = (1 − c²)/(1 + c²).
    d = 1 / (1 + c * c)
    return s, s * (1 + c) * d, (2 * c * d) ** 2


def _mish_slope(u: Tensor) -> Tensor:
    u = u.clamp(-_FLAT, _FLAT)
    s, t, sech2 = _mish_parts(u)
    return t + u * s * sech2


def _mish_curvature(u: Tensor) -> Tensor:
    u = u.clamp(-_FLAT, _FLAT)
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


class Mish(ScaledActivation):
    """x·tanh(softplus(αx)), Mish at α = 1, with κ = 0.6442α at x = −0.088/α.

    >>> Mish(), round(Mish().max_curvature.value, 4)
    (mish(alpha=1.0), 0.6442)
    """

    def __init__(self, alpha: float = 1.0, *, learnable: bool = False, centered: bool = False) -> None:
        super().__init__(_MISH, positive(alpha, "alpha", "mish"), learnable=learnable, centered=centered)

    @classmethod
    def from_curvature(cls, curvature: float, *, learnable: bool = False, centered: bool = False) -> Mish:
        """The member with κ = `curvature`."""
        kappa = positive(curvature, "curvature", "mish")
        return cls(kappa / _MISH.peak, learnable=learnable, centered=centered)

    def _parameters_text(self) -> str:
        return f"alpha={number(self.scale)}"
