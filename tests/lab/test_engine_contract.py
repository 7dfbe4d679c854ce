"""What every engine does: the same records, events in order, and the same answer to what goes wrong.

A new engine is one line in `KINDS`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from curvact.errors import CurvactError
from curvact.lab.engines import Engine, Job, engine_from
from curvact.lab.imports import import_code
from curvact.lab.placement import Placement
from curvact.lab.run import execute
from curvact.lab.spec import RunSpec
from curvact.lab.store import Record, finished, read_history
from curvact.lab.sweep import SweepSpec
from curvact.lab.sweep_run import report, run_sweep
from curvact.workers import Event


@dataclass(frozen=True)
class Kind:
    """An engine to be tested. own_process: its runs are in other processes, which can be killed.
    polls: it hears of epochs late, so a test of its own kills its processes.
    needs: a package, without which it is skipped.
    """

    name: str
    own_process: bool = True
    polls: bool = False
    needs: str = "torch"


KINDS = [
    pytest.param(Kind("inline", own_process=False), id="inline"),
    pytest.param(Kind("local"), id="local"),
    pytest.param(Kind("ray", needs="ray"), id="ray", marks=pytest.mark.slow),  # its cluster takes seconds
    pytest.param(Kind("slurm", polls=True, needs="submitit"), id="slurm", marks=pytest.mark.slow),
]

KILLED = [
    pytest.param(*kind.values, id=kind.id, marks=pytest.mark.slow)
    for kind in KINDS
    if kind.values[0].own_process and not kind.values[0].polls  # type: ignore[union-attr]
]
"""Engines whose workers a test may kill. The local one is killed in test_sweep_run.py, too."""

CODE = """
import torch
from curvact.activations import register
from curvact.training.objectives import register_objective

class Mine(torch.nn.ReLU):
    def __str__(self):
        return "mine"

def raising(model, x, y, attack):
    raise KeyError("some key")

register("mine", Mine)
register_objective("raising", raising)
"""


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Callable[[], None]]:
    """Starts a cluster of two CPUs once for all tests that ask for it."""
    begun: list[Any] = []

    def start() -> None:
        if not begun:
            from curvact.lab.engines.ray import RaySettings, _connected

            begun.append(_connected(RaySettings(address="local"), workers=2))
            begun[0].__enter__()

    yield start
    for connection in begun:
        connection.__exit__(None, None, None)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, ray_cluster: Callable[[], None]) -> Kind:
    chosen: Kind = request.param
    if importlib.util.find_spec(chosen.needs) is None:
        pytest.skip(f"the engine {chosen.name} needs the package {chosen.needs}")
    if chosen.name == "ray":
        ray_cluster()
    elif chosen.name == "slurm":
        request.getfixturevalue("slurm")
    return chosen


def _all(engine: Engine, jobs: list[Job], workers: int, on_event: Callable[[Event], None]) -> list[int]:
    """Call the engine until every job has ended: one may leave appended jobs to its next call."""
    ended: set[int] = set()
    lost: list[int] = []
    while left := [index for index in range(len(jobs)) if index not in ended]:

        def tell(event: Event, left: list[int] = left) -> None:
            on_event(Event(event.kind, left[event.job], event.content, event.cause, event.device))

        rest = [jobs[index] for index in left]
        count = len(rest)
        given_up = engine(_Growing(rest, jobs, left), workers, tell)
        lost += [left[index] for index in given_up]
        ended |= {*left[:count], *lost} | {i for i in left if (jobs[i].folder / "record.json").exists()}
    return lost


class _Growing(Sequence[Job]):
    """A view of some jobs that grows where jobs are appended to all of them."""

    def __init__(self, rest: list[Job], jobs: list[Job], left: list[int]) -> None:
        self.jobs, self.left, self.known = jobs, left, len(jobs)

    def __len__(self) -> int:
        self.left += range(self.known, len(self.jobs))
        self.known = len(self.jobs)
        return len(self.left)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        return self.jobs[self.left[index]]


def _same(record: Record, other: Record | None) -> bool:
    times = {"seconds_per_epoch": 0.0}
    return (
        other is not None
        and record.files == other.files
        and {**record.metrics, **times} == {**other.metrics, **times}
    )


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunSpec], Record]:
    """The record of a run that is executed by no engine."""
    folder = tmp_path_factory.mktemp("truth")

    def record(spec: RunSpec) -> Record:
        return execute(spec, folder / spec.id)

    return record


def test_records_and_events(
    kind: Kind, run_spec: Any, tmp_path: Path, truth: Callable[[RunSpec], Record]
) -> None:
    """Runs, one that is stopped early, one whose loss diverges, and one that is appended."""
    good = [run_spec(training={"epochs": 2}, seed=seed) for seed in (0, 1)]
    stopped = run_spec(training={"epochs": 3}, seed=2)
    diverging = run_spec(training={"learning_rate": 1e30}, seed=3)
    later = run_spec(seed=4)
    jobs = [Job(spec, tmp_path / spec.id) for spec in good]
    jobs += [Job(stopped, tmp_path / stopped.id, (-1.0, 2.0)), Job(diverging, tmp_path / diverging.id)]
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if event.kind == "done" and len(jobs) == 4:
            jobs.append(Job(later, tmp_path / later.id))

    assert _all(engine_from(kind.name), jobs, 2, on_event) == []
    kinds = {index: [e.kind for e in seen if e.job == index] for index in range(5)}
    assert kinds[0] == kinds[1] == ["start", "epoch", "epoch", "done"]
    assert kinds[2] == ["start", "epoch", "epoch", "done"]
    assert kinds[3][0] == "start"
    assert kinds[3][-1] == "done"
    assert kinds[4] == ["start", "epoch", "done"]
    for event in seen:
        if event.kind == "start":
            assert isinstance(event.content, int)
            assert (event.content != os.getpid()) is kind.own_process
        elif event.kind == "epoch":
            earlier = [
                e.content["epoch"]
                for e in seen[: seen.index(event)]
                if e.job == event.job and e.kind == "epoch"
            ]
            assert event.content["epoch"] == len(earlier) + 1
    results = {e.job: e.content for e in seen if e.kind == "done"}
    assert results[2] is None
    assert len(read_history(jobs[2].folder)) == 2
    assert finished(jobs[2].folder, stopped.id) is None
    assert results[3].status == "failed"
    assert results[3].cause == truth(diverging).cause
    for index, spec in ((0, good[0]), (1, good[1]), (4, later)):
        assert results[index] == finished(jobs[index].folder, spec.id)
        assert _same(results[index], truth(spec))


def _csv_without_times(path: Path) -> list[list[str]]:
    lines = [line.split(",") for line in path.read_text().splitlines()]
    kept = [place for place, head in enumerate(lines[0]) if "seconds" not in head]
    return [[line[place] for place in kept] for line in lines]


@pytest.fixture(scope="module")
def results_of_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """results.csv of the inline engine, when it has run."""
    return {}


def test_a_sweep_has_the_same_results(
    kind: Kind,
    sweep_spec: Any,
    tmp_path: Path,
    results_of_one: dict[str, list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """results.csv, apart from times. The folder is given as a relative path."""
    from rich.console import Console

    monkeypatch.chdir(tmp_path)
    spec: SweepSpec = sweep_spec(base={"hessian": None}, grid={"curvature": [1, 6], "seed": [0]})

    def results(engine: str) -> list[list[str]]:
        assert run_sweep(spec, Path(engine), Placement(engine), console=Console(quiet=True)) == []
        report(Path(engine))
        return _csv_without_times(Path(engine, "results.csv"))

    lines = results(kind.name)
    assert [line[3] for line in lines[1:]] == ["done", "done"]
    if "csv" not in results_of_one:
        results_of_one["csv"] = lines if kind.name == "inline" else results("inline")
    assert lines == results_of_one["csv"]
    assert not list(Path(kind.name).rglob("*.tmp"))


@pytest.mark.parametrize("kind", KILLED, indirect=True)
def test_a_killed_worker_is_replaced_and_its_run_goes_on(
    kind: Kind, run_spec: Any, tmp_path: Path, truth: Callable[[RunSpec], Record]
) -> None:
    spec = run_spec(training={"epochs": 3})
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        kinds = [e.kind for e in seen]
        if event.kind == "epoch" and "died" not in kinds:
            os.kill(next(e.content for e in seen if e.kind == "start"), signal.SIGKILL)

    assert engine_from(kind.name)([Job(spec, tmp_path / "run")], 1, on_event) == []
    (died,) = [e for e in seen if e.kind == "died"]
    assert died.content == 1
    assert died.cause
    after = seen[seen.index(died) + 1 :]
    assert after[0].kind == "start"
    assert after[1].content["epoch"] > 1  # it went on, and did not begin anew
    assert _same(after[-1].content, truth(spec))


@pytest.mark.parametrize("kind", KILLED, indirect=True)
def test_a_run_that_keeps_dying_is_given_up(kind: Kind, run_spec: Any, tmp_path: Path) -> None:
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if event.kind == "start" and event.job == 0:
            os.kill(event.content, signal.SIGKILL)

    jobs = [Job(run_spec(seed=seed, training={"epochs": 3}), tmp_path / str(seed)) for seed in (0, 1)]
    assert engine_from(kind.name)(jobs, 1, on_event) == [0]
    assert [e.content for e in seen if e.kind == "died"] == [1, 2, 3]
    assert [e.job for e in seen if e.kind == "done"] == [1]


def test_bad_input_of_a_run_stops_all_in_one_line(kind: Kind, run_spec: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("not a run")
    jobs = [Job(run_spec(), other), Job(run_spec(seed=1, training={"epochs": 200}), tmp_path / "long")]
    with pytest.raises(CurvactError, match="is not empty and holds no run") as caught:
        engine_from(kind.name)(jobs, 2, lambda event: None)
    assert "\n" not in str(caught.value)
    assert [file.name for file in other.iterdir()] == ["letter.txt"]
    assert not (tmp_path / "long" / "record.json").exists()


def test_code_of_users_runs_and_its_exceptions_are_named(
    kind: Kind, run_spec: Any, tmp_path: Path, fresh: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    needed = [import_code(file).model_dump()]
    engine = engine_from(kind.name)
    good = run_spec(activation="mine", imports=needed)
    bad = run_spec(training={"objective": "raising"}, imports=needed)
    done: list[Event] = []
    assert engine([Job(good, tmp_path / "good")], 1, done.append) == []
    assert done[-1].content.spec.activation == "mine"
    if not kind.own_process:
        with pytest.raises(KeyError, match="some key"):
            engine([Job(bad, tmp_path / "bad")], 1, done.append)
        return
    with pytest.raises(CurvactError, match=f"run {bad.id}: KeyError: 'some key'") as caught:
        engine([Job(bad, tmp_path / "bad")], 1, done.append)
    assert "\n" not in str(caught.value)
    assert "mine.py" in capfd.readouterr().err  # the traceback
