"""Across strata: the test of one shape holds its level and finds another shape; common optima."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curvact.lab.statistics.across import common_optimum, same_shape
from curvact.lab.statistics.power import bump
from curvact.lab.statistics.verdict import Range, Verdict, decide

GRID = np.array((0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0, 20.0, 50.0, 200.0))
PEAK = bump(GRID, 6.0, 0.06)
RISE = 0.1 * np.minimum(0.0, np.log10(GRID / 2))


def noisy(truth: np.ndarray, random: np.random.Generator, seeds: int = 3, sd: float = 0.015) -> np.ndarray:
    return truth[:, None] + sd * random.standard_normal((len(truth), seeds))


@pytest.mark.parametrize(
    ("scales", "truth"), [((1.0, 0.4), PEAK), ((1.0, 0.3, 2.0), RISE), ((0.0, 0.0), PEAK)]
)
def test_one_shape_at_other_levels_and_heights_is_seldom_refused(
    scales: tuple[float, ...], truth: np.ndarray
) -> None:
    random = np.random.default_rng(0)
    sweeps = 60
    refused = 0
    for _ in range(sweeps):
        tables = {
            str(g): (GRID, 0.3 * g + noisy(scale * truth, random, sd=0.01 * (1 + g)))
            for g, scale in enumerate(scales)
        }
        refused += same_shape(tables, draws=200).p <= 0.05
    assert refused / sweeps <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sweeps)


def test_another_shape_is_found_and_named() -> None:
    random = np.random.default_rng(1)
    truths = {"a": PEAK, "b": 0.5 * PEAK, "c": 2 * PEAK, "odd": RISE}
    found = same_shape({name: (GRID, noisy(truth, random)) for name, truth in truths.items()}, draws=500)
    assert found.p <= 0.01
    assert found.departs["odd"] <= 0.05
    again = same_shape({"a": (GRID, noisy(PEAK, random)), "c": (GRID, noisy(2 * PEAK, random))}, draws=500)
    assert again.p > 0.01


def test_only_shared_points_count_and_too_few_are_no_test() -> None:
    random = np.random.default_rng(2)
    long, short = (GRID, noisy(PEAK, random)), (GRID[3:7], noisy(PEAK[3:7], random))
    assert 0 < same_shape({"a": long, "b": short}, draws=100).p <= 1
    assert math.isnan(same_shape({"a": long}).p)
    assert math.isnan(same_shape({"a": long, "b": (GRID[:2], noisy(PEAK[:2], random))}).p)
    assert math.isnan(same_shape({"a": long, "b": (GRID, noisy(PEAK, random, seeds=1))}).p)
    assert math.isnan(same_shape({"a": long, "b": (GRID, np.repeat(PEAK[:, None], 3, 1))}).p)


def verdict(center: float, sd: float, seed: int) -> Verdict:
    truth = 0.6 + bump(GRID, center, 0.1)
    return decide(GRID.tolist(), noisy(truth, np.random.default_rng(seed), sd=sd))


def test_optima_that_agree_or_cannot() -> None:
    agree = common_optimum([verdict(6, 0.004, 0), verdict(6, 0.004, 1)])
    assert agree.overlap is not None
    assert agree.overlap.low <= 6 <= agree.overlap.high
    apart = common_optimum([verdict(6, 0.004, 0), verdict(0.5, 0.004, 1)])
    assert apart == type(apart)(None, None)


def test_the_correction_widens_the_sets() -> None:
    """p-values of the place of an optimum decide at 1 - 5 %/G: two sets just apart leave a common
    optimum open.
    """
    one = verdict(6, 0.004, 0)
    p = dict.fromkeys(one.curvatures, 0.0) | {4.0: 0.03, 6.0: 1.0}
    other = dict.fromkeys(one.curvatures, 0.0) | {4.0: 1.0, 6.0: 0.03}
    made = [
        type(one)(
            **{**vars(one), "optimum_set": (best,), "optimum_p": tuple(table[k] for k in one.curvatures)}
        )
        for best, table in ((6.0, p), (4.0, other))
    ]
    found = common_optimum(made)
    assert found.overlap is None
    assert found.possible == Range(4.0, 6.0)


def test_the_p_values_of_the_optimum_give_its_set() -> None:
    one = verdict(6, 0.02, 3)
    by_p = tuple(at for at, p in zip(one.curvatures, one.optimum_p, strict=True) if p > 0.05)
    assert by_p == one.optimum_set
