"""Speed of the best attack in the parameters, and smoothness of the loss after it, for any inner
problem.

Let the maximiser δ*(θ) of an inner problem be unique. Then ∇L(θ) = ∂/∂θ inner(θ, δ*(θ)) at fixed δ*
(Danskin), and [derived]

    ‖∇L(θ₁) − ∇L(θ₂)‖ ≤ C_θθ‖Δθ‖ + C_θx‖Δδ*‖

The speed of δ* follows exactly from the conditions of optimality. Bounds show the effect of
flatness in the input on it. The binary linear model, where all of this has a closed form, is in
`linear_theory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from linear_theory import LinearNorm, check_norm
from torch import Tensor

from curvact.analysis.records import plain
from curvact.errors import CurvactError


@dataclass(frozen=True, eq=False)
class AttackSensitivity:
    """Speed of the best attack in the parameters, at one point. [derived]

    case: "interior", "l2 boundary", "linf vertex" (no coordinate is free) or "linf face".
    jacobian: dδ*/dθ, (n, p). exact: its spectral norm. bound: C_xθ over `gap`.
    cross: C_xθ, the spectral norm of H_xθ (of its free rows on a face).
    gap: μ with H_xx ⪯ −μI (interior); ‖g‖/ε − λ, λ the top eigenvalue of H_xx on the tangent space
    (L2 boundary); μ of the free coordinates (face); infinite at a vertex.
    theta: C_θθ, the spectral norm of H_θθ at fixed δ. lipschitz: of ∇L here, exactly.
    lipschitz_bound: C_θθ + C_θx·bound.
    """

    case: str
    jacobian: Tensor
    exact: float
    bound: float
    cross: float
    gap: float
    theta: float
    lipschitz: float
    lipschitz_bound: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the Jacobian; what is not finite is None."""
        numbers = ("exact", "bound", "cross", "gap", "theta", "lipschitz", "lipschitz_bound")
        return {"case": self.case, **{name: plain(getattr(self, name)) for name in numbers}}


def attack_sensitivity(
    inner: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    delta: Tensor,
    *,
    norm: LinearNorm,
    epsilon: float,
    tolerance: float = 1e-6,
) -> AttackSensitivity:
    """dδ*/dθ at a strict local maximiser δ* of inner(θ, ·) over ‖δ‖ ≤ ε, with bounds on it and on
    the slope of the maximum.

    Differentiating the conditions of optimality: interior −H_xx⁻¹H_xθ; L2 boundary, on the tangent
    space, (ν − H_xx)⁻¹H_xθ with ν = ‖g‖/ε; L∞: 0 in every coordinate at ±ε whose g_i is not 0, as
    in the interior for the others. Then the Hessian of the maximum is H_θθ + H_θx·dδ*/dθ. [derived]
    Dense, in the precision of theta: for small problems, float64 by preference.

    inner: `(theta (p,), delta (n,)) -> scalar`, twice differentiable there. theta, delta: vectors.
    tolerance: how far from optimal, relative to ‖g‖ (or 1), and how near to the boundary, relative
    to ε. Raises CurvactError where δ lies outside, is not stationary, or the maximiser is not
    strict (it may then jump), or a derivative is not finite.

    >>> inner = lambda theta, delta: -2 * delta @ delta + delta @ theta  # δ* = θ/4
    >>> found = attack_sensitivity(inner, torch.tensor([0.4]), torch.tensor([0.1]), norm="l2", epsilon=1.0)
    >>> found.case, found.exact, found.lipschitz
    ('interior', 0.25, 0.25)
    """
    check_norm(norm, "attack_sensitivity")
    if theta.dim() != 1 or delta.dim() != 1 or not (math.isfinite(epsilon) and epsilon > 0):
        raise CurvactError(
            f"theta {tuple(theta.shape)}, delta {tuple(delta.shape)}, epsilon={epsilon} in attack_sensitivity: "
            "two vectors and a radius > 0"
        )
    h_tt, h_tx, h_xx, g = _derivatives(inner, theta.detach(), delta.detach())
    if not all(bool(part.isfinite().all()) for part in (h_tt, h_tx, h_xx, g)):
        raise CurvactError("the derivatives of inner in attack_sensitivity are not finite at this point")
    length = float(delta.abs().max() if norm == "linf" else delta.norm())
    if length > epsilon * (1 + tolerance):
        raise CurvactError(
            f"‖δ‖ = {length:.6g} in attack_sensitivity: it lies outside the ball of {epsilon:g}"
        )
    at_edge = length >= epsilon * (1 - tolerance)
    allowed = tolerance * max(1.0, float(g.norm()))
    case, basis, shift = "interior", torch.eye(len(delta), dtype=g.dtype, device=g.device), 0.0
    if at_edge and norm == "l2":
        case, unit = "l2 boundary", delta / delta.norm()
        if float(g @ unit) < -allowed:
            raise CurvactError(
                f"the gradient points inwards ({float(g @ unit):.3g}): δ is no maximiser on the ball"
            )
        basis, shift = torch.linalg.svd(unit[None], full_matrices=True)[2][1:].T, float(g.norm()) / epsilon
    elif at_edge:
        held = (delta.abs() >= epsilon * (1 - tolerance)) & (g * delta.sign() > allowed)
        case, basis = ("linf vertex" if bool(held.all()) else "linf face"), basis[:, ~held]
    slope = float((basis.T @ g).norm()) if basis.shape[1] else 0.0
    if slope > allowed:
        raise CurvactError(
            f"the gradient along the {case} is {slope:.3g} in attack_sensitivity: δ is no maximiser there"
        )
    jacobian, gap = torch.zeros(len(delta), len(theta), dtype=g.dtype, device=g.device), math.inf
    rows = basis.T @ h_tx.T
    if basis.shape[1]:
        bend = -(basis.T @ h_xx @ basis) + shift * torch.eye(basis.shape[1], dtype=g.dtype, device=g.device)
        gap = float(torch.linalg.eigvalsh(bend)[0])
        if gap <= 0:
            raise CurvactError(
                f"the maximiser is not strict (gap {gap:.3g} in the {case} case): the attack may jump, no bound holds"
            )
        jacobian = basis @ torch.linalg.solve(bend, rows)
    cross = _spectral(rows if case == "linf face" else h_tx)
    bound = 0.0 if case == "linf vertex" else cross / gap
    whole = _spectral(h_tt)
    return AttackSensitivity(
        case=case,
        jacobian=jacobian,
        exact=_spectral(jacobian),
        bound=bound,
        cross=cross,
        gap=gap,
        theta=whole,
        lipschitz=_spectral(h_tt + h_tx @ jacobian),
        lipschitz_bound=danskin_constant(whole, cross, bound),
    )


def danskin_constant(theta_theta: float, theta_x: float, attack: float) -> float:
    """C_θθ + C_θx·(Lipschitz constant of δ*): of ∇L where the maximiser is unique. Interior: attack
    = C_xθ/μ. [derived]

    >>> danskin_constant(1.0, 2.0, 2.0 / 0.5), danskin_constant(1.0, 2.0, 2.0 / 0.05)  # flatter in the input is worse
    (9.0, 81.0)
    """
    return theta_theta + theta_x * attack if attack else theta_theta


def danskin_gap(theta_theta: float, theta_x: float, step: Tensor, drift: Tensor) -> Tensor:
    """C_θθ‖Δθ‖ + C_θx‖Δδ*‖: the bound on ‖Δ∇L‖ for a measured drift of the attack. [derived]"""
    return theta_theta * step + theta_x * drift


def _derivatives(
    inner: Callable[[Tensor, Tensor], Tensor], theta: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """H_θθ, H_θx, H_xx, g = ∂/∂δ."""
    size = len(theta)
    both = torch.cat([theta, delta]).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(inner(both[:size], both[size:]), both, create_graph=True)
        rows = [
            torch.autograd.grad(s, both, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            if s.requires_grad
            else torch.zeros_like(both)
            for s in slope
        ]
    h = torch.stack(rows).detach()
    return h[:size, :size], h[:size, size:], h[size:, size:], slope[size:].detach()


def _spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, ord=2)) if matrix.numel() else 0.0
