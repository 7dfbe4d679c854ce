"""Real commands in processes of their own, and what is done to them: signals, and waiting for their end.

Results are written down with `note`; the end of the session shows them, as one line a fact.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from curvact.files import hash_of_file

KILLS = int(os.environ.get("CURVACT_SOAK_KILLS", "12"))
"""How often each kind of command is killed."""

SEED = int(os.environ.get("CURVACT_SOAK_SEED", "0"))
"""Of the moments and the targets of the kills."""

LONGEST = 300.0
"""Seconds after which a command that does not end is a fault."""

STOPPED = "curvact: stopped; --resume goes on with a training run, a sweep, a search or an evaluation"

BASE: dict[str, Any] = {
    "data": {"name": "digits", "train": 100, "validation": 40, "test": 40},
    "model": {"name": "mlp", "width": 8},
    "activation": "rctaf(beta=1)",
    "threat_model": {"norm": "linf", "epsilon": 0.2},
    "training": {"epochs": 4, "batch_size": 20, "attack": "pgd(steps=1, step=0.4)"},
    "evaluation": {"attack": "pgd(steps=2, step=0.2)", "train_images": 40},
}
SWEEP: dict[str, Any] = {
    "name": "soak",
    "base": BASE,
    "grid": {"curvature": [1, 6], "seed": [0, 1]},
}
SEARCH: dict[str, Any] = {
    "name": "soak",
    "base": {**BASE, "evaluation": {**BASE["evaluation"], "weights": "last"}},
    "space": {"curvature": {"low": 0.3, "high": 60, "log": True}},
    "budget": 200,
}

NOTES: dict[str, list[float]] = {}


def note(fact: str, value: float = 1) -> None:
    """Write a measured value down; the end of the session shows its count, its sum and its largest.

    CURVACT_SOAK_NOTES names a file that has every value, also of a session that is ended early.
    """
    NOTES.setdefault(fact, []).append(value)
    if "CURVACT_SOAK_NOTES" in os.environ:
        with open(os.environ["CURVACT_SOAK_NOTES"], "a", encoding="utf-8") as file:
            file.write(f"{fact}\t{value:.3f}\n")


@dataclass
class Command:
    """A command of curvact in a process group of its own."""

    process: subprocess.Popen[str]
    began: float

    @classmethod
    def start(cls, *arguments: object, cwd: Path | None = None, **environment: str) -> Command:
        command = [sys.executable, "-m", "curvact", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        return cls(process, time.monotonic())

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def end(self, seconds: float = LONGEST) -> tuple[int, str, str]:
        """Wait for its end. Returns exit code, output and errors."""
        try:
            out, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            out, errors = self.process.communicate()
            raise AssertionError(f"no end within {seconds} s\n{out}\n{errors}") from None
        return self.process.returncode, out, errors

    def workers(self) -> list[int]:
        """Process ids of its workers, not of multiprocessing's resource tracker."""
        return [pid for pid in members(self.process.pid) if pid != self.process.pid and _is_worker(pid)]

    def kill(self, target: str, chance: random.Random) -> bool:
        """kill -9 of "driver", "worker", "workers" or "group". False where there is none of that kind."""
        if target in ("worker", "workers"):
            found = self.workers()
            chosen = found if target == "workers" else found and [chance.choice(found)]
            for pid in chosen:
                _signal(pid, signal.SIGKILL)
            return bool(chosen)
        if not self.runs:
            return False
        (os.killpg if target == "group" else os.kill)(self.process.pid, signal.SIGKILL)
        return True

    def wait_for_workers_to_leave(self) -> float:
        """Seconds until no process of its group is left. They are waited for ten seconds at most."""
        began = time.monotonic()
        while (left := [pid for pid in members(self.process.pid) if _is_worker(pid)]) and seconds_since(
            began
        ) < 10:
            time.sleep(0.01)
        assert not left, f"workers outlived their driver by ten seconds: {left}"
        return seconds_since(began)


def seconds_since(began: float) -> float:
    return time.monotonic() - began


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def one_line(errors: str) -> str:
    """The line that a command ended with. There is no traceback, and it is the last one."""
    assert "Traceback" not in errors, errors
    ours = [line for line in errors.splitlines() if line.startswith("curvact:")]
    assert len(ours) == 1, errors
    return ours[0]


def write_spec(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def csv_without_times(path: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def weights(folder: Path) -> dict[str, str]:
    """sha256 of every file of weights below a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): hash_of_file(path)
        for path in sorted(folder.rglob("*.safetensors"))
        if "state" not in path.name
    }


def nothing_half_written(folder: Path) -> None:
    assert not list(folder.rglob(".*.tmp")), sorted(folder.rglob("*"))


def torment(
    start: Callable[[], Command],
    done: Callable[[Command], object],
    *,
    kills: int,
    targets: Sequence[str],
    length: float,
    chance: random.Random,
) -> int:
    """Start a command, kill a target at a random moment, and go on, until it was killed so often.

    start: begins, or goes on. done: called with a command that has come to its end, each time; it
    compares its results, and prepares a new beginning. length: seconds of an undisturbed command.
    Returns how often the command came to its end.
    """
    ends = killed = 0
    while True:
        command = start()
        target = chance.choice(list(targets)) if killed < kills else ""
        moment = chance.uniform(0.1, length) if target else LONGEST
        while command.runs and seconds_since(command.began) < moment:
            time.sleep(0.005)
        busy = bool(command.workers())
        if target and command.kill(target, chance):
            killed += 1
            note(f"kill -9 of {target}")
            if target == "driver":
                left = command.wait_for_workers_to_leave()
                if busy:
                    note("workers left after kill -9 of their driver, s", left)
            if target in ("driver", "group"):
                command.process.communicate()
                continue
        code, _, errors = command.end()
        assert "Traceback" not in errors, errors
        if code == 1 and "died again and again" in errors:
            continue
        assert code == 0, errors
        done(command)
        ends += 1
        if killed >= kills:
            return ends
