"""The keys of specs: schema, commented specs and the page that lists them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from curvact.errors import CurvactError
from curvact.lab.keys import SPECS, commented, keys_of, schema_of
from curvact.lab.search import read_search
from curvact.lab.spec import RunSpec, read_spec
from curvact.lab.sweep import read_sweep

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "src/curvact/lab/recipes").glob("*.yaml"))
SWEEPS = sorted((ROOT / "src/curvact/lab/sweeps").glob("*.yaml"))


def valid(kind: str, content: Any) -> None:
    jsonschema.Draft202012Validator(schema_of(kind)).validate(content)


@pytest.mark.parametrize("kind", SPECS)
def test_every_key_says_what_it_means(kind: str) -> None:
    assert [key.path for key in keys_of(kind, base=True) if not key.about] == []


@pytest.mark.parametrize("kind", SPECS)
def test_the_schema_is_one(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of(kind))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_keep_to_the_schema(file: Path) -> None:
    valid("run", yaml.safe_load(file.read_text()))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_sweeps_keep_to_the_schema(file: Path) -> None:
    valid("sweep", yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    "content",
    [
        {"data": "digits", "model": "mlp(width=4)", "analyses": ["hessian"], "imports": ["my.py"]},
        {"threat_model": {"norm": "linf", "epsilon": "8/255"}, "curvature": 6, "centered": True},
        {"training": {"attack": "pgd-5", "validation": None}, "model": {"name": "mlp", "width": 4}},
        {"helper": "runs/standard", "training": {"objective": "hat"}},
        {"init_from": "runs/other", "evaluation": {"attack": "pgd(steps=20, step=0.25)"}},
        RunSpec().model_dump(mode="json"),
    ],
)
def test_every_way_to_write_a_run_keeps_to_the_schema(content: dict[str, Any]) -> None:
    valid("run", content)


@pytest.mark.parametrize(
    "content",
    [
        {"epochs": 3},
        {"training": {"epoch": 3}},
        {"training": {"epochs": "many"}},
        {"training": {"schedule": "cosinus"}},
        {"data": {"train": 0}},
        {"data": ["digits"]},
        {"curvature": -1},
        {"seed": 0.5},
        {"threat_model": {"norm": "linf"}},
    ],
)
def test_what_is_refused_breaks_the_schema(content: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        valid("run", content)
    with pytest.raises(jsonschema.ValidationError):
        valid("sweep", {"name": "x", "base": content})


def test_a_base_has_dotted_keys() -> None:
    valid("sweep", {"name": "x", "base": {"training.epochs": 3}, "grid": {"curvature": [1, 2]}})


def test_defaults_are_those_of_the_types() -> None:
    """A spec in which every key with a default is written out is the empty spec."""
    content: dict[str, Any] = {}
    for key in keys_of("run"):
        if key.default is None or key.path.startswith(
            ("analyses", "hessian", "activation_from", "init_from", "helper")
        ):
            continue
        *parents, last = key.path.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = key.default
    assert RunSpec.model_validate(content) == RunSpec()


def test_a_commented_spec_with_every_key_is_the_spec_itself(tmp_path: Path) -> None:
    given = {"name": "mine", "training.epochs": 3, "threat_model.norm": "l2", "threat_model.epsilon": 0.5}
    file = tmp_path / "run.yaml"
    file.write_text(commented("run", given))
    few = read_spec(file)
    assert (few.name, few.training.epochs, str(few.threat_model)) == ("mine", 3, "l2 ε = 0.5")
    file.write_text(commented("run", given, every=True))
    assert read_spec(file) == few


def test_a_key_that_is_uncommented_is_set(tmp_path: Path) -> None:
    text = commented("run", {"training.epochs": 3}, every=True)
    for line in ("#  batch_size: 48", "#seed: 0"):
        assert f"\n{line}\n" in text
        text = text.replace(
            f"\n{line}\n", f"\n{line[1:]}\n".replace("48", "32").replace("seed: 0", "seed: 7")
        )
    file = tmp_path / "run.yaml"
    file.write_text(text)
    spec = read_spec(file)
    assert (spec.training.batch_size, spec.seed) == (32, 7)


@pytest.mark.parametrize("kind", ["sweep", "search"])
def test_every_key_of_a_base(kind: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"name": "mine", "base.activation": "rctaf", "base.data.name": "digits"}
    given |= (
        {"grid": {"curvature": [1, 2]}}
        if kind == "sweep"
        else {"space": {"curvature": [1, 2]}, "budget": 10**6}
    )
    file = tmp_path / "spec.yaml"
    read = read_sweep if kind == "sweep" else read_search
    file.write_text(commented(kind, given))
    few = read(file)
    file.write_text(commented(kind, given, every=True))
    assert read(file) == few


def test_an_unknown_kind() -> None:
    with pytest.raises(CurvactError, match="no kind of spec 'swep'; did you mean 'sweep'"):
        schema_of("swep")


def test_the_page_of_keys_is_what_its_script_writes() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "keys.py"))["page"]()
    assert (ROOT / "docs" / "keys.md").read_text() == page, "run: python docs/keys.py"
