"""Checks of the parameters of activations.

Each returns the number as a float, or raises CurvactError with its value, name and family. A
tensor, which only functional forms take, is returned as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeGuard, TypeVar

from torch import Tensor

from curvact.activations.kernels.shape import Scale
from curvact.errors import CurvactError

Number = TypeVar("Number", bound=Scale)


def finite(value: Number, name: str, where: str) -> Number:
    """A finite number."""
    return _checked(value, lambda v: True, name, where, "a finite number")


def positive(value: Number, name: str, where: str) -> Number:
    """A finite number above 0."""
    return _checked(value, lambda v: v > 0, name, where, "a finite number > 0")


def nonzero(value: Number, name: str, where: str) -> Number:
    """A finite number other than 0."""
    if _is_number(value) and value == 0:
        raise CurvactError(
            f"{name}={value!r} in {where}: {name} must not be 0, because |{name}| has no gradient there"
        )
    return _checked(value, lambda v: True, name, where, "a finite number other than 0")


def below_one(value: Number, name: str, where: str) -> Number:
    """A number of size below 1."""
    return _checked(value, lambda v: abs(v) < 1, name, where, f"a number with |{name}| < 1")


def one_of(value: int, allowed: range, name: str, where: str) -> int:
    """A whole number of the range."""
    numbers = f"a whole number from {allowed.start} to {allowed.stop - 1}"
    return int(_checked(value, lambda v: v == int(v) and int(v) in allowed, name, where, numbers))


def _is_number(value: object) -> TypeGuard[float]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # a whole number may be larger; not a number is not


def _checked(value: Number, holds: Callable[[float], bool], name: str, where: str, allowed: str) -> Number:
    if isinstance(value, Tensor):
        return value
    if not (_is_number(value) and holds(value)):
        raise CurvactError(f"{name}={value!r} in {where}: {name} must be {allowed}")
    return float(value)  # type: ignore[return-value]


def written(value: float | Tensor) -> str:
    """The shortest text that parses back to the same number; of a tensor, the largest entry."""
    return repr(value) if isinstance(value, int) else repr(float(present(value)))


def present(parameter: float | Tensor) -> float:
    """The value of a parameter; of several, the one of largest size (NaN if one is NaN)."""
    if not isinstance(parameter, Tensor):
        return parameter
    flat = parameter.detach().flatten()
    return float(flat[flat.abs().argmax()])
