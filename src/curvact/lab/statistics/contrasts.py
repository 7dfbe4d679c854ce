"""Contrasts between runs of neighbouring curvatures, and their null distributions by simulation.

Model: `value[k, s] = mu[k] + b[s] + e[k, s]` with an own noise variance at each curvature k; one
seed s serves every curvature. Everything takes a leading axis of N sweeps, so that the code of a
verdict can be simulated thousands of times. All of it is [ours]; the parts are standard and are
named where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]

PRIOR_DF = 6.0  # weight of the noise trend against a point's own variance, in degrees of freedom
TREND_RIDGE = 2.0  # pull of the noise trend towards equal noise
TREND_LIMIT = 2.5  # largest |half log ratio| of the variance between the first and the last point
ALL_RUNS_UP_TO = 12  # above this many curvatures only runs of the lengths below are compared
LONG_RUNS = (1, 2, 3, 5, 8)
LONGER_UP_TO = 24
VERY_LONG_RUNS = (1, 3, 8)
NULL_DRAWS = 10_000
LONG_DRAWS = 4000  # above ALL_RUNS_UP_TO curvatures
CHUNK = 2**22  # numbers in one block of a simulation


def runs(count: int) -> list[tuple[int, int]]:
    """First and last index of every run of neighbouring curvatures that is compared.

    >>> runs(3)
    [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    """
    allowed: Sequence[int] = range(1, count + 1)
    if count > ALL_RUNS_UP_TO:
        allowed = LONG_RUNS if count <= LONGER_UP_TO else VERY_LONG_RUNS
    return [(a, a + n - 1) for a in range(count) for n in allowed if a + n <= count]


def noise_profiles(count: int) -> Array:
    """Noise standard deviations under which the null is simulated, (4, K): equal, threefold
    falling, threefold rising, and the first curvature alone threefold."""
    falling = np.geomspace(3.0, 1.0, count) if count > 1 else np.ones(1)
    first = np.ones(count)
    first[0] = 3.0
    return np.stack([np.ones(count), falling, falling[::-1], first])


@dataclass(frozen=True, eq=False)
class Design:
    """Which cells exist, and every contrast `mean(right run) - mean(left run)` that they allow."""

    present: Mask  # (K, S)
    paired: bool  # seed effects are removed; False where the missing cells make that impossible
    df: int
    df_each: Array  # (K,) share of the residual degrees of freedom
    estimate: Array | None  # (K, cells) least squares, None for a complete table
    residual: Array | None  # (cells, cells)

    @property
    def count(self) -> int:
        return int(self.present.shape[0])

    @property
    def seeds(self) -> int:
        return int(self.present.shape[1])

    @cached_property
    def _pairs(self) -> Indices:
        every = runs(self.count)
        pairs = [(*left, *right) for left in every for right in every if left[1] < right[0]]
        return np.array(pairs, dtype=np.int64).reshape(-1, 4)

    @property
    def left(self) -> Indices:
        """First and last index of the left run of each contrast, (C, 2)."""
        return self._pairs[:, :2]

    @property
    def right(self) -> Indices:
        """First and last index of the right run, (C, 2)."""
        return self._pairs[:, 2:]

    @cached_property
    def weights(self) -> Array:
        """Weight of each curvature in each contrast, (C, K)."""
        index = np.arange(self.count)

        def average(bounds: Indices) -> Array:
            inside = (index >= bounds[:, :1]) & (index <= bounds[:, 1:])
            share: Array = inside / np.maximum(inside.sum(1, keepdims=True), 1)
            return share

        return average(self.right) - average(self.left)

    @cached_property
    def spread(self) -> Array:
        """The variance of a contrast is `spread @ noise variances`, (C, K)."""
        return self.spread_of(self.weights)

    def spread_of(self, weights: Array) -> Array:
        """The variance of `weights @ means` is `spread_of(weights) @ noise variances`, (C, K)."""
        if self.estimate is None:
            return weights**2 / self.seeds
        k, _ = np.nonzero(self.present)
        result: Array = (weights @ self.estimate) ** 2 @ (k[:, None] == np.arange(self.count))
        return result


@dataclass(frozen=True, eq=False)
class Null:
    """Sorted statistics when all means are equal, one row a noise profile: (P, draws), and (P, K,
    draws)."""

    largest: Array  # largest studentised contrast in one direction
    two_sided: Array  # largest absolute studentised contrast
    beaten: Array  # by how much the best run beats curvature k


@lru_cache(maxsize=64)
def _design(packed: bytes, count: int, seeds: int) -> Design:
    present = np.frombuffer(packed, dtype=np.bool_).reshape(count, seeds)
    index = np.arange(count)
    if present.all():
        df = (count - 1) * (seeds - 1)
        each = np.full(count, df / count)
        return Design(present, True, df, each, None, None)
    k, s = np.nonzero(present)
    kappa = (k[:, None] == index).astype(np.float64)
    seed = (s[:, None] == np.arange(seeds)).astype(np.float64)
    paired_model = np.hstack([kappa, seed[:, :-1] - seed[:, -1:]])
    paired = bool(np.linalg.matrix_rank(paired_model) == count + seeds - 1)
    model = paired_model if paired else kappa
    inverse = np.linalg.pinv(model)
    residual = np.eye(len(k)) - model @ inverse
    each = kappa.T @ np.diag(residual)
    df = len(k) - model.shape[1]
    return Design(present, paired, df, np.clip(each, 0.0, None), inverse[:count], residual)


def design(present: Mask) -> Design:
    """The design of a table of cells, (K, S) bool; every curvature and every seed has a cell.
    Cached."""
    return _design(np.ascontiguousarray(present).tobytes(), *present.shape)


def shrunk_variances(squares: Array, df_each: Array, prior_df: float) -> Array:
    """Noise variance at each curvature, (N, K), from residual sums of squares (N, K).

    A curvature's own variance is shrunk towards a log-linear trend in the order of the curvatures,
    with `prior_df` degrees of freedom on the trend's side (empirical Bayes in the way of limma; the
    trend by penalised Fisher scoring of the gamma likelihood). Never below a tenth of the trend.
    """
    total = df_each.sum()
    pooled = squares.sum(-1) / total
    raw = squares / np.maximum(df_each, 1e-9)
    raw = np.where(df_each > 1e-6, raw, pooled[:, None])
    x = np.linspace(-1.0, 1.0, squares.shape[-1]) if squares.shape[-1] > 3 else np.zeros(squares.shape[-1])
    slope = np.zeros(len(squares))
    information = 0.5 * (df_each * x**2).sum() + TREND_RIDGE
    tiny = np.finfo(np.float64).tiny
    for _ in range(12):
        shape = np.exp(slope[:, None] * x)
        level = np.maximum((df_each * raw / shape).sum(-1) / total, tiny)
        score = 0.5 * (df_each * x * (raw / (shape * level[:, None]) - 1.0)).sum(-1) - TREND_RIDGE * slope
        slope = np.clip(slope + score / information, -TREND_LIMIT, TREND_LIMIT)
    shape = np.exp(slope[:, None] * x)
    trend = shape * (pooled / ((df_each * shape).sum(-1) / total))[:, None]
    own = df_each / (df_each + prior_df)
    result: Array = np.maximum(own * raw + (1.0 - own) * trend, 0.1 * trend)
    return result


def fit(plan: Design, values: Array, prior_df: float | None = None) -> tuple[Array, Array, Array]:
    """Means (N, K), noise variances (N, K) and seed effects (N, S) of tables (N, K, S).

    Least squares in the two-way model; the content of absent cells does not matter.
    """
    if plan.estimate is None or plan.residual is None:
        means = values.mean(2)
        seeds = values.mean(1) - values.mean((1, 2))[:, None]
        rest = values - means[:, :, None] - seeds[:, None, :]
        squares = (rest**2).sum(2)
    else:
        cells = values[:, plan.present]
        means = cells @ plan.estimate.T
        k, s = np.nonzero(plan.present)
        rest = cells @ plan.residual.T
        squares = (rest**2) @ (k[:, None] == np.arange(plan.count)).astype(np.float64)
        gap = cells - means[:, k]
        belongs = (s[:, None] == np.arange(plan.seeds)).astype(np.float64)
        seeds = gap @ belongs / belongs.sum(0)
    return means, shrunk_variances(squares, plan.df_each, PRIOR_DF if prior_df is None else prior_df), seeds


def studentised(plan: Design, means: Array, variances: Array) -> Array:
    """Every contrast over its standard error, (N, C): positive where the right run is higher."""
    result: Array = (means @ plan.weights.T) / np.sqrt(variances @ plan.spread.T)
    return result


def _by_run(t: Array, bounds: Indices) -> tuple[Array, Indices]:
    """Largest statistic for each distinct run in `bounds`, (N, R), and the runs (R, 2)."""
    order = np.lexsort((bounds[:, 1], bounds[:, 0]))
    ordered = bounds[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(ordered, axis=0) != 0).any(1)])
    return np.maximum.reduceat(t[:, order], starts, axis=1), ordered[starts]


def peak_statistic(plan: Design, t: Array) -> tuple[Array, Indices]:
    """Interior peak: the largest over runs M of min(M above a run on its left, M above a run on its
    right), (N,).

    Also the run M that attains it, (N, 2). Under a non-decreasing truth every fall has a mean of at
    most 0, and under a non-increasing one every rise, so the statistic exceeds the null quantile of
    the largest contrast in at most alpha of sweeps (intersection-union test). -inf for fewer than
    three curvatures.
    """
    n = len(t)
    if plan.count < 3:
        return np.full(n, -np.inf), np.zeros((n, 2), dtype=np.int64)
    rise, above_left = _by_run(t, plan.right)
    fall, above_right = _by_run(-t, plan.left)
    place = {(int(a), int(b)): i for i, (a, b) in enumerate(above_left)}
    both = [(place[int(a), int(b)], i) for i, (a, b) in enumerate(above_right) if (int(a), int(b)) in place]
    r, f = np.array(both).T
    score = np.minimum(rise[:, r], fall[:, f])
    best = score.argmax(1)
    return score[np.arange(n), best], above_left[r[best]]


def beaten_statistic(plan: Design, t: Array) -> Array:
    """By how much the best run beats each single curvature, studentised, (N, K) (Hsu's comparison
    with the best)."""
    result = np.full((len(t), plan.count), -np.inf)
    for k in range(plan.count):
        low = np.flatnonzero((plan.right == k).all(1))
        high = np.flatnonzero((plan.left == k).all(1))
        if len(low):
            result[:, k] = (-t[:, low]).max(1)
        if len(high):
            result[:, k] = np.maximum(result[:, k], t[:, high].max(1))
    return result


@lru_cache(maxsize=64)
def _null(packed: bytes, count: int, seeds: int, draws: int, seed: int) -> Null:
    plan = _design(packed, count, seeds)
    rng = np.random.default_rng([seed, count, seeds])
    block = max(1, min(draws, CHUNK // max(1, count * seeds, len(plan.weights))))
    largest, two_sided, beaten = [], [], []
    for profile in noise_profiles(count):
        parts = []
        for start in range(0, draws, block):
            noise = rng.standard_normal((min(block, draws - start), count, seeds)) * profile[:, None]
            means, variances, _ = fit(plan, noise)
            t = studentised(plan, means, variances)
            high = t.max(1)
            parts.append((high, np.maximum(high, -t.min(1)), beaten_statistic(plan, t)))
        largest.append(np.sort(np.concatenate([p[0] for p in parts])))
        two_sided.append(np.sort(np.concatenate([p[1] for p in parts])))
        beaten.append(np.sort(np.concatenate([p[2] for p in parts]), axis=0).T)
    return Null(np.stack(largest), np.stack(two_sided), np.stack(beaten))


def null(plan: Design, draws: int = NULL_DRAWS, seed: int = 0) -> Null:
    """The statistics of a design with equal means, by simulation under each noise profile.
    Cached."""
    if plan.count > ALL_RUNS_UP_TO:
        draws = min(draws, LONG_DRAWS)
    return _null(np.ascontiguousarray(plan.present).tobytes(), plan.count, plan.seeds, draws, seed)


def p_values(table: Array, statistic: Array) -> Array:
    """Monte-Carlo p-values of statistics (N,) against sorted draws (P, draws): the largest over the
    profiles."""
    draws = table.shape[1]
    above = np.stack([draws - np.searchsorted(row, statistic, side="left") for row in table])
    result: Array = ((1.0 + above) / (1.0 + draws)).max(0)
    return result


def critical(table: Array, level: float) -> float:
    """The quantile at `level` of sorted draws (P, draws), the largest over the profiles."""
    return float(np.quantile(table, level, axis=1).max())


def precise_p_values(plan: Design, statistics: Array, draws: int, seed: int = 0) -> Array:
    """Monte-Carlo p-values of statistics (N,) > 0 against the largest contrast, from `draws` fresh
    draws, (N,).

    Only the noise profiles that can be the worst are drawn: by the cached null, then by an eighth of
    the draws. No statistic of a draw is computed, only whether a contrast exceeds each of
    `statistics`.
    """
    table = null(plan).largest
    share = np.stack([1.0 - np.searchsorted(row, statistics) / table.shape[1] for row in table])
    profiles = np.flatnonzero(_possibly_worst(share, table.shape[1]))
    rng = np.random.default_rng([seed, plan.count, plan.seeds, draws])
    counts = np.zeros((len(share), len(statistics)))
    done = 0
    for part in (draws // 8, draws - draws // 8):
        for profile in profiles:
            counts[profile] += _exceeding(plan, statistics, noise_profiles(plan.count)[profile], part, rng)
        done += part
        profiles = profiles[_possibly_worst(counts[profiles] / done, done)]
    result: Array = (1.0 + counts[profiles].max(0)) / (1.0 + draws)
    return result


def _possibly_worst(share: Array, draws: int) -> Mask:
    """Which profiles, of shares (P, N) of so many draws, can have the largest for a statistic, (P,)."""
    doubt = 4 * np.sqrt(np.maximum(share * (1 - share), 1e-9) / draws)
    result: Mask = (share + doubt >= (share - doubt).max(0)).any(1)
    return result


def _exceeding(
    plan: Design, statistics: Array, profile: Array, draws: int, rng: np.random.Generator
) -> Array:
    """How many draws of noise with this profile have a contrast beyond each of `statistics`, (N,).

    In a complete table no contrast is beyond Scheffé's bound, the weighted sum of squares between
    points: draws whose bound is too small need no contrasts.
    """
    weights, spread = plan.weights.T.astype(np.float32), plan.spread.T.astype(np.float32)
    block = max(1, min(draws, CHUNK // max(1, plan.count * plan.seeds, len(plan.weights))))
    above = np.zeros(len(statistics))
    for start in range(0, draws, block):
        noise = rng.standard_normal((min(block, draws - start), plan.count, plan.seeds)) * profile[:, None]
        means, variances, _ = fit(plan, noise)
        if plan.estimate is None:
            middle = (means / variances).sum(1, keepdims=True) / (1 / variances).sum(1, keepdims=True)
            bound = plan.seeds * ((means - middle) ** 2 / variances).sum(1)
            able = bound >= 0.999 * float(statistics.min()) ** 2
            means, variances = means[able], variances[able]
        rise = means.astype(np.float32) @ weights
        squared = np.maximum(rise, 0.0) ** 2 / (variances.astype(np.float32) @ spread)
        above += (squared.max(1)[:, None] >= statistics**2).sum(0)
    return above
