"""A comparison from YAML to tables: cells, equal budgets, resume, and mistakes in one line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from curvact.config import check_settings
from curvact.errors import CurvactError
from curvact.study import run_study
from curvact.study.comparison import ComparisonSpec, load_comparison
from curvact.study.comparison_summary import summarize_comparison, to_latex, to_markdown

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits", "train": 100, "validation": 40, "test": 40},
    "model": {"name": "mini_resnet", "width": 2, "blocks": 1},
    "training": {"batch_size": 20, "attack_steps": 1, "objective": "pgd-at(batch_norm=eval)"},
    "evaluation": {"steps": 2, "train_images": 40},
    "budget": 30,
    "seeds": [0, 1],
    "rows": {"relu": {}, "smooth": {"activation": "silu"}},
    "columns": {"sgd": {}, "sam": {"training.perturbation": "sam"}},
}


def _spec(**changes: Any) -> ComparisonSpec:
    return check_settings(ComparisonSpec, {**TINY, **changes}, "tiny.yaml")


def test_cells_are_rows_times_columns_at_one_budget() -> None:
    trials = _spec().trials()
    assert [t["cell"] for t in trials[:4]] == ["relu / sgd", "relu / sam", "smooth / sgd", "smooth / sam"]
    assert {t["training"]["budget"] for t in trials} == {30}
    assert [t["activation"] for t in trials[:4]] == ["relu", "relu", "silu", "silu"]
    assert [t["training"]["perturbation"] for t in trials[:2]] == ["none", "sam"]
    assert [t["seed"] for t in trials] == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": {}}, "rows"),
        (
            {"rows": {"a": {"activaton": "relu"}}},
            "cell 'a / sgd': unknown key 'activaton'; did you mean 'activation'",
        ),
        ({"rows": {"a": {"activation": "rlu"}}}, "unknown activation 'rlu'"),
        ({"rows": {"a": {"training.epoch": 3}}}, "unknown key 'training.epoch'; did you mean 'epochs'"),
        ({"rows": {"a": {"activation.x": 3}}}, "'activation' holds a value, not keys"),
        ({"baseline": "relu"}, "baseline='relu' is no cell; did you mean 'relu / s"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"budget": 0}, "budget=0"),
        ({"training": {"epochs": 0}}, "epochs=0 of a recipe"),
        ({"column": {}}, "unknown key 'column'; did you mean 'columns'"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CurvactError) as caught:
        _spec(**changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_run_resume_and_tables(tmp_path: Path) -> None:
    spec = _spec()
    console = Console(quiet=True)
    folder = tmp_path / "run"
    run_study(spec, folder, workers=2, console=console)
    first = summarize_comparison(folder)
    assert set(first.means) == {"relu / sgd", "relu / sam", "smooth / sgd", "smooth / sam"}
    assert first.missing == 0
    for cell in first.means.values():
        assert 28 <= cell["gradient_evaluations"].value <= 30
        assert 0 <= cell["robust_accuracy"].value <= cell["clean_accuracy"].value <= 1
    assert set(first.differences["robust_accuracy"]) == set(first.means) - {"relu / sgd"}

    table = (folder / "table.md").read_text()
    assert table == to_markdown(first)
    assert "| relu / sgd |" in table
    assert "baseline" in table
    latex = to_latex(first)
    body = latex[latex.index(r"\toprule") :]
    assert body.count(r"\\") == 5
    assert {line.count("&") for line in body.splitlines() if "&" in line} == {
        len(table.splitlines()[0].split("|")) - 3
    }
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(rows) == 8
    by_hand = [float(r["robust_accuracy"]) for r in rows if r["cell"] == "smooth / sam"]
    assert first.means["smooth / sam"]["robust_accuracy"].value == pytest.approx(sum(by_hand) / 2)

    kept = (folder / "results.csv").read_text()
    for victim in sorted((folder / "trials").iterdir())[:2]:
        for file in victim.iterdir():
            file.unlink()
        victim.rmdir()
    assert summarize_comparison(folder).missing == 2
    with pytest.raises(CurvactError, match="--resume goes on with it"):
        run_study(spec, folder, workers=1, console=console)
    run_study(load_comparison(folder), folder, workers=1, resume=True, console=console)
    summarize_comparison(folder)

    def without_times(text: str) -> list[dict[str, str]]:
        lines = list(csv.DictReader(text.splitlines()))
        return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]

    assert without_times((folder / "results.csv").read_text()) == without_times(kept)
    with pytest.raises(CurvactError, match="holds another study"):
        run_study(_spec(seeds=[0, 2]), folder, workers=1, console=console)


def test_a_failed_trial_is_named(tmp_path: Path) -> None:
    spec = _spec(
        seeds=[0],
        columns={"": {}},
        rows={"a": {}, "wild": {"training.learning_rate": 1e30, "training.warmup": 0.0}},
    )
    run_study(spec, tmp_path / "run", workers=1, console=Console(quiet=True))
    summary = summarize_comparison(tmp_path / "run")
    assert "the loss became" in summary.failed["wild seed 0"]
    assert "failed: wild seed 0" in to_markdown(summary)


def test_shipped_comparisons_are_yaml_that_round_trips() -> None:
    for path in (Path(__file__).parents[2] / "studies").glob("*-methods.yaml"):
        spec = load_comparison(path)
        assert check_settings(ComparisonSpec, yaml.safe_load(spec.to_yaml()), "again") == spec
