"""The page of a search: every trial is drawn and listed, and texts of strangers are escaped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from curvact.lab.report.search.about import Point, SearchAbout
from curvact.lab.report.search.figures import key_figure, progress_figure, smooth
from curvact.lab.report.search.page import report_search, trials_grid


def _about(**changes: object) -> SearchAbout:
    kappas = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 5.0)
    states = ["completed"] * 6 + ["pruned", "failed", "left"]
    points = [
        Point(
            number, f"{number:012x}", {"curvature": kappa, "training.objective": ("pgd-at", "trades")[number % 2]},
            state, None if state in ("left", "pruned") else 0.0 if state == "failed" else 0.5 - 0.02 * number, 4, 24,
            24 * (number + 1), "the loss became nan" if state == "failed" else "",
        )
        for number, (kappa, state) in enumerate(zip(kappas, states, strict=True))
    ]  # fmt: skip
    about = SearchAbout(
        title="Which <script>κ?</script>",
        sentences=("The best is trial 0.",),
        keys=("training.objective", "curvature"),
        logarithmic=frozenset({"curvature"}),
        points=tuple(points),
        best=0,
        standard_error=0.03,
        baseline=("relu", 0.4),
        budget=240,
        command="curvact train s/winner.yaml --out runs/winner",
        winner_yaml="activation: rctaf\n",
        spec_yaml="name: kappa\n",
        provenance={"commit": "abc"},
    )
    return dataclasses.replace(about, **changes)


def _offsets(figure: object) -> dict[str, list[list[float]]]:
    (axes,) = figure.axes  # type: ignore[attr-defined]
    found = [c for c in axes.collections if isinstance(c, PathCollection)]
    return {str(c.get_label()): c.get_offsets().tolist() for c in found}


def test_every_trial_with_an_accuracy_is_drawn() -> None:
    about = _about()
    drawn = _offsets(key_figure(about, "curvature"))
    assert [x for x, _ in drawn["pruned"]] == [32.0]
    for state in ("completed", "failed"):
        expected = [[p.settings["curvature"], 100 * p.accuracy] for p in about.points if p.state == state]
        assert drawn[state] == [pytest.approx(pair) for pair in expected]
    assert drawn["winner"] == [pytest.approx([0.3, 50.0])]
    places = [x for x, _ in _offsets(key_figure(about, "training.objective"))["completed"]]
    assert places == [0, 1, 0, 1, 0, 1]
    spent = [x for x, _ in _offsets(progress_figure(about))["completed"]]
    assert spent == [24 * (n + 1) for n in range(6)]


def test_a_smooth_curve_needs_six_trials() -> None:
    about = _about()
    labels = [line.get_label() for line in key_figure(about, "curvature").axes[0].lines]
    assert "smoothed" in labels
    few = _about(points=about.points[:5])
    assert "smoothed" not in [line.get_label() for line in key_figure(few, "curvature").axes[0].lines]


def test_the_smooth_curve_finds_a_peak() -> None:
    """A parabola with noise, sampled unevenly, has its highest fitted value near its peak."""
    random = np.random.default_rng(0)
    x = random.uniform(-1, 4, 40)
    y = 40 - (x - 1.4) ** 2 + 0.3 * random.standard_normal(40)
    at = np.linspace(-1, 4, 200)
    assert at[smooth(x, y, at).argmax()] == pytest.approx(1.4, abs=0.4)


def test_the_best_come_first() -> None:
    grid = trials_grid(_about())
    assert [line[0] for line in grid.lines] == ["0 (winner)", "1", "2", "3", "4", "5", "6", "7", "8"]
    assert grid.lines[0][1:5] == ("pgd-at", "0.3", "completed", "50.0")
    assert grid.lines[-1][4] == "–"
    assert grid.notes == ("trial 7: the loss became nan",)


def test_the_page(tmp_path: Path) -> None:
    files = report_search(_about(), tmp_path)
    names = {"report.html", "progress.png", "progress.svg"}
    names |= {
        f"response-{key}.{end}" for key in ("curvature", "training-objective") for end in ("png", "svg")
    }
    assert set(files) == names
    page = files["report.html"].read_text()
    assert "<script>" not in page
    assert "Which &lt;script&gt;κ?" in page
    assert page.count("<tr>") == 10
    for text in (
        "activation: rctaf",
        "curvact train s/winner.yaml",
        "216 of 240 gradient evaluations",
        "1 left",
    ):
        assert text in page
    assert page.count("Green: a local straight line") == 1, "a key of names has no smooth curve"
    before = page
    report_search(_about(), tmp_path)
    assert files["report.html"].read_text() == before


def test_a_search_without_a_baseline_and_without_numbers(tmp_path: Path) -> None:
    points = tuple(dataclasses.replace(p, settings={"activation": "silu"}) for p in _about().points)
    files = report_search(_about(points=points, keys=("activation",), baseline=None), tmp_path)
    assert "Response to activation" in files["report.html"].read_text()
