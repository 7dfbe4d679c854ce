"""How to train, as data: objective, attack, schedule, methods, augmentation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from curvact.attacks import PGD
from curvact.errors import CurvactError
from curvact.training.methods.moreau import check_settings
from curvact.training.objectives import objective
from curvact.training.parsing import Settings, is_number, method

Kind = Literal["optimizer", "perturbation", "averaging"]
METHODS: dict[Kind, dict[str, Settings]] = {
    "optimizer": {
        "sgd": {},
        "adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        "entropy-sgd": {
            "inner_steps": 20,
            "inner_lr": 0.1,
            "gamma": 0.03,
            "scoping": 1.001,
            "averaging": 0.75,
            "noise": 1e-4,
            "variant": "algorithm",
        },
    },
    "perturbation": {"none": {}, "awp": {"gamma": 0.01, "start": 0.0}, "sam": {"rho": 0.05}},
    "averaging": {
        "none": {},
        "ema": {"decay": 0.995},
        "swa": {"start": 0.75},
        "me-a": {"rho": 5e-4, "outer": "swa", "start": 0.5, "decay": 0.995},
    },
}
"""The methods of each kind, with their settings and default values."""

DEFAULT_ATTACK = PGD(5)


@dataclass(frozen=True)
class Recipe:
    """How to train.

    objective: the training loss, such as "pgd-at", "trades(beta=6)", "fgsm-rs", "standard"; see
        `curvact.training.OBJECTIVES`. What batch norm does inside the attack is a parameter of the
        objective, such as "pgd-at(batch_norm=eval)".
    epochs: passes over the real training images.
    budget: if given, training ends after this number of gradient evaluations (forward-backward
        passes of a batch, attacks included) instead of after `epochs`, and the schedule ends there
        too.
    batch_size: real and synthetic images together, over all processes.
    learning_rate: the highest rate.
    schedule: "cosine" (down to `final_rate`), "piecewise" (times `decay` at each of `milestones`),
        "one-cycle" (linearly down to `final_rate`) or "constant".
    warmup: the part of all steps, before the schedule, over which the rate rises linearly.
    final_rate: the rate at the end. milestones: parts of all steps, in (0, 1), rising.
    decay: the factor of the rate at each milestone.
    momentum, nesterov: of SGD. clip_norm: the largest global norm of the gradient.
    weight_decay: of SGD it is a part of the gradient, of AdamW it shrinks the weights apart from it.
    weight_decay_on: "all", or "weights": parameters with two dimensions or more, without those of
        norm layers and of activations. Biases are then left out too.
    optimizer: "sgd", "adamw(beta1=0.9, beta2=0.999, eps=1e-8)" (a usual rate is 1e-3), or
        "entropy-sgd(inner_steps=20, gamma=0.03, …)", whose outer rate is `learning_rate`.
    perturbation: "none", "awp(gamma=0.01, start=0)" (from the part `start` of all steps on) or
        "sam(rho=0.05)".
    averaging: "none", "ema(decay=0.995)", "swa(start=0.75)" (over the ends of epochs after the
        part `start` of all steps), or "me-a(rho=0.0005, outer=swa, start=0.5)", an average that pulls
        the weights to itself. The average is evaluated and kept, with batch norm recalibrated.
    attack: the PGD inside the objective, a `PGD` or its text, such as "pgd-10" or "pgd(steps=5,
        step=0.4)"; step in units of ε. start=None: the start that the objective's authors use. The
        objective sets the loss.
    validation: the PGD on the validation split; None: the training attack. "pgd-0" does not attack.
    label_smoothing: of the cross-entropy in the training loss, in [0, 1).
    beta_penalty, beta_clip: of PSSiLU's β (arXiv 2110.05626): penalty·|β| is added to the loss, and
        β's gradient is clipped to this norm. decay_activations: whether weight decay acts on
        activation parameters too.
    crop, flip, cutout: augmentation of the training images, see `curvact.data.Augmentation`.

    Raises CurvactError that names a value which is not allowed.

    >>> Recipe(attack="pgd(steps=5, step=0.4)").attack
    PGD(steps=5, step=0.4, restarts=1, start=None, loss='ce')
    >>> Recipe(**Recipe(validation="pgd-0").as_dict()) == Recipe(validation=PGD(0))
    True
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
    weight_decay_on: Literal["all", "weights"] = "all"
    clip_norm: float | None = None
    optimizer: str = "sgd"
    perturbation: str = "none"
    averaging: str = "none"
    attack: PGD = DEFAULT_ATTACK
    validation: PGD | None = None
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
            if value is not None and not (is_number(value) and holds(value)):
                raise CurvactError(f"{name}={value!r} of a recipe: {allowed}")
        schedules = ("cosine", "piecewise", "one-cycle", "constant")
        if self.schedule not in schedules:
            raise CurvactError(f"schedule={self.schedule!r} of a recipe: allowed are {', '.join(schedules)}")
        if self.weight_decay_on not in ("all", "weights"):
            raise CurvactError(
                f"weight_decay_on={self.weight_decay_on!r} of a recipe: allowed are all and weights"
            )
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if list(self.milestones) != sorted(set(self.milestones)) or not all(
            0 < m < 1 for m in self.milestones
        ):
            raise CurvactError(
                f"milestones={self.milestones!r} of a recipe: rising parts of all steps, each in (0, 1)"
            )
        self._read_attacks()
        for kind in METHODS:
            name, settings = self.method_of(kind)
            if name == "adamw":
                self._check_adamw(settings)
            if name == "me-a":
                check_settings(**settings)
        objective(self.objective, self.label_smoothing)

    def _check_adamw(self, settings: dict[str, Any]) -> None:
        if (self.momentum, self.nesterov) != (0.9, True):
            raise CurvactError(
                f"momentum={self.momentum!r}, nesterov={self.nesterov!r} of a recipe: they are of SGD; adamw has beta1"
            )
        for key, value in settings.items():
            if not (value > 0 if key == "eps" else 0 <= value < 1):
                allowed = "a number > 0" if key == "eps" else "a number in [0, 1)"
                raise CurvactError(f"{key}={value!r} in optimizer={self.optimizer!r}: {allowed}")

    def _read_attacks(self) -> None:
        for name in ("attack", "validation"):
            value: object = getattr(self, name)
            if isinstance(value, str):
                value = PGD.parse(value)
                object.__setattr__(self, name, value)
            if not isinstance(value, PGD) and not (value is None and name == "validation"):
                raise CurvactError(
                    f"{name}={value!r} of a recipe: a PGD or its text, such as pgd-10 or "
                    "pgd(steps=5, step=0.4)"
                )
        if self.attack.restarts != 1 or self.attack.loss != "ce":
            raise CurvactError(
                f"attack={self.attack} of a recipe: the objective sets the loss, and training starts "
                "PGD once; allowed are steps, step and start"
            )

    def method_of(self, kind: Kind) -> tuple[str, dict[str, Any]]:
        """The name of its method of a kind, and all settings of that method.

        >>> Recipe(averaging="EMA").method_of("averaging")
        ('ema', {'decay': 0.995})
        """
        return method(kind, getattr(self, kind), METHODS[kind])

    def as_dict(self) -> dict[str, Any]:
        """Every field as plain data for JSON; `Recipe(**…)` makes the recipe again."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: str(value) if isinstance(value, PGD) else list(value) if isinstance(value, tuple) else value
            for name, value in plain.items()
        }


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
    "label_smoothing": _PART,
    "beta_penalty": _NOT_NEGATIVE,
    "beta_clip": _POSITIVE,
    "crop": _whole(0),
    "cutout": _whole(0),
    "budget": _whole(1),
}
