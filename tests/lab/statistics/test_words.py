"""The verdict in words: what is said follows from the numbers, and nothing is said that they do not
carry.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvact.lab.statistics import contrasts as engine
from curvact.lab.statistics.across import Common, SameShape, common_optimum
from curvact.lab.statistics.power import bump
from curvact.lab.statistics.verdict import Range, Verdict, decide
from curvact.lab.statistics.words import (
    Terms,
    across_sentences,
    curve_sentences,
    norm_sentences,
    seeds_sentence,
)

KAPPA = (0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0, 20.0, 50.0, 200.0)
GRID = np.array(KAPPA)
PEAK = 0.6 + bump(GRID, 6.0, 0.1)
PLATEAU = 0.65 + 0.15 * np.minimum(0.0, np.log(GRID / 2) / np.log(20))
TERMS = Terms(percent=True)


def noisy(truth: np.ndarray, seeds: int = 3, sd: float = 0.004, seed: int = 0) -> np.ndarray:
    return truth[:, None] + sd * np.random.default_rng(seed).standard_normal((len(truth), seeds))


def said(values: np.ndarray) -> tuple[Verdict, str]:
    verdict = decide(KAPPA[: len(values)], values)
    return verdict, "\n".join(curve_sentences(verdict, TERMS, (4.0, 10.0)))


def said_of_norm(values: np.ndarray, logs: np.ndarray) -> str:
    verdict = decide(KAPPA, values)
    norm = decide(KAPPA, logs, margin=0.05, maximise=False)
    return norm_sentences("a", norm, verdict, KAPPA, values, logs, TERMS)


def test_a_peak_with_a_matching_u_shape() -> None:
    verdict, words = said(noisy(PEAK))
    assert verdict.kind == "interior peak"
    assert "An interior peak is shown (p < 0.001)" in words
    assert "within the published band 4 to 10" in words
    assert seeds_sentence(verdict, TERMS) == ""
    norm = said_of_norm(noisy(PEAK), noisy(-bump(GRID, 6.0, 1.0), sd=0.03, seed=1))
    assert norm.startswith("a: a U shape is shown")
    assert "Its confidence set meets that of the optimum at κ = 6" in norm
    assert "in 3 of 3 seeds" in norm


def test_the_factor_of_a_u_shape_is_the_ratio_of_the_norms() -> None:
    # floor at a tenth of both sides
    truth = np.where((GRID >= 4) & (GRID <= 10), -1.0, 0.0)
    words = said_of_norm(noisy(PEAK), noisy(truth, sd=1e-4, seed=1))
    assert "κ = 4 to 10 lies a factor 10 [10, 10] below" in words


def test_a_norm_with_its_minimum_elsewhere() -> None:
    words = said_of_norm(noisy(PEAK), noisy(-bump(GRID, 0.5, 1.0), sd=0.03, seed=1))
    assert "no point in common" in words
    assert "robust accuracy differs" in words
    assert "in 0 of 3 seeds" in words


def test_noise_is_inconclusive_and_says_how_many_seeds_first() -> None:
    verdict, words = said(noisy(PLATEAU, sd=0.02))
    assert verdict.kind == "inconclusive"
    first = f"Inconclusive at 3 seeds. A peak of 2 points is found with {verdict.seeds_for_peak} seeds"
    assert words.startswith(first)
    assert "in 43 % of sweeps" in words


def test_plateau_is_more_likely_than_a_peak() -> None:
    verdict, words = said(noisy(PLATEAU))
    assert verdict.kind == "plateau"
    assert words.startswith("An interior peak is not shown")
    assert (
        "A rise and a plateau are shown: each point of κ = 2 to 200 lies within 2 points of their mean"
        in words
    )
    assert "the best fit is a plateau from κ = " in words
    assert verdict.weight("rise then plateau") > 5 * verdict.weight("interior peak")


def test_one_seed_gives_no_more_than_the_best_point() -> None:
    verdict, words = said(noisy(PEAK, seeds=1))
    assert verdict.kind == "inconclusive"
    assert "Without an error bar nothing more can be said." in words
    assert "p =" not in words
    assert "Without an error bar" in said_of_norm(noisy(PEAK, seeds=1), noisy(-PEAK, seeds=1))


def test_missing_runs_are_named() -> None:
    values = noisy(PEAK)
    values[2, 1] = math.nan
    assert "Note: 1 of 30 runs have no result: left out." in said(values)[1]


def test_strata_that_agree_differ_or_cannot_tell() -> None:
    at_six, again = (decide(KAPPA, noisy(PEAK, seed=seed)) for seed in (0, 5))
    elsewhere = decide(KAPPA, noisy(0.6 + bump(GRID, 0.5, 0.1), seed=6))
    unknown = decide(KAPPA, noisy(PLATEAU, sd=0.05, seed=7))

    def across(other: Verdict, p: float = math.nan) -> str:
        both = {"a": at_six, "b": other}
        same = SameShape(p, {"a": 0.5, "b": 0.01})
        return " ".join(across_sentences(both, common_optimum([at_six, other]), same, TERMS))

    assert "overlap in all 2 strata, at κ = " in across(again)
    assert "does not prove" in across(again)
    assert "No κ can be the optimum in all 2 strata" in across(elsewhere)
    assert "overlaps with almost any other" in across(unknown)
    assert "The verdict is the same in all 2 strata: interior peak." in across(again)
    assert "inconclusive in 1; interior peak in 1" in across(unknown)
    assert "do not have one shape (p = 0.020)" in across(again, 0.02)
    assert "It is b that differs." in across(again, 0.02)
    assert "A difference of shape is not shown (p = 0.60)" in across(again, 0.6)
    undecided = across_sentences(
        {"a": at_six, "b": again}, Common(None, Range(4, 6)), SameShape(1, {}), TERMS
    )
    assert "a common optimum at κ = 4 to 6 remains possible: this is undecided" in undecided[0]


@given(data=st.data(), count=st.integers(1, 6), seeds=st.integers(1, 4))
@settings(max_examples=25)
def test_any_table_gives_clean_sentences(data: st.DataObject, count: int, seeds: int) -> None:
    cell = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 1.0]), st.just(math.nan))
    size = st.lists(cell, min_size=count * seeds, max_size=count * seeds)
    values, logs = (np.array(data.draw(size)).reshape(count, seeds) for _ in range(2))
    values[0, 0] = logs[0, 0] = 0.5
    points = KAPPA[:count]
    real = engine.null
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "null", lambda plan, draws=0, seed=0: real(plan, 300, seed))
        verdict = decide(points, values)
        norm = decide(points, logs, maximise=False)
    sentences = [
        *curve_sentences(verdict, TERMS, (4.0, 10.0)),
        norm_sentences("a", norm, verdict, points, values, logs, TERMS),
    ]
    for sentence in sentences:
        assert not {"nan", "inf", "None"} & set(sentence.replace(",", " ").replace(".", " ").split())
        assert sentence.endswith(".")
