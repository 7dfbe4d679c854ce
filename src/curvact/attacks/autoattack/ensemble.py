"""The attacks of an ensemble in order, with their budgets, and its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from curvact.attacks.threat import Norm
from curvact.errors import CurvactError, nearest

Version = Literal["standard", "plus", "rand"]
Mode = Literal["plain", "fast"]
Precision = Literal["fp32", "bf16"]
MALT = "apgd-malt"
"""APGD-T with the targets of `malt_order`: no part of a version of AutoAttack."""
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", MALT, "fab", "fab-t", "square")
STEPS, QUERIES, TARGETS = 100, 5000, 9
TITLES = {"standard": "AutoAttack", "plus": "AutoAttack (plus)", "rand": "AutoAttack (rand)"}


@dataclass(frozen=True)
class Step:
    """One attack of an ensemble.

    budget: iterations of a run, or queries (square). restarts, targets: runs are restarts, or
        targets × restarts (…-t, apgd-malt).
    averaged: gradients averaged an iteration (randomized models). shrinking: APGD's l1 schedule of
        radii 3ε, 2ε, ε.
    second_look: an fp32 run after a search in bf16.
    """

    attack: str
    budget: int
    restarts: int = 1
    targets: int = 0
    averaged: int = 1
    shrinking: bool = False
    second_look: bool = False

    @property
    def key(self) -> str:
        """Its name within the ensemble."""
        return f"{self.attack} (fp32)" if self.second_look else self.attack

    @property
    def label(self) -> str:
        """Its name, with the budget where that is not the standard one."""
        standard = QUERIES if self.attack == "square" else STEPS
        unit = "queries" if self.attack == "square" else "steps"
        return self.key if self.budget == standard else f"{self.key}({self.budget} {unit})"

    @property
    def cost(self) -> float:
        """Work for a point that withstands the attack, in forward passes."""
        runs = max(self.targets, 1) * self.restarts
        each = {"square": 1.0, "fab": 20.0, "fab-t": 4.0}.get(self.attack, 2.0 * self.averaged)
        return runs * self.budget * each

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_version(version: str) -> None:
    """CurvactError for an unknown version."""
    if version not in get_args(Version):
        raise CurvactError(
            f"version={version!r} of autoattack{nearest(str(version), get_args(Version))}; known are "
            f"{', '.join(get_args(Version))}; subsets run by `ensemble`"
        )


def check_attacks(attacks: Sequence[str]) -> None:
    """CurvactError unless these are names of `ATTACKS`, at least one, each once."""
    if isinstance(attacks, str) or not attacks:
        raise CurvactError(f"attacks={attacks!r}: a list of at least one of {', '.join(ATTACKS)}")
    if len(set(attacks)) < len(attacks):
        raise CurvactError(f"attacks={list(attacks)!r}: each attack once")
    for name in attacks:
        if name not in ATTACKS:
            raise CurvactError(
                f"unknown attack {name!r}{nearest(str(name), ATTACKS)}; known are {', '.join(ATTACKS)}"
            )


def version_steps(version: str, norm: Norm, classes: int) -> tuple[Step, ...]:
    """The attacks of a version, set as in the reference. With fewer than 10 classes every class is
    a target once.
    """
    check_version(version)
    ce, dlr = Step("apgd-ce", STEPS), Step("apgd-dlr", STEPS)
    targeted = Step("apgd-t", STEPS, targets=TARGETS)
    fab_t, square = Step("fab-t", STEPS, targets=TARGETS), Step("square", QUERIES)
    if version == "rand":
        steps: tuple[Step, ...] = (replace(ce, averaged=20), replace(dlr, averaged=20))
    elif version == "plus":
        fab = Step("fab", STEPS, restarts=5)
        steps = (replace(ce, restarts=5), replace(dlr, restarts=5), fab, square, targeted, fab_t)
    elif norm == "l1":
        steps = (
            replace(ce, restarts=5, shrinking=True),
            replace(targeted, targets=5, shrinking=True),
            fab_t,
            square,
        )
    else:
        steps = (ce, targeted, fab_t, square)
    return _fitting(steps, classes, f"version {version!r}")


def chosen_steps(
    attacks: Sequence[str], norm: Norm, classes: int, *, steps: int, queries: int
) -> tuple[Step, ...]:
    """The chosen attacks, set as in the standard version but for the budgets."""
    check_attacks(attacks)
    if steps < 1 or queries < 1:
        raise CurvactError(f"steps={steps}, queries={queries} of an ensemble: each must be >= 1")
    if norm == "l1" and MALT in attacks:
        raise CurvactError(f"{MALT} of attacks={list(attacks)!r}: under linf or l2, not l1")
    standard = {step.attack: step for step in version_steps("standard", norm, max(classes, 4))}
    standard[MALT] = Step(MALT, STEPS, targets=TARGETS)
    made = [
        replace(standard.get(name, Step(name, STEPS)), budget=queries if name == "square" else steps)
        for name in attacks
    ]
    return _fitting(made, classes, f"attacks={list(attacks)!r}")


def with_second_look(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps, and their APGD attacks once more in fp32."""
    again = [replace(step, second_look=True) for step in steps if step.attack.startswith("apgd")]
    return (*steps, *again)


def ensemble_name(version: str | None, steps: Sequence[Step], precision: Precision) -> str:
    """ "AutoAttack" for a whole version, else the names of the attacks; with a remark on a search
    in bf16.
    """
    name = TITLES[version] if version is not None else " + ".join(step.label for step in steps)
    if precision == "fp32":
        return name
    again = version is not None or len(with_second_look(steps)) > len(steps)
    return f"{name} (bf16 search{', fp32 second look' if again else ''})"


def _fitting(steps: Sequence[Step], classes: int, what: str) -> tuple[Step, ...]:
    for step in steps:
        needed = {"apgd-t": 4, MALT: 4, "apgd-dlr": 3}.get(step.attack, 2)
        if classes < needed:
            others = ["apgd-ce", *(["apgd-dlr"] if classes >= 3 else []), "fab-t", "square"]
            raise CurvactError(
                f"{step.attack} of {what} needs {needed} classes (its loss ranks that many logits), the model has {classes}: "
                f"use ensemble with attacks={others} (by name {'+'.join(others)})"
            )
    return tuple(replace(step, targets=min(step.targets, classes - 1)) for step in steps)
