"""The verdict on one curve: which shape the seeds show, and where its optimum can be.

All of it is [ours], from standard parts: a two-way model (point of the curve + seed) with shrunk
noise variances; an intersection-union test of studentised contrasts for an interior peak; Hsu's
comparison with the best for the place of the optimum; pairwise equivalence tests for a plateau.
Null distributions are simulated with a fixed seed, also for unequal noise. docs/statistics.md has
the error rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curvact.errors import CurvactError
from curvact.lab.statistics import contrasts as engine
from curvact.lab.statistics.contrasts import Array, Design, Indices, Mask
from curvact.lab.statistics.interval import PRIOR_DF, check_level, known_cells
from curvact.lab.statistics.power import bump, pair_df, seeds_for_equivalence, seeds_for_power
from curvact.lab.statistics.shapes import MIN_PLATEAU, ShapeWeight, monotone_fit, shape_weights
from curvact.notebook import html_facts

KINDS = ("interior peak", "U shape", "plateau", "monotone rise", "monotone fall", "flat", "inconclusive")
MOST_POINTS = 40


@dataclass(frozen=True)
class Range:
    """`low` to `high`, both included."""

    low: float
    high: float


@dataclass(frozen=True)
class Height:
    """How far the peak lies above the run of curvatures `over`; `interval` is simultaneous over all
    such contrasts."""

    value: float
    interval: Range
    over: Range


@dataclass(frozen=True)
class Verdict:
    """What S seeds at K curvatures say about one curve. `kind` is what is shown, `likely` only what
    fits best.

    kind: "interior peak" (a run of curvatures lies above one on its left and one on its right), "U
    shape" (its mirror), "plateau" (a rise or a fall is shown, and at the best end of the curve,
    three curvatures or more, each lies within `margin` of their mean), "monotone rise" and
    "monotone fall" (shown, and the optimum is one of the two curvatures at the best end of the
    curve), "flat" (each curvature lies within `margin` of the mean of all), "inconclusive". Words
    describe the curve as it is drawn, so for a Hessian norm
    (maximise=False) the shape with an interior optimum is "U shape".
    """

    kind: str
    best: float  # curvature with the best mean
    optimum: Range  # confidence set of the optimum, its lowest and highest curvature
    peak_p: float  # p-value of "the optimum is interior": a peak, or for maximise=False a U shape
    optimum_set: tuple[float, ...]  # the set itself, which may have gaps
    optimum_p: tuple[float, ...]  # at each of `curvatures`: p-value of "the optimum is here"
    rise_p: float  # some higher curvature has a higher value (as drawn)
    fall_p: float
    peak_at: Range | None  # the run of curvatures that stands out most on both sides
    over_left: Height | None  # as drawn: negative values for a U shape
    over_right: Height | None
    plateau: Range | None  # the widest end of the curve (best end) shown to lie within the margin
    plateau_spread: float  # upper bound of max - min over the likely plateau
    likely: tuple[ShapeWeight, ...]  # of the curve with its best on top; indices into `curvatures`
    likely_plateau: Range | None  # plateau of the best-fitting plateau shape
    seeds_needed: int | None  # for 80 % power if the shrunk curve were the truth; None: above 200
    seeds_for_peak: int | None  # for 80 % power for a peak of height `margin`
    seeds_for_plateau: int | None  # for 80 % power to show that a true plateau lies within `margin`
    noise: Range  # smallest and largest noise standard deviation of one run, over the curvatures
    df: int
    seeds: int
    curvatures: tuple[float, ...]  # those used
    means: tuple[float, ...]
    level: float
    margin: float
    maximise: bool
    notes: tuple[str, ...]

    @property
    def interior(self) -> bool:
        """Whether an interior optimum is supported at this level."""
        return self.peak_p <= 1 - self.level

    def _repr_html_(self) -> str:
        facts = {
            "verdict": self.kind,
            "best": self.best,
            f"optimum, {100 * self.level:g} % set": f"{self.optimum.low:g} to {self.optimum.high:g}",
            "peak p": self.peak_p,
            "rise p": self.rise_p,
            "fall p": self.fall_p,
            "points, seeds": f"{len(self.curvatures)}, {self.seeds}",
            "notes": "; ".join(self.notes),
        }
        return html_facts("Verdict on one curve", facts)

    def weight(self, *shapes: str) -> float:
        """Sum of the weights of shapes, of the curve turned so that the best is high."""
        return sum(w.weight for w in self.likely if w.shape in shapes)


def _silent(values: Array, variances: Array) -> bool:
    """No noise beyond rounding: the seeds agree exactly, and nothing can be tested."""
    return float(np.sqrt(variances.max())) <= 1e-9 * float(np.abs(values).max()) or variances.max() <= 1e-290


def pair_bounds(plan: Design, means: Array, variances: Array, level: float) -> Array:
    """Upper bounds, (K, K), of |difference| of two curvatures, each at one-sided `level`."""
    from scipy import stats

    single = (plan.left[:, 0] == plan.left[:, 1]) & (plan.right[:, 0] == plan.right[:, 1])
    i, j = plan.left[single, 0], plan.right[single, 0]
    quantile = stats.t.ppf(level, pair_df(plan.df, float(plan.df_each.min())))
    bound = np.zeros((plan.count, plan.count))
    bound[i, j] = np.abs(plan.weights[single] @ means) + quantile * np.sqrt(plan.spread[single] @ variances)
    result: Array = np.maximum(bound, bound.T)
    return result


def level_bounds(plan: Design, means: Array, variances: Array, level: float, start: int, stop: int) -> Array:
    """Upper bounds of how far each point from `start` to before `stop` lies from the mean of them
    all, each at one-sided `level`."""
    from scipy import stats

    weights = np.zeros((stop - start, plan.count))
    weights[:, start:stop] = np.eye(stop - start) - 1 / (stop - start)
    quantile = stats.t.ppf(level, pair_df(plan.df, float(plan.df_each.min())))
    result: Array = np.abs(weights @ means) + quantile * np.sqrt(plan.spread_of(weights) @ variances)
    return result


def equivalent_end(
    plan: Design, means: Array, variances: Array, level: float, margin: float, *, first: bool = False
) -> int | None:
    """How many points at the end of the curve (its beginning, for `first`) are level: each lies
    within the margin of their mean. None for fewer than MIN_PLATEAU.

    Each point is tested at full level (intersection-union), and the set grows only while it passes
    (fixed sequence).
    """
    found = None
    for size in range(MIN_PLATEAU, plan.count + 1):
        start, stop = (0, size) if first else (plan.count - size, plan.count)
        if level_bounds(plan, means, variances, level, start, stop).max() > margin:
            break
        found = size
    return found


def decide(
    curvatures: Sequence[float],
    values: Array,
    *,
    level: float = 0.95,
    margin: float = 0.02,
    maximise: bool = True,
    planned: bool = True,
    seed: int = 0,
) -> Verdict:
    """The verdict on one curve: values (K, S) at ascending curvatures (K,), NaN for a failed run.

    margin: differences up to this count as none, in units of `values`. maximise: False for a norm
    whose minimum is sought. planned: whether the seeds for a peak and for a plateau are computed.
    The same seed gives the same verdict. Raises CurvactError for curvatures that are not positive,
    finite and ascending, a shape that does not fit, or a level or margin out of range.

    >>> rng = np.random.default_rng(0)
    >>> kappa = [0.1, 0.5, 1, 2, 4, 6, 10, 20, 50, 200]
    >>> truth = np.array([0.5, 0.55, 0.6, 0.65, 0.7, 0.7, 0.7, 0.6, 0.55, 0.5])
    >>> verdict = decide(kappa, truth[:, None] + 0.01 * rng.standard_normal((10, 3)))
    >>> verdict.kind, verdict.optimum
    ('interior peak', Range(low=4.0, high=10.0))
    """
    check_level(level)
    if not (np.isfinite(margin) and margin > 0):
        raise CurvactError(f"margin = {margin}: allowed is a positive finite number")
    table, rows, columns = known_cells(values)
    kappa = np.asarray(curvatures, dtype=np.float64)
    if kappa.shape != (len(table),):
        raise CurvactError(f"values has {len(table)} rows for {kappa.size} curvatures: one row a curvature")
    if not (np.isfinite(kappa).all() and (kappa > 0).all() and (np.diff(kappa) > 0).all()):
        raise CurvactError(
            f"curvatures = {list(map(float, kappa))}: allowed are positive finite numbers in ascending order"
        )
    if len(kappa) > MOST_POINTS:
        raise CurvactError(f"{len(kappa)} curvatures: a verdict takes at most {MOST_POINTS}")
    if not rows.any():
        raise CurvactError("values holds no finite number: no run has a result")
    notes = []
    missing = int((~np.isfinite(table[np.ix_(rows, columns)])).sum())
    if not rows.all():
        gone = ", ".join(f"{k:g}" for k in kappa[~rows])
        notes.append(f"no result at κ = {gone}: left out")
    if missing:
        notes.append(f"{missing} of {int(rows.sum() * columns.sum())} runs have no result: left out")
    kappa, table = kappa[rows], table[np.ix_(rows, columns)]
    sign = 1.0 if maximise else -1.0
    z = sign * np.where(np.isfinite(table), table, np.nan)
    z = z[:, _canonical_order(z)]
    present = np.isfinite(z)
    plan = engine.design(present)
    if plan.df >= 1 and not plan.paired:
        notes.append("the missing runs leave no common seeds: seeds are compared as if they were independent")
    center = float(np.nanmean(z))
    filled = np.where(present, z - center, 0.0)
    if plan.count > 1 and plan.df >= 1:
        means_n, variances_n, _ = engine.fit(plan, filled[None])
        means, variances = means_n[0], variances_n[0]
    else:
        means = filled.sum(1) / present.sum(1)
        variances = np.zeros(plan.count)
    whole = Range(float(kappa[0]), float(kappa[-1]))
    best = int(means.argmax())
    noise_sd = np.sqrt(variances)
    common = {
        "best": float(kappa[best]),
        "noise": Range(float(noise_sd.min()), float(noise_sd.max())),
        "df": max(0, plan.df),
        "seeds": plan.seeds,
        "curvatures": tuple(map(float, kappa)),
        "means": tuple(map(float, sign * (means + center))),
        "level": level,
        "margin": margin,
        "maximise": maximise,
    }
    if plan.count == 1 or plan.df < 1 or _silent(filled + center, variances):
        kind = "inconclusive"
        if plan.count == 1:
            notes.append("one curvature has no shape")
        elif plan.seeds == 1:
            notes.append("one seed has no error bar")
        elif plan.df < 1:
            notes.append("too few runs for an error bar")
        else:
            notes.append("the seeds agree exactly at every curvature: no error bar")
            if np.ptp(filled[present]) <= 1e-9 * max(float(np.abs(z[present]).max()), 1e-290):
                kind = "flat"
        return Verdict(
            kind=kind,
            optimum=whole,
            optimum_set=tuple(map(float, kappa)),
            optimum_p=(1.0,) * plan.count,
            peak_p=1.0,
            rise_p=1.0,
            fall_p=1.0,
            peak_at=None,
            over_left=None,
            over_right=None,
            plateau=None,
            plateau_spread=float(np.ptp(means)) if kind == "flat" else float("inf"),
            likely=(),
            likely_plateau=None,
            seeds_needed=None,
            seeds_for_peak=None,
            seeds_for_plateau=None,
            notes=tuple(notes),
            **common,  # type: ignore[arg-type]
        )
    alpha = 1 - level
    null = engine.null(plan)
    t = engine.studentised(plan, means[None], variances[None])
    rise_p = float(engine.p_values(null.largest, t.max(1))[0])
    fall_p = float(engine.p_values(null.largest, -t.min(1))[0])
    statistic, runs = engine.peak_statistic(plan, t)
    dip, _ = engine.peak_statistic(plan, -t)
    peak_p = float(engine.p_values(null.largest, statistic)[0]) if plan.count > 2 else 1.0
    dip_p = float(engine.p_values(null.largest, dip)[0]) if plan.count > 2 else 1.0
    inside = optimum_members(plan, t, level)[0]
    inside[best] = True
    members = np.flatnonzero(inside)
    beaten = engine.beaten_statistic(plan, t)
    optimum_p = [float(engine.p_values(null.beaten[:, k], beaten[:, k])[0]) for k in range(plan.count)]
    optimum_p[best] = 1.0
    _, cautious, _ = engine.fit(plan, filled[None], PRIOR_DF)
    bounds = pair_bounds(plan, means, cautious[0], level)
    squared = variances / present.sum(1)
    likely = shape_weights(means, squared, float(plan.df), int(present.sum()))
    top = next((w for w in likely if w.shape in ("rise then plateau", "plateau then fall", "flat")), None)
    flat_part = np.arange(top.start, top.stop + 1) if top else np.arange(plan.count)
    after_rise = equivalent_end(plan, means, cautious[0], level, margin)
    before_fall = equivalent_end(plan, means, cautious[0], level, margin, first=True)
    plateau = None
    if peak_p <= alpha:
        kind = "peak"
    elif dip_p <= alpha:
        kind = "dip"
    elif rise_p <= alpha < fall_p:
        plateau = None if after_rise is None else Range(float(kappa[-after_rise]), whole.high)
        kind = "plateau" if plateau else "rise" if members[0] >= plan.count - 2 else "inconclusive"
    elif fall_p <= alpha < rise_p:
        plateau = None if before_fall is None else Range(whole.low, float(kappa[before_fall - 1]))
        kind = "plateau" if plateau else "fall" if members[-1] <= 1 else "inconclusive"
    elif min(rise_p, fall_p) > alpha and _level(plan, means, cautious[0], level, margin):
        kind = "flat"
    else:
        kind = "inconclusive"
    drawn = {
        "peak": "interior peak" if maximise else "U shape",
        "dip": "U shape" if maximise else "interior peak",
        "rise": "monotone rise" if maximise else "monotone fall",
        "fall": "monotone fall" if maximise else "monotone rise",
    }
    peak_at = over_left = over_right = None
    if plan.count > 2:
        run = runs[0]
        peak_at = Range(float(kappa[run[0]]), float(kappa[run[1]]))
        quantile = engine.critical(null.two_sided, level)
        over_left = _height(plan, means, variances, t[0], run, kappa, quantile, sign, left=True)
        over_right = _height(plan, means, variances, t[0], run, kappa, quantile, sign, left=False)
    baseline = monotone_fit(means, 1 / squared)
    misfit = float(((means - baseline) ** 2 / squared).sum())
    freedom = plan.count - len(np.unique(baseline))
    keep = max(0.0, 1.0 - freedom / misfit) if misfit > 0 else 0.0
    shrunk = baseline + keep * (means - baseline)
    middle = kappa[min(max(best, 1), plan.count - 2)] if plan.count > 2 else kappa[0]
    return Verdict(
        kind=drawn.get(kind, kind),
        optimum=Range(float(kappa[members[0]]), float(kappa[members[-1]])),
        optimum_set=tuple(map(float, kappa[members])),
        optimum_p=tuple(optimum_p),
        peak_p=peak_p,
        rise_p=rise_p if maximise else fall_p,
        fall_p=fall_p if maximise else rise_p,
        peak_at=peak_at,
        over_left=over_left,
        over_right=over_right,
        plateau=plateau,
        plateau_spread=float(bounds[np.ix_(flat_part, flat_part)].max()),
        likely=likely,
        likely_plateau=Range(float(kappa[top.start]), float(kappa[top.stop])) if top else None,
        seeds_needed=seeds_for_power(shrunk, noise_sd, level, seed) if keep > 0 else None,
        seeds_for_peak=seeds_for_power(bump(kappa, middle, margin), noise_sd, level, seed)
        if planned
        else None,
        seeds_for_plateau=seeds_for_equivalence(noise_sd[flat_part], margin, level, seed)
        if planned
        else None,
        notes=tuple(notes),
        **common,  # type: ignore[arg-type]
    )


def _level(plan: Design, means: Array, variances: Array, level: float, margin: float) -> bool:
    """Whether the whole curve is level."""
    return bool(level_bounds(plan, means, variances, level, 0, plan.count).max() <= margin)


def optimum_members(plan: Design, t: Array, level: float) -> Mask:
    """Which curvatures could be the best, (N, K): those that no run beats beyond their null
    quantile."""
    beaten = engine.beaten_statistic(plan, t)
    null = engine.null(plan).beaten
    threshold = np.array([engine.critical(null[:, k], level) for k in range(plan.count)])
    result: Mask = beaten <= threshold
    return result


def _height(
    plan: Design,
    means: Array,
    variances: Array,
    t: Array,
    run: Indices,
    kappa: Array,
    quantile: float,
    sign: float,
    *,
    left: bool,
) -> Height:
    """The contrast of `run` with the run on one side that it exceeds most clearly."""
    mine, other = (plan.right, plan.left) if left else (plan.left, plan.right)
    candidates = np.flatnonzero((mine == run).all(1))
    direction = 1.0 if left else -1.0
    chosen = candidates[(direction * t[candidates]).argmax()]
    value = sign * direction * float(plan.weights[chosen] @ means)
    half = quantile * float(np.sqrt(plan.spread[chosen] @ variances))
    over = Range(float(kappa[other[chosen, 0]]), float(kappa[other[chosen, 1]]))
    return Height(value, Range(value - half, value + half), over)


def difference(values: Array, first: int, second: int, level: float = 0.95) -> tuple[float, Range] | None:
    """`mean[first] - mean[second]` of rows of values (K, S), seed by seed, with its interval; None
    without noise to judge.

    The interval is simultaneous over all comparisons of the table: the two rows may have been
    chosen by looking.
    """
    check_level(level)
    table, rows, columns = known_cells(values)
    if not (rows[first] and rows[second]) or first == second:
        return None
    used = table[np.ix_(rows, columns)]
    present = np.isfinite(used)
    plan = engine.design(present)
    if plan.df < 1:
        return None
    center = float(np.nanmean(used))
    means, variances, _ = engine.fit(plan, np.where(present, used - center, 0.0)[None])
    if _silent(used[present], variances[0]):
        return None
    i, j = np.cumsum(rows)[[first, second]] - 1
    low, high = min(i, j), max(i, j)
    chosen = int(np.flatnonzero((plan.left == low).all(1) & (plan.right == high).all(1))[0])
    value = float(means[0, i] - means[0, j])
    half = engine.critical(engine.null(plan).two_sided, level)
    half *= float(np.sqrt(plan.spread[chosen] @ variances[0]))
    return value, Range(value - half, value + half)


def _canonical_order(values: Array) -> Indices:
    """An order of the seeds that does not depend on the order given, nor on a constant added to a
    seed."""
    rest = values - np.nanmean(values, axis=1, keepdims=True)
    rest = rest - np.nanmean(rest, axis=0, keepdims=True)
    scale = float(np.nanmax(np.abs(rest))) or 1.0
    keys = np.nan_to_num(np.round(rest / scale, 6), nan=9.0)
    return np.lexsort(keys)


def peak_test(values: Array, *, maximise: bool = True) -> tuple[Design, float] | None:
    """The design and the statistic behind `peak_p` of a curve (K, S), for a more precise p-value;
    None without a test."""
    table, rows, columns = known_cells(values)
    used = (1.0 if maximise else -1.0) * table[np.ix_(rows, columns)]
    used = used[:, _canonical_order(used)]
    present = np.isfinite(used)
    plan = engine.design(present)
    if plan.count < 3 or plan.df < 1:
        return None
    filled = np.where(present, used - float(np.nanmean(used)), 0.0)
    means, variances, _ = engine.fit(plan, filled[None])
    if _silent(used[present], variances[0]):
        return None
    statistic, _ = engine.peak_statistic(plan, engine.studentised(plan, means, variances))
    return plan, float(statistic[0])
