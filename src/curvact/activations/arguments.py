"""Checks of the parameters of activations.

Each returns the number as a float, or raises CurvactError with its value, name and family. A
tensor, which only functional forms take, is returned as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from curvact.activations.kernels.shape import Scale
from curvact.errors import CurvactError
from curvact.names import shortened

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


def fraction(value: Number, name: str, where: str) -> Number:
    """A number from 0 to 1."""
    return _checked(value, lambda v: 0 <= v <= 1, name, where, "a number from 0 to 1")


def proper_fraction(value: Number, name: str, where: str) -> Number:
    """A number from 0 to 1, but not 1."""
    return _checked(value, lambda v: 0 <= v < 1, name, where, "a number >= 0 and < 1")


def one_of(value: int, allowed: range, name: str, where: str) -> int:
    """A whole number of the range."""
    numbers = f"a whole number from {allowed.start} to {allowed.stop - 1}"
    given: object = value
    if isinstance(given, Tensor):
        raise CurvactError(f"{name}={shortened(given)} in {where}: {name} must be {numbers}")
    return int(_checked(value, lambda v: v == int(v) and int(v) in allowed, name, where, numbers))


def module(value: object, where: str) -> nn.Module:
    """A module."""
    if not isinstance(value, nn.Module):
        raise CurvactError(f"{where} got {shortened(value)}: it takes an nn.Module")
    return value


def flag(value: object, name: str, where: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise CurvactError(f"{name}={shortened(value)} in {where}: {name} must be True or False")
    return value


def trainable(
    value: float,
    name: str,
    where: str,
    check: Callable[[float, str, str], float],
    *,
    shape: tuple[int, ...] = (),
) -> nn.Parameter:
    """The number as a parameter. It must also pass the check as torch's default type keeps it."""
    kept = torch.tensor(value, device="cpu")
    try:
        check(float(kept), name, where)
    except CurvactError:
        raise CurvactError(
            f"{name}={value!r} in {where}: a learned {name} is kept as {str(kept.dtype).removeprefix('torch.')}, "
            f"where it is {float(kept)!r}"
        ) from None
    return nn.Parameter(torch.full(shape, value))


def reached(scale: float, curvature: float, where: str) -> float:
    """The scale that gives a curvature, if floating point has it."""
    if not 0 < scale < float("inf"):
        raise CurvactError(f"curvature={curvature!r} in {where}: no finite parameter > 0 gives it")
    return scale


def _is_number(value: object) -> TypeGuard[float]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # a whole number may be larger; not a number is not


def _checked(value: Number, holds: Callable[[float], bool], name: str, where: str, allowed: str) -> Number:
    if isinstance(value, Tensor):
        return value
    if not (_is_number(value) and holds(value)):
        raise CurvactError(f"{name}={shortened(value)} in {where}: {name} must be {allowed}")
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
