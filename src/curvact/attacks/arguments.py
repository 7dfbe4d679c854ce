"""The types of arguments, checked by the annotations of a function, and torch's modes put aside."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import torch

from curvact.attacks.batch import differentiable
from curvact.errors import CurvactError
from curvact.names import shortened

P = ParamSpec("P")
T = TypeVar("T")


def door(function: Callable[P, T]) -> Callable[P, T]:
    """A public function whose arguments of a simple type are checked, and which can take gradients
    inside torch's inference mode.

    Checked are annotations by the keys of `KINDS`, such as int, ThreatModel and Attack, and their
    unions with None. Numbers of NumPy become Python's. CurvactError for another type.

    >>> @door
    ... def half(steps: int) -> float:
    ...     return steps / 2
    >>> half(3)
    1.5
    """
    parameters = signature(function).parameters
    kinds = {
        name: annotation.split(" | ")
        for name, parameter in parameters.items()
        if isinstance(annotation := parameter.annotation, str)
        and set(annotation.split(" | ")) <= {*KINDS, "None"}
    }
    positions = [
        name
        for name, p in parameters.items()
        if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    ]

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        given: list[Any] = [
            _taken(function.__name__, name, value, kinds.get(name))
            for name, value in zip(positions, args, strict=False)
        ]
        rest = args[len(given) :]
        named: dict[str, Any] = {
            name: _taken(function.__name__, name, value, kinds.get(name)) for name, value in kwargs.items()
        }
        with differentiable():
            return function(*given, *rest, **named)  # type: ignore[arg-type]

    return checked


def _taken(where: str, name: str, value: Any, kinds: list[str] | None) -> Any:
    if kinds is None or (value is None and "None" in kinds):
        return value
    for kind in kinds:
        if kind != "None" and KINDS[kind][0](value):
            number = kind in ("int", "float") and not isinstance(value, (int, float))
            return value if not number else int(value) if kind == "int" else float(value)
    wanted = " or ".join(KINDS[kind][1] if kind != "None" else "None" for kind in kinds)
    raise CurvactError(f"{name}={shortened(value)} of {where}: {wanted}")


def check_kind(where: str, name: str, value: object, kind: str) -> None:
    """CurvactError for an argument that is not of the kind, a key of `KINDS`."""
    _taken(where, name, value, [kind])


def takes_threat_model(attack: Callable[..., Any]) -> bool:
    """Whether it is called as `attack(model, x, y, threat_model)`, by its signature.

    >>> takes_threat_model(lambda model, x, y, threat_model: x), takes_threat_model(lambda model, x, y: x)
    (True, False)
    """
    try:
        parameters = signature(attack).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in needed) == 4


def is_attack(value: object) -> bool:
    """Whether it can be called as `attack(model, x, y)`, as far as its signature tells."""
    return callable(value) and not isinstance(value, type) and not takes_threat_model(value)


def _named(name: str) -> Callable[[object], bool]:
    return lambda value: any(kind.__name__ == name for kind in type(value).__mro__)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda v: isinstance(v, Integral) and not isinstance(v, bool), "a whole number"),
    "float": (lambda v: isinstance(v, Real) and not isinstance(v, bool), "a number"),
    "bool": (lambda v: isinstance(v, bool), "True or False"),
    "ThreatModel": (_named("ThreatModel"), 'a ThreatModel, such as ThreatModel("linf", "8/255")'),
    "Loss": (_named("Loss"), "a Loss, such as Loss(model, x, y)"),
    "Dataset": (
        lambda v: _named("Dataset")(v) and hasattr(v, "sha256"),
        'a Dataset of curvact, such as load("digits").test or from_arrays(images, labels)',
    ),
    "Splits": (_named("Splits"), 'Splits, such as load("digits") or from_arrays(images, labels, test=0.2)'),
    "Recipe": (_named("Recipe"), 'a Recipe, such as Recipe(epochs=2, attack="pgd-5")'),
    "torch.Generator": (lambda v: isinstance(v, torch.Generator), "a torch.Generator"),
    "Attack": (is_attack, "a function (model, x, y) -> x_adv, such as PGD(20).on(threat_model)"),
}
"""By annotation: a test, and what it wants in words."""
