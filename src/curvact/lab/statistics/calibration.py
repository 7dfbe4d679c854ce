"""How often the verdict is right at designs like that of a sweep: a table that was simulated once.

`benchmarks/verdict_calibration.py --write` computes calibration.json with the code of `curvact.lab.statistics.verdict`. [ours]
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from curvact.lab.statistics.contrasts import Array

FILE = "calibration.json"


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

    points: curvatures; sd: noise standard deviation of one run. `uneven`: the noise falls or rises threefold over the
    curvatures (the worse of the two; its mean square is that of the equal noise).
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

    def as_dict(self) -> dict[str, Any]:
        """As plain values, to be written as JSON."""
        return asdict(self)

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
            ("a true plateau is shown within 0.02", str(self.plateau), ""),
        )


@cache
def calibrations() -> tuple[Calibration, ...]:
    """Every design of the shipped table."""
    content = json.loads(resources.files("curvact.lab.statistics").joinpath(FILE).read_text(encoding="utf-8"))
    found = []
    for entry in content:
        rates = {key: Rate(**value) for key, value in entry.items() if isinstance(value, dict)}
        power = tuple((float(height), Rate(**rate)) for height, rate in entry["power"])
        found.append(Calibration(**{**entry, **rates, "power": power}))
    return tuple(found)


def nearest_calibration(points: int, seeds: int, sd: float) -> Calibration:
    """The shipped design that is nearest: in the number of seeds first, then of curvatures, then in the noise.

    >>> found = nearest_calibration(10, 3, 0.014)
    >>> found.points, found.seeds, found.sd
    (10, 3, 0.015)
    """

    def distance(c: Calibration) -> tuple[float, float, float]:
        return (
            abs(math.log(c.seeds / seeds)),
            abs(math.log(c.points / points)),
            abs(math.log(c.sd / sd)),
        )

    return min(calibrations(), key=distance)


def band_share(curvatures: Array, sd: float, seeds: int, band: tuple[float, float]) -> float:
    """How often the best mean lies in `band` by chance: the truth rises by 0.15 to curvature 2 and is flat after.

    curvatures (K,) ascending, sd > 0 of one run. By integration of the normal density over the best mean.

    >>> round(band_share(np.array([0.1, 0.5, 1, 2, 4, 6, 10, 20, 50, 200]), 0.015, 3, (4, 10)), 2)
    0.43
    """
    from scipy import stats

    kappa = np.asarray(curvatures, dtype=np.float64)
    x = np.log(kappa)
    span = math.log(2.0) - x[0]
    rise = -0.15 * np.clip(1 - (x - x[0]) / span, 0.0, None) if span > 0 else np.zeros(len(x))
    truth = rise * math.sqrt(seeds) / sd
    at = np.linspace(-9.0, 12.0, 4001)
    logs = stats.norm.logcdf(at - truth[:, None])
    density = np.exp(
        stats.norm.logpdf(at - truth[:, None]) - logs + logs.sum(0)
    )  # of the maximum, at each curvature
    inside = (kappa >= band[0]) & (kappa <= band[1])
    share: float = density[inside].sum() * (at[1] - at[0])
    return share
