"""Means over seeds with their confidence intervals.

`student` is the interval of one mean by itself. `curve_intervals` is that of every mean of a curve:
it borrows strength from the other points of the curve, because three seeds say little about their
own noise. [ours]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curvact.errors import CurvactError
from curvact.lab.statistics import contrasts as engine
from curvact.lab.statistics.contrasts import Array, Mask

LARGEST = 1e100
PRIOR_DF = 1.0  # an interval is read one point at a time: shrink little, so that each is covered


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds with its confidence interval.

    low and high are NaN where no interval can be given: for one seed, for values that are all
    equal, for an infinite mean.
    """

    value: float
    low: float
    high: float
    count: int


def student(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of the values with Student's t interval at `level`.

    Raises CurvactError for no values.

    >>> mean = student([1.0, 2.0, 3.0])
    >>> mean.value, round(mean.low, 3), round(mean.high, 3)
    (2.0, -0.484, 4.484)
    """
    from scipy import stats

    if not len(values):
        raise CurvactError("the mean of 0 values: at least 1 is needed")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2 or not math.isfinite(mean) or all_equal(array):
        return Interval(mean, math.nan, math.nan, len(array))
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half, len(array))


def all_equal(values: Array) -> bool:
    """Whether the values differ by rounding at most."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def curve_intervals(
    values: Array, level: float = 0.95, *, logarithmic: bool = False
) -> tuple[Array, Array, Array]:
    """The mean over seeds at each point of a curve with its interval: mean (K,), low (K,), high
    (K,).

    values: (K, S), NaN for a run without a result; one seed serves every point. The variance of a
    mean is that of the shared effect of the seed plus the point's own noise, shrunk towards that of
    all points, with Satterthwaite's degrees of freedom (never fewer than S - 1). NaN where a point
    has no value; low and high are NaN where one seed gives no interval.
    logarithmic: the mean of the logarithms, taken back (the geometric mean); values not above 0
    count as missing.

    >>> mean, low, high = curve_intervals(np.array([[0.5, 0.6, 0.7], [0.6, 0.8, 0.7]]))
    >>> mean.round(2), bool((low < mean).all())
    (array([0.6, 0.7]), True)
    """
    check_level(level)
    if logarithmic:
        logs = np.log(values, out=np.full_like(values, math.nan), where=values > 0)
        mean, low, high = (np.exp(part) for part in curve_intervals(logs, level))
        return mean, low, high
    table, rows, columns = known_cells(values)
    mean, half = np.full(len(table), np.nan), np.full(len(table), np.nan)
    if not rows.any():
        return mean, mean.copy(), mean.copy()
    used = table[np.ix_(rows, columns)]
    if used.shape[1] == 1:
        mean[rows] = used[:, 0]
        return mean, half, half.copy()
    center = float(np.nanmean(np.where(np.isfinite(used), used, np.nan)))
    means, half_width = half_widths(np.where(np.isfinite(used), used - center, np.nan)[None], level)
    mean[rows], half[rows] = means[0] + center, half_width[0]
    return mean, mean - half, mean + half


def half_widths(values: Array, level: float) -> tuple[Array, Array]:
    """Means and half widths, (N, K), of tables (N, K, S >= 2) that share their NaN cells."""
    from scipy import stats

    present = np.isfinite(values[0])
    filled = np.where(present, values, 0.0)
    seeds = present.shape[1]
    each = present.sum(1)
    plan = engine.design(present)
    if present.shape[0] == 1:
        variance = values.var(2, ddof=1)
        total, df = variance, np.full_like(variance, seeds - 1.0)
        means = values.mean(2)
    elif plan.df < 1:
        means = np.nanmean(values, axis=2)
        return means, np.full_like(means, np.nan)
    else:
        means, noise, effects = engine.fit(plan, filled, PRIOR_DF)
        per_seed = 1.0 / (1.0 / present.sum(0)).mean()  # harmonic mean
        pooled = (plan.df_each * noise).sum(1) / plan.df_each.sum()
        between = per_seed * effects.var(1, ddof=1) if plan.paired else pooled
        shared = np.maximum(between - pooled, 0.0) / per_seed
        noise_df = np.minimum(plan.df_each + PRIOR_DF, plan.df)
        doubt = ((between**2 / (seeds - 1) + pooled**2 / plan.df) / per_seed**2)[:, None]
        total = shared[:, None] + noise
        df = total**2 / np.maximum(doubt + noise**2 / noise_df, np.finfo(np.float64).tiny)
        df = np.clip(df, max(1, seeds - 1), present.sum() - present.shape[0])
    half: Array = stats.t.ppf(0.5 + level / 2, df) * np.sqrt(total / each)
    return means, half


def known_cells(values: Array) -> tuple[Array, Mask, Mask]:
    """Values (K, S) as float64, and which points and which seeds have a finite cell."""
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise CurvactError(f"values has shape {table.shape}: expected (points, seeds)")
    finite = np.isfinite(table)
    if finite.any() and np.abs(table[finite]).max() > LARGEST:
        raise CurvactError(
            f"values holds {np.abs(table[finite]).max():.3g}: allowed are magnitudes up to {LARGEST:g}"
        )
    return table, np.logical_or.reduce(finite, axis=1), np.logical_or.reduce(finite, axis=0)


def check_level(level: float) -> None:
    """Raises CurvactError for a confidence level out of range."""
    if not 0.5 <= level < 1:
        raise CurvactError(f"level = {level}: allowed is 0.5 <= level < 1")
