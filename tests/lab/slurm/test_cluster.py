"""The slurm engine on a real cluster of one node: whatever happens to tasks and driver, a sweep ends with
the table that the inline engine gives, and no run is executed twice at once.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from curvact.lab.engines import Job, engine_from
from curvact.lab.placement import Placement
from curvact.lab.store import finished, read_history
from curvact.lab.sweep import read_sweep
from curvact.lab.sweep_run import report, run_sweep
from curvact.workers import Event

QUIET = Console(quiet=True)
GRID = {"curvature": [1, 6], "seed": [0]}
LONG = 250
"""Epochs that take half a minute: time enough to disturb a run."""


def _rows(out: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def _start(spec: Path, out: Path, *extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "curvact", "sweep", "run", str(spec), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--engine", "slurm", *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for(condition: Callable[[], Any], seconds: float = 180) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return found


def _squeue() -> list[str]:
    """The jobs that wait or run."""
    return subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True).stdout.split()


def _jobs(out: Path) -> dict[str, str]:
    """The job of each run, as the driver keeps it."""
    content = json.loads((out / "slurm" / "jobs.json").read_text())
    return {run: entry["job"] for run, entry in content.items()}


def _pid(job: str) -> int:
    """The process of the task."""
    array, _, number = job.partition("_")
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            known = dict(item.partition("=")[::2] for item in place.read_text(errors="replace").split("\0"))
            command = (place.parent / "cmdline").read_text()
        except OSError:
            continue
        place_in_array = known.get("SLURM_ARRAY_JOB_ID"), known.get("SLURM_ARRAY_TASK_ID")
        ours = place_in_array == (array, number) or (not number and known.get("SLURM_JOB_ID") == array)
        if ours and "submitit.core._submit" in command and "srun" not in command:
            return int(place.parent.name)
    return 0


@pytest.fixture(autouse=True)
def _an_empty_queue(slurm: Path) -> Iterator[None]:
    yield
    subprocess.run(["scancel", "--user=root"], capture_output=True)
    _wait_for(lambda: not _squeue(), 60)


@pytest.fixture
def long(tmp_path: Path, tiny_content: dict[str, Any]) -> Path:
    """The spec of a sweep of two runs, each long enough to disturb it."""
    content = json.loads(json.dumps(tiny_content | {"grid": GRID}))
    content["base"]["training"]["epochs"] = LONG
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def expected(long: Path, tmp_path: Path) -> Callable[[], list[dict[str, str]]]:
    """The table of that sweep by the inline engine."""

    def rows() -> list[dict[str, str]]:
        run_sweep(read_sweep(long), tmp_path / "inline", Placement("inline"), console=QUIET)
        report(tmp_path / "inline")
        return _rows(tmp_path / "inline")

    return rows


def _in_progress(out: Path, count: int = 1) -> dict[str, str]:
    """The jobs, once so many runs have finished some epochs."""

    def begun() -> bool:
        return len([f for f in out.glob("runs/*/metrics.jsonl") if len(read_history(f.parent)) > 3]) >= count

    _wait_for(begun)
    return _jobs(out)


@pytest.mark.slow
def test_a_sweep_is_as_the_inline_engine_gives_it(
    sweep_spec: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = sweep_spec(grid=GRID)
    assert run_sweep(spec, tmp_path / "a", Placement("slurm", workers=2), console=QUIET) == []
    assert re.search(r"job \d+ of SLURM: 2 runs, 2 at a time", capfd.readouterr().err)
    assert not (tmp_path / "a" / "slurm").exists()
    run_sweep(spec, tmp_path / "b", Placement("inline"), console=QUIET)
    for out in (tmp_path / "a", tmp_path / "b"):
        report(out)
    assert _rows(tmp_path / "a") == _rows(tmp_path / "b")


@pytest.mark.slow
def test_killed_cancelled_and_requeued_tasks_go_on(
    long: Path, tmp_path: Path, expected: Callable[[], list[dict[str, str]]]
) -> None:
    """kill -9 of the process of one, scancel of the other, then scontrol requeue of one."""
    out = tmp_path / "run"
    driver = _start(long, out, "--workers", "2")
    first, second = _in_progress(out, 2).values()
    os.kill(_wait_for(lambda: _pid(first)), signal.SIGKILL)
    subprocess.run(["scancel", second], check=True)
    again = _wait_for(lambda: {*_jobs(out).values()} - {first, second})
    job = sorted(again)[0]
    _wait_for(lambda: _pid(job))
    subprocess.run(["scontrol", "requeue", job], check=True)
    time.sleep(2)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    text, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0, errors
    assert errors.count("a worker died") == 2
    assert f"job {first} is FAILED" in errors
    assert f"job {second} is CANCELLED" in errors
    assert _rows(out) == expected()
    assert "report.html" in text


@pytest.mark.slow
def test_a_run_that_reaches_its_time_limit_goes_on(
    long: Path, tmp_path: Path, expected: Callable[[], list[dict[str, str]]]
) -> None:
    """The signal that SLURM sends before the limit; the run is queued again in its job, and goes on."""
    out = tmp_path / "run"
    driver = _start(long, out, "--workers", "1")
    jobs = _in_progress(out)
    (run,) = [r for r in jobs if (out / "runs" / r / "metrics.jsonl").exists()]
    before = len(read_history(out / "runs" / run))
    subprocess.run(["scancel", "--signal=USR2", jobs[run]], check=True)
    _wait_for(lambda: not _pid(jobs[run]))
    log = (out / "slurm" / f"{jobs[run]}_0_log.out").read_text()
    assert f"Requeued job {jobs[run]}" in log
    reached = len(read_history(out / "runs" / run))
    assert before <= reached < LONG
    time.sleep(2)
    subprocess.run(["scontrol", "update", f"JobId={jobs[run]}", "StartTime=now"], check=True)
    _, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0, errors
    assert "died" not in errors
    assert _rows(out) == expected()


@pytest.mark.slow
def test_a_driver_that_was_killed_takes_its_tasks_over(
    long: Path, tmp_path: Path, expected: Callable[[], list[dict[str, str]]]
) -> None:
    """One run goes on in its job. The task of the other, which is not known, is ended first."""
    out = tmp_path / "run"
    driver = _start(long, out, "--workers", "2")
    jobs = _in_progress(out, 2)
    driver.kill()
    driver.communicate()
    run, other = jobs
    process, unknown = _pid(jobs[run]), _pid(jobs[other])
    assert process
    assert unknown
    known = json.loads((out / "slurm" / "jobs.json").read_text())
    del known[other]  # as if the driver had died before it wrote the job down
    (out / "slurm" / "jobs.json").write_text(json.dumps(known))
    driver = _start(long, out, "--workers", "2", "--resume")
    _wait_for(lambda: len(_jobs(out)) == 2)
    now = _jobs(out)
    assert now[run] == jobs[run]
    assert now[other] != jobs[other]
    assert jobs[other] not in _squeue()
    assert not Path(f"/proc/{unknown}").exists()
    assert _pid(jobs[run]) == process
    _, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0, errors
    assert "going on with 1 task of SLURM" in errors
    assert _rows(out) == expected()


@pytest.mark.slow
def test_ctrl_c_cancels_the_tasks(long: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    driver = _start(long, out, "--workers", "2")
    _in_progress(out, 2)
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "cancelled 2 tasks of SLURM" in errors
    assert "--resume goes on" in errors
    _wait_for(lambda: not _squeue(), 60)


def test_what_sbatch_refuses_is_one_line(
    sweep_spec: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("engine: slurm\npartition: nowhere\n")
    run = sweep_spec(grid=GRID).planned[0]
    with pytest.raises(
        Exception, match=r"^sbatch refuses the runs: invalid partition specified: nowhere"
    ) as caught:
        engine_from(str(file))([Job(run.spec, tmp_path / "runs" / run.id)], 1, print)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "slurm").exists()


def test_a_limit_of_the_partition_is_named(sweep_spec: Any, tmp_path: Path) -> None:
    """sbatch takes the job; it would wait for ever."""
    file = tmp_path / "cluster.yaml"
    file.write_text("engine: slurm\ntime: 2-00:00:00\n")
    run = sweep_spec(grid=GRID).planned[0]
    with pytest.raises(Exception, match=r"SLURM does not start job \d+, for the reason PartitionTimeLimit"):
        engine_from(str(file))([Job(run.spec, tmp_path / "runs" / run.id)], 1, print)
    assert not _squeue()


CODE = """
import torch
from curvact.activations import register
from torch import nn

class Wave(nn.Module):
    def forward(self, x):
        return x + torch.sin(x)

register("wave", Wave)
"""


@pytest.mark.slow
def test_code_of_the_user_is_there(tiny_content: dict[str, Any], tmp_path: Path, fresh: Any) -> None:
    (tmp_path / "wave.py").write_text(CODE)
    content = json.loads(json.dumps(tiny_content))
    content["base"]["activation"] = "wave"
    (tmp_path / "wave.yaml").write_text(
        yaml.safe_dump({**content, "grid": {"seed": [0]}, "imports": ["wave.py"]})
    )
    spec = read_sweep(tmp_path / "wave.yaml")
    events: list[Event] = []
    (run,) = spec.planned
    job = Job(run.spec, tmp_path / "out" / "runs" / run.id)
    assert engine_from("slurm")([job], 1, events.append) == []
    assert [event.kind for event in events] == ["start", "epoch", "done"]
    assert finished(job.folder, run.id) == events[-1].content
