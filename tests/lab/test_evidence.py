"""The tables in docs/results are what their studies give: some of their trials are run again (slow)."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from curvact.lab.comparison import load_comparison
from curvact.lab.study_spec import load_spec, trial_id
from curvact.lab.trial import run_trial

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "docs" / "results").glob("*.csv"))
SWEEPS = sorted((ROOT / "docs" / "results" / "sweeps").glob("*.csv"))


@pytest.mark.parametrize("table", TABLES, ids=[t.stem for t in TABLES])
def test_the_table_belongs_to_the_study(table: Path) -> None:
    """Every trial of the study is there, or named as failed in the notes, and there is no other."""
    spec = load_comparison(ROOT / "studies" / f"{table.stem}.yaml")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    wanted = {(config["cell"], config["seed"]): trial_id(config) for config in spec.trials()}
    found = {(row["cell"], int(row["seed"])): row["trial"] for row in rows}
    notes = table.with_suffix(".md").read_text()
    for (cell, seed), identity in wanted.items():
        if (cell, seed) in found:
            assert found[cell, seed] == identity
        else:
            assert f"failed: {cell} seed {seed}" in notes
    assert set(found) <= set(wanted)


@pytest.mark.parametrize("table", SWEEPS, ids=[t.stem for t in SWEEPS])
def test_the_sweep_belongs_to_the_study(table: Path) -> None:
    trials = load_spec(ROOT / "studies" / f"{table.stem}.yaml").trials()
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert sorted(row["trial"] for row in rows) == sorted(map(trial_id, trials))
    assert {row["status"] for row in rows} == {"done"}


def test_the_page_says_what_the_demo_gave() -> None:
    """The means of docs/findings.md, to their last digit, from the trials."""
    rows = list(
        csv.DictReader((ROOT / "docs" / "results" / "sweeps" / "digits.csv").read_text().splitlines())
    )
    page = (ROOT / "docs" / "findings.md").read_text().splitlines()
    curvatures = next(line for line in page if line.startswith("| κ | 0.1 |")).split("|")[2:-1]
    for beta in (0, 1):
        for what, key in (("test", "robust_accuracy"), ("training", "train_robust_accuracy")):
            said = next(line for line in page if line.startswith(f"| β = {beta}, {what} |")).split("|")[2:-1]
            for curvature, number in zip(curvatures, said, strict=True):
                found = [
                    100 * float(row[key])
                    for row in rows
                    if row["family"] == f"rctaf(beta={beta})" and float(row["curvature"]) == float(curvature)
                ]
                assert len(found) == 3
                assert float(number) == pytest.approx(sum(found) / 3, abs=0.051)


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=[t.stem for t in TABLES])
def test_trials_come_out_again(table: Path, tmp_path: Path) -> None:
    """The baseline's first seed: the same accuracies, to three points for other versions of torch and other processors."""
    spec = load_comparison(ROOT / "studies" / f"{table.stem}.yaml")
    config = next(c for c in spec.trials() if c["cell"] in spec.baselines().values())
    again = run_trial(config, tmp_path)["metrics"]
    rows = csv.DictReader(table.read_text().splitlines())
    (before,) = [r for r in rows if r["trial"] == trial_id(config)]
    for key in ("clean_accuracy", "robust_accuracy"):
        assert again[key] == pytest.approx(float(before[key]), abs=0.03)
