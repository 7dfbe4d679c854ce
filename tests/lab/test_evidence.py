"""The tables in docs/results are what the shipped sweeps give. Some of their runs are repeated
(slow).
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from curvact.lab.run import execute
from curvact.lab.sweep import read_sweep

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "docs" / "results").glob("*.csv"))


def _rows(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


@pytest.mark.parametrize("table", TABLES, ids=[t.stem for t in TABLES])
def test_the_table_belongs_to_its_sweep(table: Path) -> None:
    """Every run of the sweep is a row, and no other. Labels and ids agree."""
    spec = read_sweep(ROOT / "sweeps" / f"{table.stem}.yaml")
    planned = [run for run in spec.planned if run.source is None]
    rows = _rows(table)
    assert [row["run"] for row in rows] == [run.id for run in planned]
    for row, run in zip(rows, planned, strict=True):
        assert {axis: row[axis] for axis in spec.axes} == {a: str(v) for a, v in run.labels.items()}
        assert row["status"] == "done"


def test_the_page_says_what_the_demo_gave() -> None:
    """The means of docs/findings.md, to their last digit, from the runs."""
    rows = _rows(ROOT / "docs" / "results" / "digits.csv")
    page = (ROOT / "docs" / "findings.md").read_text().splitlines()
    curvatures = next(line for line in page if line.startswith("| κ | 0.1 |")).split("|")[2:-1]
    for beta in (0, 1):
        for what, key in (("test", "robust_accuracy"), ("training", "train_robust_accuracy")):
            said = next(line for line in page if line.startswith(f"| β = {beta}, {what} |")).split("|")[2:-1]
            for curvature, number in zip(curvatures, said, strict=True):
                found = [
                    100 * float(row[key])
                    for row in rows
                    if row["activation"] == f"rctaf(beta={beta})"
                    and float(row["curvature"]) == float(curvature)
                ]
                assert len(found) == 3
                assert float(number) == pytest.approx(sum(found) / 3, abs=0.051)


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=[t.stem for t in TABLES])
def test_runs_come_out_again(table: Path, tmp_path: Path) -> None:
    """The first run: the same accuracies, to three points for other versions of torch and other
    processors.
    """
    run = next(r for r in read_sweep(ROOT / "sweeps" / f"{table.stem}.yaml").planned if r.source is None)
    again = execute(run.spec, tmp_path).metrics
    before = next(row for row in _rows(table) if row["run"] == run.id)
    for key in ("clean_accuracy", "robust_accuracy"):
        assert again[key] == pytest.approx(float(before[key]), abs=0.03)
