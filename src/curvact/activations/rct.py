"""RCT-AF and RCR-AF: activations whose slope is a gate, sharpened by repeated smoothstep. [ours], after arXiv 2603.23860."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.activations._core import SATURATED, Scale, Shape, apply, fused
from curvact.activations._polynomials import polynomial
from curvact.activations.base import Activation, ScaledActivation, number, one_of, positive
from curvact.activations.curvature import Peak

BETAS = range(4)

# R_β(t) = Σ coefficient·tᵏ, k from 1, with t = 4s(1−s). [derived]
_REMAINDERS: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 4,),
    (1 / 4, 3 / 32, 5 / 96, 1 / 128),
    (
        *(1 / 4, 3 / 32, 5 / 96, 35 / 1024, 63 / 2560, 77 / 4096, 429 / 28672),
        *(531 / 65536, 517 / 147456, 59 / 40960, 39 / 90112, 7 / 98304, 1 / 212992),
    ),
)


def softplus(x: Tensor, alpha: Scale) -> Tensor:
    """softplus(αx)/α without overflow, and without the seam that torch's own threshold of 20 leaves in float64."""
    if fused():
        e = decay(x * alpha)
        return ramp(x) + over(e * polynomial("softplus", e - 0.5), alpha)
    if not isinstance(alpha, Tensor):
        return F.softplus(x, alpha, SATURATED)
    u = (alpha * x).clamp(max=SATURATED)
    return F.softplus(u, 1.0, SATURATED) / alpha + F.relu(x - SATURATED / alpha)


def ramp(x: Tensor) -> Tensor:
    """relu(x), with slope 1 at 0."""
    return x.clamp(min=0)


def decay(u: Tensor) -> Tensor:
    """exp(−|u|)."""
    return torch.exp(-u.abs())


def over(r: Tensor, alpha: Scale) -> Tensor:
    """r/α."""
    return r / alpha if isinstance(alpha, Tensor) else r * (1 / alpha)


def fade(s: Tensor, power: int) -> Tensor:
    """s, but 0 where s**power would leave the range of normal numbers: processors are many times slower below it."""
    return F.threshold(s, torch.finfo(s.dtype).tiny ** (1 / power), 0.0)


def sigmoids(u: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(u) and sigmoid(−u), each to its own relative accuracy; one exponential where fused."""
    if not fused():
        return torch.sigmoid(u), torch.sigmoid(-u)
    e = decay(u)
    large = 1 / (1 + e)
    small = e * large
    return torch.where(u < 0, small, large), torch.where(u < 0, large, small)


def remainder(t: Tensor, beta: int) -> Tensor:
    """R_β(t): what β smoothstep passes take off softplus, for t = 4s(1−s) in [0, 1]."""
    coefficients = _REMAINDERS[beta]
    out = t * coefficients[-1]
    for c in reversed(coefficients[:-1]):
        out = (out + c) * t
    return out


def gate(u: Tensor, beta: int) -> Tensor:
    """g_β(u): the logistic gate after β smoothstep passes, g → 3g² − 2g³."""
    g = fade(torch.sigmoid(u), 2**beta) if beta else torch.sigmoid(u)
    for _ in range(beta):
        g = g * g * (3 - 2 * g)
    return g


def _value(x: Tensor, alpha: Scale, *, beta: int) -> Tensor:
    if beta == 0:
        return softplus(x, alpha)
    if fused():
        e = decay(x * alpha)
        q = fade(e / (1 + e), 2**beta)
        r = polynomial(f"rct{beta}", q - 0.25)
        for _ in range(beta):
            q = q * q
        return ramp(x) + over(r * q, alpha)
    s = torch.sigmoid(x * alpha)
    return softplus(x, alpha) - remainder(4 * (s - s * s), beta) / alpha


def _curvature(u: Tensor, *, beta: int) -> Tensor:
    g = torch.sigmoid(u)
    out = g * (1 - g)
    for _ in range(beta):
        out = out * (6 * g * (1 - g))
        g = g * g * (3 - 2 * g)
    return out


@cache
def _rct_shape(beta: int) -> Shape:
    # Of partials, not of closures: models are pickled for the workers of attacks.
    return Shape(
        value=partial(_value, beta=beta),
        slope=partial(gate, beta=beta),
        curvature=partial(_curvature, beta=beta),
        peak=0.25 * 1.5**beta,
        peak_at=0.0,
        at_zero=math.log(2) - sum(_REMAINDERS[beta]),
        even=True,
        native=("rct", beta),
    )


class RCTAF(ScaledActivation):
    """Recursive curvature-tunable activation: σ' = g_β(αx), where g_0 is the sigmoid and g_{k+1} = 3g_k² − 2g_k³. [ours]

    κ = (α/4)(3/2)^β at x = 0 [derived]; β = 0 is softplus(αx)/α, which is RCR-AF [paper]. The native kernel and
    compiled code (see `kernel_info`) compute σ − relu as one product, and σ ≥ 0. Plain tensor operations take
    [softplus(αx) − R_β(4s(1−s))]/α: for x < 0 the two terms cancel, and the value is exact to an absolute error of a few units of
    rounding of 1/α, not to a relative one (it may come out slightly negative).

    alpha: scale, a finite number > 0.
    beta: number of smoothstep passes, 0 to 3.
    learnable: α becomes a trainable scalar.
    centered: subtract σ(0) = [ln 2 − R_β(1)]/α.
    Raises CurvactError for a parameter out of range.

    >>> act = RCTAF.from_curvature(6, beta=1)
    >>> act, act.max_curvature.value
    (rctaf(alpha=16.0, beta=1), 6.0)
    >>> act(torch.tensor([0.0, 1.0]))
    tensor([0.0277, 1.0000])
    """

    def __init__(
        self, alpha: float = 4.0, beta: int = 0, *, learnable: bool = False, centered: bool = False
    ) -> None:
        self_beta = one_of(beta, BETAS, "beta", "rctaf")
        super().__init__(
            _rct_shape(self_beta), positive(alpha, "alpha", "rctaf"), learnable=learnable, centered=centered
        )
        self.beta = self_beta

    @classmethod
    def from_curvature(
        cls, curvature: float, beta: int = 0, *, learnable: bool = False, centered: bool = False
    ) -> RCTAF:
        """The member with κ = `curvature` exactly: α = 4κ(2/3)^β."""
        kappa = positive(curvature, "curvature", "rctaf")
        beta = one_of(beta, BETAS, "beta", "rctaf")
        return cls(kappa / (0.25 * 1.5**beta), beta, learnable=learnable, centered=centered)

    def _parameters_text(self) -> str:
        return f"alpha={number(self.scale)}, beta={self.beta}"


class Softplus(ScaledActivation):
    """softplus(bx)/b, with κ = b/4: the smooth ReLU of the literature, and RCT-AF at β = 0.

    >>> Softplus().max_curvature.value
    0.25
    """

    def __init__(self, beta: float = 1.0, *, learnable: bool = False, centered: bool = False) -> None:
        super().__init__(
            _rct_shape(0), positive(beta, "beta", "softplus"), learnable=learnable, centered=centered
        )

    @classmethod
    def from_curvature(cls, curvature: float, *, learnable: bool = False, centered: bool = False) -> Softplus:
        """The member with κ = `curvature`: b = 4κ."""
        return cls(4 * positive(curvature, "curvature", "softplus"), learnable=learnable, centered=centered)

    def _parameters_text(self) -> str:
        return f"beta={number(self.scale)}"


class RCRAF(Activation):
    """RCR-AF: softplus(αx)/α [paper, arXiv 2507.22446], clipped from above at γ where γ is given (the clip is [ours]).

    κ = α/4 without a clip. With one, the slope jumps at the clip and κ is infinite: keep it out of κ sweeps.

    alpha: scale, a finite number > 0.
    gamma: upper bound of σ, a finite number > 0, or None for none.

    >>> RCRAF(10).max_curvature.value, RCRAF(10, gamma=6).max_curvature.value
    (2.5, inf)
    """

    def __init__(self, alpha: float = 1.0, gamma: float | None = None, *, centered: bool = False) -> None:
        super().__init__()
        self.alpha = positive(alpha, "alpha", "rcraf")
        self.gamma = None if gamma is None else positive(gamma, "gamma", "rcraf")
        self.centered = centered
        at_zero = math.log(2) if self.gamma is None else min(math.log(2), self.alpha * self.gamma)
        self.shape = replace(_rct_shape(0), centered=centered, at_zero=at_zero)

    @classmethod
    def from_curvature(cls, curvature: float, *, centered: bool = False) -> RCRAF:
        """The unclipped member with κ = `curvature`: α = 4κ."""
        return cls(4 * positive(curvature, "curvature", "rcraf"), centered=centered)

    def forward(self, x: Tensor) -> Tensor:
        out = apply(x, self.alpha, self.shape)
        if self.gamma is None:
            return out
        return out.clamp(max=self.gamma - (self.shape.at_zero / self.alpha if self.centered else 0.0))

    @property
    def max_curvature(self) -> Peak:
        if self.gamma is None:
            return Peak(self.alpha / 4, 0.0)
        u = self.alpha * self.gamma
        return Peak(math.inf, (u + math.log1p(-math.exp(-u))) / self.alpha)

    def extra_repr(self) -> str:
        parts = [f"alpha={number(self.alpha)}"]
        if self.gamma is not None:
            parts.append(f"gamma={number(self.gamma)}")
        if self.centered:
            parts.append("centered=True")
        return ", ".join(parts)
