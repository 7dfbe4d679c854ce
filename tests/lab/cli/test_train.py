"""`curvact train`: recipes, overrides, a run folder that goes on, and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curvact.training import Diverged

Run = Callable[..., Any]
SMALL = (
    "data={name: digits, train: 60, validation: 20, test: 20}",
    "model={name: mini_resnet, width: 2, blocks: 1}",
    "training.epochs=1",
    "training.batch_size=20",
    "training.attack=pgd-1",
    "evaluation.attack=pgd-2",
)


def test_a_run_goes_on_and_is_a_checkpoint(curvact: Run, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    first = curvact("train", "digits", *SMALL, "--out", run)
    assert first.code == 0, first.err
    assert f"{run}/curves.png" in first.out
    record = json.loads((run / "record.json").read_text())
    robust = record["metrics"]["robust_accuracy"]
    row = next(line.split() for line in first.out.splitlines() if line.startswith("last"))
    assert row == ["last", "1", f"{record['metrics']['clean_accuracy']:.2%}", f"{robust:.2%}"]
    assert "pgd-2" in first.out
    again = curvact("train", "digits", *SMALL, "--out", run)
    assert (again.code, again.out) == (2, "")
    assert "--resume goes on with it" in again.err
    finished = curvact("train", run)
    assert finished.code == 0
    assert "has run to its end" in finished.err
    evaluated = curvact("evaluate", run, "--attack", "pgd-2", "--no-masking", "--out", tmp_path / "records")
    assert evaluated.code == 0, evaluated.err
    assert "mine-best" in evaluated.out


def test_recipes_are_listed(curvact: Run) -> None:
    done = curvact("train", "--list-recipes")
    assert done.code == 0
    assert "paf" in done.out


def test_a_run_that_diverges_ends_with_1(
    curvact: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise Diverged("the loss is nan in epoch 1")

    monkeypatch.setattr("curvact.lab.run.fit", diverge)
    done = curvact("train", "digits", *SMALL, "--out", tmp_path / "run")
    assert done.code == 1
    assert "the loss is nan in epoch 1" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a YAML file, a run's folder or a recipe: "),
        (("digitz",), "did you mean 'digits'"),
        (("digits", "training.epoch=3"), "did you mean 'epochs'"),
        (("digits", "training.attack=pgd(steps=3, step=3)"), "step=3"),
        (("nowhere.yaml",), "cannot read nowhere.yaml"),
        ((".",), "holds no run"),
    ],
)
def test_bad_input_is_one_line(
    curvact: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = curvact("train", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
