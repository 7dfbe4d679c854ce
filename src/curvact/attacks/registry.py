"""Attacks by name: what a command line, a config and a record call "pgd-20" or "apgd-ce+square"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, Signature, signature
from typing import Any, Protocol

import torch
from torch import Tensor

from curvact.attacks.adapters import from_adv_lib, from_torchattacks
from curvact.attacks.adaptive import Adaptive
from curvact.attacks.arguments import takes_threat_model
from curvact.attacks.autoattack import ATTACKS, MALT, AutoAttack
from curvact.attacks.pgd import FGSM, PGD, Model, OnStep
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError, nearest
from curvact.names import called, parse_call, shortened


class NamedAttack(Protocol):
    """An attack with its settings. `str()` gives a name that `named_attack` reads. `PGD` and
    `AutoAttack` are two.

    on_step: called as `pgd` calls it, by attacks that have steps.
    """

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor: ...


_REGISTRY: dict[str, Callable[..., NamedAttack]] = {
    "fgsm": lambda: FGSM,
    "pgd": PGD,
    "autoattack": AutoAttack,
    "autoattack-plus": partial(AutoAttack, "plus"),
    "autoattack-rand": partial(AutoAttack, "rand"),
    "malt": lambda: AutoAttack(None, (MALT,)),
    "adaptive": Adaptive,
    "torchattacks": from_torchattacks,
    "adv-lib": from_adv_lib,
}


def register_attack(name: str, attack: Callable[..., Any]) -> None:
    """Make an attack known by name, for `named_attack`, `accuracy`, `evaluate` and the commands.

    name: letters, digits and dashes.
    attack: a function `(model, x, y, threat_model, *, generator, …) -> x_adv`. Its other keyword
        arguments are settings: "name(setting=value)" passes them. `generator` and `on_step` are
        passed where the function takes them. Or a class or function of settings alone that returns
        such an attack, which prints as its name.
    Raises CurvactError for a name that is taken or has other characters, and for what cannot be
    called.

    >>> def noise(model, x, y, threat_model, *, generator, share=1.0):
    ...     start = threat_model.random_start(x, generator)
    ...     return x + share * (start - x)
    >>> register_attack("noise", noise)
    >>> str(named_attack("noise(share=0.5)"))
    'noise(share=0.5)'
    >>> del _REGISTRY["noise"]
    """
    if not isinstance(name, str) or not name.replace("-", "").isalnum() or name.startswith("pgd-"):
        raise CurvactError(f"name={name!r} of an attack: letters, digits and dashes, and not pgd-…")
    if name in _REGISTRY or name in ATTACKS:
        raise CurvactError(f"the attack '{name}' is known already: choose another name")
    if not callable(attack):
        raise CurvactError(f"the attack '{name}' is a {type(attack).__name__}: a function or a class")
    _REGISTRY[name] = _factory(name, attack) if takes_threat_model(attack) else attack


@dataclass(frozen=True)
class FunctionAttack:
    """A function `(model, x, y, threat_model, **settings) -> x_adv` under a name.

    It prints as its name with the settings, sorted.
    """

    name: str
    function: Callable[..., Tensor] = field(compare=False)
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        given = ", ".join(f"{key}={value}" for key, value in sorted(self.settings))
        return f"{self.name}({given})" if given else self.name

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """What the function returns. on_step: passed on where it takes that."""
        passed = {"generator": generator, "on_step": on_step}
        known = signature(self.function).parameters
        extra = {key: value for key, value in passed.items() if key in known}
        return self.function(model, x, y, threat_model, **extra, **dict(self.settings))


def _factory(name: str, function: Callable[..., Tensor]) -> Callable[..., NamedAttack]:
    """The function as a class of its settings."""

    def made(**settings: Any) -> NamedAttack:
        return FunctionAttack(name, function, tuple(sorted(settings.items())))

    own = [
        p.replace(kind=Parameter.KEYWORD_ONLY)
        for p in list(signature(function).parameters.values())[4:]
        if p.name not in ("generator", "on_step") and p.kind != p.VAR_KEYWORD
    ]
    made.__signature__ = Signature(own)  # type: ignore[attr-defined]
    return made


def attack_names() -> list[str]:
    """All names that take the place of an attack, without the forms `pgd-STEPS` and
    `apgd-ce+square`.
    """
    return [*_REGISTRY, *ATTACKS]


def named_attack(text: str) -> NamedAttack:
    """The attack of a name: "fgsm", "pgd-20", "pgd(steps=20, step=0.1)", "autoattack",
    "autoattack-plus", "autoattack-rand", some attacks of AutoAttack ("apgd-ce+square"), "malt" (which
    is "apgd-malt"), "adaptive(steps=20)", or a registered one. Raises CurvactError for another.

    >>> named_attack("pgd-20"), named_attack("apgd-ce+square")
    (PGD(steps=20, step=None, restarts=1, start=None, loss='ce'), AutoAttack(version=None,
    attacks=('apgd-ce', 'square')))"""
    name, settings = parse_call(text)
    if not settings and all(part in ATTACKS for part in name.split("+")):
        return AutoAttack(None, tuple(name.split("+")))
    if name == "pgd" or (name.startswith("pgd") and name not in _REGISTRY):
        return PGD.parse(text)
    if name not in _REGISTRY:
        known = attack_names()
        steps = text.rpartition("-")[2]
        meant = [f"pgd-{steps}", *known] if steps.isdigit() else known
        raise CurvactError(
            f"unknown attack '{text}'{nearest(name, meant)}; known are pgd-STEPS such as pgd-20, {', '.join(known)}, and "
            "attacks of AutoAttack joined by +, such as apgd-ce+square"
        )
    return called(name, _REGISTRY[name], settings)


def as_named_attack(attack: object) -> NamedAttack:
    """A name, an attack as a value, or a function `(model, x, y) -> x_adv` or `(model, x, y,
    threat_model) -> x_adv`, as an attack that prints as its name. CurvactError for another value.

    >>> def still(model, x, y):
    ...     return x
    >>> str(as_named_attack(still)), str(as_named_attack("pgd-20")), as_named_attack(FGSM) == FGSM
    ('still', 'pgd-20', True)
    """
    if isinstance(attack, str):
        return named_attack(attack)
    if isinstance(attack, (PGD, AutoAttack, FunctionAttack)):
        return attack
    if not callable(attack) or isinstance(attack, type):
        raise CurvactError(
            f"attack={shortened(attack)}: a name such as pgd-20, or a function (model, x, y) -> x_adv"
        )
    function: Callable[..., Any] = attack
    name = getattr(function, "__name__", type(function).__name__).strip("<>")
    if not takes_threat_model(function):
        return FunctionAttack(name, lambda model, x, y, threat_model: function(model, x, y))
    if {"generator", "on_step"} <= set(signature(function).parameters):
        ready: NamedAttack = function
        return ready
    return FunctionAttack(name, function)
