"""Paired differences against scipy's own test, and Holm's correction by its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from curvact.errors import CurvactError
from curvact.lab.statistics.interval import student
from curvact.lab.statistics.paired import holm, paired_differences


def test_against_scipy() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=7), random.normal(0.5, 1, size=7)
    found = paired_differences({"a": dict(enumerate(a)), "b": dict(enumerate(b))}, {"b": "a"})["b"]
    test = stats.ttest_rel(b, a)
    interval = test.confidence_interval(0.95)
    # The same formula in float64: only rounding differs.
    assert found.p == pytest.approx(test.pvalue, rel=1e-12)
    assert (found.mean.low, found.mean.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert found.p_holm == found.p


def test_only_common_seeds_count() -> None:
    found = paired_differences({"a": {0: 1.0, 1: 2.0, 5: 9.0}, "b": {0: 2.0, 1: 4.0, 7: 0.0}}, {"b": "a"})[
        "b"
    ]
    assert found.mean.value == 1.5
    assert found.mean.count == 2
    assert paired_differences({"a": {0: 1.0}, "b": {1: 1.0}}, {"b": "a"}) == {}


def test_one_seed_has_no_interval() -> None:
    found = paired_differences({"a": {0: 1.0}, "b": {0: 2.0}}, {"b": "a"})["b"]
    assert math.isnan(found.mean.low)
    assert math.isnan(found.p_holm)
    assert not found.shown


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """p_holm of a hypothesis is the largest Bonferroni p of all the sets of hypotheses that it is
    in.
    """
    random = np.random.default_rng(1)
    for _ in range(20):
        p = {str(k): float(v) for k, v in enumerate(random.uniform(0, 0.5, 4))}
        found = holm(p)
        for name in p:
            largest = 0.0
            for size in range(1, 5):
                for group in itertools.combinations(p, size):
                    if name in group:
                        largest = max(largest, min(1.0, size * min(p[g] for g in group)))
            assert found[name] == pytest.approx(largest)


def test_no_values() -> None:
    with pytest.raises(CurvactError, match="at least 1"):
        student([])


def test_differences_that_are_all_alike_show_little() -> None:
    """Counts of few images: three seeds, two images better each time. A t test would be certain; a
    test of signs has p = 1/4.
    """
    one = {"base": {0: 0.67, 1: 0.66, 2: 0.68}, "two better": {0: 0.69, 1: 0.68, 2: 0.70}}
    found = paired_differences(one, {"two better": "base"})["two better"]
    assert found.mean.value == pytest.approx(0.02)
    assert math.isnan(found.mean.low)
    assert found.p == 0.25
    assert not found.shown
    same = paired_differences({"a": {0: 0.5, 1: 0.6}, "b": {0: 0.5, 1: 0.6}}, {"b": "a"})["b"]
    assert same.p == 1.0
