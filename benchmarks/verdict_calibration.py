"""How often the verdict on a curve is right, by simulation.

`python benchmarks/verdict_calibration.py` prints the table of docs/statistics.md (under a minute on
one core). `python benchmarks/verdict_calibration.py --write` computes every design that the package
ships and writes src/curvact/lab/statistics/calibration.json (half an hour on one core), which the
report of a sweep quotes.

Options: --seeds 3 10 --sd 0.015 --studies 4000 --curvatures 0.1 0.5 1 2 4 6 10 20 50 200
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.lab.statistics import contrasts as engine
from curvact.lab.statistics import verdict as verdicts
from curvact.lab.statistics.calibration import FILE
from curvact.lab.statistics.contrasts import Array, Mask
from curvact.lab.statistics.interval import PRIOR_DF, half_widths
from curvact.lab.statistics.power import bump

CURVATURES = (0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0, 20.0, 50.0, 200.0)
POINTS, SEEDS, NOISES = (4, 6, 8, 10, 12), (2, 3, 5, 10), (0.005, 0.015, 0.03)  # of the shipped table
BAND = (4.0, 10.0)
MARGIN = 0.02
RISE = 0.15  # total height of the rising truths, as measured on digits between 0.1 and 2
HEIGHTS = (0.01, 0.02, 0.03, 0.05)
SEED_EFFECT = 0.5  # standard deviation of the shared seed effect, in units of the noise
RESAMPLES = 300  # of the bootstrap
LEVEL = 0.95


@dataclass(frozen=True)
class Rate:
    """A simulated fraction with its binomial standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ± {100 * self.error:.1f} %"


@dataclass(frozen=True)
class Rates:
    """How often the verdict is right at one design. All rates are fractions of simulated sweeps.

    points: curvatures; sd: noise standard deviation of one run. `uneven`: the noise falls or rises
    threefold over the curvatures (the worse of the two; its mean square is that of the equal
    noise).
    """

    points: int
    seeds: int
    sd: float
    studies: int
    interval_coverage: Rate  # of the intervals of the means
    interval_coverage_uneven: Rate
    optimum_coverage: Rate  # a true optimum lies in the confidence set, worst truth
    optimum_coverage_uneven: Rate
    false_peak: Rate  # "interior peak" for a flat, plateau or monotone truth, worst truth
    false_peak_uneven: Rate
    false_peak_valley: Rate  # "interior peak" for a valley, worst place and noise
    power: tuple[tuple[float, Rate], ...]  # (height of a real peak, fraction found)
    plateau: Rate  # "plateau" for a truth that rises to 2 and is flat after

    def lines(self) -> tuple[tuple[str, str, str], ...]:
        """What is measured, its figure, and what is required: the lines of a table."""
        uneven = "… the noise differs threefold over the curve"
        return (
            ("the 95 % intervals of the means cover", str(self.interval_coverage), "at least 90 %"),
            (uneven, str(self.interval_coverage_uneven), "at least 90 %"),
            (
                "the confidence set holds a true optimum, worst truth",
                str(self.optimum_coverage),
                "at least 90 %",
            ),
            (uneven, str(self.optimum_coverage_uneven), "at least 90 %"),
            (
                "“interior peak” for a flat, plateau or monotone truth, worst",
                str(self.false_peak),
                "at most 5 %",
            ),
            (uneven, str(self.false_peak_uneven), "at most 5 %"),
            ("“interior peak” for a curve with a valley, worst", str(self.false_peak_valley), "at most 5 %"),
            *((f"a real peak of {height:g} is found", str(rate), "") for height, rate in self.power),
            ("a true plateau is shown, within 0.02 of its mean", str(self.plateau), ""),
        )


def rise_then_flat(curvatures: Array, end: float, height: float = RISE) -> Array:
    """Truth that rises log-linearly by `height` from the first curvature to `end` and is flat
    after, (K,).
    """
    x = np.log(curvatures)
    span = np.log(end) - x[0]
    if span <= 0:
        return np.zeros(len(x))
    result: Array = -height * np.clip(1 - (x - x[0]) / span, 0.0, None)
    return result


def monotone_truths(curvatures: Array) -> Iterator[Array]:
    """Flat, gentle and steep rises to every place with a plateau after, and their mirror images,
    (K,).
    """
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
    """Coverage of the percentile bootstrap over seeds (300 resamples) for one mean of Gaussian
    values.
    """
    rng = np.random.default_rng([seed, seeds])
    hits = []
    for start in range(0, studies, 500):
        values = rng.standard_normal((min(500, studies - start), seeds))
        picks = rng.integers(0, seeds, (len(values), RESAMPLES, seeds))
        means = np.take_along_axis(values[:, None, :], picks, axis=2).mean(2)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)
        hits.append((low <= 0) & (high >= 0))
    return _rate(np.concatenate(hits))


class _Studies:
    """Simulated noise of N sweeps at one noise profile: what does not depend on the truth is
    computed once.
    """

    def __init__(
        self, rng: np.random.Generator, sd: Array, seeds: int, studies: int, seed_effect: float
    ) -> None:
        self.plan = engine.design(np.ones((len(sd), seeds), dtype=np.bool_))
        self.noise = rng.standard_normal((studies, len(sd), seeds)) * sd[:, None]  # (N, K, S)
        self.noise += seed_effect * rng.standard_normal((studies, 1, seeds))
        self.means, self.variances, _ = engine.fit(self.plan, self.noise)
        self.threshold = engine.critical(engine.null(self.plan).largest, LEVEL)

    def t(self, truth: Array) -> Array:
        return engine.studentised(self.plan, self.means + truth, self.variances)

    def peaks(self, truth: Array) -> Rate:
        return _rate(engine.peak_statistic(self.plan, self.t(truth))[0] > self.threshold)

    def optimum_covered(self, truth: Array) -> Rate:
        inside = verdicts.optimum_members(self.plan, self.t(truth), LEVEL)
        inside[np.arange(len(inside)), (self.means + truth).argmax(1)] = True
        held: Mask = np.logical_or.reduce(inside[:, truth == truth.max()], axis=1)
        return _rate(held)

    def interval_covered(self) -> Rate:
        means, half = half_widths(self.noise, LEVEL)
        per_study = (np.abs(means) <= half).mean(1)  # the curvatures of one sweep are not independent
        return Rate(float(per_study.mean()), float(per_study.std() / np.sqrt(len(per_study))))

    def plateaus(self, truth: Array) -> Rate:
        """How often a rise and a plateau are shown (`kind` is "plateau")."""
        t = self.t(truth)
        peak, dip = (engine.peak_statistic(self.plan, sign * t)[0] for sign in (1, -1))
        rise = (t.max(1) > self.threshold) & (-t.min(1) <= self.threshold)
        _, cautious, _ = engine.fit(self.plan, self.noise, PRIOR_DF)
        ends = [
            verdicts.equivalent_end(self.plan, m, v, LEVEL, MARGIN) is not None
            for m, v in zip(self.means + truth, cautious, strict=True)
        ]
        return _rate(rise & (np.maximum(peak, dip) <= self.threshold) & np.array(ends))


def simpler_tests(
    curvatures: Array, seeds: int, sd: float, studies: int, seed: int = 0
) -> list[tuple[str, str, str]]:
    """Simpler tests of a peak: how often each calls one, for a truth that rises to 2 and is flat
    after, and for a peak of 0.05. Noise as in `calibrate`, seed effects taken out.

    quadratic: least squares in log κ; the square's coefficient is below 0 at 5 % and the vertex lies
    inside. two lines: cut at the vertex of that fit; the left slope is above 0 and the right one
    below, each at one-sided 5 %. Tukey: a point is above one on each side, each beyond the
    studentised range's quantile for all pairs. ours: the runs of the verdict.
    """
    from scipy import stats

    count, x = len(curvatures), np.log(curvatures)
    rng = np.random.default_rng([seed, 7])
    noise = sd * rng.standard_normal((studies, count, seeds))
    middle = float(curvatures[np.abs(np.log(curvatures / math.sqrt(BAND[0] * BAND[1]))).argmin()])
    df = (count - 1) * (seeds - 1)
    model = np.stack([np.ones(count), x, x**2], 1)
    cov = np.linalg.inv(model.T @ model)
    plan = engine.design(np.ones((count, seeds), dtype=np.bool_))
    threshold = engine.critical(engine.null(plan).largest, LEVEL)
    tukey = float(stats.studentized_range.ppf(LEVEL, count, df))
    found: dict[str, list[str]] = {"a quadratic": [], "two lines": [], "Tukey's pairs": [], "runs (ours)": []}
    for truth in (rise_then_flat(curvatures, 2.0), bump(curvatures, middle, 0.05)):
        values = truth[:, None] + noise
        means = values.mean(2)
        rest = values - means[:, :, None] - values.mean(1, keepdims=True) + values.mean((1, 2))[:, None, None]
        error = np.sqrt((rest**2).sum((1, 2)) / df / seeds)
        fit = means @ model @ cov
        vertex = -fit[:, 1] / (2 * fit[:, 2])
        bent = fit[:, 2] / (error * math.sqrt(cov[2, 2])) < stats.t.ppf(0.05, df)
        inside = (vertex > x[0]) & (vertex < x[-1])
        lines = np.zeros(studies, dtype=bool)
        for i in np.flatnonzero(inside):
            sides = []
            for part in (x <= vertex[i], x >= vertex[i]):
                at = x[part] - x[part].mean()
                sides.append(
                    (at @ means[i, part], math.sqrt(at @ at) * error[i]) if part.sum() > 1 else (0.0, 1.0)
                )
            (left, e), (right, f) = sides
            lines[i] = left > stats.t.ppf(0.95, df) * e and right < stats.t.ppf(0.05, df) * f
        gap = (means[:, :, None] - means[:, None, :]) / error[:, None, None]
        above = [
            (gap[:, k, :k].max(1) > tukey) & (gap[:, k, k + 1 :].max(1) > tukey) for k in range(1, count - 1)
        ]
        own, variances, _ = engine.fit(plan, values)
        runs = engine.peak_statistic(plan, engine.studentised(plan, own, variances))[0] > threshold
        for name, hits in zip(found, (bent & inside, lines, np.any(above, axis=0), runs), strict=True):
            found[name].append(str(_rate(hits)))
    return [(name, plateau, peak) for name, (plateau, peak) in found.items()]


def _worst(rates: Iterable[Rate], *, highest: bool) -> Rate:
    return (max if highest else min)(rates, key=lambda rate: rate.value)


def calibrate(
    curvatures: Sequence[float], seeds: int, sd: float, *, studies: int = 2000, seed: int = 0
) -> Rates:
    """Simulate the verdict at this design: curvatures (K >= 3), seeds (>= 2) and noise sd of one
    run (> 0).

    Every rate is at level 0.95. Noise is Gaussian, with a shared seed effect of half its size. The
    same seed gives the same figures. Raises CurvactError for a design without a verdict.
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
    rng = np.random.default_rng(seed)
    uneven = np.geomspace(3.0, 1.0, len(kappa))
    uneven *= sd / np.sqrt((uneven**2).mean())
    equal, falling, rising = (
        _Studies(rng, noise, seeds, studies, SEED_EFFECT * sd)
        for noise in (np.full(len(kappa), sd), uneven, uneven[::-1])
    )
    middle = float(np.clip(np.sqrt(BAND[0] * BAND[1]), kappa[1], kappa[-2]))
    center = float(kappa[np.abs(np.log(kappa / middle)).argmin()])
    optima = [np.zeros(len(kappa)), rise_then_flat(kappa, 2.0), rise_then_flat(kappa, float(kappa[-1]))]
    optima += [bump(kappa, float(k), height) for k in kappa for height in (0.02, 0.05)]
    monotone, valleys = list(monotone_truths(kappa)), list(valley_truths(kappa))
    both = (falling, rising)
    return Rates(
        points=len(kappa),
        seeds=seeds,
        sd=sd,
        studies=studies,
        interval_coverage=equal.interval_covered(),
        interval_coverage_uneven=_worst((s.interval_covered() for s in both), highest=False),
        optimum_coverage=_worst((equal.optimum_covered(truth) for truth in optima), highest=False),
        optimum_coverage_uneven=_worst(
            (s.optimum_covered(truth) for s in both for truth in optima), highest=False
        ),
        false_peak=_worst((equal.peaks(truth) for truth in monotone), highest=True),
        false_peak_uneven=_worst((s.peaks(truth) for s in both for truth in monotone), highest=True),
        false_peak_valley=_worst((s.peaks(truth) for s in (equal, *both) for truth in valleys), highest=True),
        power=tuple((height, equal.peaks(bump(kappa, center, height))) for height in HEIGHTS),
        plateau=equal.plateaus(rise_then_flat(kappa, 2.0)),
    )


def shipped() -> Iterator[Rates]:
    """Every design of the shipped table: curvatures evenly spaced on the log axis from 0.1 to 200."""
    for points in POINTS:
        for seeds in SEEDS:
            for sd in NOISES:
                print(f"{points} curvatures, {seeds} seeds, noise sd {sd:g}", flush=True)
                yield calibrate(np.geomspace(0.1, 200, points).tolist(), seeds, sd)


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulated error rates and power of the verdict.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10])
    parser.add_argument("--sd", type=float, default=0.015, help="noise standard deviation of one run")
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--curvatures", type=float, nargs="+", default=list(CURVATURES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--simpler", action="store_true", help="print how simpler tests of a peak do")
    parser.add_argument("--write", action="store_true", help="compute the shipped table")
    chosen = parser.parse_args()
    if chosen.write:
        target = Path(verdicts.__file__).with_name(FILE)
        entries = [
            {"points": r.points, "seeds": r.seeds, "sd": r.sd, "sweeps": r.studies, "lines": r.lines()}
            for r in shipped()
        ]
        text = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        atomic_write(target, f"[\n{text}\n]\n")
        return
    if chosen.simpler:
        print("| test | seeds | calls a peak over a plateau | finds a peak of 0.05 |\n|---|---|---|---|")
        for seeds in chosen.seeds:
            for line in simpler_tests(
                np.array(chosen.curvatures), seeds, chosen.sd, chosen.studies, chosen.seed
            ):
                print(f"| {line[0]} | {seeds} | {line[1]} | {line[2]} |")
        return
    results = [
        calibrate(chosen.curvatures, seeds, chosen.sd, studies=chosen.studies, seed=chosen.seed)
        for seeds in chosen.seeds
    ]
    print(f"{len(chosen.curvatures)} curvatures, noise sd {chosen.sd:g}, {chosen.studies} studies a figure\n")
    print("| | " + " | ".join(f"{seeds} seeds" for seeds in chosen.seeds) + " | |")
    print("|---|" + "---|" * len(results) + "---|")
    coverages = [str(bootstrap_coverage(seeds, chosen.studies)) for seeds in chosen.seeds]
    print(f"| 95 % percentile bootstrap over seeds covers | {' | '.join(coverages)} | |")
    for lines in zip(*(result.lines() for result in results), strict=True):
        print(f"| {lines[0][0]} | " + " | ".join(line[1] for line in lines) + f" | {lines[0][2]} |")


if __name__ == "__main__":
    main()
