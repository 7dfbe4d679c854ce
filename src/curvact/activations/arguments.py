"""Checks of the parameters of activations: each returns the value, or raises CurvactError with its name and family."""

from __future__ import annotations

import math

from torch import Tensor

from curvact.activations.kernels.shape import Scale
from curvact.errors import CurvactError


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def finite(value: float, name: str, where: str) -> float:
    """A finite number."""
    if not _number(value) or not math.isfinite(value):
        raise CurvactError(f"{name}={value!r} in {where}: {name} must be a finite number")
    return float(value)


def positive(value: float, name: str, where: str) -> float:
    """A finite number above 0."""
    if not _number(value):
        raise CurvactError(f"{name}={value!r} in {where}: {name} must be a number > 0")
    if not (math.isfinite(value) and value > 0):
        raise CurvactError(f"{name}={value!r} in {where}: {name} must be a finite number > 0")
    return float(value)


def nonzero(value: float, name: str, where: str) -> float:
    """A finite number other than 0."""
    if not _number(value) or not math.isfinite(value):
        raise CurvactError(f"{name}={value!r} in {where}: {name} must be a finite number other than 0")
    if value == 0:
        raise CurvactError(
            f"{name}={value!r} in {where}: {name} must not be 0: the gradient of |{name}| is 0 there, so it would never move"
        )
    return float(value)


def below_one(value: float, name: str, where: str) -> float:
    """A number of size below 1."""
    if not _number(value) or not abs(value) < 1:
        raise CurvactError(f"{name}={value!r} in {where}: {name} must be a number with |{name}| < 1")
    return float(value)


def one_of(value: int, allowed: range, name: str, where: str) -> int:
    """A whole number of the range."""
    if not _number(value) or value != int(value) or int(value) not in allowed:
        raise CurvactError(
            f"{name}={value!r} in {where}: {name} must be a whole number from {allowed.start} to {allowed.stop - 1}"
        )
    return int(value)


def positive_scale(value: Scale, name: str, where: str) -> Scale:
    """A tensor as it is, or a finite number above 0."""
    return value if isinstance(value, Tensor) else positive(value, name, where)


def nonzero_scale(value: Scale, name: str, where: str) -> Scale:
    """A tensor as it is, or a finite number other than 0."""
    return value if isinstance(value, Tensor) else nonzero(value, name, where)


def written(value: float | Tensor) -> str:
    """The shortest text that parses back to the same number; of a tensor, its entry of largest size."""
    return repr(value) if isinstance(value, int) else repr(float(present(value)))


def present(parameter: float | Tensor) -> float:
    """The present value of a parameter; of several, the one of largest size (NaN if one is NaN)."""
    if not isinstance(parameter, Tensor):
        return parameter
    flat = parameter.detach().flatten()
    return float(flat[flat.abs().argmax()])
