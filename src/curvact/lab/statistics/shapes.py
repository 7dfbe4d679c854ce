"""Order-restricted fits of a curve: constant, rise then plateau, monotone, single-peaked; and the
weight of each.

[ours]. Isotonic regression by pool-adjacent-violators; the single-peaked fit with a given top
extends it to two chains that meet there (both are weighted least squares). The weights are
exp(-BIC/2) with a Student likelihood; a fit counts as many parameters as it has levels. The weights
order the shapes; they are no probabilities of the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MIN_PLATEAU = 3  # curvatures a plateau needs


@dataclass(frozen=True)
class ShapeWeight:
    """Weight in [0, 1] of one shape among all; `start` to `stop` are the indices of its plateau or
    of its top."""

    shape: str
    weight: float
    start: int
    stop: int


def isotonic(values: Array, weights: Array) -> Array:
    """Weighted least-squares non-decreasing fit, (K,).

    >>> isotonic(np.array([1.0, 3.0, 2.0]), np.ones(3))
    array([1. , 2.5, 2.5])
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (v, w, n), (x, u, m) = blocks[-2:]
            blocks[-2:] = [((v * w + x * u) / (w + u), w + u, n + m)]
    return np.repeat([v for v, _, _ in blocks], [n for _, _, n in blocks])


def single_peaked(values: Array, weights: Array, top: int) -> Array:
    """Weighted least-squares fit that does not fall before `top` and does not rise after it, (K,).

    >>> single_peaked(np.array([0.0, 2.0, 1.0, 3.0, 0.0]), np.ones(5), 1)
    array([0., 2., 2., 2., 0.])
    """
    left = isotonic(values[:top], weights[:top])
    right = isotonic(values[:top:-1], weights[:top:-1])[::-1]
    fitted = np.concatenate([left, values[top : top + 1], right])
    low = high = top
    while True:
        before = fitted[low - 1] if low > 0 else -np.inf
        after = fitted[high + 1] if high + 1 < len(values) else -np.inf
        if max(before, after) <= fitted[top]:
            return fitted
        if before >= after:
            level = fitted[low - 1]
            while low > 0 and fitted[low - 1] == level:
                low -= 1
        else:
            level = fitted[high + 1]
            while high + 1 < len(values) and fitted[high + 1] == level:
                high += 1
        inside = slice(low, high + 1)
        fitted[inside] = np.average(values[inside], weights=weights[inside])


def monotone_fit(means: Array, weights: Array) -> Array:
    """The better of the non-decreasing and the non-increasing fit, (K,)."""
    up, down = isotonic(means, weights), -isotonic(-means, weights)
    return up if (weights * (means - up) ** 2).sum() <= (weights * (means - down) ** 2).sum() else down


def _levels(fitted: Array) -> int:
    return int((np.diff(fitted) != 0).sum()) + 1


def shape_weights(means: Array, squared_errors: Array, df: float, cells: int) -> tuple[ShapeWeight, ...]:
    """Weights of the shapes, heaviest first, from means and their squared standard errors, (K,).

    Shapes: "flat", "rise then plateau", "plateau then fall", "monotone rise", "monotone fall",
    "interior peak".
    df: degrees of freedom of the noise; cells: number of runs.
    """
    count = len(means)
    weights = squared_errors.min() / squared_errors

    def bic(fitted: Array, extra: int = 0) -> float:
        misfit = float(((means - fitted) ** 2 / squared_errors).sum())
        return float((df + count) * np.log1p(misfit / df) + (_levels(fitted) + extra) * np.log(cells))

    def level(inside: slice) -> float:
        return float(np.average(means[inside], weights=weights[inside]))

    def merged(sign: float, size: int) -> Array:
        """Non-decreasing (sign 1; -1 for the mirror image in both directions) with the last `size`
        equal."""
        y, w = (means, weights) if sign > 0 else (means[::-1], weights[::-1])
        end = float(np.average(y[-size:], weights=w[-size:]))
        short = isotonic(np.append(y[:-size], end), np.append(w[:-size], w[-size:].sum()))
        fitted = np.append(short[:-1], np.full(size, short[-1]))
        return fitted if sign > 0 else fitted[::-1]

    found: dict[str, tuple[float, int, int]] = {}

    def offer(shape: str, score: float, start: int, stop: int) -> None:
        if shape not in found or score < found[shape][0]:
            found[shape] = (score, start, stop)

    offer("flat", bic(np.full(count, level(slice(0, count)))), 0, count - 1)
    for size in range(1, count):
        for sign, rise, plateau in (
            (1.0, "monotone rise", "rise then plateau"),
            (-1.0, "monotone fall", "plateau then fall"),
        ):
            fitted = merged(sign, size)
            if _levels(fitted) == 1:
                continue
            end = fitted[-1] if sign > 0 else fitted[0]
            at = np.flatnonzero(fitted == end)
            offer(plateau if len(at) >= MIN_PLATEAU else rise, bic(fitted), int(at[0]), int(at[-1]))
    for top in range(1, count - 1):
        fitted = single_peaked(means, weights, top)
        if fitted[0] < fitted[top] > fitted[-1]:
            at = np.flatnonzero(fitted == fitted[top])
            offer("interior peak", bic(fitted, extra=1), int(at[0]), int(at[-1]))
    least = min(score for score, _, _ in found.values())
    raw = {shape: float(np.exp(-(score - least) / 2)) for shape, (score, _, _) in found.items()}
    total = sum(raw.values())
    return tuple(
        ShapeWeight(shape, raw[shape] / total, *found[shape][1:])
        for shape in sorted(raw, key=lambda name: (-raw[name], name))
    )
