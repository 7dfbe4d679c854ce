"""The losses of adversarial training: one function a method of the field, by name.

Cost: one gradient evaluation is one forward and backward pass of one batch through the network.
Each attack step is one, and so is each set of images that the training loss is differentiated at
(TRADES and MART: clean and attacked, 2). Differentiating an input gradient again is one more
(grad-align). Forward passes without a backward one do not count: those of TRADES' attack, for its
clean probabilities, and of HAT's helper.

Label smoothing acts on the cross-entropy terms of the training loss only, never in the attack, a
KL, or a margin.
All losses are computed in float32 for float16 and bfloat16 logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks import PGD
from curvact.errors import CurvactError
from curvact.models.modes import frozen, mode
from curvact.names import shortened
from curvact.training.inner_attack import (
    BatchNorm,
    Maximization,
    TrainingAttack,
    at_least_float32,
    check_batch_norm,
    kl,
)
from curvact.training.parsing import is_number, method


@dataclass(frozen=True)
class ObjectiveValue:
    """The loss of one batch.

    value: scalar, to be differentiated with respect to the parameters.
    logits: N×classes, at the images that were trained on (attacked; clean for "standard"),
        detached.
    x_adv: those images.
    gradient_evaluations: forward-backward passes of the batch, attack and training together; see
        the top of this module.
    random_point: further images that the loss drew (grad-align), for `Fixed(x_adv, random_point)`;
        None if it drew none.
    """

    value: Tensor
    logits: Tensor
    x_adv: Tensor
    gradient_evaluations: int
    random_point: Tensor | None = None


_PLAIN = Maximization()

Objective = Callable[[nn.Module, Tensor, Tensor, TrainingAttack], ObjectiveValue]


def standard(
    model: nn.Module, x: Tensor, y: Tensor, attack: TrainingAttack, *, label_smoothing: float = 0.0
) -> ObjectiveValue:
    """Cross-entropy on clean images."""
    logits = model(x)
    return ObjectiveValue(_cross_entropy(logits, y, label_smoothing), logits.detach(), x, 1)


def pgd_at(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    batch_norm: BatchNorm = "train",
    label_smoothing: float = 0.0,
) -> ObjectiveValue:
    """Cross-entropy on attacked images only, from a uniform start. [paper]

    (Madry et al. 2018, arXiv 1706.06083.)

    batch_norm: "train" in the attack too, as in the authors' code; PAF (arXiv 2110.05626) and most
        later work have "eval".
    """
    return _trained_at_attacked(model, x, y, attack, Maximization(batch_norm=batch_norm), label_smoothing)


def trades(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    beta: float = 6.0,
    batch_norm: BatchNorm = "eval",
    label_smoothing: float = 0.0,
) -> ObjectiveValue:
    """`CE(f(x), y) + β·KL(p(x) ‖ p(x_adv))`, x_adv maximizing that KL. [paper]

    (Zhang et al. 2019, arXiv 1901.08573.) Means over the batch. Gaussian start of 0.001; [ours] it
    is cut to [0, 1], which the authors' code leaves out. Gradients flow through both sides of the
    KL. The clean images go through the network once; in
    the authors' code twice, with the same result (batch norm's running statistics apart).
    """
    inside = Maximization(loss="kl", start="gaussian", batch_norm=batch_norm)
    x_adv = attack(model, x, y, inside)
    logits, clean, attacked = _clean_and_attacked(model, x, x_adv)
    value = _cross_entropy(logits, y, label_smoothing) + beta * kl(clean, attacked.log_softmax(1)).mean()
    return ObjectiveValue(value, attacked.detach(), x_adv, attack.cost(inside) + 2)


def mart(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    beta: float = 6.0,
    batch_norm: BatchNorm = "eval",
    label_smoothing: float = 0.0,
) -> ObjectiveValue:
    """`CE(f(x_adv), y) − log(1.0001 − max_{k≠y} p_k(x_adv)) + β·KL(p(x) ‖ p(x_adv))·(1 − p_y(x))`.
    [paper]

    (Wang et al., ICLR 2020.) Means over the batch. Cross-entropy attack from a gaussian start of
    0.001; [ours] it is cut to [0, 1], which the authors' code leaves out. Gradients flow through
    every probability. 1.0001 is from the authors' code, the paper has 1. [ours] Log-probabilities
    are exact where that code has log(p + 1e-12), and its other constants (1e-7, 1e-12) are left
    out.
    """
    inside = Maximization(start="gaussian", batch_norm=batch_norm)
    x_adv = attack(model, x, y, inside)
    _, clean, attacked = _clean_and_attacked(model, x, x_adv)
    log_q = attacked.log_softmax(1)
    right = y[:, None]
    wrong = log_q.detach().scatter(1, right, -torch.inf).argmax(1, keepdim=True)
    boosted = -torch.log(1.0001 - log_q.gather(1, wrong).exp()).squeeze(1)
    misclassified = 1 - clean.gather(1, right).squeeze(1).exp()
    value = (
        _cross_entropy(attacked, y, label_smoothing)
        + boosted.mean()
        + beta * (kl(clean, log_q) * misclassified).mean()
    )
    return ObjectiveValue(value, attacked.detach(), x_adv, attack.cost(inside) + 2)


def fgsm_rs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    step: float = 1.25,
    batch_norm: BatchNorm = "train",
    label_smoothing: float = 0.0,
) -> ObjectiveValue:
    """Cross-entropy after one step of `step`·ε from a uniform start, projected. [paper]

    (Wong et al. 2020, arXiv 2001.03994.)

    Can overfit catastrophically: `curvact.training.guard.overfitting` notices it. [ours] l2 and l1.
    """
    inside = Maximization(batch_norm=batch_norm, steps=1, step=step)
    return _trained_at_attacked(model, x, y, attack, inside, label_smoothing)


def n_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    step: float = 1.0,
    noise: float = 2.0,
    batch_norm: BatchNorm = "train",
    label_smoothing: float = 0.0,
) -> ObjectiveValue:
    """Cross-entropy after one step of `step`·ε from uniform noise of radius `noise`·ε. [paper]

    (de Jorge et al. 2022, arXiv 2202.01181.) Images are cut to [0, 1], but not to the ball:
    perturbations are up to (noise + step)·ε long. [ours]
    l2 and l1.
    """
    inside = Maximization(batch_norm=batch_norm, steps=1, step=step, noise=noise, project=False)
    return _trained_at_attacked(model, x, y, attack, inside, label_smoothing)


def grad_align(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    weight: float = 0.2,
    step: float = 1.0,
    batch_norm: BatchNorm = "train",
    label_smoothing: float = 0.0,
) -> ObjectiveValue:
    """FGSM training plus `weight·(1 − mean cos(∇ₓℓ(x), ∇ₓℓ(x + η)))`. [paper]

    (Andriushchenko, Flammarion 2020, arXiv 2007.02617.) η is uniform in the ball. One step of
    `step`·ε from x itself, projected. As in the authors' code ∇ₓℓ(x) is a constant, images with a
    zero gradient are left out of the mean, and the network is in training mode
    throughout; 0.2 is their weight at 8/255 on CIFAR-10. [ours] x + η is cut to [0, 1]; ∇ₓℓ(x) is
    computed apart from the attack's; l2 and l1.
    Needs second derivatives of the network: no `torch.compile`.
    """
    inside = Maximization(start="none", batch_norm=batch_norm, steps=1, step=step)
    x_adv = attack(model, x, y, inside)
    point = attack.random_point(x)
    with frozen(model):
        at_x = _input_gradient(model, x, y, differentiable=False)
    at_point = _input_gradient(model, point, y, differentiable=True)
    logits = model(x_adv)
    value = _cross_entropy(logits, y, label_smoothing) + weight * _misalignment(at_x, at_point)
    return ObjectiveValue(value, logits.detach(), x_adv, attack.cost(inside) + 4, point)


def hat(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    helper: nn.Module,
    beta: float = 2.5,
    gamma: float = 0.5,
    h: float = 2.0,
    batch_norm: BatchNorm = "eval",
    label_smoothing: float = 0.0,
) -> ObjectiveValue:
    """HAT: TRADES + `γ·CE(f(x + h·(x_adv − x)), ŷ)`, ŷ the helper's prediction at x_adv. [paper]

    (Rade, Moosavi-Dezfooli, ICLR 2022.) The helper is a network of standard training, in eval mode:
    far images keep the label that it gives, so that the margin does not grow without need.
    β, γ and h are those of the authors' commands for CIFAR-10 without extra data. As in their code
    x + h·(x_adv − x) is not cut to [0, 1], and clean, attacked and far images are three batches, also
    for batch norm. x_adv is that of `trades`. Label smoothing acts on both cross-entropies. [ours]
    """
    base = trades(model, x, y, attack, beta=beta, batch_norm=batch_norm, label_smoothing=label_smoothing)
    with torch.no_grad():
        outputs = helper(base.x_adv.clone())  # a copy: a helper may work in place
    far = model(x + h * (base.x_adv - x))
    term = gamma * _cross_entropy(far, outputs.argmax(1), label_smoothing)
    # NaN ends training; nothing waits for the device here.
    value = base.value + torch.where(outputs.isfinite().all(), term, torch.nan)
    return replace(base, value=value, gradient_evaluations=base.gradient_evaluations + 1)


_NO_PARAMETERS = ("label_smoothing", "helper")
"""Arguments of an objective's function that its text does not set."""


@dataclass(frozen=True)
class Entry:
    """An objective in the registry.

    function: `(model, x, y, attack, **parameters)`, which returns an `ObjectiveValue`, or the loss
        and the logits of the images that were trained on; its arguments after `attack` and their
        default values are the parameters, as published. It may take `label_smoothing` too, and
        `helper`, a second, trained network, which is in eval mode inside and gets no gradient.
    passes: gradient evaluations of the training loss itself. attack: "steps" (as many as the recipe
        has), "one" or "none".
    """

    function: Callable[..., ObjectiveValue | tuple[Tensor, Tensor]]
    passes: int
    attack: Literal["steps", "one", "none"]

    @property
    def defaults(self) -> dict[str, float | str]:
        """The parameters with their published values."""
        found = list(inspect.signature(self.function).parameters.values())
        return {p.name: p.default for p in found[4:] if p.name not in _NO_PARAMETERS}

    @property
    def smooths_labels(self) -> bool:
        """Whether the loss takes `label_smoothing`."""
        return "label_smoothing" in inspect.signature(self.function).parameters

    @property
    def needs_helper(self) -> bool:
        """Whether the loss asks a second, trained network."""
        return "helper" in inspect.signature(self.function).parameters

    @property
    def single_step(self) -> bool:
        """Whether the attack is one step, whatever the recipe has: it can overfit catastrophically."""
        return self.attack == "one"

    def cost(self, attack_steps: int) -> int:
        """Gradient evaluations of one batch.

        >>> OBJECTIVES["trades"].cost(10), OBJECTIVES["fgsm-rs"].cost(10)
        (12, 2)
        """
        return self.passes + {"steps": attack_steps, "one": 1, "none": 0}[self.attack]


OBJECTIVES: dict[str, Entry] = {
    "standard": Entry(standard, 1, "none"),
    "pgd-at": Entry(pgd_at, 1, "steps"),
    "trades": Entry(trades, 2, "steps"),
    "mart": Entry(mart, 2, "steps"),
    "fgsm-rs": Entry(fgsm_rs, 1, "one"),
    "n-fgsm": Entry(n_fgsm, 1, "one"),
    "grad-align": Entry(grad_align, 4, "one"),
    "hat": Entry(hat, 3, "steps"),
}


def register_objective(
    name: str,
    function: Callable[..., ObjectiveValue | tuple[Tensor, Tensor]],
    *,
    passes: int = 1,
    attack: Literal["steps", "one", "none"] = "steps",
) -> None:
    """Make an objective known by name, so that a recipe can use it.

    name: lower-case letters, digits and dashes. function, passes, attack: as in `Entry`. A function
    that returns a loss and logits may call `attack(model, x, y)`, or with a `Maximization` as the
    fourth argument; its images and its cost are then known from these calls.
    Raises CurvactError for a name that is taken or has other characters, and for a function of
    another form.

    >>> def doubled(model, x, y, attack, factor=2.0):
    ...     logits = model(attack(model, x, y))
    ...     return factor * F.cross_entropy(logits, y), logits
    >>> register_objective("doubled", doubled)
    >>> str(objective("doubled(factor=3)"))
    'doubled(factor=3)'
    >>> del OBJECTIVES["doubled"]
    """
    parameters = list(inspect.signature(function).parameters.values()) if callable(function) else []
    settings = [p for p in parameters[4:] if p.name != "helper"]
    if len(parameters) < 4 or any(
        p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) or p.default is p.empty for p in settings
    ):
        raise CurvactError(
            f"the function of the objective '{name}' must take model, x, y, attack, and then only arguments "
            "with default values, and helper"
        )
    for p in settings:
        if not isinstance(p.default, (bool, str)) and not is_number(p.default):
            raise CurvactError(
                f"the setting {p.name}={p.default!r} of the objective '{name}': its default value must be a "
                "number, a word, or True or False"
            )
    if not isinstance(name, str) or not name.replace("-", "").isalnum() or name != name.lower():
        raise CurvactError(f"name={name!r} of an objective: lower-case letters, digits and dashes")
    if name in OBJECTIVES:
        raise CurvactError(f"the objective '{name}' is known already: choose another name")
    OBJECTIVES[name] = Entry(function, passes, attack)


class _Watched:
    """A training attack that remembers its images, its random point and what its calls cost."""

    def __init__(self, attack: TrainingAttack) -> None:
        self.attack = attack
        self.images: Tensor | None = None
        self.point: Tensor | None = None
        self.evaluations = 0

    def __call__(self, model: Any, x: Tensor, y: Tensor, maximization: Maximization = _PLAIN) -> Tensor:
        self.images = self.attack(model, x, y, maximization)
        self.evaluations += self.attack.cost(maximization)
        return self.images

    def cost(self, maximization: Maximization = _PLAIN) -> int:
        return self.attack.cost(maximization)

    def random_point(self, x: Tensor) -> Tensor:
        self.point = self.attack.random_point(x)
        return self.point


@dataclass(frozen=True)
class ConfiguredObjective:
    """An objective with its parameters: `objective(model, x, y, attack) -> ObjectiveValue`.

    `str` is its canonical text, without parameters at their published values: equal objectives have
    equal texts.
    helper: the network that the loss asks, see `asking`.
    """

    name: str
    parameters: tuple[tuple[str, float | str], ...] = ()
    label_smoothing: float = 0.0
    helper: nn.Module | None = field(default=None, compare=False, repr=False)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: TrainingAttack) -> ObjectiveValue:
        entry, settings = self.entry, dict[str, Any](self.parameters)
        if entry.smooths_labels:
            settings["label_smoothing"] = self.label_smoothing
        watched = _Watched(attack)
        with ExitStack() as stack:
            if entry.needs_helper:
                helper = settings["helper"] = cast(nn.Module, self.asking(self.helper).helper)
                stack.enter_context(mode(helper, training=False))
                stack.enter_context(frozen(helper))
            found: object = entry.function(model, x, y, watched, **settings)
        if isinstance(found, ObjectiveValue):
            self._check_loss(found.value)
            return found
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(t, Tensor) for t in found)):
            raise CurvactError(
                f"the objective '{self.name}' returned {type(found).__name__}: it must return an "
                "ObjectiveValue, or a loss and logits"
            )
        loss, logits = found
        if loss.dim() or logits.dim() != 2 or len(logits) != len(x):
            raise CurvactError(
                f"the objective '{self.name}' returned a loss of shape {tuple(loss.shape)} and logits of shape "
                f"{tuple(logits.shape)} for {len(x)} images: it must return one number and N×classes"
            )
        self._check_loss(loss)
        images = x if watched.images is None else watched.images
        cost = watched.evaluations + entry.passes
        return ObjectiveValue(loss, logits.detach(), images, cost, watched.point)

    def asking(self, helper: nn.Module | None) -> ConfiguredObjective:
        """The same objective with its helper, a network that takes the same images.

        Raises CurvactError where it needs one and gets none, and where it needs none and gets one.
        """
        if helper is None and self.entry.needs_helper:
            raise CurvactError(
                f"the objective '{self.name}' needs a helper, a trained network: fit(…, helper=network), or "
                "helper: PATH in a spec"
            )
        if helper is not None and not self.entry.needs_helper:
            raise CurvactError(f"helper: the objective '{self.name}' asks no second network; leave it out")
        if helper is not None and not isinstance(helper, nn.Module):
            raise CurvactError(f"helper={shortened(helper)}: must be an nn.Module")
        return replace(self, helper=helper)

    def _check_loss(self, loss: object) -> None:
        if not isinstance(loss, Tensor) or loss.dim():
            form = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise CurvactError(f"the objective '{self.name}' returned a loss {form}: it must be one number")
        if not loss.requires_grad:
            raise CurvactError(
                f"the loss of the objective '{self.name}' depends on no weight: compute it from the model's "
                "logits, outside of torch.no_grad() and without detach()"
            )

    @property
    def entry(self) -> Entry:
        return OBJECTIVES[self.name]

    def __str__(self) -> str:
        defaults = self.entry.defaults
        changed = [f"{key}={_number(value)}" for key, value in self.parameters if value != defaults[key]]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


def objective(text: str, label_smoothing: float = 0.0) -> ConfiguredObjective:
    """An objective from its text, such as "pgd-at(batch_norm=eval)" or "trades(beta=6)".

    label_smoothing: in [0, 1), of the cross-entropy terms in the training loss.
    Raises CurvactError, in one line with the nearest allowed name, for an unknown name, parameter
    or value.

    >>> str(objective("TRADES( beta = 3.0 )"))
    'trades(beta=3)'
    >>> objective("fgsm-rs").entry.single_step
    True
    """
    name, given = method("objective", text, {name: entry.defaults for name, entry in OBJECTIVES.items()})
    if label_smoothing and not OBJECTIVES[name].smooths_labels:
        raise CurvactError(f"label_smoothing={label_smoothing!r}: the objective '{name}' does not take it")
    parameters = {key: _checked(text, key, value) for key, value in given.items()}
    if not is_number(label_smoothing) or not 0 <= label_smoothing < 1:
        raise CurvactError(
            f"label_smoothing={label_smoothing!r} of the objective {text!r}: a number in [0, 1)"
        )
    return ConfiguredObjective(name, tuple(sorted(parameters.items())), float(label_smoothing))


def _checked(text: str, key: str, value: float | str) -> float | str:
    if key == "batch_norm":
        check_batch_norm(value)
    if isinstance(value, (str, bool)):
        return value
    if key == "step":
        PGD(1, step=value)  # raises for a length that is not allowed
    if value < 0:
        raise CurvactError(f"{key}={value} in the objective {text!r}: a number >= 0")
    return float(value) + 0.0  # −0 is 0


def _number(value: float | str) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(at_least_float32(logits), y, label_smoothing=label_smoothing)


def _trained_at_attacked(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    inside: Maximization,
    label_smoothing: float,
) -> ObjectiveValue:
    """Cross-entropy at the attacked images."""
    x_adv = attack(model, x, y, inside)
    logits = model(x_adv)
    value = _cross_entropy(logits, y, label_smoothing)
    return ObjectiveValue(value, logits.detach(), x_adv, attack.cost(inside) + 1)


def _clean_and_attacked(model: nn.Module, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the clean images, their log-probabilities, and logits of the attacked images.

    These are two batches, also for batch norm.
    """
    logits = at_least_float32(model(x))
    return logits, logits.log_softmax(1), at_least_float32(model(x_adv))


def _input_gradient(model: nn.Module, x: Tensor, y: Tensor, differentiable: bool) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        total = F.cross_entropy(at_least_float32(model(x)), y, reduction="sum")
        (gradient,) = torch.autograd.grad(total, x, create_graph=differentiable)
    return gradient


def _misalignment(a: Tensor, b: Tensor) -> Tensor:
    """1 − the mean cosine of the rows of which neither is zero; 0 if there are none."""
    a, b = a.flatten(1), b.flatten(1)
    usable = a.detach().any(1) & b.detach().any(1)
    rows = usable[:, None]
    a, b = torch.where(rows, a, 1.0), torch.where(rows, b, 1.0)
    cosine = (_direction(a) * _direction(b)).sum(1)
    return torch.where(usable, 1 - cosine, 0.0).sum() / usable.sum().clamp_min(1)


def _direction(rows: Tensor) -> Tensor:
    """Rows of length 1; divided by their largest entry first, so that no square underflows."""
    scaled = rows / rows.detach().abs().amax(1, keepdim=True)
    return cast(Tensor, scaled / scaled.norm(dim=1, keepdim=True))
