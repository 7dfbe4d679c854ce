"""Means over seeds with intervals, and paired differences to a baseline, corrected for how many there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from curvact.errors import CurvactError


@dataclass(frozen=True)
class Mean:
    """A mean over `count` seeds with Student's t interval.

    low and high are NaN for one seed, for values that are all alike, and for κ = ∞.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class PairedDifference:
    """A cell minus the baseline at the same seeds.

    mean: with its own interval, not corrected. p: of no difference, by a paired t test (of the signs where all differences are
    alike). p_holm: after Holm's correction over all cells: below 0.05 the difference is shown, however many cells were looked
    at. NaN where there are fewer than two seeds in common.
    """

    mean: Mean
    p: float
    p_holm: float

    @property
    def shown(self) -> bool:
        return self.p_holm < 0.05


def mean_interval(values: Sequence[float], level: float = 0.95) -> Mean:
    """The mean with Student's t interval.

    >>> mean = mean_interval([1.0, 2.0, 3.0])
    >>> mean.value, round(mean.low, 3), round(mean.high, 3)
    (2.0, -0.484, 4.484)
    """
    if not len(values):
        raise CurvactError("the mean of 0 values: at least 1")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2 or not math.isfinite(mean) or _alike(array):
        return Mean(mean, math.nan, math.nan, len(array))
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Mean(mean, mean - half, mean + half, len(array))


def paired_differences(
    values: Mapping[str, Mapping[int, float]], baseline: str | Mapping[str, str], level: float = 0.95
) -> dict[str, PairedDifference]:
    """What each cell has more than the baseline, or than its own baseline; cells that have none are left out.

    values: cell → seed → value; only seeds that both have count.

    >>> one = {"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.1}}
    >>> round(paired_differences(one, "a")["b"].mean.value, 3)
    1.05
    """
    against = dict.fromkeys(values, baseline) if isinstance(baseline, str) else baseline
    for name in against.values():
        if name not in values:
            raise CurvactError(f"no baseline {name!r} among {', '.join(values)}")
    means: dict[str, Mean] = {}
    p_values: dict[str, float] = {}
    for name, cell in values.items():
        if against.get(name, name) == name:
            continue
        own = values[against[name]]
        seeds = sorted(set(cell) & set(own))
        if not seeds:
            continue
        differences = np.array([cell[s] - own[s] for s in seeds])
        means[name] = mean_interval(differences.tolist(), level)
        p_values[name] = _t_test(differences)
    adjusted = holm(p_values)
    return {name: PairedDifference(means[name], p_values[name], adjusted[name]) for name in means}


def _alike(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
    """Whether nothing but rounding sets them apart."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _t_test(differences: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    if len(differences) < 2:
        return math.nan
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    if _alike(differences):
        # All alike, as counts of few images can be: no spread says nothing of the noise. What is left are their signs.
        return 1.0 if differences.mean() == 0 else float(2 * 0.5 ** len(differences))
    return float(2 * stats.t.sf(abs(differences.mean() / error), len(differences) - 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction; NaN stays NaN.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted = dict.fromkeys(p_values, math.nan)
    highest = 0.0
    for index, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - index) * p))
        adjusted[name] = highest
    return adjusted
