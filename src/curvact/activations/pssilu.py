"""PSSiLU, the parametric shifted SiLU of arXiv 2110.05626: Swish with a straight line taken off. [paper]; κ [derived].

With S_α(x) = x·sigmoid(|α|x) and c = |β|/(1 − |β|), it is a sum that keeps a β far below rounding (1 − 1e-8 is 1 in float32):

    σ(x) = x(sigmoid(|α|x) − |β|)/(1 − |β|) = S_α(x) + c·S_α(−x)        [derived]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from curvact.activations import _core
from curvact.activations.base import Activation, number, positive
from curvact.activations.curvature import Peak
from curvact.activations.gates import _SWISH
from curvact.errors import CurvactError


class PSSiLU(Activation):
    """x(sigmoid(|α|x) − |β|)/(1 − |β|) [paper, arXiv 2110.05626], with κ = |α|/(2(1 − |β|)) at 0 [derived].

    σ(0) = 0, and σ(x) → |β||x|/(1 − |β|) as x → −∞: positive for x < ln(|β|/(1 − |β|))/|α|.

    alpha: a finite number other than 0. beta: a number with |β| < 1.
    learnable: α and β become parameters of shape (1,), as in the paper's checkpoints. β = 0 is refused then: the gradient
        of |β| is 0 there, so it would never move.
    centered: accepted and without effect, since σ(0) = 0.
    Raises CurvactError for a parameter out of range.

    >>> act = PSSiLU.from_curvature(6, beta=0.25)
    >>> act, act.max_curvature.value
    (pssilu(alpha=9.0, beta=0.25), 6.0)
    >>> act(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.3332, 0.0000, 0.9998])
    """

    alpha: float | nn.Parameter
    beta: float | nn.Parameter

    def __init__(
        self, alpha: float = 1.0, beta: float = 1e-8, *, learnable: bool = False, centered: bool = False
    ) -> None:
        super().__init__()
        alpha, beta = _nonzero(alpha), _below_one(beta)
        self.learnable = learnable
        self.centered = centered
        if learnable:
            if beta == 0:
                raise CurvactError(
                    "beta=0 in a learnable pssilu: |β| has no gradient at 0 and would never move; start at 1e-8"
                )
            self.alpha = nn.Parameter(torch.tensor([alpha]))
            self.beta = nn.Parameter(torch.tensor([beta]))
        else:
            self.alpha = alpha
            self.beta = beta

    @classmethod
    def from_curvature(
        cls, curvature: float, beta: float = 1e-8, *, learnable: bool = False, centered: bool = False
    ) -> PSSiLU:
        """The member with κ = `curvature`: α = 2κ(1 − |β|)."""
        kappa = positive(curvature, "curvature", "pssilu")
        return cls(2 * kappa * (1 - abs(_below_one(beta))), beta, learnable=learnable, centered=centered)

    def forward(self, x: Tensor) -> Tensor:
        alpha, c = self._scales()
        if torch.compiler.is_compiling() or _core._transformed():
            return _combine(x, alpha, c, 0)
        if not x.is_floating_point():
            raise CurvactError(f"an activation got a tensor of {x.dtype}: it takes floating-point tensors")
        out: Tensor = _Value.apply(x, alpha, c)  # type: ignore[no-untyped-call]
        return out

    def slope(self, x: Tensor) -> Tensor:
        return _combine(x, *self._scales(), 1)

    def curvature(self, x: Tensor) -> Tensor:
        return _combine(x, *self._scales(), 2)

    @property
    def max_curvature(self) -> Peak:
        alpha, beta = abs(_value(self.alpha)), abs(_value(self.beta))
        if not (0 < alpha < math.inf and beta < 1):
            raise CurvactError(f"{self} has no κ: it needs a finite α other than 0 and |β| < 1")
        return Peak(alpha / (2 * (1 - beta)), 0.0)

    def extra_repr(self) -> str:
        flags = [f"{flag}=True" for flag in ("learnable", "centered") if getattr(self, flag)]
        return ", ".join([f"alpha={number(_value(self.alpha))}", f"beta={number(_value(self.beta))}", *flags])

    def _scales(self) -> tuple[_core.Scale, _core.Scale]:
        """|α| and c = |β|/(1 − |β|); of learnable ones, scalars that autograd follows."""
        beta = _size(self.beta)
        return _size(self.alpha), beta / (1 - beta)


def _size(parameter: float | nn.Parameter) -> _core.Scale:
    return parameter.reshape(()).abs() if isinstance(parameter, Tensor) else abs(parameter)


def _combine(x: Tensor, alpha: _core.Scale, c: _core.Scale, order: int) -> Tensor:
    """The derivative of σ of that order, 0 to 2, differentiable in everything. Half precision is rounded once."""
    wide = _wide(x)
    if order > 0:
        out = (1 + c) * _core.derivative(wide, alpha, _SWISH, order)
        if order == 1:
            out = out - c
    else:
        out = _swish(wide, alpha)
        # A c of exactly 0 is left out: at −∞ it would give 0·∞.
        if isinstance(c, Tensor) or c != 0:
            out = out + c * _swish(-wide, alpha)
    return out.to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _swish(x: Tensor, alpha: _core.Scale) -> Tensor:
    return _core.apply(x, alpha, _SWISH)


def _swish_by_alpha(x: Tensor, alpha: _core.Scale) -> Tensor:
    """∂S/∂|α|, elementwise. Even in x, so that ∂σ/∂|α| = (1 + c)·∂S/∂|α|."""
    assert isinstance(alpha, Tensor)
    return _core._scale_derivative(_wide(x), alpha, _SWISH, 0)


class _Value(torch.autograd.Function):
    """σ outside functorch transforms and the compiler: what autograd makes of `_combine`, but only x is kept for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: _core.Scale, c: _core.Scale) -> Tensor:
        learned = [scale for scale in (alpha, c) if isinstance(scale, Tensor)]
        ctx.save_for_backward(x, *learned)
        ctx.save_for_forward(x, *learned)
        ctx.fixed = None if learned else (alpha, c)
        return _combine(x, alpha, c, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, c = _kept(ctx)
        grad_x = grad_alpha = grad_c = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * _combine(x, alpha, c, 1)
        if ctx.needs_input_grad[1]:
            grad_alpha = (1 + c) * (grad * _swish_by_alpha(x, alpha)).sum()
        if ctx.needs_input_grad[2]:
            grad_c = (grad * _swish(-_wide(x), alpha)).sum()
        return grad_x, grad_alpha, grad_c

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, alpha, c = _kept(ctx)
        terms: list[Tensor] = []
        if tangents[0] is not None:
            terms.append(tangents[0] * _combine(x, alpha, c, 1))
        if tangents[1] is not None:
            terms.append(tangents[1] * (1 + c) * _swish_by_alpha(x, alpha))
        if tangents[2] is not None:
            terms.append(tangents[2] * _swish(-_wide(x), alpha))
        out = terms[0]
        for term in terms[1:]:
            out = out + term
        return out.to(x.dtype)


def _kept(ctx: Any) -> tuple[Tensor, _core.Scale, _core.Scale]:
    x, *learned = ctx.saved_tensors
    alpha, c = ctx.fixed or learned
    return x, alpha, c


def _value(parameter: float | nn.Parameter) -> float:
    return float(parameter.detach()) if isinstance(parameter, Tensor) else parameter


def _nonzero(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise CurvactError(f"alpha={alpha!r} in pssilu: alpha must be a finite number other than 0")
    if alpha == 0:
        raise CurvactError(
            f"alpha={alpha!r} in pssilu: alpha must not be 0 (σ is a straight line there and α would never move)"
        )
    return float(alpha)


def _below_one(beta: float) -> float:
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not abs(beta) < 1:
        raise CurvactError(f"beta={beta!r} in pssilu: beta must be a number with |beta| < 1")
    return float(beta)
