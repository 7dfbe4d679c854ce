"""Means over seeds and proportions of images, with their confidence intervals, and both as text.

`student` is the interval of one mean by itself. `curve_intervals` is that of every mean of a curve:
it borrows strength from the other points of the curve, because three seeds say little about their
own noise. [ours] `proportion` is that of a share of images.

An interval of an accuracy is computed for its logit and taken back, that of a positive quantity for
its logarithm (delta method): it stays where the quantity can be. [ours]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from curvact.errors import CurvactError
from curvact.lab.statistics import contrasts as engine
from curvact.lab.statistics.contrasts import Array, Mask

LARGEST = 1e100
ALIKE = 1.1  # ratio of the two sides of an interval up to which ± is written
TEXTS = "Means over seeds with their {level} interval, as a ± b or a [b, c]. Of two seeds: the mean (b to c)."
"""What the forms of `interval_text` mean, for the notes of a table."""
PRIOR_DF = 1.0  # an interval is read one point at a time: shrink little, so that each is covered
POSITIVE = ("_hessian_rms", "_hessian_gradient_relative", "_hessian_scale_invariant", "_ratio")

Scale = Literal["plain", "fraction", "positive"]
"""Where a quantity can be: anywhere, in [0, 1], above 0."""


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds with its confidence interval, or a proportion of `count` images.

    low and high are NaN where no interval can be given: for one seed, for values that are all
    equal, for an infinite mean. least, most: the range of the values; NaN for a proportion.
    """

    value: float
    low: float
    high: float
    count: int
    least: float = math.nan
    most: float = math.nan

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def scale_of(metric: str) -> Scale:
    """Where the values of a metric can be.

    >>> scale_of("robust_accuracy"), scale_of("clean_hessian_rms"), scale_of("flatness_average")
    ('fraction', 'positive', 'plain')
    """
    if metric.endswith("accuracy"):
        return "fraction"
    return "positive" if metric.endswith(POSITIVE) else "plain"


def student(values: Sequence[float], level: float = 0.95, scale: Scale = "plain") -> Interval:
    """The mean of the values with Student's t interval at `level`.

    scale: see `on_scale`. Raises CurvactError for no values.

    >>> mean = student([1.0, 2.0, 3.0])
    >>> mean.value, round(mean.low, 3), round(mean.high, 3)
    (2.0, -0.484, 4.484)
    >>> round(student([0.90, 0.99], scale="fraction").high, 3) <= 1
    True
    """
    from scipy import stats

    if not len(values):
        raise CurvactError("the mean of 0 values: at least 1 is needed")
    array = np.asarray(values, dtype=np.float64)
    mean, ends = float(array.mean()), (float(array.min()), float(array.max()))
    if len(array) < 2 or not math.isfinite(mean) or all_equal(array):
        return Interval(mean, math.nan, math.nan, len(array), *ends)
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    low, high = on_scale(np.array(mean), np.array(half), scale)
    return Interval(mean, float(low), float(high), len(array), *ends)


def on_scale(mean: Array, half: Array, scale: Scale) -> tuple[Array, Array]:
    """The interval whose half width is `half` where the scale is straight: low, high.

    "fraction": the interval of the logit, half / (m (1 − m)) wide on each side, taken back.
    "positive": that of the logarithm, half / m wide. A mean at an end of its scale, or off it, has
    the plain interval.

    >>> [end.round(3).tolist() for end in on_scale(np.array([0.5, 0.98]), np.array([0.01, 0.02]), "fraction")]
    [[0.49, 0.946], [0.51, 0.993]]
    """
    if scale == "plain":
        return mean - half, mean + half
    inside = (mean > 0) & ((mean < 1) | (scale == "positive"))
    m = np.where(inside, mean, 0.5)
    if scale == "positive":
        low, high = m * np.exp(-half / m), m * np.exp(np.minimum(half / m, 700.0))
    else:
        logit, step = np.log(m / (1 - m)), half / (m * (1 - m))
        low, high = (1 / (1 + np.exp(-np.clip(logit + sign * step, -700, 700))) for sign in (-1, 1))
    return np.where(inside, low, mean - half), np.where(inside, high, mean + half)


def proportion(successes: int, count: int, level: float = 0.95) -> Interval:
    """A share of `count` images with the interval of Clopper and Pearson (1934), which covers the
    share of all such images with `level` or more.

    Raises CurvactError for a count below 1, or successes outside 0 … count.

    >>> none = proportion(0, 20)
    >>> none.value, none.low, round(none.high, 3)
    (0.0, 0.0, 0.168)
    """
    from scipy import stats

    if not 0 <= successes <= count or count < 1:
        raise CurvactError(f"{successes} of {count} images: allowed is 0 <= successes <= count, count >= 1")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, count - successes + 1))
    high = 1.0 if successes == count else float(stats.beta.isf(tail, successes + 1, count - successes))
    return Interval(successes / count, low, high, count)


def interval_text(
    mean: Interval | None, form: str = "{:.1f}", *, factor: float = 100.0, brackets: bool = False
) -> str:
    """A mean with its interval in words: `67.1 ± 1.5` where both sides are nearly alike (the
    wider one), else `98.0 [94.6, 99.3]`. Two seeds have their range instead: an interval of two
    says nothing.

    form, factor: how a number is written, and in which unit; accuracies are in per cent.
    brackets: both ends always. A rounded 0 keeps its sign: it tells on which side of 0 an end is.

    >>> interval_text(Interval(0.671, 0.656, 0.686, 3)), interval_text(Interval(0.98, 0.946, 0.993, 3))
    ('67.1 ± 1.5', '98.0 [94.6, 99.3]')
    >>> interval_text(Interval(0.686, 0, 1, 2, 0.607, 0.765)), interval_text(proportion(0, 20))
    ('68.6 (60.7 to 76.5)', '0.0 [0.0, 16.8]')
    >>> interval_text(None)
    '–'
    """
    if mean is None:
        return "–"
    if math.isinf(mean.value):
        return "∞" if mean.value > 0 else "−∞"

    def text(value: float) -> str:
        return form.format(factor * value).rstrip(".")

    if mean.count == 2 and mean.least < mean.most:
        return f"{text(mean.value)} ({text(mean.least)} to {text(mean.most)})"
    if not mean.bounded or (mean.count == 2 and mean.least == mean.most):
        return text(mean.value)
    narrow, wide = sorted((mean.value - mean.low, mean.high - mean.value))
    if not brackets and wide <= ALIKE * narrow and text(wide).strip("0."):
        return f"{text(mean.value)} ± {text(wide)}"
    return f"{text(mean.value)} [{text(mean.low)}, {text(mean.high)}]"


def difference_text(mean: Interval, *, percent: bool) -> str:
    """A difference with both ends of its interval; for `percent` in points.

    >>> difference_text(Interval(0.028, 0.012, 0.045, 3), percent=True)
    '+2.8 [+1.2, +4.5]'
    """
    form, factor = ("{:+.1f}", 100.0) if percent else ("{:+.3g}", 1.0)
    return interval_text(mean, form, factor=factor, brackets=True)


def all_equal(values: Array) -> bool:
    """Whether the values differ by rounding at most."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def curve_intervals(values: Array, level: float = 0.95, scale: Scale = "plain") -> tuple[Array, Array, Array]:
    """The mean over seeds at each point of a curve with its interval: mean (K,), low (K,), high
    (K,).

    values: (K, S), NaN for a run without a result; one seed serves every point. The variance of a
    mean is that of the shared effect of the seed plus the point's own noise, shrunk towards that of
    all points, with Satterthwaite's degrees of freedom (never fewer than S - 1). NaN where a point
    has no value; low and high are NaN where one seed gives no interval.
    scale: "fraction" as in `on_scale`; "positive" takes the mean of the logarithms back (the
    geometric mean), and values not above 0 count as missing.

    >>> mean, low, high = curve_intervals(np.array([[0.5, 0.6, 0.7], [0.6, 0.8, 0.7]]))
    >>> mean.round(2), bool((low < mean).all())
    (array([0.6, 0.7]), True)
    """
    check_level(level)
    if scale == "positive":
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
    return mean, *on_scale(mean, half, scale)


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
