"""Attacks as text: a name with settings, such as "pgd(steps=20, start=gaussian)"."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from curvact.errors import CurvactError, nearest

Made = TypeVar("Made")


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of "pgd(steps=20, start=gaussian)". CurvactError for another form.

    >>> parse_call("pgd(steps=20, start=gaussian)"), parse_call("pgd-20")
    (('pgd', {'steps': 20, 'start': 'gaussian'}), ('pgd-20', {}))
    """
    name, bracket, inside = text.strip().partition("(")
    settings: dict[str, Any] = {}
    if bracket:
        try:
            call = ast.parse(f"f({inside}", mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise ValueError
            if len({keyword.arg for keyword in call.keywords}) < len(call.keywords):
                raise ValueError
            for keyword in call.keywords:
                value = keyword.value
                settings[str(keyword.arg)] = (
                    value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
                )
        except (SyntaxError, ValueError):
            raise CurvactError(
                f"cannot read the attack '{text}': write it as name(setting=value, ...), such as pgd(steps=20)"
            ) from None
    return name.strip(), settings


def called(name: str, factory: Callable[..., Made], settings: dict[str, Any]) -> Made:
    """factory(**settings). Raises CurvactError for unknown settings and for missing ones."""
    parameters = inspect.signature(factory).parameters
    for key in settings:
        if key not in parameters:
            raise CurvactError(
                f"{name} has no setting '{key}'{nearest(key, parameters)}; allowed are "
                f"{', '.join(parameters) or 'none'}"
            )
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in settings:
            raise CurvactError(f"the attack '{name}' needs the setting '{key}': write {name}({key}=...)")
    return factory(**settings)
