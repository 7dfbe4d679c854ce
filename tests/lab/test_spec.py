"""The spec of a run: defaults, ids, recipes, and one clear line for every kind of mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from curvact.activations import activation
from curvact.errors import CurvactError
from curvact.lab.settings import check_settings, override_in
from curvact.lab.spec import RunSpec, canonical_activation, read_spec, recipes


def _spec(**content: Any) -> RunSpec:
    return check_settings(RunSpec, content, "run.yaml")


def test_a_spec_round_trips_through_yaml() -> None:
    spec = _spec(data="digits", activation="rctaf(curvature=6)", threat_model={"norm": "l2", "epsilon": 0.5})
    again = check_settings(RunSpec, yaml.safe_load(spec.to_yaml()), "again")
    assert again == spec
    assert again.id == spec.id


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_a_spec_that_round_trips(name: str) -> None:
    spec = read_spec(name)
    assert spec.name == name
    assert spec.about
    assert check_settings(RunSpec, yaml.safe_load(spec.to_yaml()), "again") == spec


def test_published_recipes_say_what_the_papers_say() -> None:
    """[paper] values of arXiv 2110.05626 and 2004.05884. Steps are in units of ε."""
    spec = read_spec("paf")
    paf = spec.training
    assert (paf.beta_penalty, paf.beta_clip, paf.final_rate, paf.epochs) == (10.0, 0.01, 0.001, 200)
    assert (paf.attack.steps, paf.batch_size) == (10, 256)
    assert paf.attack.step is not None
    assert paf.attack.step * spec.threat_model.epsilon == pytest.approx(0.0078, rel=1e-9)
    assert (paf.weight_decay, paf.learning_rate, paf.nesterov, paf.warmup) == (5e-4, 0.1, True, 0.0)
    assert spec.threat_model.epsilon == 0.031
    assert read_spec("awp").training.perturbation == "awp(gamma=0.01)"


@pytest.mark.parametrize("kappa", [0.1, 6, 200.0])
def test_curvature_chooses_the_member_of_the_family(kappa: float) -> None:
    spec = _spec(activation="rctaf(beta=1)", curvature=kappa)
    assert activation(spec.activation).max_curvature.value == pytest.approx(kappa, rel=1e-12)  # type: ignore[union-attr]
    assert spec == _spec(activation=f"rctaf(curvature={kappa}, beta=1)")
    centred = _spec(activation="rctaf(beta=1)", curvature=kappa, centered=True)
    assert float(activation(centred.activation)(__import__("torch").zeros(()))) == 0


def test_names_for_the_same_activation_give_the_same_id() -> None:
    assert _spec(activation="silu").id == _spec(activation="swish(beta=1.0)").id
    assert canonical_activation("relu") == "relu"


def test_the_id_names_what_determines_the_numbers() -> None:
    spec = _spec()
    same = {"name": "other", "about": "text", "logging": {"keep": 1}, "hardware": {"accelerator": "cpu"}}
    for key, value in same.items():
        assert _spec(**{key: value}).id == spec.id, key
    others = {
        "seed": 1,
        "training": {"momentum": 0.5},
        "hardware": {"precision": "bf16-mixed"},
        "evaluation": {"attack": "pgd-10"},
        "hessian": {},
        "analyses": ["curvature"],
        "activation_from": {"run": "0" * 12},
    }
    ids = {_spec(**{key: value}).id for key, value in others.items()}
    assert len(ids | {spec.id}) == len(others) + 1


def test_a_radius_as_text_is_the_number_and_stays_text(tmp_path: Path) -> None:
    number = _spec(threat_model={"norm": "linf", "epsilon": 8 / 255})
    text = _spec(threat_model={"norm": "linf", "epsilon": "8/255"})
    assert text == number
    assert text.id == number.id
    assert yaml.safe_load(text.to_yaml())["threat_model"] == {"norm": "linf", "epsilon": "8/255"}
    assert yaml.safe_load(_spec().to_yaml())["threat_model"]["epsilon"] == 0.2
    path = tmp_path / "spec.yaml"
    path.write_text(text.to_yaml())
    assert read_spec(path) == text
    assert read_spec(path, ["threat_model.epsilon=4/255"]).threat_model.epsilon == 4 / 255


def test_ids_are_fixed() -> None:
    """A change here orphans every run on disk: raise SCHEMA knowingly."""
    spec = _spec(activation="rctaf(beta=1)", curvature=6, threat_model={"norm": "linf", "epsilon": 0.2})
    assert spec.id == "de2e6fa17979"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'"),
        ({"training": {"batchsize": 3}}, "unknown key 'training.batchsize'; did you mean 'batch_size'"),
        ({"hessian": {"probs": 3}}, "unknown key 'hessian.probs'; did you mean 'probes'"),
        ({"threat_model": {"norm": "linf", "epsilon": -0.1}}, r"epsilon=-0.1 of a threat model"),
        ({"threat_model": {"norm": "l7", "epsilon": 1}}, "norm='l7'"),
        ({"threat_model": {"norm": "linf", "epsilon": 8}}, "epsilon=8.0 .*did you mean 8/255"),
        ({"threat_model": {"norm": "linf", "epsilon": "8/x"}}, "threat_model.epsilon='8/x': a radius: a"),
        ({"threat_model": {"norm": "linf", "epsilon": 0.1, "eps": 1}}, "unknown key 'threat_model.eps'"),
        ({"data": "digit"}, "data.name='digit': allowed are digits, .*; did you mean 'digits'"),
        ({"data": "mine.npz"}, "data.name='mine.npz': a path has a slash, such as ./mine.npz; data sets are"),
        ({"data": {"name": "digits", "sise": 8}}, "unknown key 'data.sise'; did you mean 'size'"),
        ({"data": {"name": "digits", "train": 0}}, "data.train=0: .*greater than or equal to 1"),
        ({"data": {"name": "digits", "extra_fraction": 1}}, "data.extra_fraction=1: .*less than 1"),
        ({"data": 3}, "data=3"),
        ({"model": {"widht": 4}}, "model: mini_resnet has no argument 'widht'; did you mean 'width'"),
        (
            {"model": {"name": "resnet18", "blocks": 4}},
            "resnet18 has no argument 'blocks'; allowed are scope, width",
        ),
        ({"model": {"width": 0}}, "model: width=0: must be a whole number >= 1"),
        ({"model": {"width": 8.0}}, r"model: width=8.0: must be a whole number >= 1"),
        ({"model": {"width": "8"}}, "model: width='8': must be a whole number >= 1"),
        ({"model": {"scope": "block"}}, "model.scope='block'"),
        ({"model": "mlp(width=4, 3)"}, r"cannot read the network 'mlp\(width=4, 3\)'"),
        (
            {"model": {"name": "mlp(width=4)", "width": 8}},
            r"mlp\(width=4\) sets width already: leave out width=8",
        ),
        (
            {"model": "my.py"},
            r"model.name='my\.py': add the name of its class or function, such as my\.py:Net",
        ),
        (
            {"model": {"name": "mlp", "blocks": 1}},
            r"mlp has no argument 'blocks'; .* \(model=mlp alone has its",
        ),
        ({"model": {"name": "resnet"}}, "model.name='resnet': allowed are .*mini_resnet"),
        ({"training": {"crop": -1}}, "training: crop=-1 of a recipe"),
        ({"training": {"objective": "pgd"}}, "training: unknown objective 'pgd'; did you mean 'pgd-at'"),
        ({"training": {"attack": "pgd(steps=5, step=2.5)"}}, "step=2.5"),
        ({"evaluation": {"attack": "pdg-20"}}, "pdg-20"),
        ({"activation": "rlu"}, "unknown activation 'rlu'; did you mean 'relu'"),
        (
            {"activation": "rctaf", "curvature": 0},
            "curvature=0 in rctaf: curvature must be a finite number > 0",
        ),
        ({"activation": "swish", "curvature": [6]}, r"curvature=\[6\]: must be a number"),
        ({"activation": "swish", "curvature": 10**400}, "in swish: curvature must be a finite number > 0"),
        ({"activation": "swish", "centered": "false"}, "centered='false': must be true or false"),
        ({"model": {1: 2}}, "model: mini_resnet has no argument '1'"),
        ({"activation": "relu", "curvature": 6}, "'relu' has no curvature to choose"),
        ({"activation": "rctaf(curvature=6)", "curvature": 6}, "sets its curvature already"),
        ({"analyses": ["hesian"]}, "analyses.kinds.0='hesian'"),
        ({"analyses": []}, r"analyses.kinds=\[\]"),
        ({"activation_from": {"frozen": True}}, "give path or run"),
        ({"name": "a/b"}, "name='a/b'"),
    ],
)
def test_mistakes_are_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        _spec(**change)
    assert str(caught.value).startswith("run.yaml: ")
    assert "\n" not in str(caught.value)


def test_a_network_with_its_arguments_as_text() -> None:
    """As `--model` of the commands takes it; the run is the same as with separate keys."""
    assert _spec(model="mlp(width=4)").id == _spec(model={"name": "mlp", "width": 4}).id
    assert _spec(model="mlp(width=4)").id != _spec(model="mlp").id


@pytest.mark.parametrize(
    "text", ["", "- a\n", "name: [", "3", "\x00", "a: 2024-13-45", "seed: " + "9" * 5000, "[" * 3000]
)
def test_files_that_hold_no_spec(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(CurvactError, match=r"bad\.yaml") as caught:
        read_spec(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CurvactError, match="No such file"):
        read_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "override", ["training", "=3", "name.x=3", "training.momentum=[1", "seed=2024-13-45"]
)
def test_bad_overrides(override: str) -> None:
    with pytest.raises(
        CurvactError, match=r"write it as key.key=value|holds a value, not keys|not valid YAML|no timestamp"
    ):
        read_spec("digits", [override])


def test_a_path_alone_takes_keys() -> None:
    content: dict[str, Any] = {"helper": "runs/a", "init_from": "runs/b"}
    override_in(content, "helper.path", "runs/c", "here")
    override_in(content, "init_from.leave_out", ["fc"], "here")
    assert content == {"helper": {"path": "runs/c"}, "init_from": {"path": "runs/b", "leave_out": ["fc"]}}


def test_a_setting_in_the_place_of_the_spec_is_named() -> None:
    with pytest.raises(
        CurvactError, match=r"^data=\./mine\.npz is a setting.*`curvact train digits data=\./mine\.npz`"
    ):
        read_spec("data=./mine.npz", [])
