"""The curvature κ = sup|σ''| of any scalar function or elementwise module, measured, with its place and a stated error. [ours]

The search has two parts. First the domain is cut into cells until, in each of them, the function is what a quintic
polynomial through the value, slope and curvature at the two ends predicts. Then the cells that could still hold the maximum
of |σ''| are cut further, until their upper estimates meet the largest curvature seen.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curvact.errors import CurvactError

Array = NDArray[np.float64]
Order = Literal[0, 1, 2]

NODES = np.array([0.28, 0.5, 0.72])
"""Where a cell is sampled, in parts of its width. A step J of the slope anywhere in the cell shows as ≥ 0.30 J at one of them."""
STEP_SHARE = 0.25
"""The slope may deviate by this part of the resolution; below the 0.30 of NODES."""
AREA_SHARE = 0.5e-4
"""The value may deviate by this part of the resolution. An excursion of the slope of area A shows as ≥ A/2 at the middle."""
NOISE_FACTOR = 8.0
"""Rounding is taken to be at most this many times what pairs of samples, or a floor of a few last digits, show."""
RELATIVE_GAP = 1e-9
"""The search for the maximum ends when no cell could exceed the largest curvature seen by more than this part of it."""
CELLS = 1200
WAVE = 6000
LADDER = 0.1 * 0.25 ** np.arange(12)
"""Steps of the finite differences: from 0.1 to 2.4e-8."""


@dataclass(frozen=True)
class Peak:
    """The largest curvature of a function.

    value: κ = sup|σ''|; infinite for a kink, where the slope jumps.
    at: where it is attained, or approached; the place of the kink.
    error: bound on |value − κ|, see `max_curvature`; 0.0 for closed forms and for kinks.
    """

    value: float
    at: float
    error: float = 0.0


def max_curvature(
    f: nn.Module | Callable[[Tensor], Tensor] | Callable[[float], float],
    *,
    domain: tuple[float, float] = (-1e4, 1e4),
    resolution: float = 1e-6,
    max_evaluations: int = 20_000_000,
) -> Peak:
    """κ = sup|f''| over the domain, and where, for any elementwise module or function of tensors, arrays or Python floats.

    Everything is measured from what `f` returns, in float64 on the CPU. A module is copied first, so the caller's stays as it
    is (dtype, mode, gradients). Slope and curvature come from autograd; where it gives none, or contradicts the values
    (straight-through estimators, backward passes that are not differentiable, plain Python functions), they are finite
    differences, and the error is larger. A function that computes in lower precision is measured on the points of that
    precision.

    Found, anywhere in the domain, however narrow and however far out (S = max(1, |slope|) there):

    - every change of the slope by more than `resolution`·S;
    - every excursion of the slope that comes back, if its area (the integral of the excursion) is more than
      1e-4·`resolution`·S and more than the rounding of f there (1e-11 to 1e-10 at |x| = 1e4);
    - a kink, κ = ∞: a slope change of more than `resolution`·S, most of it within 1e-11·max(1, |x|), or a jump of the value
      by more than `resolution`·max(1, |x|, |f|). With finite differences of f that width is 1.2e-7·√max(1, |x|); in lower
      precision it is at least 16 units in the last place of x.

    Missed: slope changes below these thresholds, however sharp (`F.softplus` has a step of 2e-9 at 20); features closer
    together than the samples that cancel each other in value and slope (a dip of the value that is narrower than 1 % of |x|
    and leaves both as before; a plain up-and-down of the slope is not of this kind); whatever is outside the domain.

    The error covers the search (the highest upper estimate of any cell: the quartic through its five curvatures, plus that
    quartic's mismatch; about 1e-9·κ above value or less), rounding (8 times what the floats around the peak show), and with
    finite differences their own step error. It is infinite where the curvature still grows at the smallest width. It is no
    proof: it does not cover what is listed as missed.

    Of equal peaks the one nearest to 0 is given, and of ±x the positive one.

    domain: finite (low, high). resolution: of the slope, > 0. max_evaluations: of f, at single points.
    Raises CurvactError for a bad domain or resolution, for an f that is not elementwise, is NaN or infinite in the domain (the
    place is named), or bends in more places than max_evaluations can resolve. Takes well under a second for common activations.

    >>> max_curvature(torch.tanh)  # 4/(3√3) at artanh(1/√3)
    Peak(value=0.7698..., at=0.65847..., error=...)
    >>> max_curvature(nn.ReLU6())
    Peak(value=inf, at=0.0, error=0.0)
    >>> round(max_curvature(nn.SiLU()).value, 9)
    0.5
    """
    low, high = _checked_domain(domain)
    if not (math.isfinite(resolution) and resolution > 0):
        raise CurvactError(f"resolution={resolution!r} in max_curvature: it must be a finite number > 0")
    where = (low, high)
    call = _Call.of(f, where, max_evaluations)
    orders: list[Order] = [2, 1, 0] if call.differentiable else [0]
    for order in orders:
        probe = _Probe(call, order, where)
        try:
            if order == 0 or probe.consistent():
                return _search(probe, resolution)
        except _NoDerivative:
            continue
    raise CurvactError(f"max_curvature cannot differentiate {_name(f)} on [{low:g}, {high:g}]")


def _checked_domain(domain: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in domain)
    except (TypeError, ValueError):
        raise CurvactError(
            f"domain={domain!r} in max_curvature: it must be two numbers, low < high"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise CurvactError(f"domain={domain!r} in max_curvature: it must be finite with low < high")
    return low, high


def _name(f: object) -> str:
    if isinstance(f, nn.Module):
        return type(f).__name__
    return str(getattr(f, "__name__", type(f).__name__))


# ---- how f is called ----


class _NoDerivative(Exception):
    """Autograd gives no usable derivative of the order asked for."""


class _Call:
    """f as a function of float64 arrays, with its precision, and whether autograd reaches through it.

    values: `x -> f(x)` for a 1-D float64 array.
    tensors: the function of tensors, or None where f takes only arrays or floats.
    eps: the precision in which f computes; inputs are rounded to it.
    """

    def __init__(self, f: Any, domain: tuple[float, float], max_evaluations: int) -> None:
        self.name = _name(f)
        self.domain = domain
        self.left = max_evaluations
        self.max_evaluations = max_evaluations
        self.dtype = torch.float64
        self.tensors: Callable[[Tensor], Tensor] | None = None
        self.values: Callable[[Array], Array] = self._unknown
        self.differentiable = False

    @staticmethod
    def of(f: Any, domain: tuple[float, float], max_evaluations: int) -> _Call:
        if not callable(f):
            raise CurvactError(f"max_curvature got {f!r}: it takes a module or a function of one number")
        call = _Call(f, domain, max_evaluations)
        if isinstance(f, nn.Module):
            try:
                with torch.inference_mode(False):
                    f = copy.deepcopy(f).to(device="cpu", dtype=torch.float64).eval()
            except (RuntimeError, TypeError) as error:
                raise CurvactError(
                    f"max_curvature cannot copy {call.name} to measure it: {_line(error)}"
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
        self.left -= count
        if self.left < 0:
            low, high = self.domain
            raise CurvactError(
                f"{self.name} bends in too many places on [{low:g}, {high:g}] for max_evaluations={self.max_evaluations}: "
                "give a smaller domain, a coarser resolution or more evaluations"
            )

    def _unknown(self, x: Array) -> Array:
        raise NotImplementedError

    def _choose(self, f: Any) -> None:
        x = _spread(self.domain, 257)
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
        with _quiet():
            for values, form, dtype in attempts:
                try:
                    y = values(x)
                except CurvactError:
                    raise
                except Exception as error:
                    failures.append(f"given {form}: {_line(error)}")
                    continue
                self.values = values
                if dtype is not None:
                    self._inspect(f, x, dtype)
                break
            else:
                raise CurvactError(f"max_curvature cannot call {self.name}: {failures[0]}")
            self._check_finite(x, y)
            self._check_elementwise(x, y)
            if self.dtype is torch.float64:
                self._find_precision(x, y)

    def _inspect(self, f: Any, x: Array, dtype: torch.dtype) -> None:
        """Note the precision of a function of tensors, and whether autograd reaches through it."""
        out = self._tensor(f, x, dtype, graph=False)[1]
        self.dtype = out.dtype if out.dtype in (torch.float32, torch.float16, torch.bfloat16) else self.dtype
        if dtype is torch.float32 and self.dtype is torch.float64:
            self.dtype = dtype
        try:
            self.differentiable = self._tensor(f, x, dtype, graph=True)[1].requires_grad
        except Exception:
            return
        self.tensors = f

    def _find_precision(self, x: Array, y: Array) -> None:
        """Lower the precision where f rounds its input although its output is float64."""
        moves = np.abs(np.diff(y)) > 0
        moving = np.append(moves, False) | np.insert(moves, 0, False)
        if not moving.any():
            return
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            rounded = torch.from_numpy(x).to(dtype).to(torch.float64).numpy()
            usable = moving & np.isfinite(rounded) & (rounded != x)
            if usable.sum() >= 8 and np.array_equal(self.values(rounded)[usable], y[usable]):
                # A step function agrees too; one that rounds its input also has a slope where it is flat.
                if self.tensors is not None and not np.any(self._slopes(x[usable])):
                    return
                self.dtype = dtype
                return

    def _slopes(self, x: Array) -> Array:
        assert self.tensors is not None
        t, y = self._tensor(self.tensors, x, torch.float64, graph=True)
        if not y.requires_grad:
            return np.ones_like(x)
        (s,) = torch.autograd.grad(y.sum(), t, allow_unused=True)
        return np.zeros_like(x) if s is None else np.asarray(s.double().numpy(force=True))

    def _tensor(self, f: Any, x: Array, dtype: torch.dtype, graph: bool) -> tuple[Tensor, Tensor]:
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
        return np.asarray(self._tensor(f, x, dtype, graph)[1].detach().double().cpu().numpy(force=True))

    def _check_finite(self, x: Array, y: Array) -> None:
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
            f"{_name(f)} is not elementwise: shape {x.shape} in, {y.shape} out; max_curvature takes functions of one number"
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


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _spread(domain: tuple[float, float], count: int) -> Array:
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


# ---- value, slope and curvature at points ----


@dataclass(frozen=True)
class _Points:
    """Samples of f, all arrays of one length. slope_error, curvature_error: of the finite differences, 0 with autograd."""

    x: Array
    value: Array
    slope: Array
    curvature: Array
    slope_error: Array
    curvature_error: Array

    def take(self, index: NDArray[Any]) -> _Points:
        return _Points(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def _join(parts: list[_Points]) -> _Points:
    return _Points(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in _Points.__dataclass_fields__)
    )


class _Probe:
    """Samples f. order: how many derivatives autograd gives; the rest are finite differences."""

    def __init__(self, call: _Call, order: Order, domain: tuple[float, float]) -> None:
        self.call, self.order, self.domain = call, order, domain
        self.eps = call.eps

    def __call__(self, x: Array) -> _Points:
        """x: 1-D, already snapped."""
        with _quiet():
            points = self._sample(x)
        self.call._check_finite(x, points.value)
        if not (np.isfinite(points.slope).all() and np.isfinite(points.curvature).all()):
            if self.order == 0:
                bad = ~(np.isfinite(points.slope) & np.isfinite(points.curvature))
                raise CurvactError(
                    f"{self.call.name} is not finite within 0.2 of x = {x[bad][0]:.6g}, where finite differences need it: "
                    "give max_curvature a smaller domain=(low, high)"
                )
            raise _NoDerivative
        return points

    def width(self, x: Array) -> Array:
        """The smallest width of a cell at x."""
        if self.order == 0:
            size = np.maximum(1.0, np.abs(x))
            size = np.sqrt(size) if self.call.dtype is torch.float64 else size
            return np.asarray(8 * math.sqrt(self.eps) * size)
        coarse = 0.0 if self.call.dtype is torch.float64 else 16 * self.eps
        return np.asarray(np.maximum(1e-11 * np.maximum(1.0, np.abs(x)), coarse * np.abs(x)))

    def reach(self, x: Array) -> Array:
        """How far from a jump of the curvature the finite differences can be wrong; 0 with autograd."""
        size = np.sqrt(np.maximum(1.0, np.abs(x)))
        return 0.0 * x if self.order == 2 else 8 * np.maximum(self.width(x), 1.2e-7 * size)

    def consistent(self) -> bool:
        """Whether autograd's slope, and curvature, are those of the values: not so at more than 1 % of the points means no."""
        x = self.call.snap(_spread(self.domain, 400)[1:-1])
        size = np.maximum(1.0, np.abs(x))
        step = self.eps**0.4 * (np.sqrt(size) if self.call.dtype is torch.float64 else size)
        step = np.minimum(step, np.minimum(x - self.domain[0], self.domain[1] - x))
        left, right = self.call.snap(x - step), self.call.snap(x + step)
        gap = right - left
        here, before, after = self(x), self(left), self(right)
        with _quiet():
            slope = (after.value - before.value) / gap
            noise = 8 * self.eps * (np.abs(here.value) + np.abs(x * here.slope)) / gap
            wrong = np.abs(here.slope - slope) > 1e-3 * (1 + np.abs(here.slope)) + noise
            if self.order == 2:
                curvature = (after.slope - before.slope) / gap
                noise = 8 * self.eps * (np.abs(here.slope) + np.abs(x * here.curvature)) / gap
                bend = np.abs(here.curvature) + np.abs(curvature)
                wrong |= np.abs(here.curvature - curvature) > 1e-6 + 1e-2 * bend + noise
        return bool(wrong.sum() <= max(4, 0.01 * len(x)))

    def _sample(self, x: Array) -> _Points:
        none = np.zeros_like(x)
        if self.order == 2:
            self.call.spend(len(x))
            value, slope, curvature = self._autograd(x, 2)
            return _Points(x, value, slope, curvature, none, none)
        count = 1 + 4 * len(LADDER)
        if self.order == 1:
            self.call.spend(len(x) * count)
            value, slope, _ = self._autograd(x, 1)
            steps = self._steps(x)
            around = [self._autograd(p, 1)[1] for p in steps.points]
            curvature, error = _first_difference(slope, around, steps.gaps, self.eps)
            return _Points(x, value, slope, curvature, none, error)
        self.call.spend(len(x) * count)
        value = self.call.values(x)
        steps = self._steps(x)
        around = [self.call.values(p) for p in steps.points]
        slope, slope_error = _first_difference(value, around, steps.gaps, self.eps)
        curvature, error = _second_difference(value, around, steps.gaps, self.eps)
        return _Points(x, value, slope, curvature, slope_error, error)

    def _steps(self, x: Array) -> _Steps:
        ladder = LADDER * (1.0 if self.call.dtype is torch.float64 else 8.0)
        h = np.broadcast_to(ladder[:, None], (len(ladder), len(x)))
        if self.call.dtype is not torch.float64:
            h = np.maximum(h, 8 * self.eps * np.abs(x))
        # The step as it is after rounding, so that x ± h and x ± 2h are exact.
        h = self.call.snap((x + h).ravel()).reshape(h.shape) - x
        return _Steps([self.call.snap((x + k * h).ravel()) for k in (-2, -1, 1, 2)], h)

    def _autograd(self, x: Array, order: int) -> tuple[Array, Array, Array]:
        assert self.call.tensors is not None
        dtype = torch.float32 if self.call.dtype is torch.float32 else torch.float64
        zero = np.zeros_like(x)
        try:
            t, y = self.call._tensor(self.call.tensors, x, dtype, graph=True)
        except TypeError:
            raise _NoDerivative from None
        value = np.asarray(y.detach().double().cpu().numpy(force=True))
        if not y.requires_grad:
            return value, zero, zero
        slope = curvature = None
        with torch.inference_mode(False), torch.enable_grad():
            try:
                (slope,) = torch.autograd.grad(y.sum(), t, create_graph=order == 2, allow_unused=True)
                if order == 2 and slope is not None and slope.requires_grad:
                    (curvature,) = torch.autograd.grad(slope.sum(), t, allow_unused=True)
            except RuntimeError:
                raise _NoDerivative from None
        return (
            value,
            zero if slope is None else np.asarray(slope.detach().double().cpu().numpy(force=True)),
            zero if curvature is None else np.asarray(curvature.detach().double().cpu().numpy(force=True)),
        )


@dataclass(frozen=True)
class _Steps:
    points: list[Array]
    gaps: Array


def _first_difference(here: Array, around: list[Array], h: Array, eps: float) -> tuple[Array, Array]:
    """Derivative and error from values at x − 2h, x − h, x + h, x + 2h for a ladder of h, each of shape (steps, points)."""
    a, b, c, d = (p.reshape(h.shape) for p in around)
    estimate = (8 * (c - b) - (d - a)) / (12 * h)
    noise = 4 * eps * np.maximum(np.abs(here), np.maximum(np.abs(a), np.abs(d))) / h
    return _best_step(estimate, noise)


def _second_difference(here: Array, around: list[Array], h: Array, eps: float) -> tuple[Array, Array]:
    a, b, c, d = (p.reshape(h.shape) for p in around)
    estimate = (16 * ((b - here) + (c - here)) - ((a - here) + (d - here))) / (12 * h * h)
    noise = 12 * eps * np.maximum(np.abs(here), np.maximum(np.abs(a), np.abs(d))) / (h * h)
    return _best_step(estimate, noise)


def _best_step(estimate: Array, noise: Array) -> tuple[Array, Array]:
    """Of a ladder of estimates, the one whose change over the next two steps plus noise is least; that sum is the error."""
    change = np.abs(np.diff(estimate, axis=0))
    error = change[:-1] + change[1:] + noise[:-2] + noise[1:-1]
    error = np.where(np.isfinite(error), error, np.inf)
    best = np.argmin(error, axis=0)
    column = np.arange(estimate.shape[1])
    found = estimate[best, column]
    return np.where(np.isfinite(error[best, column]), found, np.nan), error[best, column]


# ---- the search ----


@dataclass(frozen=True)
class _Cells:
    """Cells [left.x, right.x]. noise: rounding of value, slope and curvature seen so far, shape (3, cells)."""

    left: _Points
    right: _Points
    noise: Array

    def __len__(self) -> int:
        return len(self.left.x)

    def take(self, index: NDArray[Any]) -> _Cells:
        return _Cells(self.left.take(index), self.right.take(index), self.noise[:, index])


@dataclass(frozen=True)
class _Sampled:
    """Cells with their inner samples: value, slope, curvature and its error of shape (len(NODES), cells)."""

    cells: _Cells
    middle: _Points
    t: Array
    value: Array
    slope: Array
    curvature: Array
    slope_error: Array
    curvature_error: Array

    def halves(self, index: NDArray[Any]) -> _Cells:
        cells, middle = self.cells.take(index), self.middle.take(index)
        return _Cells(
            _join([cells.left, middle]),
            _join([middle, cells.right]),
            np.concatenate([cells.noise, cells.noise], axis=1),
        )


class _Record:
    """All curvatures seen, in pieces. jumps: cells of the smallest width in which the curvature jumps."""

    def __init__(self) -> None:
        self.parts: list[tuple[Array, Array, Array]] = []
        self.best = 0.0
        self.jumps: list[tuple[float, float]] = []

    def add(self, x: Array, curvature: Array, error: Array) -> None:
        size = np.abs(curvature)
        self.parts.append((x, size, error))
        if len(size):
            self.best = max(self.best, float((size - error).max()))

    def all(self) -> tuple[Array, Array, Array]:
        x, size, error = (np.concatenate([part[i] for part in self.parts]) for i in range(3))
        x, index = np.unique(x, return_index=True)
        return x, size[index], error[index]


def _search(probe: _Probe, resolution: float) -> Peak:
    grid = np.unique(probe.call.snap(_spread(probe.domain, CELLS + 1)))
    grid = grid[(grid >= probe.domain[0]) & (grid <= probe.domain[1])]
    points = probe(grid)
    count = len(grid)
    start = _Cells(
        points.take(np.arange(count - 1)), points.take(np.arange(1, count)), np.zeros((3, count - 1))
    )
    record = _Record()
    record.add(points.x, points.curvature, points.curvature_error)
    if probe.domain[0] <= 0 <= probe.domain[1]:
        with _quiet():
            try:
                zero = probe._sample(np.zeros(1))
                if np.isfinite(zero.curvature).all():
                    record.add(zero.x, zero.curvature, zero.curvature_error)
            except _NoDerivative:
                pass
    leaves, kink = _resolve(probe, start, resolution, record)
    if kink is not None:
        return Peak(math.inf, kink)
    ceiling = _climb(probe, leaves, resolution, record)
    return _peak(probe, record, ceiling)


def _sample_cells(probe: _Probe, cells: _Cells, record: _Record) -> _Sampled:
    a, b = cells.left.x, cells.right.x
    h = b - a
    x = probe.call.snap((a + NODES[:, None] * h).ravel())
    n = len(cells)
    analytic = probe.order == 2
    middle_x = x[n : 2 * n]
    if analytic:
        near = middle_x + np.minimum(4 * probe.eps * np.maximum(np.abs(middle_x), h), h / 8)
        points = probe(np.concatenate([x, probe.call.snap(near)]))
    else:
        points = probe(x)
    inner = points.take(np.arange(3 * n))
    middle = points.take(np.arange(n, 2 * n))
    record.add(inner.x, inner.curvature, inner.curvature_error)

    # Rounding: a floor from the size of the numbers, and what two neighbouring floats show.
    ends = (cells.left, middle, cells.right)
    value, slope, curvature = (
        np.maximum.reduce([np.abs(getattr(p, name)) for p in ends])
        for name in ("value", "slope", "curvature")
    )
    size = np.maximum(np.abs(a), np.abs(b))
    noise = probe.eps * np.stack([value + size * slope / 2, slope + size * curvature / 2, 2 * curvature])
    if analytic:
        twin = points.take(np.arange(3 * n, 4 * n))
        d = twin.x - middle.x
        seen = np.stack(
            [
                np.abs(twin.value - middle.value - d * middle.slope),
                np.abs(twin.slope - middle.slope - d * middle.curvature),
                np.abs(twin.curvature - middle.curvature),
            ]
        )
        seen[:, np.abs(twin.slope - middle.slope) > 1e-3 * np.maximum(1, slope)] = 0.0  # a kink, not noise
        noise = np.maximum(noise, seen)
    noise = np.maximum(noise, cells.noise)
    shape = (len(NODES), n)
    return _Sampled(
        replace(cells, noise=noise),
        middle,
        (inner.x.reshape(shape) - a) / h,
        inner.value.reshape(shape),
        inner.slope.reshape(shape),
        inner.curvature.reshape(shape),
        inner.slope_error.reshape(shape),
        inner.curvature_error.reshape(shape),
    )


def _surprise(s: _Sampled) -> tuple[Array, Array]:
    """How far value and slope inside are from the quintic through value, slope and curvature at the ends."""
    left, right = s.cells.left, s.cells.right
    h, t = right.x - left.x, s.t
    t2, t3, t4, t5 = t**2, t**3, t**4, t**5
    rise = right.value - left.value
    value = (
        rise * (10 * t3 - 15 * t4 + 6 * t5)
        + h * (left.slope * (t - 6 * t3 + 8 * t4 - 3 * t5) + right.slope * (-4 * t3 + 7 * t4 - 3 * t5))
        + h * h * (left.curvature * (t2 - 3 * t3 + 3 * t4 - t5) + right.curvature * (t3 - 2 * t4 + t5)) / 2
    )
    slope = (
        (rise / h) * (30 * t2 - 60 * t3 + 30 * t4)
        + left.slope * (1 - 18 * t2 + 32 * t3 - 15 * t4)
        + right.slope * (-12 * t2 + 28 * t3 - 15 * t4)
        + h
        * (
            left.curvature * (2 * t - 9 * t2 + 12 * t3 - 5 * t4)
            + right.curvature * (3 * t2 - 8 * t3 + 5 * t4)
        )
        / 2
    )
    # At small h the rounding of `rise` spoils that slope: there the cubic through the end slopes and curvatures is better.
    cubic = (
        left.slope * (1 - 3 * t2 + 2 * t3)
        + right.slope * (3 * t2 - 2 * t3)
        + h * (left.curvature * (t - 2 * t2 + t3) + right.curvature * (t3 - t2))
    )
    return np.abs(s.value - left.value - value).max(axis=0), np.minimum(
        np.abs(s.slope - slope).max(axis=0), np.abs(s.slope - cubic).max(axis=0)
    )


def _resolve(probe: _Probe, start: _Cells, resolution: float, record: _Record) -> tuple[_Cells, float | None]:
    """Cut cells until each is as its ends predict. Returns those cells, and the kink nearest to 0 if there is one."""
    leaves: list[_Cells] = []
    kink: float | None = None
    stack = [start]
    while stack:
        cells = stack.pop()
        near = np.minimum(np.abs(cells.left.x), np.abs(cells.right.x))
        if kink is not None:
            cells = cells.take(near <= abs(kink))
            near = near[near <= abs(kink)]
        if len(cells) > WAVE:
            # The nearest to 0 first: where there are kinks without end, one of them ends the search.
            nearest = np.argsort(near, kind="stable")
            stack.append(cells.take(nearest[WAVE:]))
            cells = cells.take(nearest[:WAVE])
        if not len(cells):
            continue
        sampled = _sample_cells(probe, cells, record)
        cells = sampled.cells
        left, right = cells.left, cells.right
        h = right.x - left.x
        value, slope = _surprise(sampled)
        scale = np.maximum(1.0, np.maximum(np.abs(left.slope), np.abs(right.slope)))
        blur = np.maximum(np.maximum(left.slope_error, right.slope_error), sampled.slope_error.max(axis=0))
        value_noise, slope_noise = NOISE_FACTOR * cells.noise[0], NOISE_FACTOR * cells.noise[1]
        slope_allowed = np.maximum(STEP_SHARE * resolution * scale, slope_noise)
        slope_allowed = np.maximum(slope_allowed, np.minimum(4 * blur, 0.02 * scale))
        value_allowed = np.maximum(AREA_SHARE * resolution * scale, value_noise + h * blur)
        settled = (value <= value_allowed) & (slope <= slope_allowed)
        smallest = h <= probe.width(np.maximum(np.abs(left.x), np.abs(right.x)))
        suspects = np.flatnonzero(smallest & ~settled)
        if len(suspects):
            kinks = suspects[_is_kink(probe, cells.take(suspects), resolution)]
            if len(kinks):
                blurred = 4.0 if probe.order == 0 else 0.0
                ends = zip(left.x[kinks], right.x[kinks], blurred * probe.reach(right.x[kinks]), strict=True)
                places = [_simplest(float(a - w), float(b + w)) for a, b, w in ends]
                places += [] if kink is None else [kink]
                kink = min(places, key=lambda place: (abs(place), place < 0))
        leaves.append(cells.take(settled | smallest))
        stack.append(sampled.halves(~(settled | smallest)))
    return _concatenate(leaves), kink


def _concatenate(parts: list[_Cells]) -> _Cells:
    return _Cells(
        _join([p.left for p in parts]),
        _join([p.right for p in parts]),
        np.concatenate([p.noise for p in parts], axis=1),
    )


def _is_kink(probe: _Probe, cells: _Cells, resolution: float) -> NDArray[np.bool_]:
    """Whether, in cells of the smallest width, slope or value jump: most of their change over five widths is inside the cell."""
    left, right = cells.left, cells.right
    h = right.x - left.x
    low, high = probe.domain
    n = len(cells)
    around = probe(
        probe.call.snap(np.concatenate([np.maximum(left.x - 2 * h, low), np.minimum(right.x + 2 * h, high)]))
    )
    inside = np.abs(right.slope - left.slope)
    outside = np.abs(around.slope[n:] - around.slope[:n])
    scale = np.maximum(1.0, np.maximum(np.abs(left.slope), np.abs(right.slope)))
    blur = left.slope_error + right.slope_error
    noise = NOISE_FACTOR * cells.noise[1]
    bends = (inside > np.maximum(resolution * scale, 2 * blur + noise)) & (inside >= 0.35 * outside)
    rise = np.abs(right.value - left.value - h * (left.slope + right.slope) / 2)
    size = np.maximum.reduce([np.ones(n), np.abs(left.x), np.abs(left.value)])
    jumps = rise > np.maximum(resolution * size, NOISE_FACTOR * cells.noise[0] + h * inside)
    return np.asarray(bends | jumps)


def _simplest(a: float, b: float) -> float:
    """The decimal with the fewest digits between a and b."""
    if a <= 0 <= b:
        return 0.0
    for digits in range(17):
        place = round((a + b) / 2, digits)
        if a <= place <= b:
            return place
    return (a + b) / 2


# The quartic through the curvatures at 0, NODES and 1 on a fine grid, and the cubic without the middle one at the middle.
_ALL = np.array([0.0, *NODES, 1.0])
_FINE = np.linspace(0.0, 1.0, 17)
_TO_FINE = np.vander(_FINE, 5) @ np.linalg.inv(np.vander(_ALL, 5))
_AREA = (1 / np.arange(5, 0, -1)) @ np.linalg.inv(np.vander(_ALL, 5))
_OTHERS = _ALL[[0, 1, 3, 4]]
_TO_MIDDLE = np.vander(_ALL[2:3], 4) @ np.linalg.inv(np.vander(_OTHERS, 4))


def _climb(probe: _Probe, cells: _Cells, resolution: float, record: _Record) -> float:
    """Cut cells that could hold the maximum, until each is known to `RELATIVE_GAP`. Returns the highest upper estimate left."""
    ceiling = 0.0
    stack = [cells]
    while stack:
        cells = stack.pop()
        if len(cells) > 8 * WAVE:
            stack.append(cells.take(np.arange(8 * WAVE, len(cells))))
            cells = cells.take(np.arange(8 * WAVE))
        if not len(cells):
            continue
        sampled = _sample_cells(probe, cells, record)
        cells = sampled.cells
        left, right = cells.left, cells.right
        h = right.x - left.x
        curvature = np.concatenate([left.curvature[None], sampled.curvature, right.curvature[None]])
        seen = np.abs(curvature).max(axis=0)
        top, where, missed = _top(np.abs(_TO_FINE @ curvature))
        mismatch = np.abs(_TO_MIDDLE @ curvature[[0, 1, 3, 4]] - curvature[2]).reshape(-1)
        rise = np.abs(right.slope - left.slope - h * (_AREA @ curvature)) / h
        blur = 2 * NOISE_FACTOR * cells.noise[1] + left.slope_error + right.slope_error
        rise = np.maximum(0.0, rise - blur / h)
        unsure = np.maximum.reduce([left.curvature_error, right.curvature_error, *sampled.curvature_error])
        upper = top + missed + mismatch + 4 * rise + unsure

        high = np.flatnonzero(upper > record.best * (1 - 2 * RELATIVE_GAP))
        if len(high):
            x = probe.call.snap(left.x[high] + where[high] * h[high])
            points = probe(np.clip(x, left.x[high], right.x[high]))
            record.add(points.x, points.curvature, points.curvature_error)
            there = np.abs(points.curvature)
            seen[high] = np.maximum(seen[high], there)
            upper[high] = np.maximum(upper[high], there + np.abs(there - top[high]))
        slack = NOISE_FACTOR * cells.noise[2] + np.minimum(4 * unsure, max(1e-3 * record.best, resolution))
        open_ = (upper > record.best * (1 - 2 * RELATIVE_GAP)) & (
            upper > seen + RELATIVE_GAP * record.best + slack
        )
        # Where the quartic is plainly no description, no estimate from it can close a cell of such curvature.
        open_ |= (mismatch + missed > 1e-3 * upper + slack) & (upper > 0.5 * record.best)
        size = np.maximum(np.abs(left.x), np.abs(right.x))
        smallest = h <= np.maximum(probe.width(size), probe.reach(size) / 8)
        if (~open_).any():
            ceiling = max(ceiling, float(upper[~open_].max()))
        last = np.flatnonzero(open_ & smallest)
        if len(last):
            record.jumps += [(float(left.x[i]), float(right.x[i])) for i in last[:64]]
            ceiling = max(ceiling, _beside_jumps(probe, cells.take(last), record.best))
        stack.append(sampled.halves(open_ & ~smallest))
    return ceiling


def _top(fine: Array) -> tuple[Array, Array, Array]:
    """Of functions on the fine points, (17, n): maximum by a parabola, its place in [0, 1], what the parabola may miss."""
    n = fine.shape[1]
    column = np.arange(n)
    peak = np.argmax(fine, axis=0)
    i = np.clip(peak, 1, len(_FINE) - 2)
    before, here, after = fine[i - 1, column], fine[i, column], fine[i + 1, column]
    bend = 2 * here - before - after
    with _quiet():
        move = np.where(bend > 0, np.clip((after - before) / (2 * bend), -1, 1), 0.0)
    top = here + move * ((after - before) / 2 - move * bend / 2)
    inside = top >= fine[peak, column]
    missed = 0.07 * np.abs(np.diff(fine, n=3, axis=0)).max(axis=0)
    return (
        np.where(inside, top, fine[peak, column]),
        np.where(inside, (i + move) / (len(_FINE) - 1), _FINE[peak]),
        missed,
    )


def _beside_jumps(probe: _Probe, cells: _Cells, best: float) -> float:
    """Upper estimate of the curvature beside cells of the smallest width; infinite where it does not level off towards them."""
    low, high = probe.domain
    h = np.maximum(cells.right.x - cells.left.x, probe.reach(cells.left.x))
    ceiling = 0.0
    for end, sign in ((cells.left, -1.0), (cells.right, 1.0)):
        points = [
            probe(probe.call.snap(np.clip(end.x + sign * k * h, low, high))) for k in (2.0, 20.0, 200.0)
        ]
        near, mid, far = (np.abs(p.curvature) for p in points)
        if probe.order == 2:
            grows = near - mid > np.maximum(0.3 * np.abs(mid - far), 1e-3 * near)
            if (grows & (near > 0.5 * best)).any():
                return math.inf
        upper = near + np.abs(near - mid) + points[0].curvature_error
        ceiling = max(ceiling, float(upper.max()))
    return ceiling


def _peak(probe: _Probe, record: _Record, ceiling: float) -> Peak:
    x, size, error = record.all()
    for a, b in record.jumps:
        reach = float(probe.reach(np.array([a]))[0])
        clear = (x < a - reach) | (x > b + reach)
        if reach and clear.any() and probe.call.dtype is torch.float64:
            x, size, error = x[clear], size[clear], error[clear]
    best = int(np.argmax(size - error))
    value, blur = float(size[best]), float(error[best])
    tie = 4 * RELATIVE_GAP * value + 4 * blur
    clusters = _clusters(size >= value - tie)
    # Only peaks near 0 can be chosen; a periodic function has thousands.
    clusters = sorted(clusters, key=lambda c: float(np.abs(x[c[0] : c[1] + 1]).min()))[:16]
    places = []
    for first, last in clusters:
        place, height = _refine(probe, x, size, first, last, blur)
        reach = (x[last] - x[first]) / 2 if probe.order == 0 else 0.0
        places.append((place, float(reach)))
        value = max(value, height)
    nearest = min(abs(place) + reach for place, reach in places)
    at = max(place for place, reach in places if abs(place) - reach <= nearest * (1 + 1e-6) + 1e-9)
    noise = _rounding_at(probe, at)
    for a, b in record.jumps:
        reach = (b - a) + 1.01 * float(probe.reach(np.array([a]))[0])
        if a - reach <= at <= b + reach:
            at = _simplest(a, b)
            break
    return Peak(value, at, max(0.0, ceiling - value) + NOISE_FACTOR * noise + blur)


def _clusters(mark: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mark.astype(np.int8), [0]])))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def _refine(probe: _Probe, x: Array, size: Array, first: int, last: int, blur: float) -> tuple[float, float]:
    """The place and height of one peak: the vertex of a parabola if it is one, the point nearest to 0 on a plateau."""
    height = float(size[first : last + 1].max())
    flat = np.flatnonzero(size[first : last + 1] >= height - 8 * probe.eps * height) + first
    at = float(x[flat[np.argmin(np.abs(x[flat]))]])
    if at == 0.0 or bool(((x[first : last + 1] == 0) & (size[first : last + 1] >= height - blur)).any()):
        return 0.0, height
    i = int(first + np.argmax(size[first : last + 1]))
    if 0 < i < len(x) - 1 and probe.order == 2 and probe.call.dtype is torch.float64:
        reach = max(x[i] - x[max(first - 1, 0)], x[min(last + 1, len(x) - 1)] - x[i])
        a, b = max(x[i] - reach, probe.domain[0]), min(x[i] + reach, probe.domain[1])
        u = np.linspace(-1.0, 1.0, 33)
        mid, half = (a + b) / 2, (b - a) / 2
        points = probe(mid + half * u)
        y = np.abs(points.curvature)
        quadratic = np.polynomial.polynomial.polyfit(u, y / height - 1, 2)
        misfit = float(np.abs(np.polynomial.polynomial.polyval(u, quadratic) - (y / height - 1)).max())
        bend = float(-quadratic[2])
        if bend > 0 and misfit < 0.05 * bend and abs(quadratic[1]) < 2 * bend:
            vertex = float(mid + half * quadratic[1] / (2 * bend))
            top = float(np.abs(probe(np.array([vertex])).curvature)[0])
            if top >= height * (1 - 8 * probe.eps):
                return vertex, max(top, height)
    return at, height


def _rounding_at(probe: _Probe, x: float) -> float:
    """How much the curvature differs between neighbouring floats at x, at least its last digits."""
    here = np.full(9, x) + probe.eps * max(abs(x), 1e-9) * np.arange(-4, 5)
    curvature = probe(np.clip(probe.call.snap(here), *probe.domain)).curvature
    size = float(np.abs(curvature).max())
    return max(2 * probe.eps * size, float(np.ptp(curvature)) if probe.order == 2 else 0.0)
