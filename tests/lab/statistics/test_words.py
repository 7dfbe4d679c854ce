"""The verdict in words: what is said follows from the numbers, and nothing is said that they do not carry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from curvact.lab.statistics.shape import bump
from hypothesis import given, settings
from hypothesis import strategies as st

from curvact.errors import CurvactError
from curvact.lab.statistics.calibration import rise_then_flat
from curvact.lab.statistics.verdict import Verdict, compare_families, sweep_verdict

KAPPA = (0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0, 20.0, 50.0, 200.0)
GRID = np.array(KAPPA)
PEAK, PLATEAU = 0.6 + bump(GRID, 6.0, 0.1), 0.65 + rise_then_flat(GRID, 2.0)


def noisy(truth: np.ndarray, seeds: int = 3, sd: float = 0.004, seed: int = 0) -> np.ndarray:
    return truth[:, None] + sd * np.random.default_rng(seed).standard_normal((len(truth), seeds))


def text(verdict: Verdict) -> str:
    return "\n".join(verdict.sentences)


def test_a_peak_with_a_matching_u_shape() -> None:
    verdict = sweep_verdict("rctaf", KAPPA, noisy(PEAK), {"a": noisy(-bump(GRID, 6.0, 1.0), sd=0.03, seed=1)})
    words = text(verdict)
    assert verdict.robustness.kind == "interior peak"
    assert verdict.norms["a"].kind == "U shape"
    assert "An interior peak is supported (p < 0.001)" in words
    assert "within the published band 4 to 10" in words
    assert "Hessian norm a: a U shape is supported" in words
    assert "Its confidence set meets that of the optimum at κ = 6" in words
    assert "in 3 of 3" in words
    assert "What would settle it" not in words


def test_the_factor_of_a_u_shape_is_the_ratio_of_the_norms() -> None:
    # floor at a tenth of both sides
    truth = np.where((GRID >= 4) & (GRID <= 10), -1.0, 0.0)
    words = text(sweep_verdict("f", KAPPA, noisy(PEAK), {"a": noisy(truth, sd=1e-4, seed=1)}))
    assert "κ = 4 to 10 lies a factor 10 [10, 10] below" in words


def test_a_norm_with_its_minimum_elsewhere() -> None:
    words = text(sweep_verdict("f", KAPPA, noisy(PEAK), {"a": noisy(-bump(GRID, 0.5, 1.0), sd=0.03, seed=1)}))
    assert "no curvature in common" in words
    assert "robust accuracy differs" in words
    assert "in 0 of 3" in words


def test_noise_is_inconclusive_and_says_how_many_seeds() -> None:
    verdict = sweep_verdict("f", KAPPA, noisy(PLATEAU, sd=0.02))
    words = text(verdict)
    assert verdict.robustness.kind == "inconclusive"
    assert "Inconclusive at 3 seeds." in words
    assert f"takes {verdict.robustness.seeds_for_peak} seeds" in words
    assert "in 43 % of studies" in words or "in 42 % of studies" in words or "in 44 % of studies" in words


def test_plateau_is_more_likely_than_a_peak() -> None:
    verdict = sweep_verdict("f", KAPPA, noisy(PLATEAU))
    assert verdict.robustness.kind == "plateau"
    assert "An interior peak is not supported" in text(verdict)
    assert "A rise and a plateau are shown: κ = 2 to 200 lies within 0.02" in text(verdict)
    assert "what fits best is a plateau from κ = " in text(verdict)
    assert verdict.robustness.weight("rise then plateau") > 5 * verdict.robustness.weight("interior peak")


def test_one_seed_gives_no_more_than_the_best_point() -> None:
    verdict = sweep_verdict("f", KAPPA, noisy(PEAK, seeds=1), {"a": noisy(-PEAK, seeds=1)})
    assert verdict.robustness.kind == "inconclusive"
    assert "without an error bar nothing more can be said" in text(verdict)
    assert "p =" not in text(verdict)
    assert compare_families([verdict, verdict]) == ()


def test_failed_trials_are_named() -> None:
    values = noisy(PEAK)
    values[2, 1] = math.nan
    assert "Note: 1 of 30 trials have no result: left out." in sweep_verdict("f", KAPPA, values).sentences


def test_norm_of_another_shape_is_refused() -> None:
    with pytest.raises(CurvactError, match=r"norm 'a' has shape \(10, 2\): expected \(10, 3\)"):
        sweep_verdict("f", KAPPA, noisy(PEAK), {"a": noisy(PEAK, seeds=2)})


def test_families_that_agree_differ_or_cannot_tell() -> None:
    at_six = sweep_verdict("a", KAPPA, noisy(PEAK))
    again = sweep_verdict("b", KAPPA, noisy(PEAK, seed=5))
    elsewhere = sweep_verdict("c", KAPPA, noisy(0.6 + bump(GRID, 0.5, 0.1), seed=6))
    unknown = sweep_verdict("d", KAPPA, noisy(PLATEAU, sd=0.05, seed=7))
    agree, differ = (
        " ".join(compare_families([at_six, again])),
        " ".join(compare_families([at_six, elsewhere])),
    )
    assert "overlap at κ = 6" in agree or "overlap at κ = 4 to" in agree
    assert "does not prove" in agree
    assert "have no κ in common" in differ
    assert "at least 90 %" in differ
    assert "says little" in " ".join(compare_families([at_six, unknown]))
    assert compare_families([at_six]) == ()
    assert compare_families([]) == ()


@given(data=st.data(), count=st.integers(1, 6), seeds=st.integers(1, 4))
@settings(max_examples=25)
def test_any_table_gives_clean_sentences(data: st.DataObject, count: int, seeds: int) -> None:
    cell = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 1.0]), st.just(math.nan))
    size = st.lists(cell, min_size=count * seeds, max_size=count * seeds)
    robust, norm = (np.array(data.draw(size)).reshape(count, seeds) for _ in range(2))
    robust[0, 0] = 0.5
    verdict = sweep_verdict("f", list(KAPPA[:count]), robust, {"a": norm})
    for sentence in verdict.sentences:
        assert "nan" not in sentence
        assert "inf" not in sentence
        assert "None" not in sentence
        assert sentence.endswith(".")
    compare_families([verdict, verdict])
