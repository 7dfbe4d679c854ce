"""How the search calls a function: with tensors, arrays or numbers, and with autograd if it can."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curvact.errors import CurvactError, first_line
from curvact.names import shortened

Array = NDArray[np.float64]


def name_of(f: object) -> str:
    if isinstance(f, nn.Module):
        return type(f).__name__
    return str(getattr(f, "__name__", type(f).__name__))


class NoDerivative(Exception):
    """Autograd gives no usable derivative of this order."""


class ScalarFunction:
    """f as a function of float64 arrays, with its precision.

    values: `x -> f(x)` for a 1-D float64 array.
    tensors: the function of tensors, or None if f takes only arrays or floats.
    differentiable: whether autograd reaches through f.
    by_arrays: whether it takes many points at once; else each costs as much as four.
    eps: the precision in which f computes; inputs are rounded to it.
    """

    def __init__(self, f: Any, domain: tuple[float, float], max_evaluations: int) -> None:
        self.name = name_of(f)
        self.domain = domain
        self.left = max_evaluations
        self.max_evaluations = max_evaluations
        self.dtype = torch.float64
        self.tensors: Callable[[Tensor], Tensor] | None = None
        self.values: Callable[[Array], Array] = self._unknown
        self.differentiable = False
        self.by_arrays = True

    @staticmethod
    def of(f: Any, domain: tuple[float, float], max_evaluations: int) -> ScalarFunction:
        if not callable(f):
            raise CurvactError(
                f"max_curvature got {shortened(f)}: it takes a module or a function of one number"
            )
        call = ScalarFunction(f, domain, max_evaluations)
        if isinstance(f, nn.Module):
            try:
                with torch.inference_mode(False):
                    f = copy.deepcopy(f).to(device="cpu", dtype=torch.float64).eval()
            except (RuntimeError, TypeError) as error:
                raise CurvactError(
                    f"max_curvature cannot copy {call.name} to measure it: {first_line(error)}"
                ) from None
        call._choose(f)
        return call

    @property
    def eps(self) -> float:
        return float(torch.finfo(self.dtype).eps)

    def snap(self, x: Array) -> Array:
        """x rounded to the points that the precision of f has."""
        if self.dtype is torch.float64:
            return x
        return np.asarray(torch.from_numpy(x).to(self.dtype).to(torch.float64).numpy())

    def spend(self, count: int) -> None:
        self.left -= count if self.by_arrays else 4 * count
        if self.left < 0:
            low, high = self.domain
            raise CurvactError(
                f"{self.name} bends in too many places on [{low:g}, {high:g}] for max_evaluations={self.max_evaluations}: "
                "give a smaller domain, a coarser resolution or more evaluations"
            )

    def _unknown(self, x: Array) -> Array:
        raise NotImplementedError

    def _choose(self, f: Any) -> None:
        x = spread(self.domain, 257)
        failures = []
        float64, float32 = torch.float64, torch.float32
        attempts: list[tuple[Callable[[Array], Array], str, torch.dtype | None]] = [
            (lambda v: self._from_tensor(f, v, float64, graph=True), "a float64 tensor", float64),
            (lambda v: self._from_tensor(f, v, float32, graph=True), "a float32 tensor", float32),
            (lambda v: _from_array(f, v), "an array", None),
            (lambda v: self._from_tensor(f, v, float64), "a float64 tensor", float64),
            (lambda v: self._from_tensor(f, v, float32), "a float32 tensor", float32),
            (lambda v: _from_numbers(f, v, float), "a float", None),
            (lambda v: _from_numbers(f, v, lambda t: torch.tensor(t, dtype=float64)), "a 0-D tensor", None),
        ]
        with quiet():
            for values, form, dtype in attempts:
                try:
                    y = values(x)
                except CurvactError:
                    raise
                except Exception as error:
                    failures.append(f"given {form}: {first_line(error)}")
                    continue
                self.values = values
                self.by_arrays = dtype is not None or form == "an array"
                if dtype is not None:
                    self._inspect(f, x, dtype)
                break
            else:
                raise CurvactError(f"max_curvature cannot call {self.name}: {failures[0]}")
            self.check_finite(x, y)
            self._check_elementwise(x, y)
            if self.dtype is torch.float64:
                self._find_precision(x, y)

    def _inspect(self, f: Any, x: Array, dtype: torch.dtype) -> None:
        """Note the precision of a function of tensors, and whether autograd reaches through it."""
        out = self.differentiated(f, x, dtype, graph=False)[1]
        self.dtype = out.dtype if out.dtype in (torch.float32, torch.float16, torch.bfloat16) else self.dtype
        if dtype is torch.float32 and self.dtype is torch.float64:
            self.dtype = dtype
        try:
            self.differentiable = self.differentiated(f, x, dtype, graph=True)[1].requires_grad
        except Exception:
            return
        self.tensors = f

    def _find_precision(self, x: Array, y: Array) -> None:
        """Lower the precision if f rounds its input although its output is float64."""
        moves = np.abs(np.diff(y)) > 0
        moving = np.append(moves, False) | np.insert(moves, 0, False)
        if not moving.any():
            return
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            rounded = torch.from_numpy(x).to(dtype).to(torch.float64).numpy()
            usable = moving & np.isfinite(rounded) & (rounded != x)
            if usable.sum() >= 8 and np.array_equal(self.values(rounded)[usable], y[usable]):
                # A step function agrees too; one that rounds its input also has a slope where it is
                # flat.
                if self.tensors is not None and not np.any(self._slopes(x[usable])):
                    return
                self.dtype = dtype
                return

    def _slopes(self, x: Array) -> Array:
        assert self.tensors is not None
        t, y = self.differentiated(self.tensors, x, torch.float64, graph=True)
        if not y.requires_grad:
            return np.ones_like(x)
        (s,) = torch.autograd.grad(y.sum(), t, allow_unused=True)
        return np.zeros_like(x) if s is None else np.asarray(s.double().numpy(force=True))

    def differentiated(self, f: Any, x: Array, dtype: torch.dtype, graph: bool) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            t = torch.tensor(x, dtype=dtype, requires_grad=graph)
            y = f(t.clone())  # a clone, so that in-place activations can write to it
            if not isinstance(y, Tensor):
                raise TypeError(f"it returns {type(y).__name__}, not a tensor")
            if y.shape != t.shape:
                raise CurvactError(
                    f"{self.name} is not elementwise: shape {tuple(t.shape)} in, {tuple(y.shape)} out; "
                    "max_curvature takes functions of one number"
                )
            return t, y

    def _from_tensor(self, f: Any, x: Array, dtype: torch.dtype, graph: bool = False) -> Array:
        return np.asarray(
            self.differentiated(f, x, dtype, graph)[1].detach().double().cpu().numpy(force=True)
        )

    def check_finite(self, x: Array, y: Array) -> None:
        bad = ~np.isfinite(y)
        if bad.any():
            i = np.flatnonzero(bad)[np.argmin(np.abs(x[bad]))]
            low, high = self.domain
            raise CurvactError(
                f"{self.name} is {y[i]} at x = {x[i]:.6g}: it must be finite on the whole domain "
                f"[{low:g}, {high:g}]; give max_curvature a smaller domain=(low, high)"
            )

    def _check_elementwise(self, x: Array, y: Array) -> None:
        part = self.values(x[40:140])
        turned = self.values(x[::-1].copy())[::-1]
        allowed = 1e-9 if self.dtype is torch.float64 else 16 * self.eps
        scale = allowed * (1 + np.abs(y))
        if (np.abs(turned - y) > scale).any() or (np.abs(part - y[40:140]) > scale[40:140]).any():
            raise CurvactError(
                f"{self.name} is not elementwise: its value at a point depends on the other points, or differs from call to call"
            )


def _from_array(f: Any, x: Array) -> Array:
    y = f(x.copy())
    if not isinstance(y, np.ndarray):
        raise TypeError(f"it returns {type(y).__name__}, not an array")
    if y.shape != x.shape:
        raise CurvactError(
            f"{name_of(f)} is not elementwise: shape {x.shape} in, {y.shape} out; max_curvature takes functions of one number"
        )
    return np.asarray(y, dtype=np.float64)


def _from_numbers(f: Any, x: Array, form: Callable[[float], Any]) -> Array:
    return np.array([_number(f, form(float(t))) for t in x])


def _number(f: Any, x: Any) -> float:
    try:
        y = f(x)
    except (ArithmeticError, ValueError):  # math.exp(1e3), math.log(-1)
        return math.nan
    if isinstance(y, Tensor) and y.numel() != 1:
        raise CurvactError(
            f"a function for max_curvature returns {tuple(y.shape)} for one number: it must be elementwise"
        )
    return float(y)


@contextmanager
def quiet() -> Iterator[None]:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def spread(domain: tuple[float, float], count: int) -> Array:
    """`count` points over the domain, dense around 0 and irregular, both ends included."""
    low, high = domain
    scale = 1e-2
    i = np.arange(count, dtype=np.float64)
    # Quadratic, because a linear sequence would be symmetric about its middle.
    u = i + 0.4 * np.modf(i * i * 0.6180339887498949)[0]
    u = (u - u[0]) / (u[-1] - u[0])
    a, b = math.asinh(low / scale), math.asinh(high / scale)
    x = scale * np.sinh(a + (b - a) * u)
    x[0], x[-1] = low, high
    return np.asarray(x)
