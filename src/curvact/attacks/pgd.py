"""FGSM and PGD as plain functions over any callable model. They never compute a weight gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError

Model = Callable[[Tensor], Tensor]
Attack = Callable[[Model, Tensor, Tensor], Tensor]


def fgsm(model: Model, x: Tensor, y: Tensor, threat_model: ThreatModel) -> Tensor:
    """One signed-gradient step of length ε from x (Goodfellow et al. 2015). Shapes as `pgd`.

    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> fgsm(model, torch.full((1, 3), 0.5), torch.tensor([0]), ThreatModel("linf", 0.25))
    tensor([[0.2500, 0.2500, 0.2500]])
    """
    return pgd(model, x, y, threat_model, steps=1, step_size=threat_model.epsilon, random_start=False)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int,
    step_size: float,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent on the cross-entropy (Madry et al. 2018).

    model: maps N×… inputs in [0, 1] to N×classes logits; its mode is left as it is.
    x: N×…, in [0, 1]. y: N, int64.
    step_size: in input units.
    restarts: with more than one, an image keeps the last point that fooled the model, and only images not yet fooled are
        attacked again.
    Returns x_adv of the shape of x, detached, inside the threat model.
    Raises CurvactError for steps < 0, restarts < 1 or step_size ≤ 0.

    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> pgd(model, torch.full((1, 3), 0.5), torch.tensor([0]), ThreatModel("linf", 0.1), steps=5, step_size=0.05)
    tensor([[0.4000, 0.4000, 0.4000]])
    """
    if (steps < 0 or restarts < 1 or not step_size > 0) and not (
        threat_model.epsilon == 0 and step_size == 0
    ):
        raise CurvactError(
            f"pgd got steps={steps}, restarts={restarts}, step_size={step_size}: steps >= 0, restarts >= 1, step_size > 0"
        )
    x = x.detach()
    with frozen(model):
        best = _ascend(model, x, y, threat_model, steps, step_size, random_start, generator)
        for _ in range(restarts - 1):
            with torch.no_grad():
                standing = model(best).argmax(1) == y
            left = standing.nonzero().squeeze(1)
            if left.numel() == 0:
                break
            again = _ascend(model, x[left], y[left], threat_model, steps, step_size, random_start, generator)
            best = best.index_copy(0, left, again)
    return best


def _ascend(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    steps: int,
    step_size: float,
    random_start: bool,
    generator: torch.Generator | None,
) -> Tensor:
    x_adv = threat_model.random_start(x, generator) if random_start else x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(model(x_adv), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
        with torch.no_grad():
            x_adv = threat_model.project(threat_model.ascend(x_adv, gradient, step_size), x)
    return x_adv.detach()


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
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode inside; every submodule's own mode is restored after."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was
