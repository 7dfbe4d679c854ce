"""`curvact sweep`: run, resume, report; bad input is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curvact.lab.placement import Placement

Run = Callable[..., Any]


def test_run_and_report(curvact: Run, tiny: Path, tmp_path: Path) -> None:
    """One run; `tests/lab/test_sweep_run.py` has the rest."""
    out = tmp_path / "out"
    one = ["--set", "grid={curvature: [6], seed: [0]}", "--set", "base.hessian=null", "--workers", 1]
    first = curvact("sweep", "run", tiny, "--out", out, *one)
    assert first.code == 0, first.err
    assert f"report.html: {out / 'report.html'}" in first.out
    assert len((out / "results.csv").read_bytes().splitlines()) == 2
    again = curvact("sweep", "run", tiny, "--out", out, *one)
    assert (again.code, again.out) == (2, "")
    assert "--resume" in again.err
    (out / "report.html").unlink()
    assert curvact("sweep", "report", out).code == 0
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("resume", [False, True])
def test_options_reach_the_sweep(
    curvact: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    calls: list[Any] = []

    def run_sweep(spec: Any, folder: Path, place: Placement, **options: Any) -> list[str]:
        calls.append((spec.grid["seed"], folder, place, options))
        return []

    monkeypatch.setattr("curvact.lab.sweep_run.run_sweep", run_sweep)
    monkeypatch.setattr("curvact.lab.cli.sweep._report", lambda folder: None)
    options = ["--set", "grid.seed=[4]", "--out", tmp_path / "out", "--workers", 3, *["--resume"] * resume]
    assert curvact("sweep", "run", tiny, *options).code == 0
    expected = {"resume": resume, "store": None}
    assert calls == [((4,), tmp_path / "out", Placement("local", workers=3, device="auto"), expected)]


def test_runs_that_fail_end_with_1(
    curvact: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curvact.lab.sweep_run.run_sweep", lambda *_, **__: ["run abc: its worker died"])
    monkeypatch.setattr("curvact.lab.cli.sweep._report", lambda folder: print(f"report of {folder.name}"))
    done = curvact("sweep", "run", tiny, "--out", tmp_path / "out")
    assert done == (1, "report of out\n", "run abc: its worker died\n")
    monkeypatch.undo()
    monkeypatch.setattr("curvact.lab.sweep_run.run_sweep", lambda *_, **__: ["run abc: its worker died"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.yaml").write_text(tiny.read_text())
    done = curvact("sweep", "run", tiny, "--out", tmp_path / "out")  # nothing has finished
    assert done.code == 1
    assert done.err.startswith("run abc: its worker died\ncurvact: ")
    assert "has no finished run" in done.err


def test_runs_whose_loss_diverges_are_counted_and_end_with_1(
    curvact: Run, tiny: Path, tmp_path: Path
) -> None:
    place = tmp_path / "out"
    settings = (
        "--set",
        "base.training.learning_rate=1e6",
        "--set",
        "grid.curvature=[6]",
        "--set",
        "grid.seed=[0]",
    )
    first = curvact("sweep", "run", tiny, "--out", place, *settings, "--engine", "inline")
    assert first.code == 1
    assert f"1 of 1 runs failed: {place}/results.csv has the causes" in first.err
    assert "the loss became" in (place / "results.csv").read_text()
    again = curvact("sweep", "run", place)
    assert again.code == 1
    assert "1 of 1 runs failed" in again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.yaml"), "cannot read nowhere.yaml"),
        (("report", "nowhere"), "nowhere"),
        (("run", "TINY", "--workers", "0", "--out", "out"), "--workers 0: must be a whole number >= 1"),
        (("run", "TINY", "--engine", "locl", "--out", "out"), "locl"),
        (("run", "TINY", "--set", "base.training.batchsize=3"), "did you mean 'batch_size'"),
        (("run", "TINY", "--set", "base.threat_model.epsilon=-1"), "epsilon"),
        (("run", "TINY", "--set", "grid.curvature=[0]"), "curvature must be a finite number > 0"),
        (("run", "TINY", "--out", "/proc/x"), "/proc/x"),
    ],
)
def test_bad_input_is_one_line(
    curvact: Run,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    done = curvact("sweep", *(tiny if word == "TINY" else word for word in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(place.iterdir()) == []


def test_cost(curvact: Run, tiny: Path) -> None:
    done = curvact("sweep", "cost", tiny, "--rate", "2 GFLOPS", "--by", "seed")
    assert done.code == 0, done.err
    for part in (
        "training: attack",
        "Hessian diagonal",
        "seed 1",
        "4 runs, at most 40",
        "at 2 GFLOPS (given)",
    ):
        assert part in " ".join(done.out.split())
    assert "measured in κ=1" in " ".join(curvact("sweep", "cost", tiny, "--rate", "measure").out.split())
    for wrong in (["--rate", "40"], ["--by", "sead"], ["--clean", "0.2"]):
        done = curvact("sweep", "cost", tiny, *wrong)
        assert (done.code, done.out) == (2, "")
        assert len(done.err.splitlines()) == 1
