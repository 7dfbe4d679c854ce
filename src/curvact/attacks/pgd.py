"""PGD and FGSM on any callable model: as functions, and as a value to print and parse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args

import torch
from torch import Tensor

from curvact.attacks.arguments import door
from curvact.attacks.batch import Guarded, check_number, checked, checked_labels, normal
from curvact.attacks.losses import AttackLoss, attack_loss, succeeded
from curvact.attacks.threat import ThreatModel, ball, check_per_sample
from curvact.errors import CurvactError, nearest
from curvact.models.modes import frozen
from curvact.names import called, parse_call, shortened

if TYPE_CHECKING:
    from typing_extensions import Unpack

Model = Callable[[Tensor], Tensor]
Attack = Callable[[Model, Tensor, Tensor], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]
Start = Literal["uniform", "gaussian", "none"]

GAUSSIAN = 0.001
"""Standard deviation of the gaussian start, in input units. [paper: TRADES, MART]"""
LONGEST = 2.0
"""The longest step, in units of ε: the diameter of the ball."""


def default_step(steps: int) -> float:
    """The length of a PGD step in units of ε: min(1, max(0.25, 2.5/steps)).

    At ε = 8/255 this is 2/255 for 10 and 20 steps, as in most papers.

    >>> [default_step(steps) for steps in (1, 5, 10, 20)]
    [1.0, 0.5, 0.25, 0.25]
    """
    return min(1.0, max(0.25, 2.5 / max(steps, 1)))


class Options(TypedDict, total=False):
    """Arguments of `pgd` that are not settings of the attack itself."""

    targets: Tensor | None
    epsilon: Tensor | None
    project: bool
    noise: float
    keep_best: bool
    early_stop: bool
    sparsity: float
    on_step: OnStep | None
    check: bool


@dataclass(frozen=True)
class PGD:
    """PGD as a value: call it, print it, parse it.

    steps: gradient steps, ≥ 0. step: their length in units of ε, at most 2; `default_step(steps)`
        where None.
    restarts: ≥ 1. start: "uniform", "gaussian" or "none"; None is "uniform", and in training the
        objective's own.
    loss: "ce", "margin", "dlr" or "pma".
    Raises CurvactError for other values.

    >>> str(PGD(20)), str(PGD(20, step=0.1, restarts=5))
    ('pgd-20', 'pgd(steps=20, step=0.1, restarts=5)')
    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> PGD(10)(model, torch.full((1, 3), 0.5), torch.tensor([0]), ThreatModel("linf", 0.1))
    tensor([[0.4000, 0.4000, 0.4000]])
    """

    steps: int
    step: float | None = None
    restarts: int = 1
    start: Start | None = None
    loss: str = "ce"

    def __post_init__(self) -> None:
        _check(self.steps, self.step, self.restarts)
        if self.start is not None:
            _check_start(self.start)
        if not isinstance(self.loss, str):
            raise CurvactError(f"loss={self.loss!r} of PGD: the name of a loss (`pgd` takes a callable too)")
        attack_loss(self.loss)

    @classmethod
    def parse(cls, text: str) -> PGD:
        """The value that `str` writes, such as "fgsm", "pgd-20", "pgd(steps=20, step=0.25)".

        Raises CurvactError for any other text.

        >>> PGD.parse("pgd(steps=10, start=none)")
        PGD(steps=10, step=None, restarts=1, start='none', loss='ce')
        """
        if text.strip() == "fgsm":
            return FGSM
        name, settings = parse_call(text)
        kind, _, steps = name.partition("-")
        if kind == "pgd" and steps.isdecimal() and not settings:
            return cls(int(steps))
        if name != "pgd" or not settings:
            raise CurvactError(f"cannot read PGD from '{text}': write pgd-20 or pgd(steps=20, step=0.25)")
        return called("pgd", cls, settings)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> dict[str, Any]:
        """The schema by which pydantic reads the value from its text and writes it as text.
        Pydantic is not imported for it.
        """

        def read(value: object) -> PGD:
            if isinstance(value, PGD):
                return value
            if not isinstance(value, str):
                raise CurvactError("a text such as pgd-10 or pgd(steps=5, step=0.4)")
            return cls.parse(value)

        return {
            "type": "function-plain",
            "function": {"type": "no-info", "function": read},
            "serialization": {"type": "to-string", "when_used": "always"},
            "json_schema_input_schema": {"type": "str"},
        }

    def __str__(self) -> str:
        if self == FGSM:
            return "fgsm"
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if list(changed) == ["steps"]:
            return f"pgd-{self.steps}"
        return f"pgd({', '.join(f'{name}={value}' for name, value in changed.items())})"

    @property
    def length(self) -> float:
        """The length of a step in units of ε."""
        return default_step(self.steps) if self.step is None else self.step

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        generator: torch.Generator | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """`pgd` with these settings. options: epsilon, on_step and the other arguments of `pgd`."""
        return pgd(
            model,
            x,
            y,
            threat_model,
            steps=self.steps,
            step=self.step,
            restarts=self.restarts,
            start=self.start or "uniform",
            loss=self.loss,
            generator=generator,
            **options,
        )

    def on(
        self,
        threat_model: ThreatModel,
        generator: torch.Generator | Callable[[torch.device], torch.Generator] | None = None,
        **options: Unpack[Options],
    ) -> Attack:
        """The attack `(model, x, y) -> x_adv` in this threat model.

        generator: of the random starts. A callable makes a new one at each call, from the device of
        x: with one seed, every call then starts at the same points.

        >>> attack = PGD(1).on(ThreatModel("linf", 0.1), lambda device: torch.Generator(device).manual_seed(0))
        >>> model, x, y = torch.nn.Identity(), torch.rand(2, 3), torch.tensor([0, 1])
        >>> bool((attack(model, x, y) == attack(model, x, y)).all())
        True
        """

        def attack(model: Model, x: Tensor, y: Tensor) -> Tensor:
            random = generator(x.device) if callable(generator) else generator
            return self(model, x, y, threat_model, generator=random, **options)

        return attack


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
    check: bool = True,
) -> Tensor:
    """One step of steepest ascent of length ε from x (Goodfellow et al. 2015). Shapes and arguments
    as `pgd`.

    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> fgsm(model, torch.full((1, 3), 0.5), torch.tensor([0]), ThreatModel("linf", 0.25))
    tensor([[0.2500, 0.2500, 0.2500]])
    """
    return pgd(
        model,
        x,
        y,
        threat_model,
        steps=1,
        step=1.0,
        start="none",
        loss=loss,
        targets=targets,
        epsilon=epsilon,
        sparsity=sparsity,
        check=check,
    )


@door
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int,
    step: float | None = None,
    restarts: int = 1,
    start: Start | Tensor = "uniform",
    project: bool = True,
    noise: float = 1.0,
    generator: torch.Generator | None = None,
    loss: str | AttackLoss = "ce",
    targets: Tensor | None = None,
    epsilon: Tensor | None = None,
    keep_best: bool = False,
    early_stop: bool = False,
    sparsity: float = 0.05,
    on_step: OnStep | None = None,
    check: bool = True,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018) on a loss; no weight gradient is computed.

    model: maps N×… inputs in [0, 1] to N×classes logits; its mode is left as it is.
    x: N×…, in [0, 1]. y: N, whole numbers.
    step: length of a step in units of ε and the norm of the threat model, at most 2;
        `default_step(steps)` where None.
    restarts: with more than one, an image keeps the last point that fooled the model, and only
        images not yet fooled are attacked again (one wait for the device a restart).
    start: "uniform" in the ball of radius noise·ε; "gaussian", x + 0.001·N(0, 1) projected (TRADES,
        MART); "none", x; or the points themselves, N×….
    project: onto ball and box after each step. If False, points are cut to [0, 1] only (N-FGSM).
    targets: N, int64: the attack then wants these classes predicted, and is done only where they
        are.
    epsilon: N radii ≥ 0 in the place of the threat model's one.
    keep_best: return the best point visited, one that fooled the model before one that did not,
        then the higher loss, rather
        than the last: one forward pass more a restart.
    early_stop: an image leaves the batch at the first point visited that fools the model, and that
        point is returned. Waits for the device once a step; without it steps never do.
    sparsity: the fraction of coordinates that an l1 step moves.
    on_step: called as `on_step(step, x_adv, loss)` with each point whose gradient is taken (step
        from 0, the start) and its losses, detached, on the device; only the images still in the
        batch.
    check: looks at the values of images and labels, once, before the first step. False for calls in
        a loop whose images were checked before it: nothing then waits for the device.
    Returns x_adv of the shape of x, detached, inside the threat model.
    Raises CurvactError for steps < 0, restarts < 1, a step outside (0, 2], an unknown loss or
    start, shapes that do not fit, images that are not floating point in [0, 1], labels that are no
    classes of the model, and a model that fails on the images. With a loss that is a callable, y is
    its own matter.

    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)
    >>> pgd(model, torch.full((1, 3), 0.5), torch.tensor([0]), ThreatModel("linf", 0.1), steps=5)
    tensor([[0.4000, 0.4000, 0.4000]])
    """
    compute_loss = attack_loss(loss)
    _check(steps, step, restarts)
    if not 0 < sparsity <= 1:
        raise CurvactError(f"sparsity={sparsity} of pgd: a fraction of the coordinates, 0 < sparsity <= 1")
    if not (math.isfinite(noise) and noise >= 0):
        raise CurvactError(f"noise={noise} of pgd: a number >= 0, in units of ε")
    named = isinstance(loss, str)
    highest = -1
    if check:
        x, y, highest = checked(x, y, "pgd", threat_model=threat_model, labelled=named)
        if named and targets is not None:
            targets, top = checked_labels(targets, x, "pgd", "targets")
            highest = max(highest, top)
    for name, value in (("y", y), ("targets", targets), ("epsilon", epsilon)):
        if isinstance(value, Tensor):
            check_per_sample(name, value, x)
        elif value is not None:
            raise CurvactError(f"{name}={shortened(value)} of pgd: a tensor, one value for each image")
    _check_start(start, x)
    if check:
        _check_values(epsilon, start, generator, x)
    x, y = normal(x), normal(y) if isinstance(y, Tensor) else y
    guarded = Guarded(model, "pgd", highest, logits=named)

    ascend = partial(
        _ascend,
        guarded,
        threat_model,
        compute_loss,
        steps=steps,
        step=default_step(steps) if step is None else step,
        start=start if isinstance(start, str) else "given",
        project=project,
        noise=noise,
        generator=generator,
        keep_best=keep_best,
        early_stop=early_stop,
        sparsity=sparsity,
        on_step=on_step,
    )
    batch = _Batch(x, y, targets, epsilon, start if isinstance(start, Tensor) else None)
    with frozen(model):
        best = ascend(batch)
        for _ in range(restarts - 1):
            with torch.no_grad():
                left = (~succeeded(guarded(best), y, targets)).nonzero().squeeze(1)
            if left.numel() == 0:
                break
            rest = batch.rows(left)
            again = ascend(rest)
            if keep_best:
                again = _better(guarded, compute_loss, rest, best[left], again)
            best = best.index_copy(0, left, again)
    return best


def _check(steps: int, step: float | None, restarts: int) -> None:
    check_number(steps, "steps", "pgd", 0)
    check_number(restarts, "restarts", "pgd")
    if step is None:
        return
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not (math.isfinite(step) and step > 0):
        raise CurvactError(f"step={shortened(step)} of pgd: a number > 0, in units of ε")
    if step > LONGEST:
        raise CurvactError(
            f"step={step!r} of pgd: at most {LONGEST:g}, because steps are in units of ε and the ball is 2ε wide"
        )


def _check_start(start: str | Tensor, x: Tensor | None = None) -> None:
    if isinstance(start, Tensor):
        if x is not None and start.shape != x.shape:
            raise CurvactError(
                f"start of pgd has shape {tuple(start.shape)}: that of the images, {tuple(x.shape)}"
            )
    elif start not in get_args(Start):
        known = get_args(Start)
        raise CurvactError(
            f"start={start!r} of pgd{nearest(str(start), known)}: allowed are {', '.join(known)}"
        )


def _check_values(
    epsilon: Tensor | None, start: str | Tensor, random: torch.Generator | None, x: Tensor
) -> None:
    if isinstance(epsilon, Tensor) and not bool((epsilon.isfinite() & (epsilon >= 0)).all()):
        raise CurvactError("epsilon of pgd holds numbers that are no radii: finite and >= 0")
    if isinstance(start, Tensor) and not bool(start.isfinite().all()):
        raise CurvactError("start of pgd holds NaN or infinity: points near the images")
    if random is not None and random.device.type != x.device.type:
        raise CurvactError(
            f"generator of pgd is on {random.device}, the images on {x.device}: one on their device"
        )


class _Batch(NamedTuple):
    """The images of an attack and their settings. start: the points to start from, where given."""

    x: Tensor
    y: Tensor
    targets: Tensor | None
    epsilon: Tensor | None
    start: Tensor | None

    def rows(self, index: Tensor) -> _Batch:
        return _Batch(
            self.x[index],
            self.y[index],
            None if self.targets is None else self.targets[index],
            None if self.epsilon is None else self.epsilon[index],
            None if self.start is None else self.start[index],
        )


def _ascend(
    model: Model,
    threat_model: ThreatModel,
    compute_loss: AttackLoss,
    batch: _Batch,
    *,
    steps: int,
    step: float,
    start: str,
    project: bool,
    noise: float,
    generator: torch.Generator | None,
    keep_best: bool,
    early_stop: bool,
    sparsity: float,
    on_step: OnStep | None,
) -> Tensor:
    x_adv = _started(threat_model, batch, start, noise, project, generator)
    length = step * (threat_model.epsilon if batch.epsilon is None else batch.epsilon)
    result, rows = x_adv, torch.arange(len(x_adv), device=x_adv.device)
    best = _Best(
        x_adv, x_adv.new_full((len(x_adv),), -torch.inf), torch.zeros_like(batch.y, dtype=torch.bool)
    )
    for number in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(x_adv)
            losses = compute_loss(logits, batch.y, batch.targets)
            if not isinstance(losses, Tensor) or losses.shape != (len(x_adv),):
                got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                raise CurvactError(f"the loss of pgd is {got}: a tensor ({len(x_adv)},), one loss an image")
            gradient = gradient_of(losses, x_adv, "pgd")
        with torch.no_grad():
            x_adv, losses = x_adv.detach(), losses.detach()
            if on_step is not None:
                on_step(number, x_adv, losses)
            if keep_best:
                best = best.or_else(x_adv, losses, succeeded(logits, batch.y, batch.targets))
            moved = threat_model.ascend(x_adv, gradient, length, sparsity)
            moved = threat_model.project(moved, batch.x, batch.epsilon) if project else moved.clamp_(0, 1)
            if early_stop:
                fooled = succeeded(logits, batch.y, batch.targets)
                result = result.index_copy(0, rows, torch.where(_like(fooled, x_adv), x_adv, moved))
                left = (~fooled).nonzero().squeeze(1)
                if left.numel() == 0:
                    return result
                batch, best, rows, moved = batch.rows(left), best.rows(left), rows[left], moved[left]
                length = length[left] if isinstance(length, Tensor) else length
            x_adv = moved
    x_adv = x_adv.detach()
    if keep_best:
        with torch.no_grad():
            logits = model(x_adv)
            losses = compute_loss(logits, batch.y, batch.targets)
            x_adv = best.or_else(x_adv, losses, succeeded(logits, batch.y, batch.targets)).x_adv
    return result.index_copy(0, rows, x_adv) if early_stop else x_adv


def _started(
    threat_model: ThreatModel,
    batch: _Batch,
    start: str,
    noise: float,
    project: bool,
    generator: torch.Generator | None,
) -> Tensor:
    x, epsilon = batch.x, batch.epsilon
    if batch.start is not None:
        given = batch.start.detach().to(x)
        return threat_model.project(given, x, epsilon) if project else given.clamp(0, 1)
    if start == "gaussian":
        draw = torch.empty_like(x).normal_(0, GAUSSIAN, generator=generator)
        return threat_model.project(x + draw, x, epsilon)
    if start == "uniform":
        wide = threat_model if noise == 1 else ball(threat_model.norm, noise * threat_model.epsilon)
        return wide.random_start(x, generator, None if epsilon is None else noise * epsilon)
    return x


def gradient_of(losses: Tensor, x: Tensor, where: str, *, retain_graph: bool = False) -> Tensor:
    """The gradient of the sum of the losses in x. CurvactError, in the name of `where`, if autograd
    finds no way from the outputs to x.
    """
    gradient = None
    if losses.requires_grad:
        (gradient,) = torch.autograd.grad(losses.sum(), x, allow_unused=True, retain_graph=retain_graph)
    if gradient is None:
        raise CurvactError(
            f"{where} needs a gradient, but the model's outputs do not depend on its inputs by a differentiable way "
            "(no_grad, detach or numpy inside?): use an attack without gradients, such as square"
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


FGSM = PGD(steps=1, step=1.0, start="none")
"""FGSM (Goodfellow et al. 2015) as a value."""
