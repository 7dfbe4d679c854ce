"""Targeted FAB (arXiv 1907.02044), l∞ and l2: steps to the linearized boundary with a class, biased
to the clean point.

FAB searches the nearest adversarial point; here a point leaves once one inside the ball is
confirmed. Nothing is random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvact.attacks.autoattack.apgd import Confirm, targets_of
from curvact.attacks.autoattack.ensemble import Step
from curvact.attacks.pgd import Model
from curvact.attacks.threat import ThreatModel, distance

ALPHA_MAX = 0.1
ETA = 1.05
BETA = 0.9
NEWTON_STEPS = 30


def fab(
    step: Step,
    model: Model,
    confirm: Confirm,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    batch_size: int,
) -> None:
    """Attack x towards each of `step.targets` classes in turn; `confirm` keeps the successes.
    Arguments as `apgd`.
    """
    targets = targets_of(model, x, batch_size, step.targets)
    for part in torch.split(torch.arange(len(x), device=x.device), batch_size):
        left = part
        for number in range(step.targets):
            left = _run(step.budget, model, confirm, x, y, targets[:, number], left, threat_model)
            if not len(left):
                break


def _run(
    steps: int,
    model: Model,
    confirm: Confirm,
    x: Tensor,
    y: Tensor,
    targets: Tensor,
    point: Tensor,
    threat_model: ThreatModel,
) -> Tensor:
    """One run towards one class; returns the points that stand."""
    clean, labels, target = x[point], y[point], targets[point]
    here = clean
    for _ in range(steps):
        gap, normal = _boundary(model, here, labels, target)
        offset = (normal * (here - clean)).flatten(1).sum(1)
        # The plane's value at the two points: gap + normal·(z − here).
        both = onto_plane(
            torch.cat([here, clean]),
            torch.cat([normal, normal]),
            torch.cat([gap, gap - offset]),
            threat_model.norm,
        )
        from_here, from_clean = torch.split(both, len(here))
        zero = torch.zeros_like(clean)
        near = distance(from_here, zero, threat_model.norm).clamp_min(1e-8)
        far = distance(from_clean, zero, threat_model.norm).clamp_min(1e-8)
        alpha = (near / (near + far)).clamp_max(ALPHA_MAX).view(-1, *[1] * (x.dim() - 1))
        here = torch.lerp(here + ETA * from_here, clean + ETA * from_clean, alpha).clamp_(0, 1)
        with torch.no_grad():
            fooled = model(here).max(1)[1] != labels
        inside = fooled & (distance(here, clean, threat_model.norm) <= threat_model.epsilon)
        if bool(inside.any()):
            rows = inside.nonzero().squeeze(1)
            keep = torch.ones_like(inside)
            keep[rows] = ~confirm(point[rows], here[rows])
            point, clean, labels, target, here, fooled = (
                value[keep] for value in (point, clean, labels, target, here, fooled)
            )
            if not len(point):
                break
        here = torch.where(fooled.view(-1, *[1] * (x.dim() - 1)), torch.lerp(clean, here, BETA), here)
    return point


def _boundary(model: Model, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """z_target − z_y and its gradient."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        gap = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
        (gradient,) = torch.autograd.grad(gap.sum(), leaf)
    return gap.detach(), gradient


def onto_plane(x: Tensor, normal: Tensor, value: Tensor, norm: str) -> Tensor:
    """The smallest δ with value + normal·δ = 0 and x + δ in [0, 1]; where there is none, the δ that
    comes nearest to 0.

    δ_i = −sign(value·normal_i)·min(λ·rate_i, room_i) with room_i the way to the wall and rate_i = 1
    (l∞) or |normal_i| (l2). Σ|normal_i|·|δ_i| is concave and piecewise linear in λ. Newton's method
    from λ = 0 climbs to the root in finitely many steps and does not pass it.
    """
    w, t = normal.flatten(1), x.flatten(1)
    way = -(torch.sign(w) * torch.sign(value)[:, None])
    room = torch.where(way > 0, 1 - t, t)
    weight = w.abs()
    rate = torch.ones_like(weight) if norm == "linf" else weight
    wanted = value.abs()[:, None]
    scale = torch.zeros_like(wanted)
    for _ in range(NEWTON_STEPS):
        pace = scale * rate
        reached = (weight * torch.minimum(pace, room)).sum(1, keepdim=True)
        slope = (weight * rate * (pace < room)).sum(1, keepdim=True)
        missing = wanted - reached
        move = torch.where(slope > 0, missing / slope.clamp_min(1e-30), 0.0).clamp_min(0)
        scale = scale + move
        if x.device.type == "cpu" and not bool((missing > 1e-6 * wanted).logical_and(slope > 0).any()):
            break
    return (way * torch.minimum(scale * rate, room)).view_as(x)
