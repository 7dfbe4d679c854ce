"""How many seeds a verdict takes. By simulation of the verdict's own code, for a power of 80 %.
[ours]"""

from __future__ import annotations

import numpy as np

from curvact.lab.statistics import contrasts as engine
from curvact.lab.statistics.contrasts import Array
from curvact.lab.statistics.interval import PRIOR_DF

SEEDS_SEARCHED = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 25, 30, 40, 50, 60, 80, 100, 130, 160, 200)
TARGET_POWER = 0.8
BUMP_DECADES = 0.35  # standard deviation, in log10 curvature, of the peak that power is stated for


def bump(curvatures: Array, center: float, height: float) -> Array:
    """The peak that power is stated for: `height` at `center` on flat sides, Gaussian in log10
    curvature, (K,)."""
    distance = np.log10(curvatures / center) / BUMP_DECADES
    result: Array = height * np.exp(-0.5 * distance**2)
    return result


def peak_power(truth: Array, noise: Array, seeds: int, level: float, studies: int, seed: int) -> float:
    """Fraction of simulated sweeps in which the peak test at `level` supports a peak. truth, noise
    (K,)."""
    plan = engine.design(np.ones((len(truth), seeds), dtype=np.bool_))
    rng = np.random.default_rng([seed, seeds])
    table = truth[:, None] + noise[:, None] * rng.standard_normal((studies, len(truth), seeds))
    means, variances, _ = engine.fit(plan, table)
    statistic, _ = engine.peak_statistic(plan, engine.studentised(plan, means, variances))
    # beyond 30 seeds the null hardly moves, and a smaller simulation is good enough to plan with
    reference = engine.design(np.ones((len(truth), min(seeds, 30)), dtype=np.bool_))
    threshold = engine.critical(engine.null(reference, draws=3000).largest, level)
    return float((statistic > threshold).mean())


def seeds_for_power(truth: Array, noise: Array, level: float = 0.95, seed: int = 0) -> int | None:
    """Fewest seeds (of SEEDS_SEARCHED) with 80 % power of the peak test for a truth (K,); None
    above 200."""
    if len(truth) < 3 or not 0 < int(truth.argmax()) < len(truth) - 1:
        return None
    low, high = -1, len(SEEDS_SEARCHED) - 1
    if peak_power(truth, noise, SEEDS_SEARCHED[high], level, 400, seed) < TARGET_POWER:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = peak_power(truth, noise, SEEDS_SEARCHED[middle], level, 400, seed) >= TARGET_POWER
        low, high = (low, middle) if enough else (middle, high)
    return SEEDS_SEARCHED[high]


def seeds_for_equivalence(noise: Array, margin: float, level: float = 0.95, seed: int = 0) -> int | None:
    """Fewest seeds that show with 80 % power that equal means lie within `margin` of their mean;
    noise (K,)."""
    from scipy import stats

    count = len(noise)
    weights = np.eye(count) - 1 / count
    draws = np.abs(np.random.default_rng(seed).standard_normal((1000, count)) * noise @ weights)
    error = np.sqrt(weights**2 @ noise**2)
    for seeds in SEEDS_SEARCHED:
        quantile = stats.t.ppf(level, pair_df((count - 1) * (seeds - 1), (seeds - 1)))
        upper = (draws + quantile * error) / np.sqrt(seeds)
        if (upper.max(1) <= margin).mean() >= TARGET_POWER:
            return seeds
    return None


def pair_df(total: float, own: float) -> float:
    """Degrees of freedom of the difference of two points, from those of all and those of one."""
    return max(1.0, min(total, own + PRIOR_DF))
