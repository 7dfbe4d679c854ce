"""Two drivers in one folder, a folder that moves, clocks that jump, locks that are left."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import harness
import pytest
from harness import KILLS, SWEEP, Command, csv_without_times, note, one_line, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.soak]


def test_two_drivers_at_the_same_instant(tmp_path: Path, chance: random.Random) -> None:
    """One of them has the folder; the other is refused in one line, whoever comes first."""
    spec = write_spec(tmp_path / "soak.yaml", SWEEP)
    for attempt in range(max(2, KILLS // 4)):
        out = tmp_path / f"out{attempt}"
        both = []
        for _ in range(2):
            both.append(Command.start("sweep", "run", spec, "--out", out, "--workers", 1))
            time.sleep(chance.choice([0.0, 0.01, 0.1]))
        ends = [command.end() for command in both]
        assert sorted(code for code, _, _ in ends) == [0, 2], ends
        (refused,) = (errors for code, _, errors in ends if code)
        assert "another process is writing" in one_line(refused) or "holds a sweep already" in refused
        if attempt:
            assert csv_without_times(out / "results.csv") == csv_without_times(tmp_path / "out0/results.csv")
        note("two drivers at the same instant: one was refused")


def test_a_second_driver_touches_nothing(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "soak.yaml", {**SWEEP, "base": {**harness.BASE, "training.epochs": 2000}})
    out = tmp_path / "out"
    first = Command.start("sweep", "run", spec, "--out", out, "--workers", 1)
    harness.wait_for(lambda: list(out.rglob("metrics.jsonl")))
    before = {name: (out / name).stat().st_mtime_ns for name in ("sweep.yaml", ".lock")}
    for extra in ([], ["--resume"]):
        code, _, errors = Command.start("sweep", "run", spec, "--out", out, *extra).end()
        assert code == 2
        assert ("another process is writing" if extra else "holds a sweep already") in one_line(errors)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert first.runs
    assert first.workers()
    os.killpg(first.process.pid, signal.SIGKILL)
    first.end()


def test_killed_moved_and_gone_on_with_at_another_time(tmp_path: Path, chance: random.Random) -> None:
    """The folder has another name, its files are of the future, and a lock of a dead process is left."""
    spec = write_spec(tmp_path / "soak.yaml", SWEEP)
    whole = tmp_path / "whole"
    assert Command.start("sweep", "run", spec, "--out", whole, "--workers", 1).end()[0] == 0
    out = tmp_path / "out"
    command = Command.start("sweep", "run", spec, "--out", out, "--workers", 1)
    harness.wait_for(lambda: list(out.glob("runs/*/record.json")))
    os.killpg(command.process.pid, signal.SIGKILL)
    command.end()
    moved = out.rename(tmp_path / "moved")
    (moved / ".lock").write_text("pid 1 on another-host\n")
    for path in moved.rglob("*"):
        times = time.time() + chance.choice([-1, 1]) * 10**8
        os.utime(path, (times, times))
    code, _, errors = Command.start("sweep", "run", moved, "--resume", "--workers", 1).end()
    assert code == 0, errors
    assert csv_without_times(moved / "results.csv") == csv_without_times(whole / "results.csv")
    assert harness.weights(moved) == harness.weights(whole)
    note("moved and gone on with")
