"""How to train, as data: objective, schedule, weight-space methods, augmentation; and the learning rate at every step."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from curvact.errors import CurvactError, nearest

Settings = dict[str, Any]

OPTIMIZERS: dict[str, Settings] = {
    "sgd": {},
    "entropy-sgd": {
        "inner_steps": 20,
        "inner_lr": 0.1,
        "gamma": 0.03,
        "scoping": 1.001,
        "averaging": 0.75,
        "noise": 1e-4,
        "variant": "algorithm",
    },
}
PERTURBATIONS: dict[str, Settings] = {
    "none": {},
    "awp": {"gamma": 0.01, "start": 0.0},
    "sam": {"rho": 0.05},
}
AVERAGES: dict[str, Settings] = {"none": {}, "ema": {"decay": 0.995}, "swa": {"start": 0.75}}


@dataclass(frozen=True)
class Recipe:
    """How to train.

    objective: what is minimized, such as "pgd-at", "trades(beta=6)", "fgsm-rs", "standard": see `curvact.training.OBJECTIVES`.
    epochs: passes over the real training images. budget: if given, training ends after so many gradient evaluations
        (forward-backward passes of a batch, attack included), however many epochs that is; the schedule ends there too.
    batch_size: real and synthetic images together, over all processes.
    learning_rate: the highest. schedule: "cosine" (to `final_rate`), "piecewise" (times `decay` at each of `milestones`),
        "one-cycle" (linearly down to `final_rate`) or "constant"; before it the rate rises linearly over the first `warmup`
        part of all steps. milestones are parts of all steps.
    momentum, nesterov, weight_decay: SGD's. clip_norm: gradients are scaled down to this global norm.
    optimizer: "sgd" or "entropy-sgd(inner_steps=20, gamma=0.03, …)", whose outer rate is then `learning_rate`.
    perturbation: "none", "awp(gamma=0.01, start=0)" (from that part of the steps on) or "sam(rho=0.05)".
    averaging: "none", "ema(decay=0.995)" or "swa(start=0.75)" (over the ends of the epochs from that part of training on). What
        is evaluated and kept is then the average, its batch norm recalibrated.
    attack_steps, attack_step_size: of the PGD inside the objective; the step size in input units. attack_start,
        attack_batch_norm: None for what the objective's authors do.
    validation_steps: attack steps on the validation split; `attack_steps` if None.
    label_smoothing: of the outer cross-entropy.
    beta_penalty, beta_clip: of PSSiLU's β (arXiv 2110.05626): penalty·|β| joins the loss, and β's gradient is clipped to that
        norm. decay_activations: whether weight decay also acts on activation parameters.
    crop, flip, cutout: augmentation of the training images, see `curvact.data.Augmentation`.

    Raises CurvactError that names a value that cannot be.
    """

    objective: str = "pgd-at"
    epochs: int = 10
    batch_size: int = 48
    learning_rate: float = 0.06
    schedule: Literal["cosine", "piecewise", "one-cycle", "constant"] = "cosine"
    warmup: float = 0.3
    final_rate: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    optimizer: str = "sgd"
    perturbation: str = "none"
    averaging: str = "none"
    attack_steps: int = 5
    attack_step_size: float = 0.08
    attack_start: Literal["uniform", "gaussian", "none"] | None = None
    attack_batch_norm: Literal["eval", "train"] | None = None
    validation_steps: int | None = None
    label_smoothing: float = 0.0
    beta_penalty: float = 0.0
    beta_clip: float | None = None
    decay_activations: bool = True
    crop: int = 0
    flip: bool = False
    cutout: int = 0
    budget: int | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, (holds, allowed) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and holds(value)):
                raise CurvactError(f"{name}={value!r} of a recipe: {allowed}")
        _one_of("schedule", self.schedule, ("cosine", "piecewise", "one-cycle", "constant"))
        _one_of("attack_start", self.attack_start, ("uniform", "gaussian", "none", None))
        _one_of("attack_batch_norm", self.attack_batch_norm, ("eval", "train", None))
        if list(self.milestones) != sorted(set(self.milestones)) or not all(
            0 < m < 1 for m in self.milestones
        ):
            raise CurvactError(
                f"milestones={self.milestones!r} of a recipe: rising parts of all steps, each in (0, 1)"
            )
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("perturbation", PERTURBATIONS),
            ("averaging", AVERAGES),
        ):
            method(name, getattr(self, name), known)
        from curvact.training.objectives import objective

        objective(self.objective)

    def as_dict(self) -> dict[str, Any]:
        """Every field as plain data."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise CurvactError(
            f"{name}={value!r} of a recipe: allowed are {', '.join(str(a) for a in allowed if a is not None)}"
        )


def _whole(least: int) -> tuple[Any, str]:
    return lambda v: isinstance(v, int) and v >= least, f"a whole number >= {least}"


_POSITIVE = (lambda v: v > 0, "a number > 0")
_NOT_NEGATIVE = (lambda v: v >= 0, "a number >= 0")
_PART = (lambda v: 0 <= v < 1, "a number in [0, 1)")
_LIMITS: dict[str, tuple[Any, str]] = {
    "epochs": _whole(1),
    "batch_size": _whole(2),
    "learning_rate": _POSITIVE,
    "warmup": _PART,
    "final_rate": _NOT_NEGATIVE,
    "decay": _POSITIVE,
    "momentum": _PART,
    "weight_decay": _NOT_NEGATIVE,
    "clip_norm": _POSITIVE,
    "attack_steps": _whole(0),
    "attack_step_size": _POSITIVE,
    "validation_steps": _whole(0),
    "label_smoothing": _PART,
    "beta_penalty": _NOT_NEGATIVE,
    "beta_clip": _POSITIVE,
    "crop": _whole(0),
    "cutout": _whole(0),
    "budget": _whole(1),
}


def method(kind: str, text: str, known: Mapping[str, Settings]) -> tuple[str, Settings]:
    """Name and all settings of a method such as "awp(gamma=0.01)"; CurvactError for what is not known.

    >>> method("perturbation", "awp(gamma=0.005)", PERTURBATIONS)
    ('awp', {'gamma': 0.005, 'start': 0.0})
    """
    form = f"write the {kind} as name(setting=number, ...)"
    if not isinstance(text, str):
        raise CurvactError(f"{kind}={text!r}: {form}")
    name, bracket, inside = text.strip().partition("(")
    name = name.strip().lower()
    if name not in known:
        raise CurvactError(f"unknown {kind} '{name}'{nearest(name, known)}; known are {', '.join(known)}")
    settings = dict(known[name])
    if not bracket:
        return name, settings
    try:
        call = ast.parse(f"f({inside}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError
        given = {k.arg: _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise CurvactError(f"cannot read {kind}={text!r}: {form}") from None
    for key, value in given.items():
        if key is None or key not in settings:
            raise CurvactError(
                f"{name} has no setting '{key}'{nearest(str(key), settings)}; allowed are {', '.join(settings) or 'none'}"
            )
        same = isinstance(value, str) == isinstance(settings[key], str)
        if not same or (not isinstance(value, str) and not _is_number(value)):
            raise CurvactError(f"{kind}={text!r}: {key}={value!r} must be like {settings[key]!r}")
        settings[key] = value
    return name, settings


def _value(node: ast.expr) -> Any:
    """A literal, or a bare word as text."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """The rate at a step, counted from 0: linear warm-up, then the schedule.

    >>> [round(learning_rate(Recipe(learning_rate=1.0, warmup=0.5), step, 8), 2) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15]
    >>> steps = Recipe(learning_rate=1.0, warmup=0, schedule="piecewise")
    >>> [round(learning_rate(steps, step, 8), 2) for step in range(8)]
    [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    rising = recipe.warmup * total
    if step < rising:
        return recipe.learning_rate * (step + 1) / math.ceil(rising)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule == "piecewise":
        return recipe.learning_rate * recipe.decay ** sum(step >= m * total for m in recipe.milestones)
    done = (step - rising) / (total - rising)
    left = 0.5 * (1 + math.cos(math.pi * done)) if recipe.schedule == "cosine" else 1 - done
    return recipe.final_rate + (recipe.learning_rate - recipe.final_rate) * left
