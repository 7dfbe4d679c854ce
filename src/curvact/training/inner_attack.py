"""The attack inside an objective: PGD with start, loss and batch-norm mode as published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.attacks import LOSSES, PGD, AttackLoss, Model, Start, ThreatModel, attack_loss, pgd
from curvact.attacks.batch import Guarded, checked
from curvact.errors import CurvactError, nearest
from curvact.models.modes import frozen, mode

BatchNorm = Literal["eval", "train"]


@dataclass(frozen=True)
class Maximization:
    """The inner maximization of an objective, as its authors publish it.

    loss: "kl" is KL(p(x) ‖ p(x_adv)) with p(x) a constant (TRADES); else as in
        `curvact.attacks.pgd`.
    start: "uniform" in the ball of radius noise·ε, "gaussian" (x + 0.001·N(0, 1), projected) or
        "none".
    batch_norm: "eval" (running statistics, left as they are) or "train" (batch statistics; the
        running ones are updated, and dropout acts).
    steps, step: number and length (in units of ε) of the steps; None: those of the attack. steps=1
        makes it single-step.
    project: onto the ball after each step. If False, points are cut to [0, 1] only (N-FGSM).

    Raises CurvactError for an unknown batch_norm; the attack does for the other values.
    """

    loss: str | AttackLoss = "ce"
    start: Start = "uniform"
    batch_norm: BatchNorm = "eval"
    steps: int | None = None
    step: float | None = None
    noise: float = 1.0
    project: bool = True

    def __post_init__(self) -> None:
        check_batch_norm(self.batch_norm)


class TrainingAttack(Protocol):
    """The attack that an objective calls. `InnerAttack` and `Fixed` are two."""

    def __call__(self, model: Model, x: Tensor, y: Tensor, maximization: Maximization) -> Tensor:
        """Attacked images of the shape of x, in [0, 1], detached."""

    def cost(self, maximization: Maximization) -> int:
        """Gradient evaluations of one call."""

    def random_point(self, x: Tensor) -> Tensor:
        """A point of the threat model around x."""


def same(model: Model) -> Model:
    """The model as it is."""
    return model


@dataclass(frozen=True)
class InnerAttack:
    """PGD as the inside of a training step. It computes no weight gradient.

    attack: steps, their length, and the start. Where start is None, the objective's own is used.
    generator: of the random starts; None: the global one of torch.
    batch_norm: "eval" or "train" in place of the objective's own; None: the objective's own.
    view: gives the function that is attacked in place of the model, such as a twin without batch
        norm. It is called once an attack, with the model in the attack's mode.
    gradient_scale: a factor of the attack's loss, so that float16 gradients do not vanish. Steps do
        not depend on it, up to rounding. Losses are computed in float32 for float16 and bfloat16
        logits.
    check: looks at the values of images and labels at every call, as `pgd` does. `fit` checks its
        data once, before the first step, and switches this off.

    Raises CurvactError for a gradient_scale that is not a finite number > 0, or an unknown mode.

    >>> attack = InnerAttack(ThreatModel("linf", 0.1), PGD(5))
    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> attack(model, torch.full((1, 3), 0.5), torch.tensor([0]), Maximization(start="none"))
    tensor([[0.4000, 0.4000, 0.4000]])
    >>> attack.cost(Maximization()), attack.cost(Maximization(steps=1))
    (5, 1)
    """

    threat_model: ThreatModel
    attack: PGD
    generator: torch.Generator | None = None
    batch_norm: BatchNorm | None = None
    view: Callable[[Any], Model] = field(default=same)
    gradient_scale: float = 1.0
    check: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.gradient_scale < float("inf"):
            raise CurvactError(
                f"gradient_scale={self.gradient_scale!r} of a training attack: a finite number > 0"
            )
        if self.batch_norm is not None:
            check_batch_norm(self.batch_norm)

    def cost(self, maximization: Maximization) -> int:
        """Gradient evaluations of one call: one a step.

        The forward pass of "kl" for the clean outputs does not count.
        """
        return self.attack.steps if maximization.steps is None else maximization.steps

    def random_point(self, x: Tensor) -> Tensor:
        """x plus noise that is uniform in the ball, cut to [0, 1]."""
        return self.threat_model.random_start(x, self.generator)

    def __call__(self, model: Model, x: Tensor, y: Tensor, maximization: Maximization) -> Tensor:
        """Attacked images, N×…, in [0, 1], detached. The model's mode is restored after."""
        where, highest = "a training attack", -1
        if self.check:
            x, y, highest = checked(x, y, where, threat_model=self.threat_model)
        x = x.detach()
        training = (self.batch_norm or maximization.batch_norm) == "train"
        with mode(model, training=training), frozen(model):
            attacked = self.view(model)
            if self.check:
                attacked = Guarded(attacked, where, highest)
            return pgd(
                attacked,
                x,
                y,
                self.threat_model,
                steps=self.cost(maximization),
                step=self.attack.length if maximization.step is None else maximization.step,
                start=self.attack.start or maximization.start,
                project=maximization.project,
                noise=maximization.noise,
                generator=self.generator,
                loss=self._loss(maximization.loss, attacked, x),
                check=False,
            )

    def _loss(self, loss: str | AttackLoss, attacked: Model, x: Tensor) -> AttackLoss:
        if loss == "kl":
            with torch.no_grad():
                clean = F.log_softmax(at_least_float32(attacked(x)), dim=1)
            of_logits = _kl_from(clean)
        elif isinstance(loss, str) and loss not in LOSSES:
            known = ["kl", *LOSSES]
            raise CurvactError(
                f"unknown loss '{loss}' of a training attack{nearest(loss, known)}; "
                f"known are {', '.join(known)}"
            )
        else:
            of_logits = attack_loss(loss)
        return lambda logits, y, targets: (
            self.gradient_scale * of_logits(at_least_float32(logits), y, targets)
        )


def _kl_from(clean: Tensor) -> AttackLoss:
    return lambda logits, y, targets: kl(clean, F.log_softmax(logits, dim=1))


@dataclass(frozen=True, eq=False)
class Fixed:
    """An attack that returns the same images at each call, at cost 0.

    With it both passes of SAM and AWP see one adversarial batch.

    x_adv, point: N×…, as an `ObjectiveValue` holds them. grad-align compares gradients at the
    second, or at x_adv where it is None.

    >>> again = Fixed(torch.zeros(2, 3))
    >>> again(lambda x: x, torch.ones(2, 3), torch.tensor([0, 1]), Maximization()).sum().item()
    0.0
    """

    x_adv: Tensor
    point: Tensor | None = None

    def cost(self, maximization: Maximization) -> int:
        """0."""
        return 0

    def random_point(self, x: Tensor) -> Tensor:
        """The given point."""
        return (self.x_adv if self.point is None else self.point).detach()

    def __call__(self, model: Model, x: Tensor, y: Tensor, maximization: Maximization) -> Tensor:
        """The given images."""
        return self.x_adv.detach()


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p·(log p − log q) of each row, N, from N×classes log-probabilities.

    It is finite wherever they are.

    >>> kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.1438])
    """
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def at_least_float32(logits: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, other dtypes as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_batch_norm(value: object) -> None:
    """Raises CurvactError unless it is "eval" or "train"."""
    known = get_args(BatchNorm)
    if value not in known:
        raise CurvactError(
            f"batch_norm={value!r} of a training attack: allowed are {', '.join(known)}"
            f"{nearest(str(value), known)}"
        )
