"""SIGINT and SIGTERM at any moment: one line, workers gone, and the next command goes on."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import harness
import pytest
from harness import KILLS, STOPPED, SWEEP, Command, csv_without_times, note, one_line, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.soak]

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_sweep_at_random_moments(number: signal.Signals, tmp_path: Path, chance: random.Random) -> None:
    """From its first import to its report, once or twice in a row."""
    spec = write_spec(tmp_path / "soak.yaml", SWEEP)
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = Command.start("sweep", "run", spec, "--out", whole, "--workers", 2)
    assert command.end()[0] == 0
    length = harness.seconds_since(command.began)
    stopped = 0
    while stopped < KILLS:
        command = Command.start("sweep", "run", spec, "--out", out, "--resume", "--workers", 2)
        moment = chance.uniform(0.2, length)
        while command.runs and harness.seconds_since(command.began) < moment:
            time.sleep(0.005)
        sent, busy = command.runs, bool(command.workers())
        began = time.monotonic()
        for _ in range(chance.choice([1, 2])):
            command.process.send_signal(number)
            time.sleep(chance.uniform(0, 0.05))
        left = command.wait_for_workers_to_leave()
        code, _, errors = command.end(20)
        if sent and code != 0:
            assert code == CODES[number], (code, moment, errors)
            assert one_line(errors) == STOPPED
            stopped += 1
            note(f"{number.name} to a sweep")
            if busy:
                note(f"workers gone after {number.name}, s", left)
            note(f"driver gone after {number.name}, s", harness.seconds_since(began))
            harness.nothing_half_written(out)
            continue
        assert code == 0, errors
        assert csv_without_times(out / "results.csv") == csv_without_times(whole / "results.csv")
        note("stopped sweeps equal to the undisturbed one")
        shutil.rmtree(out)
    command = Command.start("sweep", "run", spec, "--out", out, "--resume", "--workers", 2)
    code, _, errors = command.end()
    assert code == 0, errors
    assert csv_without_times(out / "results.csv") == csv_without_times(whole / "results.csv")
    note("stopped sweeps equal to the undisturbed one")


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_training_stops_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "run.yaml", {**harness.BASE, "training.epochs": 400})
    command = Command.start("train", spec, "--out", tmp_path / "out")
    harness.wait_for(lambda: (tmp_path / "out" / "metrics.jsonl").exists())
    command.process.send_signal(number)
    code, _, errors = command.end(20)
    assert (code, one_line(errors)) == (CODES[number], STOPPED)
    lines = len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert 1 <= lines < 400
    again = Command.start("train", tmp_path / "out", "--resume")
    harness.wait_for(lambda: len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) > lines)
    again.process.send_signal(number)
    assert again.end(20)[0] == CODES[number]
