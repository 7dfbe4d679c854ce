"""The worker pool: results, deaths, errors, and what becomes of workers whose parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curvact.errors import CurvactError
from curvact.workers import Event, Send, run_jobs


def square(job: float, send: Send) -> float:
    time.sleep(job / 100)
    send("half", job / 2)
    return job**2


def shifted(job: int, send: Send, setup: int, *, device: str) -> tuple[int, str, str]:
    return job + setup, device, os.environ["OMP_NUM_THREADS"]


def dying(job: tuple[str, int, list[int]], send: Send) -> int:
    """Dies until its file has as many lines as the number says; sends its place each time."""
    path, times, known = job
    with open(path, "a+") as file:
        file.write("x\n")
        file.seek(0)
        started = len(file.readlines())
    send("known", len(known))
    if started <= times:
        os._exit(9)
    return started


def failing(job: str, send: Send) -> None:
    if job == "error":
        raise CurvactError("a clear line")
    if job == "disk":
        raise OSError(28, "No space left on device")
    if job == "memory":
        raise MemoryError("Unable to allocate\n9 TiB")
    if job == "fault":
        raise KeyError("some\nkey")


def test_every_job_once_whatever_the_order() -> None:
    seen: list[Event] = []
    given_up = run_jobs(square, [9, 0, 4, 1], workers=2, on_event=seen.append)
    assert given_up == []
    for index, job in enumerate([9, 0, 4, 1]):
        events = [(e.kind, e.content) for e in seen if e.job == index]
        assert [kind for kind, _ in events] == ["start", "half", "done"]
        assert [content for _, content in events[1:]] == [job / 2, job**2]
    pids = {e.content for e in seen if e.kind == "start"}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert [e.job for e in seen if e.kind == "done"] != [0, 1, 2, 3]  # the first job takes longest
    assert run_jobs(square, [], workers=2, on_event=seen.append) == []


def test_jobs_that_are_appended_are_run_by_all_workers() -> None:
    """The first result appends four jobs: the worker that has nothing to do begins with them too."""
    jobs: list[float] = [1.0, 20.0]
    done: dict[float, float] = {}

    def on_event(event: Event) -> None:
        if event.kind == "done":
            done[jobs[event.job]] = event.content
            if len(jobs) == 2:
                jobs.extend([2.0, 3.0, 4.0, 5.0])

    assert run_jobs(square, jobs, workers=2, on_event=on_event) == []
    assert done == {job: job**2 for job in (1.0, 20.0, 2.0, 3.0, 4.0, 5.0)}


def test_setup_devices_and_threads() -> None:
    seen: list[Any] = []
    run_jobs(
        shifted, [1, 2, 3], workers=2, on_event=seen.append, setup=10, devices=["cpu", "cpu:0"], threads=2
    )
    found = {e.job: e.content for e in seen if e.kind == "done"}
    assert [found[i][0] for i in range(3)] == [11, 12, 13]
    assert {device for _, device, _ in found.values()} <= {"cpu", "cpu:0"}
    assert {threads for _, _, threads in found.values()} == {"2"}


def test_a_job_whose_worker_died_runs_again_and_knows_more(tmp_path: Path) -> None:
    """The second job dies once, and is sent anew with what on_event added; the third dies always
    and is given up.
    """
    jobs: list[tuple[str, int, list[int]]] = [
        (str(tmp_path / "a"), 0, []),
        (str(tmp_path / "b"), 1, []),
        (str(tmp_path / "c"), 99, []),
    ]
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if event.kind == "known":
            jobs[event.job][2].append(event.content)

    assert run_jobs(dying, jobs, workers=2, on_event=on_event, attempts=3) == [2]
    of = [[(e.kind, e.content) for e in seen if e.job == index and e.kind != "start"] for index in range(3)]
    assert of[0] == [("known", 0), ("done", 1)]
    assert of[1] == [("known", 0), ("died", 1), ("known", 1), ("done", 2)]
    assert of[2] == [("known", 0), ("died", 1), ("known", 1), ("died", 2), ("known", 2), ("died", 3)]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("error", "^a clear line$"),
        ("disk", "No space left on device"),
        ("fault", "^job 1: KeyError: 'some.*key'$"),
    ],
)
def test_an_exception_stops_all(job: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        run_jobs(
            failing, ["fine", job], workers=1, on_event=lambda e: None, name=lambda index: f"job {index}"
        )
    assert "\n" not in str(caught.value)
    assert ("Traceback" in capfd.readouterr().err) == (job == "fault")


def test_a_job_without_memory_is_as_one_whose_worker_died(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Event] = []
    assert run_jobs(failing, ["memory", "fine"], workers=1, on_event=seen.append, attempts=2) == [0]
    assert [(e.kind, e.content, e.cause) for e in seen if e.job == 0 and e.kind != "start"] == [
        ("died", 1, "out of memory: Unable to allocate"),
        ("died", 2, "out of memory: Unable to allocate"),
    ]
    assert [e.kind for e in seen if e.job == 1] == ["start", "done"]
    assert capfd.readouterr().err == ""


def test_workers_is_a_whole_number() -> None:
    with pytest.raises(CurvactError, match="workers=0: a whole number >= 1"):
        run_jobs(square, [1], workers=0, on_event=lambda e: None)


def sleeping(job: str, send: Send) -> None:
    time.sleep(60)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
sys.path.insert(0, {folder!r})
from test_workers import sleeping
from curvact.workers import run_jobs
if __name__ == "__main__":
    run_jobs(sleeping, ["a", "b"], workers=2, on_event=lambda e: print(e.content, flush=True))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_workers_leave_with_their_parent(end: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(folder=str(Path(__file__).parent)))
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        pids = [int(driver.stdout.readline()) for _ in range(2)]
        assert not any(map(_gone, pids))
        driver.send_signal(end)
        assert _waited(lambda: all(map(_gone, pids)), 2.0), "a worker outlived its parent by two seconds"


def _waited(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    return done()


def with_a_bar(job: int, send: Send) -> int:
    from tqdm import tqdm

    return sum(tqdm(range(job), disable=True))


def test_a_worker_with_a_bar_leaves_nothing_behind(tmp_path: Path) -> None:
    """tqdm's own lock would be a semaphore of the system that outlives the worker, and Python warns of it."""
    pytest.importorskip("tqdm")
    script = tmp_path / "bars.py"
    script.write_text(
        "from curvact.workers import run_jobs\n"
        "from tests_of_workers import with_a_bar\n"
        "if __name__ == '__main__':\n"
        "    run_jobs(with_a_bar, [3, 4], workers=2, on_event=lambda event: print(event.kind, event.content))\n"
    )
    (tmp_path / "tests_of_workers.py").write_text(Path(__file__).read_text())
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"done 3", "done 6"} <= set(done.stdout.splitlines())
