"""Attacks by name: what a command line, a config and a record call "pgd-20" or "apgd-ce+square"."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from curvact.attacks.autoattack import ATTACKS, AutoAttack
from curvact.attacks.names import called, parse_call
from curvact.attacks.pgd import FGSM, PGD, Model, OnStep
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError, nearest


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
}


def register_attack(name: str, factory: Callable[..., NamedAttack]) -> None:
    """Make an attack known by name. "name(setting=value)" then calls factory(setting=value).

    name: letters, digits and dashes. factory: a class or function with keyword arguments; what it
        returns prints as its name.
    Raises CurvactError for a name that is taken or has other characters.
    """
    if not name.replace("-", "").isalnum() or name.startswith("pgd-"):
        raise CurvactError(f"name={name!r} of an attack: letters, digits and dashes, and not pgd-…")
    if name in _REGISTRY or name in ATTACKS:
        raise CurvactError(f"the attack '{name}' is known already: choose another name")
    _REGISTRY[name] = factory


def attack_names() -> list[str]:
    """All names that take the place of an attack, without the forms `pgd-STEPS` and
    `apgd-ce+square`.
    """
    return [*_REGISTRY, *ATTACKS]


def named_attack(text: str) -> NamedAttack:
    """The attack of a name: "fgsm", "pgd-20", "pgd(steps=20, step=0.1)", "autoattack",
    "autoattack-plus", "autoattack-rand", some attacks of AutoAttack ("apgd-ce+square"), or a
    registered one. Raises CurvactError for another.

    >>> named_attack("pgd-20"), named_attack("apgd-ce+square")
    (PGD(steps=20, step=None, restarts=1, start=None, loss='ce'), AutoAttack(version=None,
    attacks=('apgd-ce', 'square')))"""
    name, settings = parse_call(text)
    if not settings and all(part in ATTACKS for part in name.split("+")):
        return AutoAttack(None, tuple(name.split("+")))
    if name.startswith("pgd"):
        return PGD.parse(text)
    if name not in _REGISTRY:
        known = attack_names()
        raise CurvactError(
            f"unknown attack '{text}'{nearest(name, known)}; known are pgd-STEPS such as pgd-20, {', '.join(known)}, and "
            "attacks of AutoAttack joined by +, such as apgd-ce+square"
        )
    return called(name, _REGISTRY[name], settings)
