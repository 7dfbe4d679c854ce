"""PSSiLU and SSiLU, the shifted SiLUs of arXiv 2110.05626. [paper]; κ [derived].

With S_α(x) = x·sigmoid(|α|x) and c = |β|/(1 − |β|), the sum below keeps a β far below rounding (1 −
1e-8 is 1 in float32):

    σ(x) = x(sigmoid(|α|x) − |β|)/(1 − |β|) = S_α(x) + c·S_α(−x)        [derived]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from curvact.activations.arguments import below_one, nonzero, positive, reached, trainable
from curvact.activations.base import Activation, away_from_zero_, size
from curvact.activations.curvature import Peak
from curvact.activations.families.swish import SWISH
from curvact.activations.kernels.autograd import apply, derivative, scale_derivative
from curvact.activations.kernels.shape import Scale, floating, traced_for_script, transformed, wide
from curvact.errors import CurvactError

if TYPE_CHECKING:
    from typing_extensions import Self

BETA_LIMIT = 1 - 2**-10
"""`constrain_` keeps a learned |β| below this. Closer to 1, σ differs from 0 by rounding only."""


# ---- the formula ----


def _combine(x: Tensor, alpha: Scale, c: Scale, order: int) -> Tensor:
    """The derivative of S_α(x) + c·S_α(−x) of an order, 0 to 2. Half precision is rounded once."""
    full = wide(x)
    if order > 0:
        out = (1 + c) * derivative(full, alpha, SWISH, order)
        if order == 1:
            out = out - c
    else:
        out = apply(full, alpha, SWISH)
        # A c of exactly 0 is left out: at −∞ it would give 0·∞.
        if isinstance(c, Tensor) or c != 0:
            out = out + c * apply(-full, alpha, SWISH)
    return out.to(x.dtype)


def _by_alpha(x: Tensor, alpha: Scale) -> Tensor:
    """∂S/∂|α|, elementwise. Even in x, so that ∂σ/∂|α| = (1 + c)·∂S/∂|α|."""
    assert isinstance(alpha, Tensor)
    return scale_derivative(wide(x), alpha, SWISH, 0)


class _Value(torch.autograd.Function):
    """σ outside functorch transforms and the compiler; only its inputs are kept for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Scale, c: Scale) -> Tensor:
        learned = [scale for scale in (alpha, c) if isinstance(scale, Tensor)]
        ctx.save_for_backward(x, *learned)
        ctx.save_for_forward(x, *learned)
        ctx.fixed = [None if isinstance(scale, Tensor) else scale for scale in (alpha, c)]
        return _combine(x, alpha, c, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, c = _kept(ctx)
        grad_x = grad_alpha = grad_c = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * _combine(x, alpha, c, 1)
        if ctx.needs_input_grad[1]:
            assert isinstance(alpha, Tensor)
            grad_alpha = (1 + c) * (grad * _by_alpha(x, alpha)).sum_to_size(alpha.shape)
        if ctx.needs_input_grad[2]:
            assert isinstance(c, Tensor)
            grad_c = (grad * apply(-wide(x), alpha, SWISH)).sum_to_size(c.shape)
        return grad_x, grad_alpha, grad_c

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, alpha, c = _kept(ctx)
        terms: list[Tensor] = []
        if tangents[0] is not None:
            terms.append(tangents[0] * _combine(x, alpha, c, 1))
        if tangents[1] is not None:
            terms.append(tangents[1] * (1 + c) * _by_alpha(x, alpha))
        if tangents[2] is not None:
            terms.append(tangents[2] * apply(-wide(x), alpha, SWISH))
        out = terms[0]
        for term in terms[1:]:
            out = out + term
        return out.to(x.dtype)


def _kept(ctx: Any) -> tuple[Tensor, Scale, Scale]:
    x, *learned = ctx.saved_tensors
    alpha, c = (learned.pop(0) if fixed is None else fixed for fixed in ctx.fixed)
    return x, alpha, c


def _shifted(x: Tensor, alpha: Scale, c: Scale) -> Tensor:
    """S_α(x) + c·S_α(−x), for α > 0."""
    if torch.compiler.is_compiling() or transformed() or traced_for_script():
        return _combine(x, alpha, c, 0)
    out: Tensor = _Value.apply(floating(x), alpha, c)  # type: ignore[no-untyped-call]
    return out


def _size(parameter: Scale) -> Scale:
    """|parameter|; of one number, without a shape."""
    if isinstance(parameter, Tensor) and parameter.numel() == 1:
        return size(parameter.reshape(()))
    return size(parameter)


def _scales(alpha: Scale, beta: Scale, *, signed: bool = False) -> tuple[Scale, Scale]:
    """|α| and c = |β|/(1 − |β|), or β/(1 − β) if β keeps its sign."""
    beta = beta if signed else _size(beta)
    return _size(alpha), beta / (1 - beta)


# ---- functional forms ----


def pssilu(x: Tensor, alpha: Scale = 1.0, beta: Scale = 1e-8) -> Tensor:
    """x(sigmoid(|α|x) − |β|)/(1 − |β|) [paper]. alpha: not 0; beta: of size below 1; or tensors.

    >>> pssilu(torch.tensor([-1.0, 0.0, 1.0]), 9.0, 0.25)
    tensor([0.3332, 0.0000, 0.9998])
    """
    return _checked(x, alpha, beta, "pssilu")


def pssilu_fixed(x: Tensor, alpha: Scale = 1.0, beta: Scale = 0.3) -> Tensor:
    """x(sigmoid(|α|x) − β)/(1 − β) [paper]. alpha: not 0; beta: of size below 1; or tensors."""
    return _checked(x, alpha, beta, "pssilu_fixed", signed=True)


def ssilu(x: Tensor, beta: Scale = 0.1) -> Tensor:
    """x(sigmoid(x) − β)/(1 − β) [paper]. beta: a number of size below 1, or a tensor."""
    return _checked(x, 1.0, beta, "ssilu", signed=True)


def _checked(x: Tensor, alpha: Scale, beta: Scale, where: str, *, signed: bool = False) -> Tensor:
    alpha, beta = nonzero(alpha, "alpha", where), below_one(beta, "beta", where)
    return _shifted(x, *_scales(alpha, beta, signed=signed))


# ---- the activations ----


class _Shifted(Activation):
    """S_α(x) + c·S_α(−x): what all members share. Abstract. signed: whether β keeps its sign."""

    alpha: float | nn.Parameter
    beta: float | nn.Parameter
    signed: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        return _shifted(x, *self._scales())

    def slope(self, x: Tensor) -> Tensor:
        return _combine(x, *self._scales(), 1)

    def curvature(self, x: Tensor) -> Tensor:
        return _combine(x, *self._scales(), 2)

    @property
    def max_curvature(self) -> Peak:
        alphas, betas = _numbers(self.alpha), _numbers(self.beta)
        if len(betas) == 1:  # of several α with one β, each has it
            betas = betas * len(alphas)
        pairs = zip(alphas, betas, strict=True)
        peaks = [self._peak(a, b if self.signed else abs(b)) for a, b in pairs]
        return max(peaks, key=lambda peak: peak.value)

    @torch.no_grad()
    def constrain_(self) -> None:
        if isinstance(self.alpha, Tensor):
            away_from_zero_(self.alpha)
        if isinstance(self.beta, Tensor):
            self.beta.clamp_(-BETA_LIMIT, BETA_LIMIT)

    def extra_repr(self) -> str:
        return self._described("alpha", "beta")

    def _scales(self) -> tuple[Scale, Scale]:
        """|α| and c; of learned ones, tensors that autograd follows."""
        return _scales(self.alpha, self.beta, signed=self.signed)

    def _peak(self, alpha: float, beta: float) -> Peak:
        if not (0 < abs(alpha) < math.inf and abs(beta) < 1):
            raise CurvactError(f"{self} has no κ: it needs a finite α other than 0 and |β| < 1")
        return Peak(abs(alpha) / (2 * (1 - beta)), 0.0)


class PSSiLU(_Shifted):
    """x(sigmoid(|α|x) − |β|)/(1 − |β|) [paper, arXiv 2110.05626].

    κ = |α|/(2(1 − |β|)) at 0 [derived]. σ(0) = 0, and σ(x) → |β||x|/(1 − |β|) as x → −∞: positive
    for x < ln(|β|/(1 − |β|))/|α|.

    alpha: a finite number other than 0.
    beta: a number with |β| < 1; if it is learned, `constrain_` keeps |β| ≤ 1 − 2⁻¹⁰.
    learnable: α and β become parameters of shape (1,), as in the paper's checkpoints, and a network
        shares them by default. β = 0 is an error then: it would never move.
    centered: accepted and without effect, since σ(0) = 0.
    Raises CurvactError for a parameter out of range.

    >>> act = PSSiLU.from_curvature(6, beta=0.25)
    >>> act, act.max_curvature.value
    (pssilu(alpha=9.0, beta=0.25), 6.0)
    >>> act(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.3332, 0.0000, 0.9998])
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 1e-8, *, learnable: bool = False, centered: bool = False
    ) -> None:
        super().__init__()
        alpha, beta = nonzero(alpha, "alpha", "pssilu"), below_one(beta, "beta", "pssilu")
        self.learnable = learnable
        self.centered = centered
        if learnable and not bool(torch.tensor(beta, device="cpu")):
            raise CurvactError(
                f"beta={beta:g} in a learnable pssilu: |β| has no gradient at 0 and would never move; start at 1e-8"
            )
        if learnable:
            self.default_scope = "network"
        self.alpha = trainable(alpha, "alpha", "pssilu", nonzero, shape=(1,)) if learnable else alpha
        self.beta = trainable(beta, "beta", "pssilu", below_one, shape=(1,)) if learnable else beta

    @classmethod
    def from_curvature(
        cls, curvature: float, beta: float = 1e-8, *, learnable: bool = False, centered: bool = False
    ) -> Self:
        """The member with κ = `curvature`: α = 2κ(1 − |β|)."""
        kappa = positive(curvature, "curvature", "pssilu")
        alpha = 2 * kappa * (1 - abs(below_one(beta, "beta", "pssilu")))
        return cls(reached(alpha, kappa, "pssilu"), beta, learnable=learnable, centered=centered)


class FixedPSSiLU(_Shifted):
    """`pssilu_fixed`: x(sigmoid(|α|x) − β)/(1 − β) with β fixed [paper, arXiv 2110.05626].

    κ = |α|/(2|1 − β|) at 0 [derived].

    alpha: a finite number other than 0; a trainable scalar if `learnable`.
    beta: a number with |β| < 1, never learned.
    centered: accepted and without effect, since σ(0) = 0.
    Raises CurvactError for a parameter out of range.

    >>> act = FixedPSSiLU()
    >>> act, round(act.max_curvature.value, 9)
    (pssilu_fixed(alpha=1.0, beta=0.3), 0.714285714)
    """

    default_scope = "network"
    learned_by_default = True
    signed = True
    _family = "pssilu_fixed"

    def __init__(
        self, alpha: float = 1.0, beta: float = 0.3, *, learnable: bool = True, centered: bool = False
    ) -> None:
        super().__init__()
        alpha = nonzero(alpha, "alpha", self._family)
        self.beta = below_one(beta, "beta", self._family)
        self.learnable = learnable
        self.centered = centered
        self.alpha = trainable(alpha, "alpha", self._family, nonzero) if learnable else alpha

    @classmethod
    def from_curvature(
        cls, curvature: float, beta: float = 0.3, *, learnable: bool = False, centered: bool = False
    ) -> Self:
        """The member with κ = `curvature`: α = 2κ(1 − β). Training keeps α unless `learnable`."""
        kappa = positive(curvature, "curvature", cls._family)
        alpha = 2 * kappa * (1 - below_one(beta, "beta", cls._family))
        return cls(reached(alpha, kappa, cls._family), beta, learnable=learnable, centered=centered)


class SSiLU(_Shifted):
    """x(sigmoid(x) − β)/(1 − β) with β fixed [paper, arXiv 2110.05626]. Nothing is learned.

    κ = 1/(2|1 − β|) at 0 [derived].

    beta: a number with |β| < 1.
    centered: accepted and without effect, since σ(0) = 0.
    Raises CurvactError for a parameter out of range.

    >>> act = SSiLU()
    >>> act, round(act.max_curvature.value, 9)
    (ssilu(beta=0.1), 0.555555556)
    """

    alpha = 1.0
    signed = True

    def __init__(self, beta: float = 0.1, *, centered: bool = False) -> None:
        super().__init__()
        self.beta = below_one(beta, "beta", "ssilu")
        self.centered = centered

    def extra_repr(self) -> str:
        return self._described("beta")


def _numbers(parameter: float | Tensor) -> list[float]:
    if not isinstance(parameter, Tensor):
        return [parameter]
    values: list[float] = parameter.detach().flatten().tolist()
    return values
