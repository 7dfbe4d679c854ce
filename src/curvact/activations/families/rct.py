"""RCT-AF: its slope is a gate, sharpened by smoothstep. [ours], after arXiv 2603.23860."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvact.activations.arguments import one_of, positive, reached
from curvact.activations.base import ScaledActivation
from curvact.activations.gates import decay, fade, over, ramp, scaled_softplus
from curvact.activations.kernels.autograd import apply
from curvact.activations.kernels.polynomials import polynomial
from curvact.activations.kernels.shape import Scale, Shape, compiled_once

if TYPE_CHECKING:
    from typing_extensions import Self

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


def remainder(t: Tensor, beta: int) -> Tensor:
    """R_β(t): what β smoothstep passes subtract from softplus, for t = 4s(1−s) in [0, 1]."""
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
        return scaled_softplus(x, alpha)
    if compiled_once():
        e = decay(x * alpha)
        q = fade(e / (1 + e), 2**beta)
        r = polynomial(f"rct{beta}", q - 0.25)
        for _ in range(beta):
            q = q * q
        return ramp(x) + over(r * q, alpha)
    s = torch.sigmoid(x * alpha)
    return scaled_softplus(x, alpha) - remainder(4 * (s - s * s), beta) / alpha


def _curvature(u: Tensor, *, beta: int) -> Tensor:
    g = torch.sigmoid(u)
    out = g * (1 - g)
    for _ in range(beta):
        out = out * (6 * g * (1 - g))
        g = g * g * (3 - 2 * g)
    return out


@cache
def rct_shape(beta: int) -> Shape:
    """RCT-AF with β passes at unit scale; β = 0 is softplus."""
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


def rctaf(x: Tensor, alpha: Scale = 4.0, beta: int = 0) -> Tensor:
    """The values of `RCTAF` at x [ours]. alpha: a number > 0, or a tensor; beta: 0 to 3.

    >>> rctaf(torch.tensor([0.0, 1.0]), 16.0, beta=1)
    tensor([0.0277, 1.0000])
    """
    shape = rct_shape(one_of(beta, BETAS, "beta", "rctaf"))
    return apply(x, positive(alpha, "alpha", "rctaf"), shape)


class RCTAF(ScaledActivation):
    """Recursive curvature-tunable activation: σ' = g_β(αx). [ours]

    g_0 is the sigmoid and g_{k+1} = 3g_k² − 2g_k³.

    κ = (α/4)(3/2)^β at x = 0 [derived]; β = 0 is softplus(αx)/α, which is RCR-AF [paper]. The
    native kernel and compiled code (see `kernel_info`) compute σ − relu as one product, and σ ≥ 0.
    Plain tensor operations compute [softplus(αx) − R_β(4s(1−s))]/α. For x < 0 the two terms cancel:
    the value then has an absolute error of a few units of rounding of 1/α, and can be slightly
    negative.

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

    others = ("beta",)

    def __init__(
        self, alpha: float = 4.0, beta: int = 0, *, learnable: bool = False, centered: bool = False
    ) -> None:
        self.beta = one_of(beta, BETAS, "beta", "rctaf")
        super().__init__(alpha, learnable=learnable, centered=centered)

    def unit_shape(self) -> Shape:
        return rct_shape(self.beta)

    @classmethod
    def from_curvature(
        cls, curvature: float, beta: int = 0, *, learnable: bool = False, centered: bool = False
    ) -> Self:
        """The member with κ = `curvature` exactly: α = 4κ(2/3)^β."""
        kappa = positive(curvature, "curvature", "rctaf")
        peak = rct_shape(one_of(beta, BETAS, "beta", "rctaf")).peak
        return cls(reached(kappa / peak, kappa, "rctaf"), beta, learnable=learnable, centered=centered)
