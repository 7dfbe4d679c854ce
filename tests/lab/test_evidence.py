"""The tables in reproductions/*/results are what the shipped sweeps give. Some of their runs are repeated
(slow).
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from curvact.lab.run import execute
from curvact.lab.sweep import Planned, SweepSpec, read_sweep

ROOT = Path(__file__).parents[2]
SPECS = {
    path.stem: path
    for folder in ("src/curvact/lab/sweeps", "reproductions/*")
    for path in ROOT.glob(f"{folder}/*.yaml")
}
TABLES = sorted(path for path in ROOT.glob("reproductions/*/results/*.csv") if path.stem in SPECS)
RESULTS = ROOT / "reproductions" / "rctaf" / "results"


def _rows(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


def _planned(table: Path) -> tuple[SweepSpec, list[Planned]]:
    """The sweep of a table, and its runs. Skips where its synthetic images are not here: their hash is a
    part of the ids."""
    spec = read_sweep(SPECS[table.stem])
    planned = [run for run in spec.planned if run.source is None]
    extra = planned[0].spec.data.extra
    if extra is not None and not Path(extra).exists():
        pytest.skip(f"{extra} is not here: its spec says how to make it")
    return spec, planned


@pytest.mark.parametrize("table", TABLES, ids=[t.stem for t in TABLES])
def test_the_table_belongs_to_its_sweep(table: Path) -> None:
    """Every run of the sweep is a row, and no other. Labels and ids agree."""
    spec, planned = _planned(table)
    rows = _rows(table)
    by_id = {row["run"]: row for row in rows}
    assert len(by_id) == len(rows)
    assert set(by_id) == {run.id for run in planned}
    for run in planned:
        row = by_id[run.id]
        assert {axis: row[axis] for axis in spec.axes if row[axis]} == {
            a: str(v) for a, v in run.labels.items()
        }
        assert row["status"] == "done"


def _numbers(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[2:-1]]


def _section(title: str) -> list[str]:
    page = (ROOT / "reproductions" / "findings.md").read_text()
    return page[page.index(f"## {title}") :].split("\n## ")[0].splitlines()


def test_the_page_says_what_the_demo_gave() -> None:
    """The means of findings.md, to their last digit, from the runs."""
    rows, section = _rows(RESULTS / "demo.csv"), _section("The demo")
    heads = _numbers(next(line for line in section if line.startswith("| κ |")))
    for what, key in (
        ("apgd-ce + apgd-t", "subset_robust_accuracy"),
        ("PGD-20", "robust_accuracy"),
        ("‖θ² ⊙ diag H‖₂, adversarial loss", "adversarial_hessian_scale_invariant"),
    ):
        said = _numbers(next(line for line in section if line.startswith(f"| {what} |")))
        for head, number in zip(heads, said, strict=True):
            found = [100 * float(r[key]) for r in rows if head.lower() in (r["reference"], r["curvature"])]
            assert len(found) == 3
            assert float(number) == pytest.approx(sum(found) / 3, abs=0.051)


def test_the_page_says_what_the_full_study_gave() -> None:
    rows, section = _rows(RESULTS / "digits.csv"), _section("The full study")
    curvatures = _numbers(next(line for line in section if line.startswith("| κ |")))
    for beta in (0, 1):
        for what, key in (("test", "robust_accuracy"), ("training", "train_robust_accuracy")):
            said = _numbers(next(line for line in section if line.startswith(f"| β = {beta}, {what} |")))
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
    run = _planned(table)[1][0]
    again = execute(run.spec, tmp_path).metrics
    before = next(row for row in _rows(table) if row["run"] == run.id)
    for key in ("clean_accuracy", "robust_accuracy"):
        assert again[key] == pytest.approx(float(before[key]), abs=0.03)
