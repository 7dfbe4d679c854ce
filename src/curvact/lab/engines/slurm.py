"""The slurm engine: runs as array jobs of a SLURM cluster, submitted through submitit.

The folder of the sweep has to be on a file system that the nodes share. `slurm/` in it holds what
submitit writes, the logs of the tasks, and jobs.json, which says the job of each run.
SLURM is asked with squeue, not with sacct as submitit does: a cluster may have no accounting.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from curvact.errors import CurvactError, short
from curvact.files import atomic_write
from curvact.lab.engines.job import Job, run_job
from curvact.lab.layout import METRICS_FILE, RUNS, SLURM_FOLDER
from curvact.lab.settings import Strict
from curvact.workers import ATTEMPTS, Event, in_words, start_calls, start_worker

if TYPE_CHECKING:
    import submitit

    from curvact.lab.spec import RunSpec
    from curvact.lab.store import Record

JOBS_FILE = "jobs.json"
"""The job of SLURM, by run."""

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun")
POLL = (1.0, 10.0)
"""Seconds between two looks at the queue: right after something has happened, and at most."""

GRACE = 15.0
"""Seconds until a task that left the queue without a result has died: a shared file system is late."""

LATE = 120.0
"""Seconds to wait for a task that is being cancelled, for the lock of a node that failed, and for a
record that is not seen yet."""

_ENDED = "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT"
"""States of a task that has ended."""

_NEVER = (
    "AccountNotAllowed AssocMaxWallDurationPerJobLimit BadConstraints InvalidAccount InvalidQOS "
    "PartitionTimeLimit QOSMaxWallDurationPerJobLimit QOSNotAllowed"
)
"""Reasons for which a pending job does not start while the cluster stays as it is."""

_OURS = (
    "account array constraint cpus-per-task error gpus-per-node job-name mem no-requeue nodes ntasks "
    "ntasks-per-node open-mode output parsable partition qos requeue signal time wrap"
)
"""Options of sbatch that the engine sets."""


def _minutes(value: Any) -> Any:
    """A time limit in minutes, rounded up.

    >>> _minutes(90), _minutes("01:30:00"), _minutes("1-00:00:30")
    (90, 90, 1441)
    """
    text = str(value)
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text)
    if match is not None:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        value = (days * 24 + hours) * 60 + minutes + ceil(seconds / 60)
    elif text.isdigit():
        value = int(text)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 525_600:
        raise ValueError("must be minutes, such as 120, or [D-]HH:MM:SS, such as 02:00:00")
    return value


class SlurmSettings(Strict):
    """What the slurm engine asks SLURM for, for each run.

    partition, account, qos, constraint: as of sbatch. None: the cluster's default.
    time: the limit of one job, minutes or [D-]HH:MM:SS. A run that reaches it is queued again and goes
        on from its state, so it has to be longer than an epoch, not than the run.
    gpus: of each run. None: those of the spec's `hardware.gpus`, rounded up, one where it is not given
        and the accelerator is cuda, else none.
    cpus: of each run. None: the spec's `hardware.threads`, else 1.
    memory: such as 16G. None: the cluster's default.
    requeues: how often a run that reached its limit is queued again.
    most_queued: at most so many jobs are in the queue; the others follow. None: no limit.
    setup: lines of the shell before Python starts, such as `module load cuda`.
    python: the command that starts Python on a node. None: the Python of this process.
    sbatch: other options of sbatch by name, such as `{gres: "gpu:a100:1", nice: 100}`.

    >>> SlurmSettings(partition="gpu", time="02:00:00").time
    120
    """

    partition: str | None = Field(None, min_length=1)
    time: Annotated[int, BeforeValidator(_minutes)] = 60
    gpus: int | None = Field(None, ge=0)
    cpus: int | None = Field(None, ge=1)
    memory: str | None = None
    account: str | None = Field(None, min_length=1)
    qos: str | None = Field(None, min_length=1)
    constraint: str | None = Field(None, min_length=1)
    requeues: int = Field(20, ge=0)
    most_queued: int | None = Field(None, ge=1)
    setup: tuple[str, ...] = ()
    python: str | None = Field(None, min_length=1)
    sbatch: dict[str, str | int | float] = Field(default_factory=dict)

    @field_validator("memory")
    @classmethod
    def _is_an_amount(cls, memory: str | None) -> str | None:
        if memory is not None and re.fullmatch(r"\d+[KMGT]?B?", memory) is None:
            raise ValueError("must be an amount such as 16G or 500M")
        return memory

    @field_validator("sbatch")
    @classmethod
    def _are_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name.replace("_", "-") in _OURS.split():
                raise ValueError(f"{name} belongs to the engine, which has settings of its own for it")
            if re.fullmatch(r"[a-z][a-z0-9_-]+", name) is None:
                raise ValueError(f"{short(repr(name))} must be a long option such as gres")
        return options


def run_slurm(
    jobs: Sequence[Job],
    workers: int,
    on_event: Callable[[Event], None],
    *,
    settings: SlurmSettings,
) -> list[int]:
    """Execute every job as a task of an array job, at most `workers` at a time.

    The content of "start" is the number of the task's job in SLURM. Tasks of an earlier process for
    the same folder that still wait or run are taken over, or cancelled where they are not wanted. An
    exception, Ctrl-C too, cancels all tasks; a process that is killed leaves them.
    Raises CurvactError in one line for what sbatch refuses, and for an error inside a run.
    """
    if not jobs:
        return []
    driver = _Driver(jobs, workers, on_event, settings)
    driver.take_over()
    try:
        return driver.run()
    except BaseException:
        driver.cancel_all()
        raise


def slurm_room(specs: Sequence[RunSpec], *, settings: SlurmSettings) -> int:
    """As many as there are: SLURM knows its limits. CurvactError where submitit or a command is missing, or
    SLURM does not answer.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise CurvactError("the engine slurm needs submitit: pip install 'curvact[slurm]'") from None
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise CurvactError(
            f"the engine slurm needs {', '.join(missing)}, which this machine does not have: run curvact "
            "on a login node of the cluster"
        )
    if specs:
        _call("squeue", "--noheader", "--name=curvact")
    return max(1, len(specs))


# ---- on a node ----


@dataclass(frozen=True)
class _Outcome:
    """How a task ended. kind: "done", "stopped" (by `stop_below`), "late" (its time limit is too
    short) or "error". text: of "late" and "error", in one line. trace: of an error that is not foreseen."""

    kind: str
    text: str = ""
    trace: str = ""


class _Task:
    """What a task of an array does. submitit pickles it, and calls `checkpoint` before the time limit.

    job: pickled, since its classes may be known only after the calls of `at_start`.
    minutes: the time limit. early: seconds before it at which `checkpoint` is called.
    """

    def __init__(self, job: bytes, starts: bytes, minutes: int, early: int) -> None:
        self.job, self.starts, self.minutes, self.early = job, starts, minutes, early
        self._folder: Path | None = None  # until the run begins

    def __call__(self) -> _Outcome:
        from submitit.core.utils import UncompletedJobError

        try:
            return self._run()
        except UncompletedJobError:  # raised by submitit's handler of the signal
            return _Outcome("late", self._why_late())
        except (CurvactError, OSError) as error:
            return _Outcome("error", str(error))
        except Exception as error:
            return _Outcome("error", in_words(error), traceback.format_exc())

    def _run(self) -> _Outcome:
        import torch

        self._began = time.monotonic()
        start_worker(self.starts)
        job: Job = pickle.loads(self.job)
        self._epochs = _epochs(job.folder)
        self._folder = job.folder
        torch.set_num_threads(1)  # as in a local worker; `hardware.threads` may set more
        record = run_job(job, lambda epoch: None, patience=LATE)
        return _Outcome("stopped" if record is None else "done")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission | None:
        """The same task once more. None where the whole time limit did not suffice for an epoch."""
        from submitit.helpers import DelayedSubmission

        if self._reached_limit() and self._is_where_it_was():
            return None
        return DelayedSubmission(_Task(self.job, self.starts, self.minutes, self.early))

    def _is_where_it_was(self) -> bool:
        return self._folder is not None and _epochs(self._folder) == self._epochs

    def _reached_limit(self) -> bool:
        """SLURM may send the signal a minute too early."""
        return (
            self._folder is not None and time.monotonic() - self._began >= 60 * self.minutes - self.early - 60
        )

    def _why_late(self) -> str:
        if self._is_where_it_was():
            return f"its time limit of {self.minutes} min is too short for one epoch: give more `time`"
        return f"it reached its time limit of {self.minutes} min too often: give more `requeues` or `time`"


def _epochs(folder: Path) -> int:
    from curvact.lab.store import read_history

    return len(read_history(folder))


# ---- in the driver ----


@dataclass(frozen=True)
class _Line:
    """What squeue says of a task. number: its own job number, which an array gives it when it runs."""

    number: int
    state: str
    exit_code: str
    restarts: int
    reason: str

    @property
    def alive(self) -> bool:
        return self.state not in _ENDED.split()


_WIDTHS = {
    "JobID": 20,
    "ArrayJobID": 20,
    "ArrayTaskID": 20,
    "State": 24,
    "exit_code": 16,
    "RestartCnt": 12,
    "Reason": 80,
}


def _lines(text: str) -> dict[str, _Line]:
    """The tasks by their job, such as "1234_5", in the output of squeue."""
    found = {}
    for line in text.splitlines():
        at, fields = 0, []
        for width in _WIDTHS.values():
            fields.append(line[at : at + width].strip())
            at += width
        own, job, task, state, code, restarts, reason = fields
        if not own.isdigit():
            continue  # such as the name of a cluster, which stands before its tasks where SLURM has several
        key = f"{job}_{task}" if task.isdigit() else job
        found[key] = _Line(int(own), state, code, int(restarts) if restarts.isdigit() else 0, reason)
    return found


def _call(*command: str) -> str:
    """The output of a command of SLURM. CurvactError in one line where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CurvactError(f"{command[0]}: {error}") from None
    if done.returncode:
        raise CurvactError(f"{command[0]}: {_said(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def _said(text: str) -> str:
    """What a command of SLURM complains of, in one line.

    >>> _said("sbatch: error: invalid partition specified: x\\nsbatch: error: Batch job submission failed")
    'invalid partition specified: x; Batch job submission failed'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(re.sub(r"^\w+: (error|fatal): ", "", line) for line in lines)


@cache
def _most_in_an_array() -> int:
    """MaxArraySize of the cluster."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"))
    return max(1, int(match[1])) if match is not None else 1000


@dataclass
class _Open:
    """A task that SLURM has.

    job: of SLURM. at_once: how many tasks of its array run at a time. epoch: the last one reported.
    stamp: of the metrics when they were last read. gone: when it was first missing in the queue.
    """

    index: int
    job: str
    at_once: int
    epoch: int
    running: bool = False
    restarts: int = 0
    stamp: int = 0
    gone: float | None = None

    @property
    def array(self) -> str:
        return self.job.partition("_")[0]


class _Driver:
    """One call of the engine. waiting: indices of jobs that SLURM does not have. open: by index."""

    def __init__(
        self, jobs: Sequence[Job], workers: int, on_event: Callable[[Event], None], settings: SlurmSettings
    ) -> None:
        self.jobs, self.workers, self.on_event, self.settings = jobs, workers, on_event, settings
        parent = jobs[0].folder.absolute().parent
        above = parent.parent if parent.name == RUNS else parent
        self.folder = above / SLURM_FOLDER
        place = hashlib.sha256(str(above).encode()).hexdigest()[:8]
        self.name = f"curvact-{re.sub('[^A-Za-z0-9._-]', '-', above.name)[:40]}-{place}"
        self.waiting: deque[int] = deque()
        self.known = 0
        self.open: dict[int, _Open] = {}
        self.deaths: dict[int, int] = {}
        self.given_up: list[int] = []
        self.queue_fails = False

    # ---- the queue ----

    def _queue(self) -> dict[str, _Line]:
        form = ",".join(f"{field}:{width}" for field, width in _WIDTHS.items())
        who = f"--user={os.getuid()}"
        return _lines(
            _call(
                "squeue",
                "--noheader",
                "--array",
                "--states=all",
                who,
                f"--name={self.name}",
                f"--Format={form}",
            )
        )

    def take_over(self) -> None:
        """Take over the tasks of an earlier process that are wanted, and end the others."""
        self._take_up_new()
        before = self._read_jobs()
        alive = {job: line for job, line in self._queue().items() if line.alive}
        for index in list(self.waiting):
            known = before.get(self.jobs[index].spec.id)
            if known is None or known.get("job") not in alive or not self._suits(index, known, alive):
                continue
            self.waiting.remove(index)
            self.open[index] = _Open(index, known["job"], known["at_once"], epoch=0)
        ours = {task.job for task in self.open.values()}
        self._end([job for job in alive if job not in ours])
        if ours:
            _say(f"going on with {_tasks(len(ours))} that the queue still has")
        for file in self.folder.glob("*.pkl"):
            if not any(file.name.startswith(f"{job}_") for job in ours):
                file.unlink(missing_ok=True)
        self._write_jobs()

    def _suits(self, index: int, known: Mapping[str, Any], alive: Mapping[str, _Line]) -> bool:
        """Whether the task is what would be submitted now. One that runs has its resources already."""
        job = self.jobs[index]
        same_end = known.get("stop_below") == list(job.stop_below)
        waits = alive[known["job"]].state == "PENDING"
        return same_end and (not waits or known.get("request") == _request(self.settings, job))

    def _end(self, jobs: Sequence[str]) -> None:
        """Cancel tasks, and wait until they are gone: two must not write one folder."""
        if not jobs:
            return
        self._cancel(jobs)
        end = time.monotonic() + LATE
        while any(line.alive and job in jobs for job, line in self._queue().items()):
            if time.monotonic() > end:
                raise CurvactError(
                    f"SLURM does not end {', '.join(jobs)}, which may still write {self.folder.parent}: "
                    "wait until squeue has them no longer, then --resume"
                )
            time.sleep(POLL[0])

    def _cancel(self, jobs: Sequence[str]) -> None:
        for first in range(0, len(jobs), 200):
            _call("scancel", *jobs[first : first + 200])

    def cancel_all(self) -> None:
        """Cancel every task of this folder, by its name: one that was just submitted too."""
        try:
            _call("scancel", f"--user={os.getuid()}", f"--name={self.name}")
            if self.open:
                _say(f"cancelled {_tasks(len(self.open))}")
            else:
                self._clean_up()
        except CurvactError as error:
            _say(f"{error}; cancel the tasks with: scancel --name={self.name}")

    # ---- jobs.json ----

    def _read_jobs(self) -> dict[str, Any]:
        try:
            known = json.loads((self.folder / JOBS_FILE).read_text())
        except (OSError, ValueError):
            return {}  # the tasks of a damaged file are ended and submitted again
        return known if isinstance(known, dict) and all(map(_is_entry, known.values())) else {}

    def _write_jobs(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        known = {}
        for task in self.open.values():
            job = self.jobs[task.index]
            known[job.spec.id] = {
                "job": task.job,
                "at_once": task.at_once,
                "stop_below": list(job.stop_below),
                "request": _request(self.settings, job),
            }
        atomic_write(self.folder / JOBS_FILE, json.dumps(known, indent=1) + "\n")

    # ---- the walk ----

    def run(self) -> list[int]:
        pause = POLL[0]
        while self.waiting or self.open:
            moved = self._submit()
            time.sleep(pause)
            moved = self._look() or moved
            self._take_up_new()
            pause = POLL[0] if moved else min(1.5 * pause, POLL[1])
        self._clean_up()
        return self.given_up

    def _take_up_new(self) -> None:
        """Jobs that were appended wait too."""
        self.waiting.extend(range(self.known, len(self.jobs)))
        self.known = len(self.jobs)

    def _submit(self) -> bool:
        """Submit what waits, as far as the tasks that run at a time allow. True where there was any."""
        moved = False
        while self.waiting and (room := self._room()) > 0:
            free = len(self.waiting) if self.settings.most_queued is None else self._free()
            if free < 1:
                break
            request = _request(self.settings, self.jobs[self.waiting[0]])
            alike = [i for i in self.waiting if _request(self.settings, self.jobs[i]) == request]
            batch = alike[: min(free, _most_in_an_array())]
            self._submit_array(batch, request, min(room, len(batch)))
            for index in batch:
                self.waiting.remove(index)
            moved = True
        return moved

    def _free(self) -> int:
        return (self.settings.most_queued or 0) - len(self.open)

    def _room(self) -> int:
        """How many tasks more may run at a time beside those of the open arrays."""
        arrays: dict[str, list[_Open]] = {}
        for task in self.open.values():
            arrays.setdefault(task.array, []).append(task)
        return self.workers - sum(min(tasks[0].at_once, len(tasks)) for tasks in arrays.values())

    def _submit_array(self, batch: Sequence[int], request: Mapping[str, Any], at_once: int) -> None:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = submitit.SlurmExecutor(
            self.folder, max_num_timeout=self.settings.requeues, python=self.settings.python
        )
        early = min(90, 15 * self.settings.time)
        parameters = {**request, "job_name": self.name, "array_parallelism": at_once, "signal_delay_s": early}
        if self.settings.setup:
            parameters["setup"] = list(self.settings.setup)
        executor.update_parameters(**parameters)
        tasks = [
            _Task(pickle.dumps(_placed(self.jobs[index], request)), start_calls(), self.settings.time, early)
            for index in batch
        ]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what sbatch says too
                submitted = _submitted(executor, tasks)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise CurvactError(f"sbatch refuses the runs: {_refusal(str(error))}") from None
        finally:
            for file in self.folder.glob(".submission_file_*.sh"):  # submitit keeps a copy by the job's name
                file.unlink(missing_ok=True)
        for index, job in zip(batch, submitted, strict=True):
            self.open[index] = _Open(index, job, at_once, _epochs(self.jobs[index].folder))
        self._write_jobs()
        many = f"{len(batch)} runs, {at_once} at a time" if len(batch) > 1 else "1 run"
        _say(f"job {self.open[batch[0]].array} of SLURM: {many}")

    def _look(self) -> bool:
        """What happened since the last look. True where a task ended or was replaced."""
        try:
            lines = self._queue()
            self.queue_fails = False
        except CurvactError as error:
            if not self.queue_fails:
                _say(f"{error}; it is asked again")
            self.queue_fails, lines = True, {}
        moved = False
        for task in list(self.open.values()):
            line = lines.get(task.job)
            result = self._result(task)  # after the queue: a task that left it has written it
            if line is not None and line.restarts > task.restarts:
                task.restarts, task.running = line.restarts, False
            if not task.running and (result is not None or (line is not None and line.state == "RUNNING")):
                task.running = True
                self.on_event(Event("start", task.index, 0 if line is None else line.number))
            if task.running:
                self._tell_epochs(task)
            if result is not None:
                self._finish(task, result)
            elif self.queue_fails or (line is not None and line.alive):
                task.gone = None
                self._check_starts(task, line)
                continue
            elif task.gone is None:
                task.gone = time.monotonic()
                continue
            elif time.monotonic() - task.gone < GRACE:
                continue
            else:
                self._died(task, line)
            moved = True
        return moved

    def _tell_epochs(self, task: _Open) -> None:
        from curvact.lab.store import read_history

        folder = self.jobs[task.index].folder
        try:
            stamp = (folder / METRICS_FILE).stat().st_mtime_ns
        except OSError:
            return
        if stamp == task.stamp:
            return
        task.stamp = stamp
        for epoch in read_history(folder):
            if epoch["epoch"] > task.epoch:
                task.epoch = epoch["epoch"]
                self.on_event(Event("epoch", task.index, epoch))

    def _check_starts(self, task: _Open, line: _Line | None) -> None:
        if line is not None and line.state == "PENDING" and line.reason in _NEVER.split():
            raise CurvactError(
                f"SLURM does not start job {task.job}, for the reason {line.reason}: change the settings of "
                "the engine"
            )

    def _result(self, task: _Open) -> _Outcome | None:
        from submitit.core.utils import JobPaths

        file = JobPaths(self.folder, job_id=task.job).result_pickle
        try:
            kind, content = pickle.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, EOFError, pickle.UnpicklingError):
            return None  # of a file system that is late; a task that left the queue is then run again
        if kind == "success":
            return content if isinstance(content, _Outcome) else None
        return _Outcome("error", str(content).strip().splitlines()[-1])

    def _finish(self, task: _Open, outcome: _Outcome) -> None:
        index, job = task.index, self.jobs[task.index]
        if outcome.kind == "error":
            if outcome.trace:
                print(outcome.trace, file=sys.stderr)
            raise CurvactError(f"run {job.spec.id}: {outcome.text} (job {task.job}, logs in {self.folder})")
        if outcome.kind == "late":
            self.on_event(Event("died", index, self.deaths.get(index, 0) + 1, outcome.text))
            self.given_up.append(index)
        else:
            record = _record_of(job) if outcome.kind == "done" else None
            self.on_event(Event("done", index, record))
        self._close(task, logs=outcome.kind != "late")

    def _died(self, task: _Open, line: _Line | None) -> None:
        index = task.index
        preempted = line is not None and line.state == "PREEMPTED"
        self.deaths[index] = self.deaths.get(index, 0) + (not preempted)
        self.on_event(Event("died", index, self.deaths[index], _end_of(task, line)))
        if self.deaths[index] < ATTEMPTS:
            self.waiting.appendleft(index)
        else:
            self.given_up.append(index)
        self._close(task, logs=False)

    def _close(self, task: _Open, *, logs: bool) -> None:
        """Forget a task that has ended, and remove its pickles, and its logs where it ended well."""
        from submitit.core.utils import JobPaths

        del self.open[task.index]
        self._write_jobs()
        paths = JobPaths(self.folder, job_id=task.job)
        for file in (
            paths.submitted_pickle,
            paths.result_pickle,
            *((paths.stdout, paths.stderr) if logs else ()),
        ):
            file.unlink(missing_ok=True)
        if not any(other.array == task.array for other in self.open.values()):
            (self.folder / f"{task.array}_submission.sh").unlink(missing_ok=True)

    def _clean_up(self) -> None:
        """Without a log that tells of a death, nothing is left."""
        (self.folder / JOBS_FILE).unlink(missing_ok=True)
        for file in self.folder.glob("*.pkl"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _request(settings: SlurmSettings, job: Job) -> dict[str, Any]:
    """What a run takes, in submitit's words. Runs with equal requests can be one array."""
    hardware = job.spec.hardware
    gpus = ceil(hardware.share) if settings.gpus is None else settings.gpus
    cpus = settings.cpus or hardware.threads or 1
    wanted: dict[str, Any] = {
        "partition": settings.partition,
        "time": settings.time,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "srun_args": [f"--cpus-per-task={cpus}"],  # which srun no longer takes from sbatch
        "gpus_per_node": gpus or None,
        "mem": settings.memory,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "additional_parameters": {"requeue": True, **settings.sbatch},
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _placed(job: Job, request: Mapping[str, Any]) -> Job:
    """The job as its task executes it. A GPU that was asked for is used: the task sees it as the first."""
    job = replace(job.on(job.devices[0] if job.devices else None), folder=job.folder.absolute())
    if request.get("gpus_per_node") and job.spec.hardware.accelerator != "cpu":
        return replace(job, spec=job.spec.on("cuda"))
    return job


def _submitted(executor: submitit.SlurmExecutor, tasks: Sequence[_Task]) -> list[str]:
    """Submit the tasks as one array; the job of each."""
    with executor.batch():
        jobs = [executor.submit(task) for task in tasks]
    return [str(job.job_id) for job in jobs]


def _refusal(text: str) -> str:
    said = _said(text)
    limit = " Limit the jobs in the queue with most_queued." if "submit" in said and "limit" in said else ""
    return (said or "it says nothing") + limit


def _end_of(task: _Open, line: _Line | None) -> str:
    """How a task ended, in words."""
    if line is None:
        return f"job {task.job} left the queue"
    code = f", exit code {line.exit_code}" if line.exit_code not in ("", "0") else ""
    more = ": give more memory" if line.state == "OUT_OF_MEMORY" else ""
    return f"job {task.job} is {line.state}{code}{more}"


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("job"), str)
        and isinstance(entry.get("at_once"), int)
    )


def _record_of(job: Job) -> Record:
    """The record of a run that has finished on a node, which a shared file system may show late."""
    from curvact.lab.remote import is_of_a_list
    from curvact.lab.store import finished

    end = time.monotonic() + LATE
    while (record := finished(job.folder, job.spec.id)) is None:
        if job.store is not None:
            job.store.pull(is_of_a_list)
        if time.monotonic() > end:
            raise CurvactError(
                f"run {job.spec.id} has finished on a node, and {job.folder} has no record: the nodes do not "
                "share this folder; give an --out on a file system that they share"
            )
        time.sleep(POLL[0])
    return record


def _say(text: str) -> None:
    print(f"curvact: {text}", file=sys.stderr)


def _tasks(number: int) -> str:
    return f"{number} {'task' if number == 1 else 'tasks'} of SLURM"
