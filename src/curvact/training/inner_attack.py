"""The attack inside an adversarial objective: PGD with the start, the loss and the batch-norm mode that each method publishes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.attacks import LOSSES, AttackLoss, Model, Start, ThreatModel, attack_loss, frozen, mode, pgd
from curvact.errors import CurvactError, nearest

BatchNorm = Literal["eval", "train"]
STARTS = ("uniform", "gaussian", "none")


class TrainingAttack(Protocol):
    """What an objective asks of its attack; `InnerAttack` and `fixed` are two.

    Called, it returns x_adv of the shape of x, detached. See `InnerAttack.__call__` for the arguments.
    """

    @property
    def cost(self) -> int:
        """Gradient evaluations of one call."""

    def evaluations(self, steps: int | None = None) -> int:
        """Gradient evaluations of one call with `steps`."""

    def random_point(self, x: Tensor) -> Tensor:
        """A point of the threat model around x."""

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        loss: str | AttackLoss = "ce",
        start: str = "uniform",
        batch_norm: BatchNorm = "eval",
        steps: int | None = None,
        step_size: float | None = None,
        relative_step: float | None = None,
        noise: float = 1.0,
        project: bool = True,
    ) -> Tensor: ...


def same(model: Model) -> Model:
    """The model as it is."""
    return model


@dataclass(frozen=True)
class InnerAttack:
    """PGD as the inside of a training step. It never computes a weight gradient.

    threat_model: any norm. steps, step_size: of PGD; the step size in input units.
    generator: of the random starts; torch's global one if None.
    start: "uniform" in the ball, "gaussian" (x + 0.001·N(0, 1), brought back into ball and box) or "none". batch_norm: "eval"
        (running statistics, left alone) or "train" (batch statistics, running ones updated, as in the published codes; dropout
        works too). None leaves both to the objective, which has the published ones.
    view: what the attack sees of the model, such as the module inside a DDP wrapper, or the model under autocast; called once an
        attack, the model in the attack's mode.
    gradient_scale: the attack's loss is multiplied by it, so that float16 gradients do not vanish. Steps do not depend on it, up
        to rounding. Losses are computed in float32 for float16 and bfloat16 logits.
    Raises CurvactError for steps < 0, step_size ≤ 0, gradient_scale ≤ 0, or an unknown start or mode.

    >>> attack = InnerAttack(ThreatModel("linf", 0.1), steps=5, step_size=0.05)
    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> attack(model, torch.full((1, 3), 0.5), torch.tensor([0]), start="none")
    tensor([[0.4000, 0.4000, 0.4000]])
    >>> attack.cost
    5
    """

    threat_model: ThreatModel
    steps: int
    step_size: float
    generator: torch.Generator | None = None
    start: str | None = None
    batch_norm: BatchNorm | None = None
    view: Callable[[Model], Model] = same
    gradient_scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise CurvactError(f"steps={self.steps!r} of a training attack: a whole number >= 0")
        for name, value in (("step_size", self.step_size), ("gradient_scale", self.gradient_scale)):
            least = 0 if name == "step_size" and self.threat_model.epsilon == 0 else math.ulp(0.0)
            if not (math.isfinite(value) and value >= least):
                raise CurvactError(f"{name}={value!r} of a training attack: a finite number > 0")
        _one_of("start", self.start, (None, *STARTS))
        _one_of("batch_norm", self.batch_norm, (None, *get_args(BatchNorm)))

    @property
    def cost(self) -> int:
        """Gradient evaluations (forward-backward passes of the batch) of one call. "kl" takes one forward pass more."""
        return self.evaluations()

    def evaluations(self, steps: int | None = None) -> int:
        """Gradient evaluations of a call with `steps`; with the attack's own if None."""
        return self.steps if steps is None else steps

    def random_point(self, x: Tensor) -> Tensor:
        """x plus noise that is uniform in the ball, cut to [0, 1]."""
        return self.threat_model.random_start(x, self.generator)

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        loss: str | AttackLoss = "ce",
        start: str = "uniform",
        batch_norm: BatchNorm = "eval",
        steps: int | None = None,
        step_size: float | None = None,
        relative_step: float | None = None,
        noise: float = 1.0,
        project: bool = True,
    ) -> Tensor:
        """Attacked images, N×…, in [0, 1], detached; the model's mode is restored after.

        loss: "kl" is KL(p(x) ‖ p(x_adv)), p(x) a constant (TRADES); else as in `curvact.attacks.pgd`.
        start, batch_norm: what the objective publishes; the attack's own fields, where they are not None, have the last word.
        steps, step_size: in the place of the attack's own. relative_step: step size in units of ε, in the place of both.
        noise: radius of the uniform start, in units of ε. project: onto the ball after every step; without it the result lies in
        [0, 1] only (N-FGSM).
        """
        start = self.start or start
        batch_norm = self.batch_norm or batch_norm
        _one_of("start", start, STARTS)
        _one_of("batch_norm", batch_norm, get_args(BatchNorm))
        steps = self.steps if steps is None else steps
        if relative_step is not None:
            step_size = relative_step * self.threat_model.epsilon
        length = self.step_size if step_size is None else step_size
        x = x.detach()
        with mode(model, training=batch_norm == "train"), frozen(model):
            seen = self.view(model)
            return pgd(
                seen,
                x,
                y,
                self.threat_model,
                steps=steps,
                step=length / self.threat_model.epsilon if self.threat_model.epsilon else None,
                start=cast(Start, start),
                project=project,
                noise=noise,
                generator=self.generator,
                loss=self._loss(loss, seen, x),
            )

    def _loss(self, loss: str | AttackLoss, seen: Model, x: Tensor) -> AttackLoss:
        if loss == "kl":
            with torch.no_grad():
                clean = F.log_softmax(at_least_float32(seen(x)), dim=1)
            of_logits: AttackLoss = lambda logits, y, targets: kl(clean, F.log_softmax(logits, dim=1))  # noqa: E731
        elif isinstance(loss, str) and loss not in LOSSES:
            known = ["kl", *LOSSES]
            raise CurvactError(
                f"unknown loss '{loss}' of a training attack{nearest(loss, known)}; known are {', '.join(known)}"
            )
        else:
            of_logits = attack_loss(loss)
        return lambda logits, y, targets: (
            self.gradient_scale * of_logits(at_least_float32(logits), y, targets)
        )


@dataclass(frozen=True, eq=False)
class Fixed:
    """An attack that returns the same images at every call, at cost 0. See `fixed`."""

    x_adv: Tensor
    point: Tensor

    @property
    def cost(self) -> int:
        return 0

    def evaluations(self, steps: int | None = None) -> int:
        return 0

    def random_point(self, x: Tensor) -> Tensor:
        return self.point

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        loss: str | AttackLoss = "ce",
        start: str = "uniform",
        batch_norm: BatchNorm = "eval",
        steps: int | None = None,
        step_size: float | None = None,
        relative_step: float | None = None,
        noise: float = 1.0,
        project: bool = True,
    ) -> Tensor:
        return self.x_adv


def fixed(x_adv: Tensor, random_point: Tensor | None = None) -> Fixed:
    """An attack that gives these images again, at cost 0: both passes of SAM and AWP then see the same adversarial batch.

    x_adv, random_point: N×…, as a `Loss` holds them. The second is what grad-align compares gradients at; without it, it compares
    them at x_adv.

    >>> again = fixed(torch.zeros(2, 3))
    >>> again(lambda x: x, torch.ones(2, 3), torch.tensor([0, 1])).sum().item(), again.cost
    (0.0, 0)
    """
    x_adv = x_adv.detach()
    return Fixed(x_adv, x_adv if random_point is None else random_point.detach())


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p·(log p − log q) of each row, N, from N×classes log-probabilities; finite wherever they are.

    >>> kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.1438])
    """
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def at_least_float32(logits: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, other dtypes as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _one_of(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        known = [a for a in allowed if a is not None]
        raise CurvactError(
            f"{name}={value!r} of a training attack: allowed are {', '.join(known)}{nearest(str(value), known)}"
        )
