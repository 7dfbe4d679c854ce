"""Analysis room: flatness of the adversarial loss in the weights, average- and worst-case (Stutz et al. 2021, arXiv 2104.04448).

    average case    E_ν[L_adv(w+ν)] − L_adv(w),    ν uniform on the spheres ‖ν_t‖ = ξ‖w_t‖ of the tensors t
    worst case      max_ν [L_adv(w+ν)] − L_adv(w),    ‖ν_t‖ ≤ ξ‖w_t‖

L_adv(w) is the mean over the data of max_δ ℓ(w, x+δ): the attack runs anew at every w+ν. Biases are perturbed, the parameters of
normalization layers are not. [paper]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from curvact.analysis.loss import check_inputs, excluder
from curvact.analysis.records import OnProgress, finite
from curvact.attacks.losses import ce
from curvact.attacks.pgd import PGD, Attack, mode
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError
from curvact.random import generator

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) to N losses, one an example."""
Exclude = Callable[[str], bool] | Collection[str]

NORMALIZATION: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Layers whose parameters are held fixed: batch, instance, layer, group and RMS normalization."""


@dataclass(frozen=True)
class AverageFlatness:
    """What random weights around a model cost.

    flatness: mean of `losses` minus `loss`; the smaller, the flatter. standard_error: of that mean, over the draws; it says
    nothing of the choice of data, nor of an attack that is random.
    loss: L_adv(w). losses: L_adv(w+ν) of each draw.
    radius: ξ. inputs: how many examples. tensors, parameters: how many were perturbed.
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
        return _plain("average", asdict(self))


@dataclass(frozen=True)
class WorstFlatness:
    """What the worst weights around a model cost, as far as the ascent found them: a lower bound.

    flatness: the highest of `losses` minus `loss`, and at least 0, which ν = 0 gives. loss: L_adv(w). losses: the highest of each
    restart. radius: ξ. steps: of ascent a restart. inputs, tensors, parameters: as `AverageFlatness`.
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
        return _plain("worst", asdict(self))


def average_flatness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None,
    *,
    radius: float = 0.5,
    draws: int = 10,
    seed: int = 0,
    loss: Loss = ce,
    exclude: Exclude = (),
    batch_size: int = 512,
    on_progress: OnProgress | None = None,
) -> AverageFlatness:
    """Average-case flatness, in eval mode, with the attack run anew at every w+ν. [paper: radius and draws too]

    The parameters are bit for bit what they were afterwards, also when an attack raises.

    x, y: inputs (N, …) and targets (N, …). attack: `(model, x, y) -> x_adv`; None for the loss on x itself.
    radius: ξ > 0. draws ≥ 2. loss: of one example each; cross-entropy.
    exclude: parameters held fixed besides those of normalization layers: names, or a test of a name. Parameters of activations
        count unless excluded.
    Raises CurvactError for arguments out of range, an unknown name, or a loss of another shape.

    >>> model = nn.Linear(2, 3)
    >>> result = average_flatness(model, torch.rand(4, 2), torch.tensor([0, 1, 2, 0]), None, draws=4)
    >>> len(result.losses), result.parameters
    (4, 9)
    """
    if draws < 2:
        raise CurvactError(f"draws={draws} in average_flatness: at least 2, for a standard error")
    _check(x, y, radius, batch_size, "average_flatness")
    batches = pieces(x, y, batch_size)
    with mode(model, training=False), displaced(model, exclude) as weights:
        start = mean_loss(model, batches, attack, loss)
        losses = []
        for draw in range(draws):
            weights.set(_on_spheres(weights, radius, generator(seed, "flatness", draw)))
            losses.append(mean_loss(model, batches, attack, loss))
            if on_progress is not None:
                on_progress(draw + 1, draws)
        size = weights.size
    values = torch.stack(losses)
    return AverageFlatness(
        flatness=(values.mean() - start).item(),
        standard_error=values.std().item() / math.sqrt(draws),
        loss=start.item(),
        losses=tuple(values.tolist()),
        radius=radius,
        inputs=len(x),
        tensors=len(weights.start),
        parameters=size,
    )


def worst_case_flatness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel | None,
    *,
    attack: Attack | None = None,
    radius: float = 0.003,
    steps: int = 20,
    restarts: int = 10,
    weight_step: float | None = None,
    input_step: float | None = None,
    seed: int = 0,
    loss: Loss = ce,
    exclude: Exclude = (),
    batch_size: int = 512,
    on_progress: OnProgress | None = None,
) -> WorstFlatness:
    """Worst-case flatness: ascent on one ν for all the data, jointly with a δ for each input. [paper; step sizes: ours]

    A step moves each tensor by `weight_step`·ξ‖w‖ along its normalized gradient and the inputs as PGD does, all at the same
    point, and projects both. The first restart begins at ν = 0 and the attacked inputs, the others at random. At the best weights
    of each the attack runs once more, and each example takes its highest loss. L_adv(w) is found in the same way with ν held at
    0, so that a longer attack does not count as sharpness. The parameters come back bit for bit.

    threat_model: of δ; None holds the inputs fixed (the loss on x itself).
    attack: for L_adv(w) and at the end of each restart; None: PGD with `steps` steps, or nothing without a threat model.
    radius: ξ > 0. weight_step, input_step: as fractions of the two radii; 2.5/steps where None.
    Other arguments and errors as `average_flatness`. Costs (restarts + 1)·(steps + 1) gradients and restarts + 2 attacks.

    >>> model = nn.Linear(2, 3)
    >>> x, y = torch.rand(4, 2), torch.tensor([0, 1, 2, 0])
    >>> worst_case_flatness(model, x, y, ThreatModel("linf", 0.1), steps=3, restarts=2).flatness >= 0
    True
    """
    _check(x, y, radius, batch_size, "worst_case_flatness")
    if steps < 1 or restarts < 1:
        raise CurvactError(f"steps={steps}, restarts={restarts} in worst_case_flatness: at least 1 of each")
    for name, value in (("weight_step", weight_step), ("input_step", input_step)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise CurvactError(f"{name}={value} in worst_case_flatness: a fraction of the radius, > 0")
    share = 2.5 / steps
    weight_step = share if weight_step is None else weight_step
    input_step = share if input_step is None else input_step
    if attack is None and threat_model is not None:
        attack = _pgd(
            threat_model, steps, input_step, generator(seed, "worst flatness, pgd", device=x.device)
        )
    batches = pieces(x.detach(), y, batch_size)
    with mode(model, training=False), displaced(model, exclude) as weights:
        near = [_attacked(attack, model, images, labels) for images, labels in batches]

        def highest(offsets: Sequence[Tensor], points: Sequence[Tensor], limit: float) -> Tensor:
            """The mean loss at the best weights that the ascent visits, every example at the worst of three points."""
            offsets, points = _ascend(
                model,
                weights,
                batches,
                offsets,
                points,
                threat_model,
                loss,
                radius=limit,
                steps=steps,
                weight_step=weight_step,
                input_step=input_step,
            )
            weights.set(offsets)
            again = (_attacked(attack, model, images, labels) for images, labels in batches)
            tried = [_losses(model, batches, where, loss) for where in (points, again, near)]
            return torch.stack(tried).amax(0).mean()

        still = [torch.zeros_like(p) for p in weights.start]
        reference = highest(still, near, 0.0)
        found = []
        for restart in range(restarts):
            offsets, points = still, near
            if restart:
                random = generator(seed, "worst flatness", restart)
                inner = torch.rand((), generator=random).item()
                offsets = _on_spheres(weights, radius * inner, random)
                starts = generator(seed, "worst flatness, inputs", restart, device=x.device)
                if threat_model is not None:
                    points = [threat_model.random_start(images, starts) for images, _ in batches]
            found.append(highest(offsets, points, radius))
            if on_progress is not None:
                on_progress(restart + 1, restarts)
        size = weights.size
    values = torch.stack(found)
    return WorstFlatness(
        flatness=(values.max() - reference).clamp_min(0).item(),
        loss=reference.item(),
        losses=tuple(values.tolist()),
        radius=radius,
        steps=steps,
        inputs=len(x),
        tensors=len(weights.start),
        parameters=size,
    )


# ---- weights that come back ----


class Displacement:
    """Parameters of a model that can be moved: `set(offsets)` makes them start + offset.

    start: copies of them, in the order of `names`. norms: of these, in float64.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.names = tuple(parameters)
        self.parameters = tuple(parameters.values())
        self.start = tuple(p.detach().clone() for p in self.parameters)
        self.norms = tuple(_norm(p) for p in self.start)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return sum(p.numel() for p in self.start)

    @torch.no_grad()
    def set(self, offsets: Sequence[Tensor | None]) -> None:
        """Each parameter at its start plus its offset, of its shape; None for none."""
        for parameter, start, offset in zip(self.parameters, self.start, offsets, strict=True):
            parameter.copy_(start if offset is None else start + offset.to(start))

    def reset(self) -> None:
        """Bit for bit what they were."""
        self.set([None] * len(self.names))


@contextmanager
def displaced(model: nn.Module, exclude: Exclude = ()) -> Iterator[Displacement]:
    """The parameters of a model to be moved inside and put back after, bit for bit; those of normalization layers are left out.

    Frozen parameters count, tied ones once; `requires_grad` is restored too.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> with displaced(model) as weights:
    ...     weights.names
    ('0.weight', '0.bias')
    """
    weights = Displacement(_movable(model, exclude))
    asked = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield weights
    finally:
        weights.reset()
        for parameter, flag in asked:
            parameter.requires_grad_(flag)


def _movable(model: nn.Module, exclude: Exclude) -> dict[str, nn.Parameter]:
    excluded = excluder(model, exclude, "flatness")
    fixed = {
        id(p) for m in model.modules() if isinstance(m, NORMALIZATION) for p in m.parameters(recurse=False)
    }
    fixed |= {id(p) for name, p in model.named_parameters(remove_duplicate=False) if excluded(name)}
    movable = {name: p for name, p in model.named_parameters() if id(p) not in fixed}
    if not movable:
        raise CurvactError("no parameters to perturb: the model has none, or all are excluded")
    return movable


def _on_spheres(weights: Displacement, radius: float, random: torch.Generator) -> list[Tensor]:
    """One offset a tensor, uniform on the sphere of radius ξ‖w‖."""
    offsets = []
    for start, norm in zip(weights.start, weights.norms, strict=True):
        direction = torch.randn(start.shape, generator=random, dtype=torch.float64, device=random.device)
        direction = direction.to(start.device)
        offsets.append((direction * (radius * norm / _norm(direction))).to(start.dtype))
    return offsets


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm


# ---- losses ----


def pieces(x: Tensor, y: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """(x, y) in batches."""
    return list(zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True))


def mean_loss(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], attack: Attack | None, loss: Loss
) -> Tensor:
    """The mean loss over attacked batches, a scalar in float64 on the device of the data; nothing waits for it."""
    points = (_attacked(attack, model, images, labels) for images, labels in batches)
    return _losses(model, batches, points, loss).mean()


def _attacked(attack: Attack | None, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x if attack is None else attack(model, x, y).detach()


@torch.no_grad()
def _losses(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], points: Any, loss: Loss) -> Tensor:
    """The loss of every example at its point, N, in float64."""
    values = [
        _one_each(loss(model(point), labels), labels).double()
        for point, (_, labels) in zip(points, batches, strict=True)
    ]
    return torch.cat(values)


def _one_each(losses: Tensor, labels: Tensor) -> Tensor:
    if losses.shape != (len(labels),):
        raise CurvactError(
            f"the loss has shape {tuple(losses.shape)} for {len(labels)} examples: one number an example, shape ({len(labels)},)"
        )
    return losses


# ---- the joint ascent ----


def _ascend(
    model: nn.Module,
    weights: Displacement,
    batches: Sequence[tuple[Tensor, Tensor]],
    offsets: Sequence[Tensor],
    points: Sequence[Tensor],
    threat_model: ThreatModel | None,
    loss: Loss,
    *,
    radius: float,
    steps: int,
    weight_step: float,
    input_step: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """The point with the highest mean loss that was visited."""
    radii = [radius * norm for norm in weights.norms]
    offsets, points = list(offsets), list(points)
    best, best_offsets, best_points = None, offsets, points
    chosen = {id(p) for p in weights.parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    total = sum(len(labels) for _, labels in batches)
    for step in range(steps + 1):
        weights.set(offsets)
        uphill: list[Tensor] | None = None
        value = torch.zeros((), dtype=torch.float64, device=points[0].device)
        moved = []
        for point, (images, labels) in zip(points, batches, strict=True):
            if step == steps:
                with torch.no_grad():
                    value = value + _one_each(loss(model(point), labels), labels).double().sum() / total
                continue
            point = point.detach().requires_grad_(threat_model is not None)
            wanted = [*weights.parameters, *([point] if threat_model is not None else [])]
            with torch.enable_grad():
                losses = _one_each(loss(model(point), labels), labels)
                gradients = torch.autograd.grad(
                    losses.sum(), wanted, allow_unused=True, materialize_grads=True
                )
            mine = gradients[: len(weights.parameters)]
            uphill = list(mine) if uphill is None else [a + b for a, b in zip(uphill, mine, strict=True)]
            value = value + losses.detach().double().sum() / total
            if threat_model is not None:
                there = threat_model.ascend(point.detach(), gradients[-1], input_step * threat_model.epsilon)
                point = threat_model.project(there, images)
            moved.append(point.detach())
        if best is None:
            best = value
        else:
            higher = value > best
            best = torch.where(higher, value, best)
            best_offsets = [torch.where(higher, a, b) for a, b in zip(offsets, best_offsets, strict=True)]
            best_points = [torch.where(higher, a, b) for a, b in zip(points, best_points, strict=True)]
        if uphill is not None:
            points = moved
            offsets = [
                _step(offset, gradient, limit, weight_step)
                for offset, gradient, limit in zip(offsets, uphill, radii, strict=True)
            ]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return best_offsets, best_points


def _step(offset: Tensor, gradient: Tensor, limit: Tensor, share: float) -> Tensor:
    """offset + share·limit·gradient/‖gradient‖, brought back into the ball of radius limit."""
    moved = offset + gradient * (share * limit / _norm(gradient).clamp_min(1e-300)).to(offset.dtype)
    return moved * (limit / _norm(moved).clamp_min(1e-300)).clamp_max(1).to(offset.dtype)


def _pgd(threat_model: ThreatModel, steps: int, share: float, random: torch.Generator) -> Attack:
    def attack(model: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = PGD(steps, step=min(share, 2.0))
        return attack(model, x, y, threat_model, generator=random, keep_best=True)

    return attack


def _check(x: Tensor, y: Tensor, radius: float, batch_size: int, where: str) -> None:
    check_inputs(x, y, where, batch_size)
    if not (math.isfinite(radius) and radius > 0):
        raise CurvactError(f"radius={radius} in {where}: ξ must be a finite number > 0")


def _plain(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = {
        key: [finite(v) for v in value] if isinstance(value, tuple) else finite(value)
        for key, value in fields.items()
    }
    return {"kind": kind, **cleaned}
