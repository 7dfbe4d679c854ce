"""What adversarial training minimizes: one loss a method of the field, by name.

Cost convention: one gradient evaluation is one forward and backward pass of one batch through the network. Every attack step is
one and so is every image set that the training loss is differentiated at (TRADES and MART: clean and attacked, 2).
Differentiating an input gradient again is one more (grad-align). Forward passes without a backward one are not counted: the only
one is that of TRADES' attack, for its clean probabilities.

Label smoothing acts on the cross-entropy terms of the training loss only, never in the attack, a KL, or a margin.
All losses are computed in float32 for float16 and bfloat16 logits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks import frozen
from curvact.errors import CurvactError, nearest
from curvact.training.inner_attack import BatchNorm, TrainingAttack, at_least_float32, kl


@dataclass(frozen=True)
class Loss:
    """One batch's loss.

    value: scalar, to be differentiated with respect to the parameters.
    logits: N×classes, at the attacked images that were trained on (standard: the clean ones), detached.
    x_adv: those images.
    gradient_evaluations: forward-backward passes of the batch, attack and training together; see this module's first lines.
    random_point: other images that the loss drew (grad-align), for `fixed(x_adv, random_point)`; None if there are none.
    """

    value: Tensor
    logits: Tensor
    x_adv: Tensor
    gradient_evaluations: int
    random_point: Tensor | None = None


Objective = Callable[[nn.Module, Tensor, Tensor, TrainingAttack], Loss]


def standard(
    model: nn.Module, x: Tensor, y: Tensor, attack: TrainingAttack, *, label_smoothing: float = 0.0
) -> Loss:
    """Cross-entropy on clean images."""
    logits = model(x)
    return Loss(_cross_entropy(logits, y, label_smoothing), logits.detach(), x, 1)


def pgd_at(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    batch_norm: BatchNorm = "train",
    label_smoothing: float = 0.0,
) -> Loss:
    """Cross-entropy on attacked images only (Madry et al. 2018, arXiv 1706.06083), uniform start. [paper]

    batch_norm: "train" in the attack too, as in the authors' code; PAF (arXiv 2110.05626) and most later work have "eval".
    """
    x_adv = attack(model, x, y, loss="ce", start="uniform", batch_norm=batch_norm)
    return _trained_at(model, x_adv, y, attack.cost, label_smoothing)


def trades(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    beta: float = 6.0,
    batch_norm: BatchNorm = "eval",
    label_smoothing: float = 0.0,
) -> Loss:
    """`CE(f(x), y) + β·KL(p(x) ‖ p(x_adv))`, means over the batch, x_adv maximizing that KL (arXiv 1901.08573). [paper]

    Gaussian start of 0.001. Gradients flow through both sides of the KL. The clean images go through the network once; in the
    authors' code twice, with the same result (batch norm's running statistics apart).
    """
    x_adv = attack(model, x, y, loss="kl", start="gaussian", batch_norm=batch_norm)
    logits, clean, attacked = _clean_and_attacked(model, x, x_adv)
    value = _cross_entropy(logits, y, label_smoothing) + beta * kl(clean, attacked.log_softmax(1)).mean()
    return Loss(value, attacked.detach(), x_adv, attack.cost + 2)


def mart(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    beta: float = 6.0,
    batch_norm: BatchNorm = "eval",
    label_smoothing: float = 0.0,
) -> Loss:
    """`CE(f(x_adv), y) − log(1.0001 − max_{k≠y} p_k(x_adv)) + β·KL(p(x) ‖ p(x_adv))·(1 − p_y(x))`. [paper]

    (Wang et al., ICLR 2020.) Means over the batch; cross-entropy attack from a gaussian start of 0.001; gradients flow through
    every probability. 1.0001 is the authors' code's, 1 the paper's. [ours] log-probabilities are exact where that code has
    log(p + 1e-12), and its other constants (1e-7, 1e-12) are left out.
    """
    x_adv = attack(model, x, y, loss="ce", start="gaussian", batch_norm=batch_norm)
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
    return Loss(value, attacked.detach(), x_adv, attack.cost + 2)


def fgsm_rs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: TrainingAttack,
    *,
    step: float = 1.25,
    batch_norm: BatchNorm = "train",
    label_smoothing: float = 0.0,
) -> Loss:
    """Cross-entropy after one step of `step`·ε from a uniform start, projected (Wong et al. 2020, arXiv 2001.03994). [paper]

    Can overfit catastrophically: watch it with `OverfittingGuard`. [ours] l2 and l1.
    """
    x_adv = attack(
        model, x, y, loss="ce", start="uniform", batch_norm=batch_norm, steps=1, relative_step=step
    )
    return _trained_at(model, x_adv, y, attack.evaluations(1), label_smoothing)


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
) -> Loss:
    """Cross-entropy after one step of `step`·ε from uniform noise of radius `noise`·ε, cut to [0, 1] but not to the ball. [paper]

    (de Jorge et al. 2022, arXiv 2202.01181.) Perturbations are up to (noise + step)·ε long. [ours] l2 and l1.
    """
    x_adv = attack(
        model,
        x,
        y,
        loss="ce",
        start="uniform",
        batch_norm=batch_norm,
        steps=1,
        relative_step=step,
        noise=noise,
        project=False,
    )
    return _trained_at(model, x_adv, y, attack.evaluations(1), label_smoothing)


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
) -> Loss:
    """FGSM training plus `weight·(1 − mean cos(∇ₓℓ(x), ∇ₓℓ(x + η)))`, η uniform in the ball (arXiv 2007.02617). [paper]

    One step of `step`·ε from x itself, projected. As in the authors' code ∇ₓℓ(x) is a constant, images with a zero gradient
    are left out of the mean, and the network is in training mode throughout; 0.2 is their weight at 8/255 on CIFAR-10.
    [ours] x + η is cut to [0, 1]; ∇ₓℓ(x) is computed apart from the attack's; l2 and l1.
    Needs second derivatives of the network: no `torch.compile`.
    """
    x_adv = attack(model, x, y, loss="ce", start="none", batch_norm=batch_norm, steps=1, relative_step=step)
    point = attack.random_point(x)
    with frozen(model):
        at_x = _input_gradient(model, x, y, differentiable=False)
    at_point = _input_gradient(model, point, y, differentiable=True)
    loss = _trained_at(model, x_adv, y, attack.evaluations(1) + 3, label_smoothing)
    return Loss(
        loss.value + weight * _misalignment(at_x, at_point),
        loss.logits,
        x_adv,
        loss.gradient_evaluations,
        point,
    )


@dataclass(frozen=True)
class Entry:
    """What is known of an objective.

    function: `(model, x, y, attack, *, label_smoothing, **parameters) -> Loss`. defaults: its parameters as published.
    passes: gradient evaluations of the training loss itself. attack: "steps" (as many as the recipe says), "one" or "none".
    mark: provenance. source: where it is published. description: one line.
    """

    function: Callable[..., Loss]
    passes: int
    attack: str
    mark: str
    source: str
    description: str
    defaults: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def single_step(self) -> bool:
        """Whether the attack is one step whatever the recipe says; these can overfit catastrophically."""
        return self.attack == "one"

    def cost(self, attack_steps: int) -> int:
        """Gradient evaluations of one batch.

        >>> OBJECTIVES["trades"].cost(10), OBJECTIVES["fgsm-rs"].cost(10)
        (12, 2)
        """
        return self.passes + {"steps": attack_steps, "one": 1, "none": 0}[self.attack]


OBJECTIVES: dict[str, Entry] = {
    "standard": Entry(standard, 1, "none", "[paper]", "-", "cross-entropy on clean images"),
    "pgd-at": Entry(
        pgd_at,
        1,
        "steps",
        "[paper]",
        "arXiv 1706.06083",
        "cross-entropy on images attacked by PGD",
        {"batch_norm": "train"},
    ),
    "trades": Entry(
        trades,
        2,
        "steps",
        "[paper]",
        "arXiv 1901.08573",
        "clean cross-entropy + β·KL between clean and attacked outputs; the attack maximizes the KL",
        {"beta": 6.0, "batch_norm": "eval"},
    ),
    "mart": Entry(
        mart,
        2,
        "steps",
        "[paper]",
        "ICLR 2020, openreview rklOg6EFwS",
        "attacked cross-entropy with a margin + β·KL, weighted by how wrong the clean image is",
        {"beta": 6.0, "batch_norm": "eval"},
    ),
    "fgsm-rs": Entry(
        fgsm_rs,
        1,
        "one",
        "[paper]",
        "arXiv 2001.03994",
        "cross-entropy after one projected step from a random start (fast adversarial training)",
        {"step": 1.25, "batch_norm": "train"},
    ),
    "n-fgsm": Entry(
        n_fgsm,
        1,
        "one",
        "[paper]",
        "arXiv 2202.01181",
        "cross-entropy after one step from strong noise, not projected onto the ball",
        {"step": 1.0, "noise": 2.0, "batch_norm": "train"},
    ),
    "grad-align": Entry(
        grad_align,
        4,
        "one",
        "[paper]",
        "arXiv 2007.02617",
        "FGSM training with input gradients aligned inside the ball (double backward)",
        {"weight": 0.2, "step": 1.0, "batch_norm": "train"},
    ),
}


@dataclass(frozen=True)
class ConfiguredObjective:
    """An objective with its parameters: `objective(model, x, y, attack) -> Loss`; `str` is its canonical text."""

    name: str
    parameters: tuple[tuple[str, float | str], ...] = ()
    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: TrainingAttack) -> Loss:
        return self.entry.function(
            model, x, y, attack, label_smoothing=self.label_smoothing, **dict(self.parameters)
        )

    @property
    def entry(self) -> Entry:
        return OBJECTIVES[self.name]

    @property
    def single_step(self) -> bool:
        """Whether it can overfit catastrophically; see `Entry`."""
        return self.entry.single_step

    def cost(self, attack_steps: int) -> int:
        """Gradient evaluations of one batch with an attack of so many steps."""
        return self.entry.cost(attack_steps)

    def __str__(self) -> str:
        defaults = self.entry.defaults
        said = [f"{key}={_number(value)}" for key, value in sorted(self.parameters) if value != defaults[key]]
        return f"{self.name}({', '.join(said)})" if said else self.name


def objective(text: str, label_smoothing: float = 0.0) -> ConfiguredObjective:
    """An objective from its text, such as "standard", "pgd-at(batch_norm=eval)" or "trades(beta=6)".

    label_smoothing: in [0, 1), of the cross-entropy terms in the training loss.
    Raises CurvactError, in one line with the nearest allowed name, for what it does not know.

    >>> str(objective("TRADES( beta = 3.0 )"))
    'trades(beta=3)'
    >>> objective("fgsm-rs").single_step
    True
    """
    name, given = _parse(text)
    if name not in OBJECTIVES:
        raise CurvactError(
            f"unknown objective '{name}'{nearest(name, OBJECTIVES)}; known are {', '.join(OBJECTIVES)}"
        )
    defaults = OBJECTIVES[name].defaults
    parameters: dict[str, float | str] = dict(defaults)
    for key, value in given:
        if key not in defaults:
            allowed = ", ".join(defaults) or "none"
            raise CurvactError(
                f"unknown parameter '{key}' in {text!r}: allowed are {allowed}{nearest(key, defaults)}"
            )
        parameters[key] = _value(text, key, value, defaults[key])
    smoothing: Any = label_smoothing
    if isinstance(smoothing, bool) or not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
        raise CurvactError(
            f"label_smoothing={label_smoothing!r} of the objective {text!r}: a number in [0, 1)"
        )
    return ConfiguredObjective(name, tuple(sorted(parameters.items())), float(smoothing))


def objective_name(text: str) -> str:
    """The canonical text: parameters in order, those with their published values left out. Equal objectives have equal texts.

    >>> objective_name("trades(beta=6.0, batch_norm=train)"), objective_name("trades(beta=6)")
    ('trades(batch_norm=train)', 'trades')
    """
    return str(objective(text))


def _parse(text: str) -> tuple[str, list[tuple[str, str]]]:
    form = "write it as name(parameter=value, ...), such as trades(beta=6)"
    found = (
        re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*", text) if isinstance(text, str) else None
    )
    if found is None:
        raise CurvactError(f"cannot read the objective {text!r}: {form}")
    given: list[tuple[str, str]] = []
    for part in (found[2] or "").split(",") if (found[2] or "").strip() else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key.isidentifier() and equals and value):
            raise CurvactError(f"cannot read '{part.strip()}' in the objective {text!r}: {form}")
        if key in dict(given):
            raise CurvactError(f"parameter '{key}' is given twice in the objective {text!r}")
        given.append((key, value.strip("'\"")))
    return found[1].lower(), given


def _value(text: str, key: str, value: str, default: float | str) -> float | str:
    if isinstance(default, str):
        modes = get_args(BatchNorm)
        if value not in modes:
            raise CurvactError(
                f"{key}={value} in the objective {text!r}: allowed are {', '.join(modes)}{nearest(value, modes)}"
            )
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    positive = key == "step"
    if not (math.isfinite(number) and (number > 0 if positive else number >= 0)):
        raise CurvactError(
            f"{key}={value} in the objective {text!r}: a finite number {'> 0' if positive else '>= 0'}"
        )
    return number + 0.0  # −0 is 0


def _number(value: float | str) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(at_least_float32(logits), y, label_smoothing=label_smoothing)


def _trained_at(model: nn.Module, x_adv: Tensor, y: Tensor, cost: int, label_smoothing: float) -> Loss:
    logits = model(x_adv)
    return Loss(_cross_entropy(logits, y, label_smoothing), logits.detach(), x_adv, cost + 1)


def _clean_and_attacked(model: nn.Module, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the clean images, their log-probabilities, and logits of the attacked ones: two batches, also to batch norm."""
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
    """Rows of length 1; divided by their largest entry first, so that tiny gradients neither vanish nor overflow."""
    scaled = rows / rows.detach().abs().amax(1, keepdim=True)
    return cast(Tensor, scaled / scaled.norm(dim=1, keepdim=True))
