"""The spec of a search: what it plans, and bad input in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from curvact.activations import activation, known_curvature
from curvact.errors import CurvactError
from curvact.lab.search import Range, SearchSpec, on_test_images, read_search
from curvact.lab.settings import check_settings

CONTENT: dict[str, Any] = {
    "name": "kappa",
    "base": {"model": {"name": "mlp", "width": 8}, "activation": "rctaf(beta=0)", "training.epochs": 2},
    "space": {"curvature": {"low": 0.3, "high": 60, "log": True}},
    "budget": 1000,
}


def _spec(**changes: Any) -> SearchSpec:
    return check_settings(SearchSpec, {**CONTENT, **changes}, "search")


def test_a_trial_is_a_run_that_leaves_the_test_images_alone() -> None:
    spec = _spec(seed=3)
    run = spec.trial({"curvature": 4.0})
    assert known_curvature(activation(run.activation)) == pytest.approx(4.0)
    assert (run.evaluation.split, run.seed, run.model.name, run.training.epochs) == (
        "validation",
        3,
        "mlp",
        2,
    )
    assert on_test_images(run).evaluation.split == "test"
    assert on_test_images(run).id != run.id
    baseline = spec.baseline_run
    assert baseline is not None
    assert (baseline.activation, baseline.evaluation.split, baseline.seed) == ("relu", "validation", 3)
    assert _spec(baseline={}).baseline_run is None


def test_a_spec_comes_back_from_its_yaml(tmp_path: Path) -> None:
    spec = _spec(
        space={"curvature": {"low": 0.3, "high": 60, "log": True}, "training.weight_decay": [0, 1e-3]}
    )
    path = tmp_path / "search.yaml"
    path.write_text(spec.to_yaml())
    assert read_search(path) == spec
    assert read_search(tmp_path) == spec
    changed = read_search(path, ["budget=7", "space.training.weight_decay=[0.1]"])
    assert (changed.budget, changed.space["training.weight_decay"]) == (7, (0.1,))


def test_values_of_ranges() -> None:
    assert Range(low=1, high=100, log=True, points=3).values == (1.0, 10.0, 100.0)
    assert Range(low=0, high=1, points=5).values == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert Range(low=1, high=3, integer=True, points=9).values == (1, 2, 3)
    assert Range(low=0.1, high=0.12345).plain(0.12345) == 0.12345  # rounding never leaves the range
    assert Range(low=0, high=9).plain(math.pi) == 3.142
    grid = _spec(
        sampler="grid", space={"curvature": {"low": 1, "high": 4, "points": 2}, "centered": [True, False]}
    )
    assert grid.size == 4
    assert list(grid.combinations()) == [
        {"curvature": κ, "centered": c} for κ in (1.0, 4.0) for c in (True, False)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"curvatur": [1, 4]}}, "space: unknown key 'curvatur'; did you mean 'curvature'"),
        ({"space": {"training.epoch": [1]}}, "unknown key 'training.epoch'; did you mean 'epochs'"),
        ({"space": {"curvature": {"low": 9, "high": 1}}}, "curvature: low=9 and high=1: low must be lower"),
        ({"space": {"curvature": {"low": 0, "high": 1, "log": True}}}, "low=0 of a logarithmic range"),
        ({"space": {"curvature": {"low": 0, "high": 1, "hi": 1}}}, "unknown key 'hi'; did you mean 'high'"),
        ({"space": {"curvature": {"low": 0, "high": float("inf")}}}, "curvature: high=inf"),
        ({"space": {"model.width": {"low": 1.5, "high": 3, "integer": True}}}, "must be whole"),
        ({"space": {"curvature": 3}}, "curvature=3: a list of choices, or a range"),
        ({"space": {"curvature": []}}, "curvature=[]: a list of choices"),
        ({"space": {"curvature": [1, 1]}}, "curvature names a value twice"),
        ({"space": {}}, "give at least one key"),
        ({"space": {"curvature": {"low": -1, "high": 4}}}, "the trial κ=-1"),
        ({"space": {"activation": ["rctaf", "rtcaf"]}}, "did you mean 'rctaf'"),
        ({"space": {"evaluation.images": [9, 10]}}, "space.evaluation.images: it decides how trials are judged"),
        ({"space": {"training.validation": ["pgd-1"]}}, "it decides how trials are judged"),
        ({"space": {"hardware.threads": [1, 2]}}, "it changes no accuracy"),
        ({"space": {"seed": [0, 1]}}, "space.seed: the seed of every run"),
        ({"space": {"training.epochs": [1, 2]}}, "set pruning to none"),
        ({"base": {"seed": 1}}, "base.seed: write seed beside base"),
        ({"base": {"evaluation.split": "test"}}, "trials are judged on validation images, always"),
        ({"baseline": {"activation": "reluu"}}, "the baseline: unknown activation 'reluu'; did you mean 'relu'"),
        ({"baseline": {"threat_model.epsilon": 0.1}}, "baseline.threat_model.epsilon: it decides"),
        ({"budget": 0}, "budget=0: input should be greater than or equal to 1"),
        ({"sampler": "tqe"}, "sampler='tqe'"),
        ({"test_attack": "apgd"}, "apgd"),
        (
            {"sampler": "grid", "space": {f"training.{k}": {"low": 0.1, "high": 0.2, "points": 1000} for k in
             ("momentum", "final_rate")}},
            "a grid of 1,000,000 trials",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CurvactError) as problem:
        _spec(**changes)
    assert message in str(problem.value)
    assert "\n" not in str(problem.value)
    assert len(str(problem.value)) < 500


def test_a_large_space_is_tried_key_by_key() -> None:
    values = {
        f"training.{k}": {"low": 0.1, "high": 0.2} for k in ("momentum", "final_rate", "warmup", "decay")
    }
    spec = _spec(space={**values, "model.width": list(range(1, 101))})
    assert len(list(spec.corners())) == 108
    with pytest.raises(CurvactError, match="width=0"):
        _spec(space={**values, "model.width": list(range(100, -1, -1))})


def test_a_folder_without_a_search(tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match=r"holds no search \(no search.yaml\)"):
        read_search(tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**CONTENT, "budgte": 1}))
    with pytest.raises(CurvactError, match="unknown key 'budgte'; did you mean 'budget'"):
        read_search(tmp_path / "s.yaml")
