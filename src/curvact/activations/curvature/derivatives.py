"""Value, slope and curvature at points, by autograd or by finite differences with an error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from curvact.activations.curvature.function import Array, NoDerivative, ScalarFunction, quiet, spread
from curvact.errors import CurvactError

Order = Literal[0, 1, 2]

LADDERS: dict[Order, Array] = {
    1: np.array([0.1 * 0.25**k for k in range(16)], dtype=np.float64),
    0: np.array([0.1 * 0.25**k for k in range(12)], dtype=np.float64),
}
"""Steps of the finite differences of slopes, from 0.1 to 9e-11, and of values, to 2.4e-8."""


@dataclass(frozen=True)
class Points:
    """Samples of f, arrays of one length. The errors are of finite differences, 0 with autograd."""

    x: Array
    value: Array
    slope: Array
    curvature: Array
    slope_error: Array
    curvature_error: Array

    def take(self, index: NDArray[Any]) -> Points:
        return Points(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def join(parts: list[Points]) -> Points:
    return Points(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in Points.__dataclass_fields__)
    )


class Probe:
    """Samples f. order: how many derivatives autograd gives; the rest are finite differences."""

    def __init__(self, call: ScalarFunction, order: Order, domain: tuple[float, float]) -> None:
        self.call, self.order, self.domain = call, order, domain
        self.eps = call.eps

    def __call__(self, x: Array) -> Points:
        """x: 1-D, already snapped."""
        with quiet():
            points = self.sample(x)
        self.call.check_finite(x, points.value)
        if not (np.isfinite(points.slope).all() and np.isfinite(points.curvature).all()):
            if self.order == 0:
                bad = ~(np.isfinite(points.slope) & np.isfinite(points.curvature))
                raise CurvactError(
                    f"{self.call.name} is not finite within 0.2 of x = {x[bad][0]:.6g}, where finite differences need it: "
                    "give max_curvature a smaller domain=(low, high)"
                )
            raise NoDerivative
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
        """How far from a jump of the curvature finite differences can be wrong; 0 with autograd."""
        size = np.sqrt(np.maximum(1.0, np.abs(x)))
        if self.order == 2:
            return 0.0 * x
        return 8 * np.maximum(self.width(x), (6e-9 if self.order == 1 else 1.2e-7) * size)

    def consistent(self) -> bool:
        """Whether autograd's slope and curvature fit the values at 99 % of the points or more."""
        x = self.call.snap(spread(self.domain, 400)[1:-1])
        size = np.maximum(1.0, np.abs(x))
        step = self.eps**0.4 * (np.sqrt(size) if self.call.dtype is torch.float64 else size)
        step = np.minimum(step, np.minimum(x - self.domain[0], self.domain[1] - x))
        left, right = self.call.snap(x - step), self.call.snap(x + step)
        gap = right - left
        here, before, after = self(x), self(left), self(right)
        with quiet():
            slope = (after.value - before.value) / gap
            noise = 8 * self.eps * (np.abs(here.value) + np.abs(x * here.slope)) / gap
            wrong = np.abs(here.slope - slope) > 1e-3 * (1 + np.abs(here.slope)) + noise
            if self.order == 2:
                curvature = (after.slope - before.slope) / gap
                noise = 8 * self.eps * (np.abs(here.slope) + np.abs(x * here.curvature)) / gap
                bend = np.abs(here.curvature) + np.abs(curvature)
                wrong |= np.abs(here.curvature - curvature) > 1e-6 + 1e-2 * bend + noise
        return bool(wrong.sum() <= max(4, 0.01 * len(x)))

    def sample(self, x: Array) -> Points:
        none = np.zeros_like(x)
        if self.order == 2:
            self.call.spend(len(x))
            value, slope, curvature = self._autograd(x, 2)
            return Points(x, value, slope, curvature, none, none)
        ladder = LADDERS[self.order]
        count = 1 + 4 * len(ladder)
        if self.order == 1:
            self.call.spend(len(x) * count)
            value, slope, _ = self._autograd(x, 1)
            steps = self._steps(x, ladder)
            around = [self._autograd(p, 1)[1] for p in steps.points]
            curvature, error = _first_difference(x, slope, around, steps.gaps, self.eps, strict=True)
            return Points(x, value, slope, curvature, none, error)
        self.call.spend(len(x) * count)
        value = self.call.values(x)
        steps = self._steps(x, ladder)
        around = [self.call.values(p) for p in steps.points]
        slope, slope_error = _first_difference(x, value, around, steps.gaps, self.eps, strict=False)
        curvature, error = _second_difference(value, around, steps.gaps, self.eps)
        return Points(x, value, slope, curvature, slope_error, error)

    def _steps(self, x: Array, ladder: Array) -> _Steps:
        ladder = ladder * (1.0 if self.call.dtype is torch.float64 else 8.0)
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
            t, y = self.call.differentiated(self.call.tensors, x, dtype, graph=True)
        except TypeError:
            raise NoDerivative from None
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
                raise NoDerivative from None
        if order == 2 and slope is not None and not slope.requires_grad and bool((slope != slope[0]).any()):
            raise NoDerivative  # a slope that varies and has no derivative: cut off from x, or steps
        return (
            value,
            zero if slope is None else np.asarray(slope.detach().double().cpu().numpy(force=True)),
            zero if curvature is None else np.asarray(curvature.detach().double().cpu().numpy(force=True)),
        )


@dataclass(frozen=True)
class _Steps:
    points: list[Array]
    gaps: Array


def _first_difference(
    x: Array, here: Array, around: list[Array], h: Array, eps: float, *, strict: bool
) -> tuple[Array, Array]:
    """Derivative and error from values at x ± h and x ± 2h; h has shape (steps, points)."""
    a, b, c, d = (p.reshape(h.shape) for p in around)
    estimate = (8 * (c - b) - (d - a)) / (12 * h)
    size = np.maximum(np.abs(here), np.maximum(np.abs(a), np.abs(d)))
    rounding = size + np.abs(x * estimate) if strict else size
    return _best_step(estimate, 4 * eps * rounding / h, strict=strict)


def _second_difference(here: Array, around: list[Array], h: Array, eps: float) -> tuple[Array, Array]:
    a, b, c, d = (p.reshape(h.shape) for p in around)
    estimate = (16 * ((b - here) + (c - here)) - ((a - here) + (d - here))) / (12 * h * h)
    noise = 12 * eps * np.maximum(np.abs(here), np.maximum(np.abs(a), np.abs(d))) / (h * h)
    return _best_step(estimate, noise, strict=True)


def _best_step(estimate: Array, noise: Array, *, strict: bool) -> tuple[Array, Array]:
    """The estimate with the least error: its change over the next two steps, plus noise.

    strict: a step that any smaller one contradicts, beyond the noise of that one, is wrong by that
    much. Beside a bend that is narrower than the steps, several of them can agree.
    """
    change = np.abs(np.diff(estimate, axis=0))
    error = change[:-1] + change[1:] + noise[:-2] + noise[1:-1]
    # f may be noisier than its last digits: then the two smallest steps differ by that.
    noise = np.fmax(noise, 4 * change[-1] * noise / noise[-1])
    for step in range(len(error) if strict else 0):
        against = np.abs(estimate[step + 1 :] - estimate[step]) - noise[step + 1 :]
        error[step] = np.fmax(error[step], np.fmax.reduce(against, axis=0))
    error = np.where(np.isfinite(error), error, np.inf)
    best = np.argmin(error, axis=0)
    column = np.arange(estimate.shape[1])
    found = estimate[best, column]
    return np.where(np.isfinite(error[best, column]), found, np.nan), error[best, column]
