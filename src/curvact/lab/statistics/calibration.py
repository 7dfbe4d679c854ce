"""Study room, the calibration of the verdict: simulated studies with known truths, for one design and noise.

[ours]. The code that is simulated is the code of `curvact.lab.statistics.shape`, with a leading axis of studies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from curvact.errors import CurvactError
from curvact.lab.statistics import _contrasts as engine
from curvact.lab.statistics._contrasts import Array, Mask
from curvact.lab.statistics.shape import bump, interval_half_widths, optimum_members

RISE = 0.15  # total height of the rising truths, as measured on digits between 0.1 and 2
HEIGHTS = (0.01, 0.02, 0.03, 0.05)
SEED_EFFECT = 0.5  # standard deviation of the shared seed effect, in units of the noise
RESAMPLES = 300  # of the naive bootstrap
LEVEL = 0.95


@dataclass(frozen=True)
class Rate:
    """A simulated fraction with its binomial standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ± {100 * self.error:.1f} %"


@dataclass(frozen=True)
class Calibration:
    """How often the verdict is right at one design. All rates are fractions of simulated studies.

    `uneven` means a noise standard deviation that falls or rises threefold over the curvatures (the worse of the two;
    its mean square is that of the equal noise).
    """

    seeds: int
    sd: float
    studies: int
    band_share: Rate  # best point inside the band though the truth rises to 2 and is flat after
    bootstrap_coverage: Rate  # of a percentile bootstrap over seeds that says 95 %
    interval_coverage: Rate  # of `mean_intervals`
    interval_coverage_uneven: Rate
    optimum_coverage: Rate  # a true optimum lies in the confidence set, worst truth
    optimum_coverage_uneven: Rate
    false_peak: Rate  # "interior peak" for a flat, plateau or monotone truth, worst truth
    false_peak_uneven: Rate
    false_peak_valley: Rate  # "interior peak" for a valley, worst place and noise
    power: tuple[tuple[float, Rate], ...]  # (height of a real peak, fraction supported)
    rows: tuple[tuple[str, str, str], ...]  # what, figure, required or meaning


def rise_then_flat(curvatures: Array, end: float, height: float = RISE) -> Array:
    """Truth that rises log-linearly by `height` from the first curvature to `end` and is flat after, (K,)."""
    x = np.log(curvatures)
    span = np.log(end) - x[0]
    if span <= 0:
        return np.zeros(len(x))
    result: Array = -height * np.clip(1 - (x - x[0]) / span, 0.0, None)
    return result


def monotone_truths(curvatures: Array) -> Iterator[Array]:
    """Flat, gentle and steep rises to every place with a plateau after, and their mirror images, (K,)."""
    count = len(curvatures)
    yield np.zeros(count)
    rising = [rise_then_flat(curvatures, 2.0), rise_then_flat(curvatures, float(curvatures[-1]))]
    rising += [np.where(np.arange(count) < first, -10.0, 0.0) for first in range(1, count - 1)]
    for truth in rising:
        yield truth
        yield truth[::-1]


def valley_truths(curvatures: Array) -> Iterator[Array]:
    """Deep valleys of every width and place with flat sides, and a tent upside down, (K,)."""
    index = np.arange(len(curvatures))
    for low in range(1, len(index) - 1):
        for high in range(low, len(index) - 1):
            yield np.where((index >= low) & (index <= high), -10.0, 0.0)
    yield RISE * np.abs(index - index.mean()) / max(index.mean(), 1)


def _rate(hits: Mask) -> Rate:
    value = float(np.mean(hits))
    return Rate(value, float(np.sqrt(max(value * (1 - value), 0.0) / hits.size)))


def bootstrap_coverage(seeds: int, studies: int = 2000, level: float = LEVEL, seed: int = 0) -> Rate:
    """Coverage of the percentile bootstrap over seeds (300 resamples) for one mean of Gaussian values."""
    rng = np.random.default_rng([seed, seeds])
    hits = []
    for start in range(0, studies, 500):
        values = rng.standard_normal((min(500, studies - start), seeds))
        picks = rng.integers(0, seeds, (len(values), RESAMPLES, seeds))
        means = np.take_along_axis(values[:, None, :], picks, axis=2).mean(2)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)
        hits.append((low <= 0) & (high >= 0))
    return _rate(np.concatenate(hits))


def band_share(
    curvatures: Sequence[float],
    sd: float,
    seeds: int,
    band: tuple[float, float] = (4.0, 10.0),
    *,
    studies: int = 20_000,
    seed: int = 0,
) -> Rate:
    """How often the best mean falls into `band` when the truth rises to 2 and is flat after.

    >>> band_share([0.1, 0.5, 1, 2, 4, 6, 10, 20, 50, 200], 0.015, 3).value.__round__(1)
    0.4
    """
    kappa = np.asarray(curvatures, dtype=np.float64)
    noise = np.random.default_rng(seed).standard_normal((studies, len(kappa))) * sd / np.sqrt(seeds)
    best = kappa[(rise_then_flat(kappa, 2.0) + noise).argmax(1)]
    return _rate((best >= band[0]) & (best <= band[1]))


@dataclass(frozen=True, eq=False)
class _Studies:
    """Simulated noise of N studies at one noise profile: what does not depend on the truth is computed once."""

    plan: engine.Design
    noise: Array  # (N, K, S)
    means: Array
    variances: Array
    threshold: float

    @classmethod
    def draw(
        cls, rng: np.random.Generator, sd: Array, seeds: int, studies: int, seed_effect: float
    ) -> _Studies:
        plan = engine.design(np.ones((len(sd), seeds), dtype=np.bool_))
        noise = rng.standard_normal((studies, len(sd), seeds)) * sd[:, None]
        noise += seed_effect * rng.standard_normal((studies, 1, seeds))
        means, variances, _ = engine.fit(plan, noise)
        return cls(plan, noise, means, variances, engine.critical(engine.null(plan).largest, LEVEL))

    def t(self, truth: Array) -> Array:
        return engine.studentised(self.plan, self.means + truth, self.variances)

    def peaks(self, truth: Array) -> Rate:
        return _rate(engine.peak_statistic(self.plan, self.t(truth))[0] > self.threshold)

    def optimum_covered(self, truth: Array) -> Rate:
        inside = optimum_members(self.plan, self.t(truth), LEVEL)
        inside[np.arange(len(inside)), (self.means + truth).argmax(1)] = True
        held: Mask = np.logical_or.reduce(inside[:, truth == truth.max()], axis=1)
        return _rate(held)

    def interval_covered(self) -> Rate:
        means, half = interval_half_widths(self.noise, LEVEL)
        per_study = (np.abs(means) <= half).mean(1)  # the curvatures of one study are not independent
        return Rate(float(per_study.mean()), float(per_study.std() / np.sqrt(len(per_study))))


def _lowest(rates: Iterator[Rate] | Sequence[Rate]) -> Rate:
    return min(rates, key=lambda rate: rate.value)


def _highest(rates: Iterator[Rate] | Sequence[Rate]) -> Rate:
    return max(rates, key=lambda rate: rate.value)


def calibrate(
    curvatures: Sequence[float],
    seeds: int,
    sd: float,
    *,
    band: tuple[float, float] = (4.0, 10.0),
    studies: int = 2000,
    seed: int = 0,
) -> Calibration:
    """Simulate the verdict at this design: curvatures (K >= 3), seeds (>= 2) and noise sd of one trial (> 0).

    Every rate is at level 0.95. Noise is Gaussian, with a shared seed effect of half its size. The same seed gives the
    same figures. Raises CurvactError for a design without a verdict.
    """
    kappa = np.asarray(curvatures, dtype=np.float64)
    if len(kappa) < 3:
        raise CurvactError(f"curvatures has {len(kappa)} entries: a calibration needs at least 3")
    if not ((kappa > 0).all() and np.isfinite(kappa).all() and (np.diff(kappa) > 0).all()):
        raise CurvactError(
            f"curvatures = {kappa.tolist()}: allowed are positive finite numbers in ascending order"
        )
    if seeds < 2:
        raise CurvactError(f"seeds = {seeds}: a calibration needs at least 2")
    if not (np.isfinite(sd) and sd > 0):
        raise CurvactError(f"sd = {sd}: allowed is a positive finite number")
    if studies < 1:
        raise CurvactError(f"studies = {studies}: allowed is at least 1")
    rng = np.random.default_rng(seed)
    uneven = np.geomspace(3.0, 1.0, len(kappa))
    uneven *= sd / np.sqrt((uneven**2).mean())
    equal, falling, rising = (
        _Studies.draw(rng, noise, seeds, studies, SEED_EFFECT * sd)
        for noise in (np.full(len(kappa), sd), uneven, uneven[::-1])
    )
    middle = float(np.clip(np.sqrt(band[0] * band[1]), kappa[1], kappa[-2]))
    center = float(kappa[np.abs(np.log(kappa / middle)).argmin()])
    optima = [np.zeros(len(kappa)), rise_then_flat(kappa, 2.0), rise_then_flat(kappa, float(kappa[-1]))]
    optima += [bump(kappa, float(k), height) for k in kappa for height in (0.02, 0.05)]
    monotone, valleys = list(monotone_truths(kappa)), list(valley_truths(kappa))
    power = tuple((height, equal.peaks(bump(kappa, center, height))) for height in HEIGHTS)
    share = band_share(curvatures, sd, seeds, band, seed=seed)
    naive = bootstrap_coverage(seeds, studies, seed=seed)
    interval, interval_uneven = (
        equal.interval_covered(),
        _lowest([s.interval_covered() for s in (falling, rising)]),
    )
    optimum = _lowest([equal.optimum_covered(truth) for truth in optima])
    optimum_uneven = _lowest([s.optimum_covered(truth) for s in (falling, rising) for truth in optima])
    false = _highest([equal.peaks(truth) for truth in monotone])
    false_uneven = _highest([s.peaks(truth) for s in (falling, rising) for truth in monotone])
    valley = _highest([s.peaks(truth) for s in (equal, falling, rising) for truth in valleys])
    low, high = band
    rows = (
        (
            f"best grid point in {low:g} to {high:g} when the truth rises to 2 and is flat after",
            str(share),
            "why the place of the maximum alone proves nothing",
        ),
        (
            f"coverage of a 95 % percentile bootstrap over {seeds} seeds",
            str(naive),
            "why it is not used here",
        ),
        ("coverage of the 95 % intervals of the means", str(interval), "required: at least 90 %"),
        ("… noise differs threefold over κ", str(interval_uneven), "required: at least 90 %"),
        ("confidence set holds a true optimum, worst truth", str(optimum), "required: at least 90 %"),
        ("… noise differs threefold over κ", str(optimum_uneven), "required: at least 90 %"),
        (
            "“interior peak” though flat, plateau or monotone, worst truth",
            str(false),
            "required: at most 5 %",
        ),
        ("… noise differs threefold over κ", str(false_uneven), "required: at most 5 %"),
        ("“interior peak” though the curve has a valley, worst", str(valley), "required: at most 5 %"),
        *(
            (
                f"a real peak, {height:g} above both sides, is found",
                str(rate),
                f"power at {seeds} seeds, noise sd {sd:.3g}",
            )
            for height, rate in power
        ),
    )
    return Calibration(
        seeds=seeds,
        sd=sd,
        studies=studies,
        band_share=share,
        bootstrap_coverage=naive,
        interval_coverage=interval,
        interval_coverage_uneven=interval_uneven,
        optimum_coverage=optimum,
        optimum_coverage_uneven=optimum_uneven,
        false_peak=false,
        false_peak_uneven=false_uneven,
        false_peak_valley=valley,
        power=power,
        rows=rows,
    )
