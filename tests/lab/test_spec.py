"""Specs: their trials, content hashes, and one clear line for every kind of mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from curvact.activations import activation
from curvact.errors import CurvactError
from curvact.lab.comparison import ComparisonSpec, load_comparison
from curvact.lab.settings import check_settings
from curvact.lab.study_spec import StudySpec, check_spec, load_spec, trial_id

ROOT = Path(__file__).parents[2]


def test_every_shipped_study_is_valid() -> None:
    studies = sorted((ROOT / "studies").glob("*.yaml"))
    assert studies
    for path in studies:
        if "factors" not in yaml.safe_load(path.read_text()):
            comparison = load_comparison(path)
            assert comparison.trials()
            again = check_settings(ComparisonSpec, yaml.safe_load(comparison.to_yaml()), "again")
            assert again == comparison
            continue
        spec = load_spec(path)
        assert spec.trials()
        assert check_spec(yaml.safe_load(spec.to_yaml()), "again") == spec


def test_the_demo_is_what_was_asked_for() -> None:
    spec = load_spec(ROOT / "studies" / "digits.yaml")
    trials = spec.trials()
    curvatures = spec.factors.curvature
    assert (len(curvatures), curvatures[0], curvatures[-1]) == (10, 0.1, 200)
    assert {t["family"] for t in trials} == {"rctaf(beta=0)", "rctaf(beta=1)"}
    assert {t["seed"] for t in trials} == {0, 1, 2}
    assert len(trials) == 60
    assert spec.threat_model.epsilon == 0.2
    for t in trials:
        kappa = activation(t["activation"]).max_curvature.value  # type: ignore[union-attr]
        assert kappa == pytest.approx(t["curvature"], rel=1e-12)


def test_a_grid_can_grow_without_changing_the_trials_it_had(tiny: Path) -> None:
    small = {trial_id(t) for t in load_spec(tiny).trials()}
    grown = {
        trial_id(t)
        for t in load_spec(tiny, ["factors.curvature=[1, 3, 6]", "factors.seed=[0, 1, 2]"]).trials()
    }
    assert len(small) == 4
    assert small < grown
    renamed = {trial_id(t) for t in load_spec(tiny, ["name=other"]).trials()}
    assert renamed == small
    changed = {trial_id(t) for t in load_spec(tiny, ["training.momentum=0.5"]).trials()}
    assert not changed & small


def test_trial_ids_are_fixed(tiny: Path) -> None:
    """A change here orphans every study on disk: raise SCHEMA knowingly."""
    assert trial_id(load_spec(tiny).trials()[0]) == "5be3deb1d8cb"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fators": {}}, "unknown key 'fators'; did you mean 'factors'"),
        ({"training": {"batchsize": 3}}, "unknown key 'training.batchsize'; did you mean 'batch_size'"),
        ({"hessian": {"probs": 3}}, "unknown key 'hessian.probs'; did you mean 'probes'"),
        (
            {"threat_model": {"norm": "linf", "epsilon": -0.1}},
            r"threat_model.epsilon=-0.1: .*greater than or equal to 0",
        ),
        ({"threat_model": {"norm": "l7"}}, "threat_model.norm='l7'"),
        ({"data": "digit"}, "data.name='digit': allowed are digits, .*; did you mean 'digits'"),
        ({"data": {"name": "digits", "sise": 8}}, "unknown key 'data.sise'; did you mean 'size'"),
        ({"data": {"name": "digits", "train": 0}}, "data.train=0: .*greater than or equal to 1"),
        ({"data": {"name": "digits", "extra_fraction": 1}}, "data.extra_fraction=1: .*less than 1"),
        ({"data": 3}, "data=3"),
        ({"model": {"widht": 4}}, "model: mini_resnet has no argument 'widht'; did you mean 'width'"),
        (
            {"model": {"name": "resnet18", "blocks": 4}},
            "model: resnet18 has no argument 'blocks'; allowed are scope, width",
        ),
        ({"model": {"width": 0}}, "model: width=0: must be a whole number >= 1"),
        ({"model": {"width": 8.0}}, r"model: width=8.0: must be a whole number >= 1"),
        ({"model": {"width": "8"}}, "model: width='8': must be a whole number >= 1"),
        ({"model": {"scope": "block"}}, "model.scope='block'"),
        ({"training": {"crop": -1}}, "training: crop=-1 of a recipe"),
        ({"model": {"name": "resnet"}}, "model.name='resnet': allowed are .*mini_resnet"),
        ({"training": {"objective": "pgd"}}, "training: unknown objective 'pgd'; did you mean 'pgd-at'"),
        ({"factors": {"curvature": [0]}}, "curvature=0.0 in rctaf: curvature must be a finite number > 0"),
        ({"factors": {"curvature": [-6]}}, "curvature=-6.0 in rctaf"),
        ({"factors": {"curvature": []}}, "curvature is an empty list"),
        ({"factors": {"curvature": [1, 1]}}, "curvature names a value twice"),
        ({"factors": {"curvature": ["six"]}}, "factors.curvature.0='six'"),
        (
            {"factors": {"curvature": [1], "family": ["rtcaf"]}},
            "unknown activation 'rtcaf'; did you mean 'rctaf'",
        ),
        ({"factors": {"curvature": [1], "family": ["relu"]}}, "'relu' has no curvature to choose"),
        ({"factors": {"curvature": [1], "family": ["rctaf(beta=9)"]}}, "beta=9 in rctaf"),
        ({"factors": {"curvature": [1], "family": ["rctaf(curvature=6)"]}}, "sets its curvature"),
        ({"factors": {"curvature": [1], "epochs": [0]}}, "epochs=0"),
        ({"factors": {"seed": [0]}}, "the key 'factors.curvature' is missing"),
        ({"name": "a/b"}, "name='a/b'"),
    ],
)
def test_mistakes_are_one_clear_line(change: dict[str, Any], message: str) -> None:
    content = {"name": "x", "factors": {"curvature": [1]}, **change}
    with pytest.raises(CurvactError, match=message) as caught:
        check_spec(content, "study.yaml")
    assert str(caught.value).startswith("study.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "name: [", "3", "\x00"])
def test_files_that_hold_no_study(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(CurvactError, match=r"bad\.yaml") as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CurvactError, match="No such file"):
        load_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize("override", ["training", "=3", "name.x=3", "training.momentum=[1"])
def test_bad_overrides(tiny: Path, override: str) -> None:
    with pytest.raises(
        CurvactError, match=r"write it as key.key=value|holds a value, not keys|not valid YAML"
    ):
        load_spec(tiny, [override])


def test_defaults_are_written_out() -> None:
    spec = StudySpec.model_validate({"name": "x", "factors": {"curvature": [1]}})
    assert yaml.safe_load(spec.to_yaml())["training"]["momentum"] == 0.9
