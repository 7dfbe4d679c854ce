"""FGSM and PGD as plain functions over any callable model. They never compute a weight gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curvact.attacks.losses import AttackLoss, attack_loss, succeeded
from curvact.attacks.threat import ThreatModel, check_per_sample
from curvact.errors import CurvactError

Model = Callable[[Tensor], Tensor]
Attack = Callable[[Model, Tensor, Tensor], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    loss: str | AttackLoss = "ce",
    targets: Tensor | None = None,
    epsilon: Tensor | None = None,
    sparsity: float = 0.05,
) -> Tensor:
    """One step of steepest ascent of length ε from x (Goodfellow et al. 2015). Shapes and arguments as `pgd`.

    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> fgsm(model, torch.full((1, 3), 0.5), torch.tensor([0]), ThreatModel("linf", 0.25))
    tensor([[0.2500, 0.2500, 0.2500]])
    """
    step: float | Tensor = threat_model.epsilon if epsilon is None else epsilon
    return pgd(
        model,
        x,
        y,
        threat_model,
        steps=1,
        step_size=step,
        random_start=False,
        loss=loss,
        targets=targets,
        epsilon=epsilon,
        sparsity=sparsity,
    )


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int,
    step_size: float | Tensor,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    loss: str | AttackLoss = "ce",
    targets: Tensor | None = None,
    epsilon: Tensor | None = None,
    keep_best: bool = False,
    early_stop: bool = False,
    sparsity: float = 0.05,
    on_step: OnStep | None = None,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018) on a loss of the logits.

    model: maps N×… inputs in [0, 1] to N×classes logits; its mode is left as it is.
    x: N×…, in [0, 1]. y: N, int64.
    step_size: in input units and the norm of the threat model; one for all images, or N.
    restarts: with more than one, an image keeps the last point that fooled the model, and only images not yet fooled are
        attacked again (one wait for the device a restart).
    loss: "ce", "margin", "dlr" or a callable `(logits, y, targets) -> N`, to be maximized.
    targets: N, int64: the attack then wants these classes predicted, and is done only where they are.
    epsilon: N radii in the place of the threat model's one. Values are not looked at: they must be ≥ 0.
    keep_best: return the best point visited, one that fooled the model before one that did not, then the higher loss, rather
        than the last: one forward pass more a restart.
    early_stop: an image leaves the batch at the first point visited that fools the model, and that point is returned. Waits
        for the device once a step; without it steps never do.
    sparsity: the fraction of coordinates that an l1 step moves.
    on_step: called as `on_step(step, x_adv, loss)` with each point whose gradient is taken (step from 0, the start) and its
        losses, detached, on the device; only the images still in the batch.
    Returns x_adv of the shape of x, detached, inside the threat model.
    Raises CurvactError for steps < 0, restarts < 1, step_size ≤ 0, an unknown loss, or shapes that do not fit.

    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> pgd(model, torch.full((1, 3), 0.5), torch.tensor([0]), ThreatModel("linf", 0.1), steps=5, step_size=0.05)
    tensor([[0.4000, 0.4000, 0.4000]])
    """
    compute_loss = attack_loss(loss)
    _check(steps, restarts, step_size, sparsity, threat_model)
    for name, value in (("y", y), ("targets", targets), ("epsilon", epsilon), ("step_size", step_size)):
        if isinstance(value, Tensor):
            check_per_sample(name, value, x)
    x = x.detach()

    ascend = partial(
        _ascend,
        model,
        threat_model,
        compute_loss,
        steps=steps,
        random_start=random_start,
        generator=generator,
        keep_best=keep_best,
        early_stop=early_stop,
        sparsity=sparsity,
        on_step=on_step,
    )
    batch = _Batch(x, y, targets, epsilon, step_size)
    with frozen(model):
        best = ascend(batch)
        for _ in range(restarts - 1):
            with torch.no_grad():
                left = (~succeeded(model(best), y, targets)).nonzero().squeeze(1)
            if left.numel() == 0:
                break
            rest = batch.rows(left)
            again = ascend(rest)
            if keep_best:
                again = _better(model, compute_loss, rest, best[left], again)
            best = best.index_copy(0, left, again)
    return best


def _check(
    steps: int, restarts: int, step_size: float | Tensor, sparsity: float, threat_model: ThreatModel
) -> None:
    still = threat_model.epsilon == 0 and not isinstance(step_size, Tensor) and step_size == 0
    length = isinstance(step_size, Tensor) or step_size > 0 or still
    if steps < 0 or restarts < 1 or not length:
        raise CurvactError(
            f"pgd got steps={steps}, restarts={restarts}, step_size={step_size}: steps >= 0, restarts >= 1, step_size > 0"
        )
    if not 0 < sparsity <= 1:
        raise CurvactError(f"pgd got sparsity={sparsity}: a fraction of the coordinates, 0 < sparsity <= 1")


class _Batch(NamedTuple):
    """What an attack knows of each image."""

    x: Tensor
    y: Tensor
    targets: Tensor | None
    epsilon: Tensor | None
    step_size: float | Tensor

    def rows(self, index: Tensor) -> _Batch:
        return _Batch(
            self.x[index],
            self.y[index],
            None if self.targets is None else self.targets[index],
            None if self.epsilon is None else self.epsilon[index],
            self.step_size[index] if isinstance(self.step_size, Tensor) else self.step_size,
        )


def _ascend(
    model: Model,
    threat_model: ThreatModel,
    compute_loss: AttackLoss,
    batch: _Batch,
    *,
    steps: int,
    random_start: bool,
    generator: torch.Generator | None,
    keep_best: bool,
    early_stop: bool,
    sparsity: float,
    on_step: OnStep | None,
) -> Tensor:
    x_adv = threat_model.random_start(batch.x, generator, batch.epsilon) if random_start else batch.x
    result, rows = x_adv, torch.arange(len(x_adv), device=x_adv.device)
    best = _Best(
        x_adv, x_adv.new_full((len(x_adv),), -torch.inf), torch.zeros_like(batch.y, dtype=torch.bool)
    )
    for step in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(x_adv)
            losses = compute_loss(logits, batch.y, batch.targets)
            gradient = _gradient(losses, x_adv)
        with torch.no_grad():
            x_adv, losses = x_adv.detach(), losses.detach()
            if on_step is not None:
                on_step(step, x_adv, losses)
            if keep_best:
                best = best.or_else(x_adv, losses, succeeded(logits, batch.y, batch.targets))
            moved = threat_model.ascend(x_adv, gradient, batch.step_size, sparsity)
            moved = threat_model.project(moved, batch.x, batch.epsilon)
            if early_stop:
                fooled = succeeded(logits, batch.y, batch.targets)
                result = result.index_copy(0, rows, torch.where(_like(fooled, x_adv), x_adv, moved))
                left = (~fooled).nonzero().squeeze(1)
                if left.numel() == 0:
                    return result
                batch, best, rows, moved = batch.rows(left), best.rows(left), rows[left], moved[left]
            x_adv = moved
    x_adv = x_adv.detach()
    if keep_best:
        with torch.no_grad():
            logits = model(x_adv)
            losses = compute_loss(logits, batch.y, batch.targets)
            x_adv = best.or_else(x_adv, losses, succeeded(logits, batch.y, batch.targets)).x_adv
    return result.index_copy(0, rows, x_adv) if early_stop else x_adv


def _gradient(losses: Tensor, x: Tensor) -> Tensor:
    """The gradient of the losses in x; CurvactError where the model has cut the way back."""
    gradient = None
    if losses.requires_grad:
        (gradient,) = torch.autograd.grad(losses.sum(), x, allow_unused=True)
    if gradient is None:
        raise CurvactError(
            "pgd needs a gradient, but the model's outputs do not depend on its inputs by a differentiable way (no_grad, detach "
            "or numpy inside?): attack it without gradients, such as by square"
        )
    return gradient


class _Best(NamedTuple):
    """The best point of each image so far: one that fooled the model first, then the higher loss."""

    x_adv: Tensor
    loss: Tensor
    fooled: Tensor

    def rows(self, index: Tensor) -> _Best:
        return _Best(*[value[index] for value in self])

    def or_else(self, x_adv: Tensor, loss: Tensor, fooled: Tensor) -> _Best:
        better = (fooled & ~self.fooled) | ((fooled == self.fooled) & (loss > self.loss))
        return _Best(
            torch.where(_like(better, x_adv), x_adv, self.x_adv),
            torch.where(better, loss.to(self.loss.dtype), self.loss),
            self.fooled | fooled,
        )


def _better(model: Model, compute_loss: AttackLoss, batch: _Batch, old: Tensor, new: Tensor) -> Tensor:
    """The better of two points of each image."""
    with torch.no_grad():
        points = []
        for x_adv in (old, new):
            logits = model(x_adv)
            loss = compute_loss(logits, batch.y, batch.targets)
            points.append(_Best(x_adv, loss, succeeded(logits, batch.y, batch.targets)))
    return points[0].or_else(*points[1]).x_adv


def _like(flags: Tensor, x: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (x.dim() - 1))


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """No parameter of the model asks for a gradient inside; their flags are restored after."""
    asked = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    for p in asked:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)


@contextmanager
def mode(model: Model, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode inside; every submodule's own mode is restored after.

    A callable that is no `nn.Module` has no mode and is left alone.
    """
    before = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    if isinstance(model, nn.Module):
        model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was
