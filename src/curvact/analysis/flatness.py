"""Flatness of the adversarial loss in the weights, average- and worst-case (Stutz et al. 2021).

    average case    E_ν[L_adv(w+ν)] − L_adv(w),    ν uniform on the spheres ‖ν_t‖ = ξ‖w_t‖
    worst case      max_ν [L_adv(w+ν)] − L_adv(w),    ‖ν_t‖ ≤ ξ‖w_t‖

for every tensor t. L_adv(w) is the mean over the data of max_δ ℓ(w, x+δ). The attack runs anew at
every w+ν. Biases move, the parameters of normalization layers do not. [paper: arXiv 2104.04448]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvact.analysis.loss import Batch, Loss
from curvact.analysis.records import OnProgress, plain
from curvact.analysis.weights import Weights, moving, norm_of
from curvact.attacks.arguments import door
from curvact.attacks.pgd import LONGEST, PGD, Attack
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError
from curvact.random import generator


@dataclass(frozen=True)
class AverageFlatness:
    """The rise of the loss at random weights around a model.

    flatness: mean of `losses` minus `loss`; the smaller, the flatter. standard_error: of that mean,
    over the draws. It does not include the choice of data, nor a random attack.
    loss: L_adv(w). losses: L_adv(w+ν) of each draw.
    radius: ξ. inputs: the number of examples. tensors, parameters: the number that moved.
    """

    flatness: float
    standard_error: float
    loss: float
    losses: tuple[float, ...]
    radius: float
    inputs: int
    tensors: int
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {"kind": "average", **plain(self)}


@dataclass(frozen=True)
class WorstFlatness:
    """The rise of the loss at the worst weights that the ascent found: a lower bound.

    flatness: the highest of `losses` minus `loss`, and at least 0, the value at ν = 0. loss:
    L_adv(w). losses: the highest of each restart. radius: ξ. steps: of ascent in each restart.
    inputs, tensors, parameters: as `AverageFlatness`.
    """

    flatness: float
    loss: float
    losses: tuple[float, ...]
    radius: float
    steps: int
    inputs: int
    tensors: int
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {"kind": "worst", **plain(self)}


@door
def average_flatness(
    loss: Loss,
    attack: Attack | None,
    *,
    radius: float = 0.5,
    draws: int = 10,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> AverageFlatness:
    """Average-case flatness, with the attack run anew at every w+ν. [paper; so are the defaults]

    The model is bit for bit what it was afterwards, also when an attack raises.

    loss: with one number for each example; its excluded parameters do not move. Parameters of
    activations move unless excluded.
    attack: `(model, x, y) -> x_adv`; None for the loss on x itself. radius: ξ > 0. draws: ≥ 2.
    Raises CurvactError for arguments out of range and for a loss function of another shape.

    >>> loss = Loss(torch.nn.Linear(2, 3), torch.rand(4, 2), torch.tensor([0, 1, 2, 0]))
    >>> result = average_flatness(loss, None, draws=4)
    >>> len(result.losses), result.parameters
    (4, 9)
    """
    where = "average_flatness"
    if draws < 2:
        raise CurvactError(f"draws={draws} in {where}: at least 2, for a standard error")
    _check_radius(radius, where)
    with moving(loss, where, normalization=False) as weights:
        batches = loss.inputs()
        start = mean_loss(loss, batches, attack)
        losses = []
        for draw in range(draws):
            weights.set(weights.direction(generator(seed, "flatness", draw), radius=radius))
            losses.append(mean_loss(loss, batches, attack))
            if on_progress is not None:
                on_progress(draw + 1, draws)
    values = torch.stack(losses)
    return AverageFlatness(
        flatness=(values.mean() - start).item(),
        standard_error=values.std().item() / math.sqrt(draws),
        loss=start.item(),
        losses=tuple(values.tolist()),
        radius=radius,
        inputs=loss.images,
        tensors=len(weights.start),
        parameters=weights.size,
    )


@door
def worst_case_flatness(
    loss: Loss,
    threat_model: ThreatModel | None,
    *,
    attack: Attack | None = None,
    radius: float = 0.003,
    steps: int = 20,
    restarts: int = 10,
    weight_step: float | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> WorstFlatness:
    """Worst-case flatness: ascent on one ν for all the data, jointly with a δ for each input.
    [paper; step sizes: ours]

    A step moves each tensor by `weight_step`·ξ‖w‖ along its normalized gradient, and the inputs as
    PGD does, at the same point; both are projected. The first restart begins at ν = 0 and the
    attacked inputs, the others at random. At the best weights of each the attack runs once more,
    and each example takes its highest loss. L_adv(w) is found in the same way with ν held at 0, so
    that a longer attack does not count as sharpness.

    threat_model: of δ; None holds the inputs fixed (the loss on x itself).
    attack: for L_adv(w) and at the end of each restart; None: PGD with `steps` steps, or nothing
    without a threat model.
    radius: ξ > 0. weight_step: in units of ξ‖w‖; 2.5/steps where None, as for the inputs in units
    of ε. Other arguments and errors as `average_flatness`. Costs (restarts + 1)·(steps + 1)
    gradients and restarts + 2 attacks.

    >>> loss = Loss(torch.nn.Linear(2, 3), torch.rand(4, 2), torch.tensor([0, 1, 2, 0]))
    >>> worst_case_flatness(loss, ThreatModel("linf", 0.1), steps=3, restarts=2).flatness >= 0
    True
    """
    where = "worst_case_flatness"
    _check_radius(radius, where)
    if steps < 1 or restarts < 1:
        raise CurvactError(f"steps={steps}, restarts={restarts} in {where}: at least 1 of each")
    if weight_step is not None and not (math.isfinite(weight_step) and weight_step > 0):
        raise CurvactError(f"weight_step={weight_step} in {where}: a fraction of the radius, > 0")
    with moving(loss, where, normalization=False) as weights:
        batches = loss.inputs()
        device = batches[0][0].device
        if attack is None and threat_model is not None:
            random = generator(seed, "worst flatness, pgd", device=device)
            attack = PGD(steps, min(2.5 / steps, LONGEST)).on(threat_model, random, keep_best=True)
        near = [loss.attack(attack, x, y) for x, y in batches]
        climb = _Ascent(loss, weights, batches, threat_model, steps, weight_step or 2.5 / steps)

        def highest(offsets: Sequence[Tensor], points: Sequence[Tensor], limit: float) -> Tensor:
            """The mean loss at the best weights that the ascent visits, every example at the worst
            of three points.
            """
            offsets, points = climb(offsets, points, limit)
            weights.set(offsets)
            again = (loss.attack(attack, x, y) for x, y in batches)
            tried = [losses_at(loss, batches, inputs) for inputs in (points, again, near)]
            return torch.stack(tried).amax(0).mean()

        still = [torch.zeros_like(p) for p in weights.start]
        reference = highest(still, near, 0.0)
        found = []
        for restart in range(restarts):
            offsets, points = still, near
            if restart:
                random = generator(seed, "worst flatness", restart)
                inner = torch.rand((), generator=random).item()
                offsets = [o for o in weights.direction(random, radius=radius * inner) if o is not None]
                starts = generator(seed, "worst flatness, inputs", restart, device=device)
                if threat_model is not None:
                    points = [threat_model.random_start(x, starts) for x, _ in batches]
            found.append(highest(offsets, points, radius))
            if on_progress is not None:
                on_progress(restart + 1, restarts)
    values = torch.stack(found)
    return WorstFlatness(
        flatness=(values.max() - reference).clamp_min(0).item(),
        loss=reference.item(),
        losses=tuple(values.tolist()),
        radius=radius,
        steps=steps,
        inputs=loss.images,
        tensors=len(weights.start),
        parameters=weights.size,
    )


# ---- losses ----


def mean_loss(loss: Loss, batches: Sequence[Batch], attack: Attack | None) -> Tensor:
    """The mean loss over attacked batches, a scalar in float64 on the device of the data. It does
    not wait for the device.
    """
    return losses_at(loss, batches, (loss.attack(attack, x, y) for x, y in batches)).mean()


@torch.no_grad()
def losses_at(loss: Loss, batches: Sequence[Batch], points: Iterable[Tensor]) -> Tensor:
    """The loss of every example at its point, (N,), in float64."""
    pairs = zip(points, batches, strict=True)
    return torch.cat([loss.each(loss.outputs(point), y).double() for point, (_, y) in pairs])


# ---- the joint ascent ----


@dataclass(frozen=True, eq=False)
class _Ascent:
    """Ascent on weights and inputs together."""

    loss: Loss
    weights: Weights
    batches: Sequence[Batch]
    threat_model: ThreatModel | None
    steps: int
    weight_step: float

    def __call__(
        self, offsets: Sequence[Tensor], points: Sequence[Tensor], radius: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The offsets and inputs with the highest mean loss that was visited."""
        radii = [radius * norm for norm in self.weights.norms]
        offsets, points = list(offsets), list(points)
        best, best_offsets, best_points = None, offsets, points
        for step in range(self.steps + 1):
            self.weights.set(offsets)
            value, uphill, moved = self._look(points, last=step == self.steps)
            if best is None:
                best = value
            else:
                higher = value > best
                best = torch.where(higher, value, best)
                best_offsets = [torch.where(higher, a, b) for a, b in zip(offsets, best_offsets, strict=True)]
                best_points = [torch.where(higher, a, b) for a, b in zip(points, best_points, strict=True)]
            if step < self.steps:
                points = moved
                offsets = [
                    _step(offset, gradient, limit, self.weight_step)
                    for offset, gradient, limit in zip(offsets, uphill, radii, strict=True)
                ]
        return best_offsets, best_points

    def _look(self, points: Sequence[Tensor], last: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The mean loss, its gradient in the weights times N, and the inputs one step on; the loss
        alone for the last.
        """
        value = torch.zeros((), dtype=torch.float64, device=points[0].device)
        uphill: list[Tensor] = []
        moved = []
        parameters = self.weights.parameters
        for point, (x, y) in zip(points, self.batches, strict=True):
            if last:
                with torch.no_grad():
                    value = (
                        value + self.loss.each(self.loss.outputs(point), y).double().sum() / self.loss.images
                    )
                continue
            threat = self.threat_model
            point = point.detach().requires_grad_(threat is not None)
            wanted = [*parameters, *([point] if threat is not None else [])]
            with torch.enable_grad():
                losses = self.loss.each(self.loss.outputs(point), y)
                gradients = torch.autograd.grad(
                    losses.sum(), wanted, allow_unused=True, materialize_grads=True
                )
            mine = gradients[: len(parameters)]
            uphill = [a + b for a, b in zip(uphill, mine, strict=True)] if uphill else list(mine)
            value = value + losses.detach().double().sum() / self.loss.images
            if threat is not None:
                there = threat.ascend(point.detach(), gradients[-1], 2.5 / self.steps * threat.epsilon)
                point = threat.project(there, x)
            moved.append(point.detach())
        return value, uphill, moved


def _step(offset: Tensor, gradient: Tensor, limit: Tensor, share: float) -> Tensor:
    """offset + share·limit·gradient/‖gradient‖, brought back into the ball of radius limit."""
    moved = offset + gradient * (share * limit / norm_of(gradient).clamp_min(1e-300)).to(offset.dtype)
    return moved * (limit / norm_of(moved).clamp_min(1e-300)).clamp_max(1).to(offset.dtype)


def _check_radius(radius: float, where: str) -> None:
    if not (math.isfinite(radius) and radius > 0):
        raise CurvactError(f"radius={radius} in {where}: ξ must be a finite number > 0")
