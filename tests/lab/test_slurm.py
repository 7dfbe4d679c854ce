"""What the slurm engine asks of SLURM, and what it does with the answers. SLURM is played here by a few
lines that know squeue, scancel, scontrol and the rules of arrays; time is a number. A real cluster is in
slurm/test_cluster.py.
"""

from __future__ import annotations

import pickle
import subprocess
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from curvact.errors import CurvactError
from curvact.lab.engines import Job, engine_from, slurm
from curvact.lab.engines.slurm import SlurmSettings, run_slurm
from curvact.lab.placement import Placement
from curvact.lab.settings import check_settings
from curvact.lab.spec import RunSpec
from curvact.lab.sweep_run import run_sweep
from curvact.workers import Event, start_worker

submitit = pytest.importorskip("submitit")


@dataclass
class Played:
    """A task as SLURM knows it. ends: what it does when it runs, look by look; at last it is "done"."""

    run: str
    ends: list[str]
    at_once: int
    state: str = "PENDING"
    reason: str = "None"
    restarts: int = 0


@dataclass
class Cluster:
    """SLURM in one object.

    ends: by run, what its tasks do, look by look: run "still" or "forever", be "requeued", or end in a
        state or with the kind of an outcome.
    """

    folder: Path
    ends: dict[str, list[str]] = field(default_factory=dict)
    tasks: dict[str, Played] = field(default_factory=dict)
    arrays: list[tuple[int, int]] = field(default_factory=list)
    most: int = 1001
    slow: bool = False
    fails: int = 0
    now: float = 0.0
    most_running: int = 0
    name: str = ""

    def call(self, *command: str) -> str:
        if command[0] == "squeue":
            if self.fails:
                self.fails -= 1
                raise CurvactError("squeue: Unable to contact slurm controller")
            self.name = next(c for c in command if c.startswith("--name="))
            return "".join(self._line(job, task) for job, task in self.tasks.items())
        if command[0] == "scontrol":
            return f"MaxArraySize            = {self.most}\n"
        assert command[0] == "scancel"
        for job, task in self.tasks.items():
            wanted = job in command[1:] or self.name in command[1:]
            if wanted and task.state in ("PENDING", "RUNNING"):
                task.state = "COMPLETING" if self.slow else "CANCELLED"
        return ""

    def _line(self, job: str, task: Played) -> str:
        array, _, number = job.partition("_")
        fields = ("77", array, number or "N/A", task.state, "9", str(task.restarts), task.reason)
        return "".join(f"{text:<{w}}" for text, w in zip(fields, slurm._WIDTHS.values(), strict=True)) + "\n"

    def submitted(self, executor: Any, tasks: Sequence[Any]) -> list[str]:
        assert len(tasks) <= self.most
        at_once = executor.parameters["array_parallelism"]
        self.arrays.append((len(tasks), at_once))
        array = f"{len(self.arrays)}"
        jobs = [f"{array}_{k}" for k in range(len(tasks))] if len(tasks) > 1 else [array]
        for job, task in zip(jobs, tasks, strict=True):
            start_worker(task.starts)
            run = pickle.loads(task.job).spec.id
            self.tasks[job] = Played(run, self.ends.setdefault(run, []), at_once)
        return jobs

    def sleep(self, seconds: float) -> None:
        """What runs ends, and what waits begins, as the arrays allow."""
        self.now += seconds
        for job, task in self.tasks.items():
            if task.state == "RUNNING":
                self._end(job, task, task.ends.pop(0) if task.ends else "done")
            elif task.state == "COMPLETING":
                task.state = "CANCELLED"
        for job, task in self.tasks.items():
            if task.state == "PENDING" and task.reason == "None":
                array = job.partition("_")[0]
                same = [t for j, t in self.tasks.items() if j.partition("_")[0] == array]
                if sum(t.state == "RUNNING" for t in same) < task.at_once:
                    task.state = "RUNNING"
        running = [task.run for task in self.tasks.values() if task.state in ("RUNNING", "COMPLETING")]
        assert len(running) == len(set(running)), "a run is executed twice at once"
        self.most_running = max(self.most_running, len(running))

    def _end(self, job: str, task: Played, end: str) -> None:
        if end == "forever":
            task.ends.insert(0, end)
        elif end == "still":
            pass
        elif end == "requeued":
            task.state, task.restarts = "PENDING", task.restarts + 1
        elif end.isupper():
            task.state = end
        else:
            kind, _, text = end.partition(":")
            task.state = "COMPLETED"
            result = ("success", slurm._Outcome(kind, text))
            (self.folder / f"{job}_0_result.pkl").write_bytes(pickle.dumps(result))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    played = Cluster(tmp_path / "slurm")
    clock = types.SimpleNamespace(sleep=played.sleep, monotonic=lambda: played.now)
    monkeypatch.setattr(slurm, "time", clock)
    monkeypatch.setattr(slurm, "_call", played.call)
    monkeypatch.setattr(slurm, "_submitted", played.submitted)
    monkeypatch.setattr(slurm, "_record_of", lambda job: f"record of {job.spec.id}")
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    slurm._most_in_an_array.cache_clear()
    return played


@pytest.fixture
def jobs(run_spec: Any, tmp_path: Path) -> Callable[..., list[Job]]:
    """So many jobs in a sweep's folder; `**changes` of their spec."""

    def make(count: int, **changes: Any) -> list[Job]:
        specs = [run_spec(seed=seed, **changes) for seed in range(count)]
        return [Job(spec, tmp_path / "runs" / spec.id) for spec in specs]

    return make


def test_a_cluster_that_does_not_answer_is_named_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, run_spec: Any
) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/bin/{name}")
    failed = subprocess.CompletedProcess((), 1, "", "squeue: error: Unknown host\n")
    monkeypatch.setattr(slurm.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CurvactError, match=r"^squeue: Unknown host$"):
        slurm.slurm_room([run_spec()], settings=SlurmSettings())


def _run(jobs: Sequence[Job], workers: int, **settings: Any) -> tuple[list[int], list[Event]]:
    events: list[Event] = []
    lost = run_slurm(jobs, workers, events.append, settings=SlurmSettings(**settings))
    return lost, events


def _kinds(events: Sequence[Event], job: int) -> list[str]:
    return [event.kind for event in events if event.job == job]


def test_all_runs_are_one_array(cluster: Cluster, jobs: Any, tmp_path: Path) -> None:
    lost, events = _run(jobs(7), 3)
    assert lost == []
    assert cluster.arrays == [(7, 3)]
    assert cluster.most_running == 3
    for index, job in enumerate(jobs(7)):
        assert _kinds(events, index) == ["start", "done"]
        assert events[-1].kind == "done"
        assert f"record of {job.spec.id}" in [e.content for e in events if e.job == index]
    assert not (tmp_path / "slurm").exists()


def test_arrays_are_as_large_as_the_cluster_allows(cluster: Cluster, jobs: Any) -> None:
    """No more runs at a time than wanted, over all arrays."""
    cluster.most = 3
    assert _run(jobs(8), 4)[0] == []
    assert sum(size for size, _ in cluster.arrays) == 8
    assert max(size for size, _ in cluster.arrays) == 3
    assert cluster.most_running == 4


def test_the_queue_holds_no_more_than_it_may(cluster: Cluster, jobs: Any) -> None:
    sizes = []

    def count(event: Event) -> None:
        sizes.append(sum(task.state in ("PENDING", "RUNNING") for task in cluster.tasks.values()))

    assert run_slurm(jobs(9), 9, count, settings=SlurmSettings(most_queued=4)) == []
    assert max(sizes) <= 4
    assert cluster.most_running == 4


def test_runs_that_take_different_things_are_different_arrays(cluster: Cluster, jobs: Any) -> None:
    mixed = [*jobs(2), *jobs(3, hardware={"threads": 2})]
    assert _run(mixed, 5)[0] == []
    assert sorted(cluster.arrays) == [(2, 2), (3, 3)]


def test_a_run_that_dies_is_submitted_again_and_then_given_up(
    cluster: Cluster, jobs: Any, tmp_path: Path
) -> None:
    two = jobs(2)
    cluster.ends[two[0].spec.id] = ["FAILED", "OUT_OF_MEMORY", "NODE_FAIL"]
    cluster.ends[two[1].spec.id] = ["CANCELLED", "FAILED"]
    lost, events = _run(two, 2)
    assert lost == [0]
    assert _kinds(events, 0) == ["start", "died"] * 3
    assert _kinds(events, 1) == ["start", "died", "start", "died", "start", "done"]
    causes = [event.cause for event in events if event.kind == "died" and event.job == 0]
    assert causes[0].endswith("is FAILED, exit code 9")
    assert "give more memory" in causes[1]
    assert [event.content for event in events if event.kind == "died" and event.job == 0] == [1, 2, 3]


def test_preemption_is_no_death(cluster: Cluster, jobs: Any) -> None:
    """Queued again by SLURM, or by us where the cluster does not."""
    two = jobs(2)
    cluster.ends[two[0].spec.id] = ["PREEMPTED"] * 5
    cluster.ends[two[1].spec.id] = ["requeued"] * 5
    lost, events = _run(two, 2)
    assert lost == []
    assert _kinds(events, 1)[-1] == "done"
    assert "died" not in _kinds(events, 1)
    assert len(cluster.arrays) == 6


def test_a_time_limit_that_is_too_short_is_told(cluster: Cluster, jobs: Any) -> None:
    (job,) = jobs(1)
    cluster.ends[job.spec.id] = ["late:its time limit of 60 min is too short"]
    lost, events = _run([job], 1)
    assert lost == [0]
    assert events[-1].kind == "died"
    assert events[-1].cause == "its time limit of 60 min is too short"


def test_an_error_in_a_run_ends_all(
    cluster: Cluster, jobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = jobs(3)
    cluster.ends |= {job.spec.id: ["forever"] for job in three[1:]}
    cluster.ends[three[0].spec.id] = ["error:the disk is full"]
    with pytest.raises(CurvactError, match=f"run {three[0].spec.id}: the disk is full"):
        _run(three, 3)
    assert [task.state for task in cluster.tasks.values()] == ["COMPLETED", "CANCELLED", "CANCELLED"]
    assert "cancelled" in capsys.readouterr().err


def test_ctrl_c_cancels(cluster: Cluster, jobs: Any) -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_slurm(jobs(3), 2, stop, settings=SlurmSettings())
    assert {task.state for task in cluster.tasks.values()} == {"CANCELLED"}


def test_a_queue_that_does_not_answer_is_no_death(
    cluster: Cluster, jobs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The controller of SLURM is away for a while: nothing is taken for dead."""
    (job,) = jobs(1)
    cluster.ends[job.spec.id] = ["still"] * 12
    events: list[Event] = []

    def fail(event: Event) -> None:
        events.append(event)
        cluster.fails = 10 if event.kind == "start" else 0

    assert run_slurm([job], 1, fail, settings=SlurmSettings()) == []
    assert _kinds(events, 0) == ["start", "done"]
    assert capsys.readouterr().err.count("Unable to contact slurm controller; it is asked again") == 1
    assert len(cluster.tasks) == 1


class _Killed(BaseException):
    """The driver's kill -9: nothing of the engine runs after it."""


def _killed_after_start(cluster: Cluster, jobs: Sequence[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(event: Event) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(slurm._Driver, "cancel_all", lambda self: None)
        with pytest.raises(_Killed):
            run_slurm(jobs, 2, kill, settings=SlurmSettings())


def test_a_driver_that_comes_back_takes_its_tasks_over(
    cluster: Cluster, jobs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    three = jobs(3)
    cluster.ends |= {job.spec.id: ["forever"] for job in three}
    _killed_after_start(cluster, three, monkeypatch)
    before = set(cluster.tasks)
    for ends in cluster.ends.values():
        ends.clear()
    assert _run(three, 2)[0] == []
    assert set(cluster.tasks) == before
    assert "going on with 3 tasks of SLURM" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["file", "damaged", "other runs"])
def test_tasks_that_are_not_known_are_ended_before_others_begin(
    cluster: Cluster, jobs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: str
) -> None:
    """The played cluster itself checks that no run is executed twice at once."""
    three = jobs(3)
    cluster.ends |= {job.spec.id: ["forever"] for job in three}
    _killed_after_start(cluster, three, monkeypatch)
    known = tmp_path / "slurm" / "jobs.json"
    if lost == "file":
        known.unlink()
    elif lost == "damaged":
        known.write_text('{"a": {"job": 3}}')
    else:
        three = jobs(5)[3:]
    for ends in cluster.ends.values():
        ends.clear()
    cluster.slow = True
    assert _run(three, 2)[0] == []
    assert [cluster.tasks[f"1_{k}"].state for k in range(3)] == ["CANCELLED"] * 3
    assert [task.state for task in cluster.tasks.values()][3:] == ["COMPLETED"] * len(three)


def test_what_waits_is_submitted_anew_with_other_settings(
    cluster: Cluster, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two that run keep what they have, the one that waits gets more time."""
    three = jobs(3)
    cluster.ends |= {job.spec.id: ["forever"] for job in three}
    _killed_after_start(cluster, three, monkeypatch)
    for ends in cluster.ends.values():
        ends.clear()
    assert _run(three, 2, time=90)[0] == []
    assert [cluster.tasks[job].state for job in ("1_0", "1_1", "1_2")] == ["COMPLETED"] * 2 + ["CANCELLED"]
    assert cluster.arrays == [(3, 2), (1, 1)]


def test_tasks_that_do_not_end_stop_the_driver(
    cluster: Cluster, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed_after_start(cluster, jobs(2), monkeypatch)
    monkeypatch.setattr(cluster, "call", lambda *c: "" if c[0] == "scancel" else Cluster.call(cluster, *c))
    monkeypatch.setattr(slurm, "_call", cluster.call)
    cluster.ends |= {task.run: ["forever"] for task in cluster.tasks.values()}
    for task in cluster.tasks.values():
        task.ends = ["forever"]
    with pytest.raises(CurvactError, match="SLURM does not end 1_0, 1_1"):
        _run(jobs(4)[2:], 2)


def test_jobs_that_are_appended_are_submitted(cluster: Cluster, jobs: Any) -> None:
    """As a search does."""
    three = jobs(3)
    given = three[:1]

    def more(event: Event) -> None:
        if event.kind == "done" and len(given) < 3:
            given.append(three[len(given)])

    assert run_slurm(given, 2, more, settings=SlurmSettings()) == []
    assert len(cluster.tasks) == 3


def test_a_job_that_cannot_start_is_named(
    cluster: Cluster, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(executor: Any, tasks: Sequence[Any]) -> list[str]:
        made = cluster.submitted(executor, tasks)
        for job in made:
            cluster.tasks[job].reason = "PartitionTimeLimit"
        return made

    monkeypatch.setattr(slurm, "_submitted", refuse)
    with pytest.raises(CurvactError, match="does not start job 1, for the reason PartitionTimeLimit"):
        _run(jobs(1), 1)
    assert cluster.tasks["1"].state == "CANCELLED"


# ---- what is asked for ----


def _request(spec: RunSpec, **settings: Any) -> dict[str, Any]:
    return slurm._request(SlurmSettings(**settings), Job(spec, Path("x")))


@pytest.mark.parametrize(
    ("hardware", "settings", "wanted"),
    [
        ({}, {}, {"cpus_per_task": 1, "time": 60}),
        ({"threads": 4}, {}, {"cpus_per_task": 4}),
        ({"threads": 4}, {"cpus": 8}, {"cpus_per_task": 8}),
        ({"accelerator": "cuda"}, {}, {"gpus_per_node": 1}),
        ({"accelerator": "cuda", "gpus": 0.25}, {}, {"gpus_per_node": 1}),
        ({"gpus": 2}, {}, {"gpus_per_node": 2}),
        ({"gpus": 2}, {"gpus": 4, "memory": "16G"}, {"gpus_per_node": 4, "mem": "16G"}),
    ],
)
def test_what_a_run_takes(run_spec: Any, hardware: Any, settings: Any, wanted: Any) -> None:
    request = _request(run_spec(hardware=hardware), **settings)
    assert request | wanted == request
    assert ("gpus_per_node" in request) is ("gpus_per_node" in wanted)


def test_a_gpu_that_was_asked_for_is_used(run_spec: Any) -> None:
    for accelerator, device in (("auto", "cuda"), ("cuda:1", "cuda"), ("cpu", "cpu")):
        job = Job(run_spec(hardware={"accelerator": accelerator}), Path("x"))
        placed = slurm._placed(job, _request(job.spec, gpus=1))
        assert placed.spec.hardware.accelerator == device
        assert placed.spec.id == job.spec.id
        assert placed.folder.is_absolute()


def test_the_script_that_sbatch_has(cluster: Cluster, jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = []

    def submitted(executor: Any, tasks: Sequence[Any]) -> list[str]:
        executor.parameters["map_count"] = len(tasks)
        scripts.append(executor._make_submission_file_text("python", "x"))
        return cluster.submitted(executor, tasks)

    monkeypatch.setattr(slurm, "_submitted", submitted)
    sbatch = {"gres": "gpu:a100:1", "nice": 100}
    _run(
        jobs(3),
        2,
        partition="gpu",
        time="02:00:00",
        account="us",
        sbatch=sbatch,
        setup=("module load x",),
    )
    (script,) = scripts
    for line in (
        "--partition=gpu",
        "--time=120",
        "--array=0-2%2",
        "--requeue",
        "--account=us",
        "--gres=gpu:a100:1",
        "--nice=100",
        "--signal=USR2@90",
        "--cpus-per-task=1",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "module load x\n" in script
    assert "srun" in script


# ---- bad input ----


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"time": "abc"}, "time='abc': must be minutes"),
        ({"time": 0}, "time=0: must be minutes"),
        ({"time": "1:30"}, "time='1:30': must be minutes"),
        ({"time": True}, "time=True: must be minutes"),
        ({"partion": "gpu"}, "unknown key 'partion'; did you mean 'partition'"),
        ({"memory": "lots"}, "memory='lots': must be an amount such as 16G"),
        ({"gpus": -1}, "gpus=-1"),
        ({"sbatch": {"array": "0-3"}}, "array belongs to the engine"),
        ({"sbatch": {"job_name": "x"}}, "job_name belongs to the engine"),
        ({"sbatch": {"-p": "x"}}, "must be a long option such as gres"),
        ({"workers": 3}, "unknown key 'workers'"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(CurvactError, match=why) as caught:
        check_settings(SlurmSettings, settings, "cluster.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30:00", 90), ("01:30:00", 90), ("'01:30:01'", 91), ("1-00:00:00", 1440)],
)
def test_times_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, minutes: int) -> None:
    """YAML itself reads 1:30:00 as 5400."""
    monkeypatch.setattr("shutil.which", lambda name: name)
    file = tmp_path / "cluster.yaml"
    file.write_text(f"engine: slurm\ntime: {text}\n")
    engine: Any = engine_from(str(file))
    assert engine.keywords["settings"].time == minutes


def test_what_is_missing_is_found_before_anything_is_written(
    sweep_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        CurvactError, match="needs sbatch, squeue, scancel, scontrol, srun, which this machine"
    ):
        run_sweep(sweep_spec(), tmp_path / "out", Placement("slurm"))
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(CurvactError, match=r"needs submitit: pip install 'curvact\[slurm\]'"):
        run_sweep(sweep_spec(), tmp_path / "out", Placement("slurm"))
    assert not (tmp_path / "out").exists()


# ---- inside a task ----


def test_a_task_in_which_nothing_ends_before_its_limit_is_late(
    run_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit calls `checkpoint` and queues the task again, unless it is None."""
    now = [0.0]
    monkeypatch.setattr(slurm, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    job = Job(run_spec(), tmp_path / "run")
    outcomes = []

    def run_job(job: Job, on_epoch: Any, *, patience: float) -> None:
        outcomes.append(task.checkpoint() is not None)  # at once: preempted
        now[0] = 3600 - 100
        outcomes.append(task.checkpoint() is not None)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 1}\n')
        outcomes.append(task.checkpoint() is not None)
        raise submitit.core.utils.UncompletedJobError("checkpoint function returned None")

    monkeypatch.setattr(slurm, "run_job", run_job)
    task = slurm._Task(pickle.dumps(job), pickle.dumps([]), 60, 90)
    assert task.checkpoint() is not None  # before anything began
    assert task() == slurm._Outcome(
        "late", "it reached its time limit of 60 min too often: give more `requeues` or `time`"
    )
    assert outcomes == [True, False, True]


def test_what_squeue_prints() -> None:
    """As printed by SLURM 22.05 for an array with a task that waits, and for a single job; the first line is
    that of a cluster among several."""
    text = (
        "CLUSTER: alpha\n"
        "15                  12                  3                   PENDING                 0               1           "
        "JobArrayTaskLimit                                                               \n"
        "13                  13                  N/A                 OUT_OF_MEMORY           137             0           "
        "None                                                                            \n"
    )
    assert slurm._lines(text) == {
        "12_3": slurm._Line(15, "PENDING", "0", 1, "JobArrayTaskLimit"),
        "13": slurm._Line(13, "OUT_OF_MEMORY", "137", 0, "None"),
    }
