"""The spec of a sweep: its runs, its axes, growth, and one clear line for every kind of mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from curvact.activations import activation
from curvact.errors import CurvactError
from curvact.lab.settings import check_settings
from curvact.lab.sweep import SweepSpec, read_sweep, sweeps

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "src/curvact/lab/sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[p.stem for p in SHIPPED])
def test_every_shipped_sweep_round_trips(path: Path) -> None:
    spec = read_sweep(path)
    assert spec.planned
    again = check_settings(SweepSpec, yaml.safe_load(spec.to_yaml()), "again")
    assert again.planned == spec.planned


def test_a_shipped_sweep_has_a_name_and_a_file_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(sweeps()) == {path.stem for path in SHIPPED}
    assert read_sweep("digits") == read_sweep(ROOT / "src/curvact/lab/sweeps/digits.yaml")
    with pytest.raises(CurvactError, match=r"no file or folder digit, .* did you mean 'digits'"):
        read_sweep("digit")
    with pytest.raises(CurvactError, match=r"cannot read digits\.yaml"):
        read_sweep("digits.yaml")
    (tmp_path / "digits").write_text("name: mine\nquestion: Which seed?\ngrid: {seed: [0, 1]}\n")
    assert read_sweep("digits").name == "mine"


def test_the_demo_covers_the_published_range() -> None:
    spec = read_sweep("digits")
    curvatures = spec.grid["curvature"]
    assert (len(curvatures), curvatures[0], curvatures[-1]) == (10, 0.1, 200)
    assert spec.grid["activation"] == ("rctaf(beta=0)", "rctaf(beta=1)")
    assert len(spec.planned) == 60
    for run in spec.planned:
        kappa = activation(run.spec.activation).max_curvature.value  # type: ignore[union-attr]
        assert kappa == pytest.approx(run.labels["curvature"], rel=1e-12)


def test_anything_can_vary(sweep_spec: Any) -> None:
    """Network, data, objective, decay, family and κ in one sweep: the claim as the papers pose it."""
    spec = sweep_spec(
        grid={
            "model.name": ["mini_resnet", "small_cnn"],
            "data.train": [60, 80],
            "training.objective": ["pgd-at", "trades(beta=6)"],
            "training.weight_decay": [0.0, 0.0005],
            "activation": ["rctaf(beta=0)", "swish"],
            "curvature": [1, 6],
            "seed": [3],
        },
        base={"model": {}},
    )
    assert len(spec.planned) == 2**6
    assert tuple(spec.axes)[-1] == "seed"
    assert len({run.id for run in spec.planned}) == 2**6
    run = spec.planned[-1]
    assert run.spec.model.name == "small_cnn"
    assert run.spec.activation == "swish(beta=12.0)"
    assert run.spec.seed == 3
    assert run.spec.training.weight_decay == 0.0005


def test_cells_combine_with_each_other_and_the_grid(sweep_spec: Any) -> None:
    spec = sweep_spec(
        grid={"seed": [0, 1]},
        cells={
            "activation": {"relu": {"activation": "relu"}, "smooth": {"activation": "silu"}},
            "method": {"sgd": {}, "sam": {"training.perturbation": "sam"}},
        },
    )
    assert [tuple(run.labels.values()) for run in spec.planned[:4]] == [
        ("relu", "sgd", 0),
        ("relu", "sgd", 1),
        ("relu", "sam", 0),
        ("relu", "sam", 1),
    ]
    assert [run.spec.training.perturbation for run in spec.planned[:3]] == ["none", "none", "sam"]


def test_a_grid_can_grow_without_changing_the_runs_it_had(sweep_spec: Any) -> None:
    small = {run.id for run in sweep_spec().planned}
    grown = {run.id for run in sweep_spec(grid={"curvature": [1, 3, 6], "seed": [0, 1, 2]}).planned}
    assert len(small) == 4
    assert small < grown
    assert {run.id for run in sweep_spec(name="other").planned} == small


def test_overrides_reach_every_key(tiny: Path) -> None:
    spec = read_sweep(tiny, ["grid.training.epochs=[1,2]", "base.data.train=50", "grid.seed=[0]"])
    assert spec.grid["training.epochs"] == (1, 2)
    assert {run.spec.training.epochs for run in spec.planned} == {1, 2}
    assert {run.spec.data.train for run in spec.planned} == {50}


def test_sources_come_first_with_their_own_seeds(sweep_spec: Any) -> None:
    spec = sweep_spec(
        grid={"seed": [0, 1]},
        sources={"learned": {"activation": "psilu(alpha=3)", "model.scope": "network"}},
        cells={"from": {"moved": {"activation_from": {"source": "learned"}, "model.blocks": 2}}},
    )
    sources, moved = spec.planned[:2], spec.planned[2:]
    assert [run.source for run in sources] == ["learned", "learned"]
    for source, run in zip(sources, moved, strict=True):
        assert run.spec.activation_from is not None
        assert run.spec.activation_from.run == source.id
        assert run.spec.activation_from.frozen
        assert (run.spec.activation, run.spec.model.scope) == (source.spec.activation, "network")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gird": {}}, "unknown key 'gird'; did you mean 'grid'"),
        ({"grid": {"curvature": []}}, "grid.curvature is an empty list"),
        ({"grid": {"curvature": [1, 1]}}, "grid.curvature names a value twice"),
        ({"grid": {"curvature": ["six"]}}, "curvature"),
        ({"grid": {"seed": ["0", "1"]}}, "grid.seed has '0': a seed is a whole number"),
        ({"grid": {"seed": [True]}}, "grid.seed has True: a seed is a whole number"),
        ({"grid": {"logging.keep": [1, 2]}}, "grid.logging.keep: it changes no number of a run"),
        ({"base": {"seed": 7}}, "base.seed: the seeds are in grid.seed"),
        ({"cells": {"m": {"a": {"seed": 7}}}}, "seed is set by two axes, 'm' and 'seed'"),
        (
            {"cells": {"m": {"a": {"training": {"epochs": 2}}}}, "grid": {"training.epochs": [1, 2]}},
            "training.epochs is set by two axes, 'm' and 'training.epochs'",
        ),
        ({"cells": {"m": {"a": {"activation_from": {"source": [1]}}}}}, "sources are none"),
        ({"grid": {"curvature": [0]}}, "curvature=0 in rctaf: curvature must be a finite number > 0"),
        (
            {"grid": {"curvature": [1], "activation": ["rtcaf"]}},
            "unknown activation 'rtcaf'; did you mean 'rctaf'",
        ),
        ({"grid": {"curvature": [1], "activation": ["relu"]}}, "'relu' has no curvature to choose"),
        ({"grid": {"curvature": [1], "activation": ["rctaf(curvature=6)"]}}, "sets its curvature"),
        ({"grid": {"training.epochs": [0]}}, "epochs=0"),
        ({"grid": {"training.epoch": [1]}}, "unknown key 'training.epoch'; did you mean 'epochs'"),
        ({"grid": {"seed": list(range(10_001))}}, "10,001 runs: at most 10,000"),
        ({"base": {"trainig": {}}}, "unknown key 'trainig'; did you mean 'training'"),
        ({"cells": {"method": {}}}, "cells.method names no cell"),
        ({"cells": {"seed": {"a": {}}}}, "'seed' is an axis of grid and of cells"),
        ({"cells": {"method": {"a": {"activation.x": 3}}}}, "'activation' holds a value, not keys"),
        (
            {"cells": {"m": {"a": {"activation_from": {"source": "sprta"}}}}, "sources": {"sparta": {}}},
            "activation_from.source='sprta'; did you mean 'sparta'",
        ),
        ({"cells": {"m": {"a": {"activation_from": {"source": "s"}}}}}, "sources are none"),
        (
            {
                "cells": {"m": {"a": {"activation": "silu", "activation_from": {"source": "s"}}}},
                "sources": {"s": {"activation": "psilu"}},
                "grid": {"seed": [0]},
            },
            "activation comes from the source 's': leave it out",
        ),
        ({"sources": {"s": {"activation_from": {"source": "s"}}}}, "source 's' has activation_from"),
        ({"cells": {"m": {"a": {"activation_from": {"path": "x.safetensors"}}}}}, "give its sha256 too"),
        ({"questions": {"curv": {}}}, "questions.curv: no such question; did you mean 'curve'"),
        (
            {"questions": {"curve": {"bnd": [1, 2]}}},
            "questions.curve.bnd: no such setting; did you mean 'band'",
        ),
        (
            {"grid": {"seed": [0, 1]}, "questions": {"paired": {"baseline": "relu"}}},
            "questions.paired: the seed is the only axis",
        ),
        ({"questions": {"paired": {"baseline": "nope"}}}, "questions.paired.baseline = 'nope' is no label"),
        (
            {"questions": {"paired": {"baseline": {"curvature": 5}}}},
            "questions.paired.baseline.curvature = 5 is",
        ),
        ({"name": "a/b"}, "name='a/b'"),
    ],
)
def test_mistakes_are_one_clear_line(sweep_spec: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        sweep_spec(**change)
    assert "\n" not in str(caught.value)


def test_a_name_alone_keeps_what_the_base_says_of_data_and_model(sweep_spec: Any) -> None:
    spec = sweep_spec(
        base={"data": {"train": 50}, "model": {"width": 2}},
        grid={"data": ["digits", "mnist"], "model": ["mini_resnet", "small_cnn"], "seed": [0]},
    )
    assert {run.spec.data.train for run in spec.planned} == {50}
    assert {run.spec.model.width for run in spec.planned} == {2}


def test_two_runs_never_share_their_words(sweep_spec: Any) -> None:
    seeds = [1_000_000, 1_000_001, 2**63 - 1]
    spec = sweep_spec(grid={"curvature": [1, 1.0000001], "seed": seeds})
    assert len({run.label for run in spec.planned}) == 6
    assert spec.planned[0].label == "κ=1, seed 1000000"


def test_the_documented_sweep_is_one() -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert check_settings(SweepSpec, yaml.safe_load(block), "docs").planned


def test_references_stand_beside_the_curve(sweep_spec: Any) -> None:
    """A reference is planned at every seed and other axis, once for all κ and families."""
    spec = sweep_spec(
        base={"activation": "rctaf(beta=1)", "centered": True},
        grid={"curvature": [1, 6], "training.weight_decay": [0.0, 1e-3], "seed": [0, 1]},
        references=["relu", "silu"],
    )
    references = [run for run in spec.planned if run.reference]
    assert len(references) == 2 * 2 * 2
    assert len(spec.planned) == 8 + 8
    assert {run.spec.activation for run in references} == {"relu", "swish(beta=1.0)"}
    assert [run.reference for run in references] == ["relu"] * 4 + ["silu"] * 4
    assert references[0].labels == {"training.weight_decay": 0.0, "seed": 0}
    assert references[0].label == "reference relu, weight_decay 0, seed 0"
    again = check_settings(SweepSpec, yaml.safe_load(spec.to_yaml()), "again")
    assert again.planned == spec.planned


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"references": ["relu", "relu"]}, "names 'relu' twice"),
        ({"references": ["rellu"]}, "did you mean 'relu'"),
        ({"references": ["relu"], "grid": {"seed": [0]}}, "give grid.curvature"),
        (
            {
                "references": ["relu"],
                "cells": {"both": {"a": {"centered": True, "training.epochs": 2}, "b": {"centered": False}}},
            },
            "sets training.epochs",
        ),
    ],
)
def test_references_that_cannot_be(sweep_spec: Any, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CurvactError, match=problem):
        sweep_spec(**changes)
