"""APGD (arXiv 2003.01690, algorithm 1) over a batch that broken points leave and waiting points
enter.

Every point counts its own iterations and starts from noise that depends on seed, run and its own
index only. So the batch changes nothing but the rounding of the model's arithmetic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from curvact.attacks.autoattack.ensemble import Step
from curvact.attacks.losses import ce, dlr
from curvact.attacks.pgd import Model
from curvact.attacks.threat import ThreatModel
from curvact.random import generator

Confirm = Callable[[Tensor, Tensor], Tensor]
"""(indices, x_adv) -> bool: which of these are successes of the plain model."""

RHO = 0.75
MOMENTUM = 0.25
GPU_STRIDE = 10


def apgd(
    step: Step,
    model: Model,
    confirm: Confirm,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    threat_model: ThreatModel,
    *,
    seed: int,
    batch_size: int,
    targets: Tensor | None = None,
) -> int:
    """Attack x until every point is broken or has withstood all runs; `confirm` keeps the
    successes.

    x: n×C×H×W in [0, 1], on the model's device; y: n. index: n, the points' numbers in the whole
        set (on the CPU). l∞ or l2.
    targets: n×step.targets classes, tried in turn; None: for "apgd-t" those after the first by their
        logits.
    Returns the number of starts with a gradient of zero. Waits for the device every step on a CPU,
    every 10th on a GPU.
    """
    runs = step.restarts * max(step.targets, 1)
    if targets is None and step.attack == "apgd-t":
        targets = targets_of(model, x, batch_size, step.targets)
    window = checkpoints(step.budget).to(x.device)
    stride = 1 if x.device.type == "cpu" else GPU_STRIDE
    waiting = deque((point, 0) for point in range(len(x)))
    linf = threat_model.norm == "linf"
    zero = torch.zeros((), dtype=torch.int64, device=x.device)
    slots: dict[str, Tensor] = {}

    def start(jobs: list[tuple[int, int]]) -> dict[str, Tensor]:
        points = torch.tensor([point for point, _ in jobs])
        noise = torch.stack(
            [
                _noise(x.shape[1:], threat_model, step.attack, seed, run, int(index[point]))
                for point, run in jobs
            ]
        ).to(x)
        points = points.to(x.device)
        clean = x[points]
        run = torch.tensor([run for _, run in jobs], device=x.device)
        none = torch.zeros(len(jobs), device=x.device)
        return {
            "point": points,
            "run": run,
            "at": torch.zeros_like(run),
            "low": (clean - threat_model.epsilon).clamp_min_(0) if linf else clean,
            "high": (clean + threat_model.epsilon).clamp_max_(1) if linf else clean,
            "y": y[points],
            "target": y[points] if targets is None else targets[points, run // step.restarts],
            "x": (clean + threat_model.epsilon * noise).clamp_(0, 1),
            "before": clean,
            "best": clean,
            "best_gradient": clean,
            "best_loss": none,
            "last_loss": none,
            "checked_loss": none,
            "rises": none,
            "reduced": none.bool(),
            "size": none + 2 * threat_model.epsilon,
            "hit": none.bool(),
            "x_hit": clean,
        }

    count = 0
    while waiting or slots:
        room = batch_size - (len(slots["point"]) if slots else 0)
        if waiting and room > 0 and (count % stride == 0 or not slots):
            new = start([waiting.popleft() for _ in range(min(room, len(waiting)))])
            slots = {key: torch.cat([slots[key], new[key]]) for key in new} if slots else new
        zero += _advance(slots, model, step, threat_model, window, targeted=targets is not None)
        count += 1
        if count % stride:
            continue
        hit, done = slots["hit"], slots["at"] > step.budget
        if not bool((hit | done).any()):
            continue
        leaves = done.clone()
        if bool(hit.any()):
            rows = hit.nonzero().squeeze(1)
            broken = confirm(slots["point"][rows], slots["x_hit"][rows])
            slots["hit"] = torch.zeros_like(hit)
            leaves[rows] |= broken
            done[rows] &= ~broken
        again = zip(slots["point"][done].tolist(), (slots["run"][done] + 1).tolist(), strict=True)
        waiting.extendleft(job for job in reversed(list(again)) if job[1] < runs)
        keep = (~leaves).nonzero().squeeze(1)
        slots = {key: value[keep] for key, value in slots.items()} if len(keep) else {}
    return int(zero)


def _advance(
    slots: dict[str, Tensor],
    model: Model,
    step: Step,
    threat_model: ThreatModel,
    window: Tensor,
    *,
    targeted: bool,
) -> Tensor:
    """Evaluate every slot at its point and take one step; returns the number of starts without a
    gradient.
    """
    at, here = slots["at"], slots["x"]
    logits, loss, gradient = _evaluate(
        model, here, slots["y"], slots["target"] if targeted else None, step.attack
    )
    fooled = (logits.max(1)[1] != slots["y"]) & (at <= step.budget) & ~slots["hit"]
    slots["x_hit"] = _rows(fooled, here, slots["x_hit"])
    slots["hit"] = slots["hit"] | fooled

    first = at == 0
    better = first | (loss > slots["best_loss"])
    best = _rows(better, here, slots["best"])
    best_gradient = _rows(better, gradient, slots["best_gradient"])
    best_loss = torch.where(better, loss, slots["best_loss"])
    checked_loss = torch.where(first, loss, slots["checked_loss"])
    rises = torch.where(first, 0.0, slots["rises"] + (loss > slots["last_loss"]).to(loss.dtype))

    length = window[at.clamp_max(step.budget)]
    check = length > 0
    stalled = ~slots["reduced"] & (checked_loss >= best_loss)
    halve = check & ((rises <= RHO * length) | stalled)
    size = torch.where(halve, slots["size"] / 2, slots["size"])
    origin, direction = _rows(halve, best, here), _rows(halve, best_gradient, gradient)

    if threat_model.norm == "linf":
        ahead = torch.addcmul(origin, direction.sign(), _wide(size, here))
    else:
        direction = direction.nan_to_num(0.0, 0.0, 0.0)
        ahead = torch.addcmul(origin, direction, _wide(size, here) / _length(direction).clamp_min(1e-12))
    ahead = _project(ahead, slots, threat_model)
    inertia = _wide(torch.where(first, 0.0, MOMENTUM), here)
    mixed = torch.lerp(ahead, origin, inertia).addcmul_(origin - slots["before"], inertia)
    slots.update(
        x=_project(mixed, slots, threat_model),
        before=origin,
        best=best,
        best_gradient=best_gradient,
        best_loss=best_loss,
        last_loss=loss,
        checked_loss=torch.where(check, best_loss, checked_loss),
        rises=torch.where(check, 0.0, rises),
        # At the start the step counts as reduced: the second condition never fires at the first
        # checkpoint.
        reduced=torch.where(check, halve, slots["reduced"] | first),
        size=size,
        at=at + 1,
    )
    return (first & ~(gradient.flatten(1).abs().sum(1) > 0)).sum()  # zero, or not a number


def checkpoints(steps: int) -> Tensor:
    """For each iteration 0 … steps: iterations since the checkpoint before if it is one, else 0.

    The first after 22 % of all steps; each interval is 3 % shorter than the one before, and at
    least 6 %.

    >>> checkpoints(100).nonzero().squeeze(1).tolist()
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    window = torch.zeros(steps + 1)
    length, place = max(int(0.22 * steps), 1), 0
    while place + length <= steps:
        place += length
        window[place] = length
        length = max(length - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return window


def _evaluate(
    model: Model, x: Tensor, y: Tensor, target: Tensor | None, attack: str
) -> tuple[Tensor, Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        loss = ce(logits, y) if attack == "apgd-ce" else dlr(logits, y, target)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return logits.detach(), loss.detach(), gradient


def targets_of(model: Model, x: Tensor, batch_size: int, count: int) -> Tensor:
    """The classes after the first by their logits on the clean points, n×count."""
    with torch.no_grad():
        ranked = [model(part).argsort(1, descending=True) for part in torch.split(x, batch_size)]
    return torch.cat(ranked)[:, 1 : count + 1]


def _noise(
    shape: torch.Size, threat_model: ThreatModel, attack: str, seed: int, run: int, index: int
) -> Tensor:
    """A random direction of length 1 for one point and run."""
    random = generator(seed, f"autoattack {attack}", run, index)
    if threat_model.norm == "linf":
        noise = torch.rand(shape, generator=random) * 2 - 1
        length = noise.abs().max()
    else:
        noise = torch.randn(shape, generator=random)
        length = torch.linalg.vector_norm(noise)
    return noise / length.clamp_min(1e-12)


def _project(x_adv: Tensor, slots: dict[str, Tensor], threat_model: ThreatModel) -> Tensor:
    """The threat model's projection. Slots keep the bounds of l∞, or the clean images, in "low" and
    "high".
    """
    if threat_model.norm == "linf":
        return torch.clamp(x_adv, slots["low"], slots["high"])
    clean = slots["low"]
    delta = x_adv - clean
    shrink = (threat_model.epsilon / _length(delta).clamp_min(1e-12)).clamp_max(1)
    return torch.addcmul(clean, delta, shrink).clamp_(0, 1)


def _rows(chosen: Tensor, those: Tensor, others: Tensor) -> Tensor:
    """`those` in the chosen rows, else `others`. On a CPU all or none chosen saves the copy."""
    if chosen.device.type == "cpu":
        if not bool(chosen.any()):
            return others
        if bool(chosen.all()):
            return those
    return torch.where(_wide(chosen, those), those, others)


def _length(delta: Tensor) -> Tensor:
    return _wide(torch.linalg.vector_norm(delta.flatten(1), dim=1), delta)


def _wide(value: Tensor, like: Tensor) -> Tensor:
    return value.view(-1, *[1] * (like.dim() - 1))
