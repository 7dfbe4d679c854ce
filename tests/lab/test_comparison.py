"""A comparison from YAML to tables: cells, equal budgets, resume, and mistakes in one line."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from curvact.lab.report.comparison_summary import (
    COMPARED,
    MEASURES,
    ComparisonSummary,
    _latex,
    summarize_comparison,
    to_latex,
    to_markdown,
    to_tables,
)
from pyautoattack import AutoAttack
from rich.console import Console

from curvact.activations import current_parameters
from curvact.attacks import ThreatModel, pgd
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab.comparison import ComparisonSpec, load_comparison
from curvact.lab.run_study import run_study
from curvact.lab.settings import check_settings
from curvact.lab.statistics.paired import Mean
from curvact.lab.study_spec import trial_id
from curvact.models.checkpoint import load_checkpoint
from curvact.random import generator

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits", "train": 100, "validation": 40, "test": 40},
    "model": {"name": "mini_resnet", "width": 2, "blocks": 1},
    "training": {"batch_size": 20, "attack": "pgd-1", "objective": "pgd-at(batch_norm=eval)"},
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
        ({"baseline": "relu / sgf"}, "baseline='relu / sgf' is no cell; did you mean 'relu / sgd'"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"budget": 0}, "budget=0"),
        ({"training": {"epochs": 0}}, "epochs=0 of a recipe"),
        ({"column": {}}, "unknown key 'column'; did you mean 'columns'"),
        (
            {"rows": {"a": {"activation_from": {"source": "sprta"}}}, "sources": {"sparta": {}}},
            "cell 'a / sgd': activation_from.source='sprta'; did you mean 'sparta'",
        ),
        ({"rows": {"a": {"activation_from": {"source": "s"}}}}, "sources are none"),
        (
            {
                "rows": {"a": {"activation": "silu", "activation_from": {"source": "s"}}},
                "sources": {"s": {"activation": "psilu"}},
            },
            "cell 'a / sgd': activation comes from the source 's': leave it out",
        ),
        ({"sources": {"s": {"activation_from": {"source": "s"}}}}, "source 's' has activation_from"),
        ({"rows": {"a": {"analyses": ["hesian"]}}}, "analyses.kinds.0='hesian'"),
        ({"rows": {"a": {"analyses": []}}}, "analyses.kinds=[]"),
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


def test_steps_that_a_trial_does_not_have_are_not_in_its_config() -> None:
    """So that a new optional step leaves the ids of all older trials as they were."""
    for trial in _spec().trials():
        assert not {"analyses", "activation_from"} & set(trial)


def test_baseline_by_column() -> None:
    spec = _spec(baseline="smooth")
    assert spec.baselines() == {
        "relu / sgd": "smooth / sgd",
        "relu / sam": "smooth / sam",
        "smooth / sgd": "smooth / sgd",
        "smooth / sam": "smooth / sam",
    }
    assert set(_spec(baseline="relu / sam").baselines().values()) == {"relu / sam"}


LEARNED: dict[str, Any] = {
    "data": {"name": "digits", "train": 60, "validation": 20, "test": 20},
    "model": {"name": "mini_resnet", "width": 2, "blocks": 1},
    "budget": 12,
    "seeds": [0],
    "sources": {"psilu": {"activation": "psilu(alpha=3)", "model.scope": "network"}},
    "rows": {
        "scratch": {"activation": "psilu(alpha=3)", "model.scope": "network"},
        "frozen": {"activation_from": {"source": "psilu"}},
        "warm": {"activation_from": {"source": "psilu", "frozen": False}},
    },
    "columns": {"deeper": {"model.blocks": 2}},
}


def test_activations_move_from_sources_to_cells(tmp_path: Path) -> None:
    """The frozen one ends where its source ended, the warm one does not; a source is no cell and has no difference."""
    spec = _spec(**LEARNED)
    folder = tmp_path / "run"
    assert run_study(spec, folder, workers=1, console=Console(quiet=True)) == []
    kappa = {}
    for config in spec.trials():
        model = load_checkpoint(folder / "trials" / trial_id(config) / "model.safetensors")
        (value,) = current_parameters(model).values()
        kappa[config["cell"]] = value
    assert kappa["frozen / deeper"] == kappa["source psilu"] != 3
    assert kappa["warm / deeper"] not in (kappa["source psilu"], 3)
    summary = summarize_comparison(folder)
    assert "source psilu" in summary.means
    assert set(summary.differences["robust_accuracy"]) == {"frozen / deeper", "warm / deeper"}
    source = next(c for c in spec.trials() if c["cell"] == "source psilu")
    moved = next(c for c in spec.trials() if c["cell"] == "frozen / deeper")
    assert moved["activation_from"] == {"trial": trial_id(source), "frozen": True}


def test_a_cell_without_its_source_is_named(tmp_path: Path) -> None:
    """A source that diverged fails its cells, with the cause; a source that was never run is reported."""
    spec = _spec(**LEARNED, training={**TINY["training"], "learning_rate": 1e30})
    run_study(spec, tmp_path / "run", workers=1, console=Console(quiet=True))
    failed = summarize_comparison(tmp_path / "run").failed
    assert set(failed) == {f"{name} seed 0" for name in ("source psilu", *spec.cells())}
    assert failed["frozen / deeper seed 0"].startswith("its source failed: ")


def test_analyses_are_steps_of_a_trial(tmp_path: Path) -> None:
    spec = _spec(
        seeds=[0],
        columns={"": {}},
        rows={"smooth": {"activation": "silu"}, "relu": {}},
        analyses={
            "kinds": ["smoothness", "flatness", "curvature", "hessian"],
            "images": 8,
            "attack_steps": 1,
            "probes": 4,
            "directions": 1,
            "draws": 2,
        },
    )
    folder = tmp_path / "run"
    run_study(spec, folder, workers=1, console=Console(quiet=True))
    summary = summarize_comparison(folder)
    assert not summary.failed
    smooth, relu = summary.means["smooth"], summary.means["relu"]
    assert (
        relu["hessian_adversarial_curvature_share"].value
        == 0
        != smooth["hessian_adversarial_curvature_share"].value
    )
    assert smooth["smoothness_linf_ratio"].value > 0
    assert smooth["flatness_worst"].value > 0
    assert "curvature_effective_mean" in smooth
    assert set(summary.differences["smoothness_linf_ratio"]) == {"relu"}
    assert "gradient Lipschitz, L∞ − baseline" in (folder / "table.md").read_text()
    assert {"comparison.png", "comparison.svg", "roughness.png", "roughness.svg"} <= {
        file.name for file in folder.iterdir()
    }


def test_pgd_and_the_part_of_autoattack_are_told_of_the_same_images(tmp_path: Path) -> None:
    """PGD on the whole test split again, from the checkpoint, cut to the first images; and pyautoattack itself on those."""
    evaluation = {"steps": 2, "train_images": 40, "autoattack_images": 15, "autoattack_parts": ["apgd-ce"]}
    folder = tmp_path / "run"
    spec = _spec(
        evaluation=evaluation,
        rows={"relu": {}},
        columns={"sgd": {}},
        seeds=[3],
        budget=120,
        threat_model={"epsilon": 0.1},
    )
    run_study(spec, folder, workers=1, console=Console(quiet=True))
    summary = summarize_comparison(folder)
    (row,) = csv.DictReader((folder / "results.csv").read_text().splitlines())
    model = load_checkpoint(folder / "trials" / row["trial"] / "model.safetensors")
    test = load("digits", train=100, validation=40, test=40).test
    x, y = test.inputs(), test.labels
    threat = ThreatModel("linf", spec.threat_model.epsilon)
    attacked = pgd(model, x, y, threat, steps=2, step=0.4, generator=generator(3, "evaluation/test"))
    with torch.no_grad():
        stands = (model(x).argmax(1) == y) & (model(attacked).argmax(1) == y)
    assert float(row["robust_accuracy"]) == stands.double().mean()
    assert float(row["subset_pgd_accuracy"]) == stands[:15].double().mean()
    reference = AutoAttack(
        model, norm="Linf", eps=threat.epsilon, seed=3, version="custom", attacks=["apgd-ce"]
    )
    x_adv, _ = reference.run_standard_evaluation(x[:15], y[:15])
    with torch.no_grad():
        strong = (model(x_adv).argmax(1) == y[:15]).double().mean()
    # APGD-CE draws its starts in another order in fast mode: an image on the edge may fall in one and not in the other.
    assert float(row["subset_robust_accuracy"]) == pytest.approx(float(strong), abs=1.01 / 15)
    assert "PGD-2, the same 15" in to_markdown(summary)


@pytest.mark.parametrize("width", [60, 200])
def test_the_terminal_shows_every_column_whole(tmp_path: Path, width: int) -> None:
    """In as many tables as it takes: no number is cut or broken, whatever the terminal's width."""
    spec = _spec(
        seeds=[0, 1], columns={"": {}}, evaluation={"steps": 1, "train_images": 20, "activations": True}
    )
    folder = tmp_path / "run"
    run_study(spec, folder, workers=1, console=Console(quiet=True))
    summary = summarize_comparison(folder)
    console = Console(width=width, record=True, file=io.StringIO())
    for table in to_tables(summary, width):
        console.print(table)
    shown = " ".join(console.export_text().split())
    for line in to_markdown(summary).splitlines():
        if line.startswith(("| relu", "| smooth")):
            for cell in line.strip("| ").split(" | "):
                assert cell in shown


def test_what_no_trial_could_start_from_is_found_before_anything_is_written(tmp_path: Path) -> None:
    """Data of the last column, and an activation that does not fit: not after an hour of other trials."""
    missing = _spec(columns={"a": {}, "b": {"data.name": "imagenette"}})
    with pytest.raises(CurvactError, match="imagenette"):
        run_study(missing, tmp_path / "run", workers=1, console=Console(quiet=True))
    wider = _spec(
        **{
            **LEARNED,
            "sources": {"sparta": {"activation": "sparta", "model.scope": "network"}},
            "rows": {"moved": {"activation_from": {"source": "sparta"}}},
            "columns": {"wider": {"model.width": 3}},
        }
    )
    with pytest.raises(CurvactError, match=r"^moved / wider seed 0: .*3") as caught:
        run_study(wider, tmp_path / "run", workers=1, console=Console(quiet=True))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_documented_comparison_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text()
    first, second = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert len(check_settings(ComparisonSpec, first, "docs").trials()) == 2 * 2 * 3
    assert len(check_settings(ComparisonSpec, {**first, **second}, "docs").trials()) == (1 + 3 * 2) * 3


def test_latex_is_what_pdflatex_sets() -> None:
    for text, wanted in {
        "share of σ″ in diag H": r"share of \ensuremath{\sigma}'' in diag H",
        "RCT-AF β = 1": r"RCT-AF \ensuremath{\beta} = 1",
        "a^2_b": r"a{\textasciicircum}2\_b",
        "a\\b": r"a{\textbackslash}b",
        "1 − 2": r"1 \ensuremath{-} 2",
        "a\nb": "a b",
    }.items():
        assert _latex(text) == wanted
    assert all(_latex(measure.title).isascii() for measure in MEASURES)


def test_names_do_not_break_the_tables() -> None:
    spec = _spec(rows={"a|b \\": {}, "[σ″] x^2": {"activation": "silu"}}, columns={"": {}}, seeds=[0])
    names = spec.cells()
    differences: dict[str, dict[str, Any]] = {key: {} for key in COMPARED}
    means = {name: {"robust_accuracy": Mean(0.5, 0.4, 0.6, 2)} for name in names}
    summary = ComparisonSummary(spec, means, differences, {"a": "two\nlines"}, 0, {})
    markdown = to_markdown(summary).splitlines()
    assert markdown[2].startswith("| a\\|b \\\\ | 50.0")
    # A cell ends at a | that no backslash escapes.
    counts = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in markdown[:4]}
    assert len(counts) == 1
    latex = to_latex(summary)
    assert latex.isascii() or all(line.startswith("%") for line in latex.splitlines() if not line.isascii())
    assert "{}[\\ensuremath{\\sigma}''] x{\\textasciicircum}2 & " in latex
    assert "% failed: a: two lines" in latex
