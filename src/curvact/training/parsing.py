"""Methods and objectives from their texts, such as "awp(gamma=0.01)"."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from curvact.errors import CurvactError, nearest
from curvact.names import parse_call

Settings = Mapping[str, Any]


def is_number(value: object) -> bool:
    """Whether it is an int or a float, finite as a float, and no bool."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def method(kind: str, text: str, known: Mapping[str, Settings]) -> tuple[str, dict[str, Any]]:
    """Name and all settings of a text such as "awp(gamma=0.01)".

    known: the settings with default values of each name. A value must be a number, a word, or True
    or False where the default is one.
    Raises CurvactError for an unknown name or setting, and for a value of the wrong kind.

    >>> method("perturbation", "awp(gamma=0.005)", {"awp": {"gamma": 0.01, "start": 0.0}})
    ('awp', {'gamma': 0.005, 'start': 0.0})
    """
    try:
        name, given = parse_call(text)
    except (CurvactError, AttributeError):
        raise CurvactError(
            f"cannot read {kind}={text!r}: write the {kind} as name(setting=value, ...)"
        ) from None
    name = name.lower()
    if name not in known:
        raise CurvactError(f"unknown {kind} '{name}'{nearest(name, known)}; known are {', '.join(known)}")
    settings = dict(known[name])
    for key, value in given.items():
        if key not in settings:
            raise CurvactError(
                f"{name} has no setting '{key}'{nearest(key, settings)}; "
                f"allowed are {', '.join(settings) or 'none'}"
            )
        wanted_type = type(settings[key])
        if not (isinstance(value, wanted_type) if wanted_type in (str, bool) else is_number(value)):
            wanted = {str: "a word", bool: "True or False"}.get(wanted_type, "a finite number")
            raise CurvactError(f"{key}={value!r} in {kind}={text!r}: {wanted}, such as {settings[key]}")
        settings[key] = value
    return name, settings
