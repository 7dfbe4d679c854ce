"""The verdict across strata: can one value be the optimum in all of them, and do the curves have
one shape? [ours]"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curvact.lab.statistics import contrasts as engine
from curvact.lab.statistics.contrasts import Array
from curvact.lab.statistics.paired import holm
from curvact.lab.statistics.verdict import Range, Verdict

DRAWS = 2000
ROUNDS = 30


@dataclass(frozen=True)
class Common:
    """Values that can be the optimum in every stratum.

    overlap: the part that all single confidence sets have in common, None where there is none.
    possible: the same with sets that hold all optima at once with the level of confidence
    (Bonferroni); None: no common optimum, at that level.
    """

    overlap: Range | None
    possible: Range | None


@dataclass(frozen=True)
class SameShape:
    """Test of "the curves are equal up to a shift and a positive factor".

    p: NaN where it cannot be tested. departs: stratum → p-value that this curve has the common
    shape, after Holm.
    """

    p: float
    departs: Mapping[str, float]


def common_optimum(verdicts: Sequence[Verdict]) -> Common:
    """Where the confidence sets of the optimum overlap. Without a point that all strata share,
    their ranges are compared."""
    single = [set(v.optimum_set) for v in verdicts]
    shared = bool(set.intersection(*(set(v.curvatures) for v in verdicts)))
    return Common(_overlap(single, shared=shared), _overlap(widened(verdicts), shared=shared))


def widened(verdicts: Sequence[Verdict]) -> list[set[float]]:
    """The confidence set of the optimum of each stratum, at a level that holds for all of them together
    (Bonferroni).
    """
    least = (1 - verdicts[0].level) / len(verdicts)
    return [
        {at for at, p in zip(v.curvatures, v.optimum_p, strict=True) if p > least} | set(v.optimum_set)
        for v in verdicts
    ]


def _overlap(sets: Sequence[set[float]], *, shared: bool) -> Range | None:
    if shared:
        both = set.intersection(*sets)
        return Range(min(both), max(both)) if both else None
    low, high = max(map(min, sets)), min(map(max, sets))
    return Range(low, high) if low <= high else None


def same_shape(curves: Mapping[str, tuple[Array, Array]], draws: int = DRAWS, seed: int = 0) -> SameShape:
    """Do curves have the same shape, whatever their level and height?

    curves: stratum → points (K,) and values (K, S). The statistic is the weighted residual of the
    best fit `a[g] + c[g]·f[k]` with c ≥ 0; its null distribution is a parametric bootstrap of that
    fit with each stratum's own noise. Only points that all strata have count. NaN for fewer than
    two strata or three points, or without an error bar.
    """
    nothing = SameShape(math.nan, {})
    if len(curves) < 2:
        return nothing
    points = set.intersection(*(set(at.tolist()) for at, _ in curves.values()))
    if len(points) < 3:
        return nothing
    tables = []
    for at, values in curves.values():
        used = values[np.isin(at, sorted(points))]
        tables.append(used[:, np.isfinite(used).any(0)])
    plans = [engine.design(np.isfinite(table)) for table in tables]
    if any(plan.df < 1 for plan in plans):
        return nothing
    fits = []
    for plan, table in zip(plans, tables, strict=True):
        center = float(np.nanmean(table))
        means, variances, _ = engine.fit(plan, np.where(plan.present, table - center, 0.0)[None])
        fits.append((means[0], variances[0]))
    counts = np.stack([plan.present.sum(1) for plan in plans])
    means, variances = (np.stack(part) for part in zip(*fits, strict=True))
    if variances.min() <= 1e-290 or np.sqrt(variances.min()) <= 1e-9 * np.abs(means).max():
        return nothing
    fitted, parts = _one_shape(means[None], counts / variances[None])
    rng = np.random.default_rng([seed, len(plans), len(points)])
    simulated = np.empty((2, draws, *means.shape))
    for g, plan in enumerate(plans):
        noise = rng.standard_normal((draws, *plan.present.shape)) * np.sqrt(variances[g])[:, None]
        simulated[:, :, g] = engine.fit(plan, noise)[:2]
    _, null = _one_shape(fitted + simulated[0], counts / simulated[1])
    p = float((1 + (null.sum(1) >= parts.sum()).sum()) / (1 + draws))
    each = (1 + (null >= parts).sum(0)) / (1 + draws)
    return SameShape(p, holm(dict(zip(curves, each.tolist(), strict=True))))


def _one_shape(means: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted least squares of `a[g] + c[g]·f[k]`, c ≥ 0, by alternation: the fit (N, G, K), the
    residual of each g (N, G)."""

    def level(values: Array) -> Array:
        result: Array = (weights * values).sum(2, keepdims=True) / weights.sum(2, keepdims=True)
        return result

    tiny = np.finfo(np.float64).tiny
    rest = means - level(means)
    clearest = (weights * rest**2).sum(2).argmax(1)
    shape = rest[np.arange(len(rest)), clearest][:, None, :]
    for _ in range(ROUNDS):
        centred = shape - level(np.broadcast_to(shape, means.shape))
        scale = (weights * centred * rest).sum(2, keepdims=True)
        scale = np.maximum(scale / np.maximum((weights * centred**2).sum(2, keepdims=True), tiny), 0.0)
        fitted = level(means) + scale * centred
        offset = fitted - scale * shape
        total = (weights * scale**2).sum(1, keepdims=True)
        better = (weights * scale * (means - offset)).sum(1, keepdims=True) / np.maximum(total, tiny)
        shape = np.where(total > tiny, better, shape)
    return fitted, (weights * (means - fitted) ** 2).sum(2)
