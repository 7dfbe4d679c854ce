"""The parametric activations of arXiv 2110.05626 but PSSiLU. [paper]; κ [derived].

The first four are affine in their parameter, σ(x) = f(x) + α·h(x), with a bend at 0; the last two
are Swish and softplus at |α|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations.arguments import finite, nonzero, trainable
from curvact.activations.base import Activation, ScaledActivation, size
from curvact.activations.curvature import Peak
from curvact.activations.families.rct import rct_shape
from curvact.activations.families.swish import SWISH
from curvact.activations.kernels.autograd import apply
from curvact.activations.kernels.shape import Scale, floating, traced_for_script, transformed, wide

_FAR = 1e18
"""Beyond it √(x² + 1) is x to float64, and x² still fits float32."""


# ---- activations that are affine in their parameter ----


Part = Callable[[Tensor, int], Tensor]
"""`(x, order) -> derivative of that order`, 0 to 2, in code that autograd can differentiate."""


@dataclass(frozen=True)
class Parts:
    """σ(x) = fixed(x) + α·scaled(x). fixed: None for 0."""

    fixed: Part | None
    scaled: Part


def _combine(x: Tensor, alpha: Scale, parts: Parts, order: int) -> Tensor:
    """The derivative of σ of that order, 0 to 2, differentiable. Half precision is rounded once."""
    full = wide(x)
    # A fixed α of exactly 0 is left out: at ±∞ it would give 0·∞.
    if isinstance(alpha, Tensor) or alpha != 0:
        out = alpha * parts.scaled(full, order)
        if parts.fixed is not None:
            out = out + parts.fixed(full, order)
    else:
        out = torch.zeros_like(full) if parts.fixed is None else parts.fixed(full, order)
    return out.to(x.dtype)


class _Affine(torch.autograd.Function):
    """σ outside functorch transforms and the compiler; only its inputs are kept for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Scale, parts: Parts) -> Tensor:
        ctx.parts = parts
        ctx.alpha = None if isinstance(alpha, Tensor) else alpha
        saved = (x, alpha) if isinstance(alpha, Tensor) else (x,)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        return _combine(x, alpha, parts, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *learned = ctx.saved_tensors
        alpha: Scale = learned[0] if learned else ctx.alpha
        grad_x = grad_alpha = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * _combine(x, alpha, ctx.parts, 1)
        if ctx.needs_input_grad[1]:
            assert isinstance(alpha, Tensor)
            grad_alpha = (grad * ctx.parts.scaled(wide(x), 0)).sum_to_size(alpha.shape)
        return grad_x, grad_alpha, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, *learned = ctx.saved_tensors
        terms: list[Tensor] = []
        if tangents[0] is not None:
            terms.append(tangents[0] * _combine(x, learned[0] if learned else ctx.alpha, ctx.parts, 1))
        if tangents[1] is not None:
            terms.append(tangents[1] * ctx.parts.scaled(wide(x), 0))
        out = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        return out.to(x.dtype)


def _affine(x: Tensor, alpha: Scale, parts: Parts) -> Tensor:
    if torch.compiler.is_compiling() or transformed() or traced_for_script():
        return _combine(x, alpha, parts, 0)
    out: Tensor = _Affine.apply(floating(x), alpha, parts)  # type: ignore[no-untyped-call]
    return out


def _ramp(x: Tensor, order: int) -> Tensor:
    """max(x, 0), with slope 0 at 0."""
    if order == 0:
        return F.relu(x)
    return (x > 0).to(x.dtype) if order == 1 else torch.zeros_like(x)


def _below(x: Tensor, order: int) -> Tensor:
    """min(x, 0), with slope 1 at 0."""
    if order == 0:
        return x.clamp(max=0)
    return (x <= 0).to(x.dtype) if order == 1 else torch.zeros_like(x)


def _exponential(x: Tensor, order: int) -> Tensor:
    """eˣ − 1 for x ≤ 0, else 0."""
    low = x.clamp(max=0)
    return torch.expm1(low) if order == 0 else torch.where(x > 0, 0.0, torch.exp(low))


def _hyperbola(x: Tensor, order: int) -> Tensor:
    """√(x² + 1) − 1 for x > 0, else 0."""
    high = F.relu(x)
    near = high.clamp(max=_FAR)
    root = torch.sqrt(near * near + 1)
    if order == 0:
        return high * (near / (root + 1))
    return near / root if order == 1 else torch.where(x > 0, root**-3, 0.0)


_PRELU = Parts(_ramp, _below)
_PELU = Parts(_ramp, _exponential)
_PRELU_PLUS = Parts(None, _ramp)
_REBLU = Parts(_ramp, _hyperbola)


def prelu(x: Tensor, alpha: Scale = 0.0) -> Tensor:
    """x for x > 0, αx below [paper]. alpha: a number, or a tensor."""
    return _affine(x, finite(alpha, "alpha", "prelu"), _PRELU)


def pelu(x: Tensor, alpha: Scale = 1.0) -> Tensor:
    """x for x > 0, α(eˣ − 1) below [paper]. alpha: a number, or a tensor."""
    return _affine(x, finite(alpha, "alpha", "pelu"), _PELU)


def prelu_plus(x: Tensor, alpha: Scale = 1.0) -> Tensor:
    """αx for x > 0, 0 below [paper]. alpha: a number, or a tensor."""
    return _affine(x, finite(alpha, "alpha", "prelu_plus"), _PRELU_PLUS)


def reblu(x: Tensor, alpha: Scale = 0.0) -> Tensor:
    """x + α(√(x² + 1) − 1) for x > 0, 0 below [paper]. alpha: a number, or a tensor."""
    return _affine(x, finite(alpha, "alpha", "reblu"), _REBLU)


class _AffineActivation(Activation):
    """What the families affine in α share. Abstract.

    kinkless: the α at which the slope does not jump, and κ at that α.
    """

    alpha: float | nn.Parameter
    default_scope = "network"
    learned_by_default = True
    parts: ClassVar[Parts]
    kinkless: ClassVar[tuple[float, float] | None] = None

    def __init__(self, alpha: float = 1.0, *, learnable: bool = True, centered: bool = False) -> None:
        super().__init__()
        alpha = finite(alpha, "alpha", self.family())
        self.learnable = learnable
        self.centered = centered
        self.alpha = trainable(alpha, "alpha", self.family(), finite) if learnable else alpha

    def forward(self, x: Tensor) -> Tensor:
        return _affine(x, self.alpha, self.parts)

    def slope(self, x: Tensor) -> Tensor:
        return _combine(x, self.alpha, self.parts, 1)

    def curvature(self, x: Tensor) -> Tensor:
        return _combine(x, self.alpha, self.parts, 2)

    @property
    def max_curvature(self) -> Peak:
        if self.kinkless is None:
            return Peak(math.inf, 0.0)
        smooth, kappa = self.kinkless
        everywhere = bool((torch.as_tensor(self.alpha) == smooth).all())
        return Peak(kappa if everywhere else math.inf, 0.0)

    def extra_repr(self) -> str:
        return self._described("alpha")


class PReLU(_AffineActivation):
    """x for x > 0, αx below [paper, arXiv 2110.05626]; κ is 0 at α = 1 and infinite otherwise.

    alpha: a finite number, a trainable scalar if `learnable`. It starts at 0, as ReLU, and moves.
    centered: accepted and without effect, since σ(0) = 0.

    >>> PReLU()(torch.tensor([-2.0, 1.0])).detach()
    tensor([0., 1.])
    """

    parts = _PRELU
    kinkless = (1.0, 0.0)

    def __init__(self, alpha: float = 0.0, *, learnable: bool = True, centered: bool = False) -> None:
        super().__init__(alpha, learnable=learnable, centered=centered)


class PELU(_AffineActivation):
    """x for x > 0, α(eˣ − 1) below [paper, arXiv 2110.05626].

    κ is 1 at α = 1, a supremum, and infinite otherwise.

    alpha: a finite number, a trainable scalar if `learnable`.
    centered: accepted and without effect, since σ(0) = 0.

    >>> PELU().max_curvature.value, PELU(0.5).max_curvature.value
    (1.0, inf)
    """

    parts = _PELU
    kinkless = (1.0, 1.0)


class PReLUPlus(_AffineActivation):
    """PReLU+: αx for x > 0, 0 below [paper, arXiv 2110.05626].

    κ is 0 at α = 0 and infinite otherwise.

    alpha: a finite number, a trainable scalar if `learnable`.
    centered: accepted and without effect, since σ(0) = 0.

    >>> PReLUPlus(3.0), PReLUPlus(3.0)(torch.tensor([-2.0, 1.0])).detach()
    (prelu_plus(alpha=3.0), tensor([0., 3.]))
    """

    _family = "prelu_plus"
    parts = _PRELU_PLUS
    kinkless = (0.0, 0.0)


class ReBLU(_AffineActivation):
    """x + α(√(x² + 1) − 1) for x > 0, 0 below [paper, arXiv 2110.05626].

    κ is infinite; away from 0 |σ″| stays below |α|.

    alpha: a finite number, a trainable scalar if `learnable`. It starts at 0, as ReLU, and moves.
    centered: accepted and without effect, since σ(0) = 0.

    >>> ReBLU(0.5, learnable=False)(torch.tensor([-1.0, 1.0]))
    tensor([0.0000, 1.2071])
    """

    parts = _REBLU

    def __init__(self, alpha: float = 0.0, *, learnable: bool = True, centered: bool = False) -> None:
        super().__init__(alpha, learnable=learnable, centered=centered)


# ---- Swish and softplus at |α| ----


def psilu(x: Tensor, alpha: Scale = 1.0) -> Tensor:
    """x·sigmoid(|α|x) [paper]. alpha: a number other than 0, or a tensor."""
    return apply(x, size(nonzero(alpha, "alpha", "psilu")), SWISH)


def psoftplus(x: Tensor, alpha: Scale = 1.0) -> Tensor:
    """softplus(|α|x)/|α| [paper]. alpha: a number other than 0, or a tensor."""
    return apply(x, size(nonzero(alpha, "alpha", "psoftplus")), rct_shape(0))


class PSiLU(ScaledActivation):
    """x·sigmoid(|α|x) [paper, arXiv 2110.05626], with κ = |α|/2 at 0.

    alpha: a finite number other than 0, because the gradient of |α| is 0 there; a trainable scalar
        if `learnable`.
    centered: accepted and without effect, since σ(0) = 0.

    >>> PSiLU(), PSiLU.from_curvature(6)
    (psilu(alpha=1.0), psilu(alpha=12.0, learnable=False))
    """

    default_scope = "network"
    learned_by_default = True
    signed = True
    formula = SWISH

    def __init__(self, alpha: float = 1.0, *, learnable: bool = True, centered: bool = False) -> None:
        super().__init__(alpha, learnable=learnable, centered=centered)


class PSoftplus(ScaledActivation):
    """softplus(|α|x)/|α| [paper, arXiv 2110.05626], with κ = |α|/4 at 0.

    alpha: a finite number other than 0; a trainable scalar if `learnable`.
    centered: subtract σ(0) = ln 2/|α|.

    >>> PSoftplus(-2.0), PSoftplus(-2.0).max_curvature.value
    (psoftplus(alpha=-2.0), 0.5)
    """

    default_scope = "network"
    learned_by_default = True
    signed = True
    formula = rct_shape(0)

    def __init__(self, alpha: float = 1.0, *, learnable: bool = True, centered: bool = False) -> None:
        super().__init__(alpha, learnable=learnable, centered=centered)
