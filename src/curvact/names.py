"""Things by name with settings, as text: "rctaf(curvature=6)", "pgd(steps=20, start=gaussian)"."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from curvact.errors import CurvactError, nearest, short

Made = TypeVar("Made")

LONGEST = 1000
"""Characters. A longer text is no name, and Python's parser takes long for it."""


def parse_call(
    text: str, kind: str = "attack", form: str = "name(setting=value, ...), such as pgd(steps=20)"
) -> tuple[str, dict[str, Any]]:
    """Name and settings of "pgd(steps=20, start=gaussian)". A word without quotes is text.

    kind, form: for the message. Raises CurvactError for another form.

    >>> parse_call("pgd(steps=20, start=gaussian)"), parse_call("pgd-20")
    (('pgd', {'steps': 20, 'start': 'gaussian'}), ('pgd-20', {}))
    """
    refusal = CurvactError(f"cannot read the {kind} {shortened(text)}: write it as {form}")
    if not isinstance(text, str) or len(text) > LONGEST:
        raise refusal
    name, bracket, inside = text.strip().partition("(")
    settings: dict[str, Any] = {}
    if bracket:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Python, about odd but valid literals
                call = ast.parse(f"f({inside}", mode="eval").body
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args):
                raise ValueError
            for keyword in call.keywords:
                if keyword.arg is None or keyword.arg in settings:
                    raise ValueError
                value = keyword.value
                settings[keyword.arg] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            raise refusal from None
    return name.strip(), settings


def shortened(value: object) -> str:
    """The repr of a value for a message, in one line of at most 100 characters."""
    return short(" ".join(repr(value[:LONGEST] if isinstance(value, str) else value).split()), 100)


def called(name: str, factory: Callable[..., Made], settings: dict[str, Any]) -> Made:
    """factory(**settings). Raises CurvactError for unknown settings and for missing ones."""
    parameters = dict(inspect.signature(factory).parameters)
    free = [key for key, parameter in parameters.items() if parameter.kind == parameter.VAR_KEYWORD]
    for key in free:
        del parameters[key]
    for key in settings:
        if key not in parameters and not free:
            raise CurvactError(
                f"{name} has no setting '{key}'{nearest(key, parameters)}; allowed are "
                f"{', '.join(parameters) or 'none'}"
            )
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in settings:
            raise CurvactError(f"the attack '{name}' needs the setting '{key}': write {name}({key}=...)")
    return factory(**settings)
