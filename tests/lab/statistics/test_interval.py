"""Intervals stay where the quantity can be, and cover what they say; nothing is printed as ± that
says nothing.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from curvact.errors import CurvactError
from curvact.lab.statistics.interval import (
    Interval,
    Scale,
    curve_intervals,
    interval_text,
    on_scale,
    proportion,
    student,
)


@pytest.mark.parametrize("count", [1, 5, 20, 100])
def test_a_proportion_covers_at_least_what_it_says(count: int) -> None:
    """The exact probability, over the binomial distribution, for rates from 0 to 1."""
    found = [proportion(k, count) for k in range(count + 1)]
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found)
    for rate in np.linspace(0, 1, 41):
        inside = [one.low <= rate <= one.high for one in found]
        assert stats.binom.pmf(np.arange(count + 1), count, rate)[inside].sum() >= 0.95 - 1e-12


def test_a_proportion_is_that_of_clopper_and_pearson() -> None:
    for successes, count in ((0, 20), (7, 30), (20, 20)):
        one = proportion(successes, count, 0.9)
        want = stats.binomtest(successes, count).proportion_ci(0.9, method="exact")
        assert (one.low, one.high) == pytest.approx((want.low, want.high), abs=1e-9)
    for successes, count in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(CurvactError, match="allowed is 0 <= successes <= count"):
            proportion(successes, count)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("rate", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("spread", [0.1, 0.6])
def test_a_mean_of_accuracies_covers_near_the_ends(seeds: int, rate: float, spread: float) -> None:
    """Accuracies of 359 images, whose rate differs from seed to seed. The plain interval covers
    91.5 % at the worst of these."""
    random = np.random.default_rng(seeds)
    logit = math.log(rate / (1 - rate))
    truth = (1 / (1 + np.exp(-logit - spread * random.standard_normal(400_000)))).mean()
    rates = 1 / (1 + np.exp(-logit - spread * random.standard_normal((6000, seeds))))
    values = random.binomial(359, rates) / 359
    values = values[np.ptp(values, axis=1) > 0]
    half = stats.t.ppf(0.975, seeds - 1) * values.std(1, ddof=1) / math.sqrt(seeds)
    low, high = on_scale(values.mean(1), half, "fraction")
    assert (low >= 0).all()
    assert (high <= 1).all()
    assert ((low <= truth) & (truth <= high)).mean() >= 0.935
    one = student(values[0].tolist(), scale="fraction")
    assert (one.low, one.high) == pytest.approx((low[0], high[0]))


def test_a_positive_mean_covers_and_stays_above_zero() -> None:
    random = np.random.default_rng(0)
    values = np.exp(0.8 * random.standard_normal((6000, 5)))
    half = stats.t.ppf(0.975, 4) * values.std(1, ddof=1) / math.sqrt(5)
    low, high = on_scale(values.mean(1), half, "positive")
    assert (low > 0).all()
    covered = ((low <= math.exp(0.32)) & (math.exp(0.32) <= high)).mean()
    plain = (np.abs(values.mean(1) - math.exp(0.32)) <= half).mean()
    assert covered >= max(0.9, plain + 0.02)


@pytest.mark.parametrize("scale", ["fraction", "positive"])
def test_far_from_its_ends_a_scale_is_straight(scale: Scale) -> None:
    low, high = on_scale(np.array([0.5]), np.array([1e-4]), scale)
    assert (low[0], high[0]) == pytest.approx((0.4999, 0.5001), abs=1e-7)


def test_curves_of_accuracies_stay_inside() -> None:
    values = np.array([[0.97, 1.0], [0.2, 0.99]])
    for scale in ("plain", "fraction"):
        mean, low, high = curve_intervals(values, scale=scale)  # type: ignore[arg-type]
        assert mean == pytest.approx([0.985, 0.595])
        assert bool((high <= 1).all() and (low >= 0).all()) is (scale == "fraction")


@pytest.mark.parametrize(
    ("mean", "text"),
    [
        (student([0.607, 0.765]), "68.6 (60.7 to 76.5)"),
        (student([0.5, 0.5]), "50.0"),
        (student([0.5]), "50.0"),
        (Interval(0.5, 0.1, 0.9, 2, 0.5, 0.5), "50.0"),
        (student([0.9, 0.95, 0.99], scale="fraction"), "94.7 [65.9, 99.4]"),
        (student([0.70, 0.71, 0.72], scale="fraction"), "71.0 ± 2.5"),
        (student([0.50, 0.51, 0.52]), "51.0 ± 2.5"),
        (proportion(20, 20), "100.0 [83.2, 100.0]"),
        (Interval(math.inf, math.nan, math.nan, 3), "∞"),
    ],
)
def test_a_mean_in_words(mean: Interval, text: str) -> None:
    assert interval_text(mean) == text
