"""How often the verdict is right at designs like that of a sweep: a table that was simulated once.

`benchmarks/verdict_calibration.py --write` computes calibration.json with the code of
`curvact.lab.statistics.verdict`. [ours]
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from curvact.lab.statistics.contrasts import Array

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """How often the verdict is right at one design.

    points: curvatures; sd: noise of one run; sweeps: simulated for each figure.
    lines: what is measured, its figure with one standard error, and what is required.
    """

    points: int
    seeds: int
    sd: float
    sweeps: int
    lines: tuple[tuple[str, str, str], ...]


@cache
def calibrations() -> tuple[Calibration, ...]:
    """Every design of the shipped table."""
    text = resources.files("curvact.lab.statistics").joinpath(FILE).read_text(encoding="utf-8")
    return tuple(
        Calibration(**{**entry, "lines": tuple(map(tuple, entry["lines"]))}) for entry in json.loads(text)
    )


def nearest_calibration(points: int, seeds: int, sd: float) -> Calibration:
    """The shipped design that is nearest: in the number of seeds first, then of curvatures, then in
    the noise.

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
    """How often the best mean lies in `band` by chance: the truth rises by 0.15 to curvature 2 and
    is flat after.

    curvatures (K,) ascending, sd > 0 of one run. By integration of the normal density over the best
    mean.

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
    return float(density[inside].sum() * (at[1] - at[0]))
