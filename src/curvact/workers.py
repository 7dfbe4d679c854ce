"""Jobs side by side in worker processes. A worker that dies is replaced, and its job is run again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from curvact.errors import CurvactError, first_line, for_want_of_memory

ATTEMPTS = 3
"""How often a job is started before the death of its workers counts as its own fault."""

Send = Callable[[str, object], None]

_AT_START: list[tuple[Callable[..., object], tuple[object, ...]]] = []


@dataclass(frozen=True)
class Event:
    """A report on a job, in the calling process.

    kind: "start" (content: the worker's process id), "done" (what the work returned), "died" (how
        often the job was started by then), or a kind that the work itself sent.
    job: its index. cause: of "died", how the process ended, such as "killed by SIGKILL".
    device: that of the worker; "" where the workers have none.
    """

    kind: str
    job: int
    content: Any = None
    cause: str = ""
    device: str = ""


def at_start(function: Callable[..., object], *arguments: object) -> None:
    """Call the function in every worker process that starts from now on, before its first job.

    function: one that can be imported. What it registers is known when jobs are unpickled.
    """
    _AT_START.append((function, arguments))


def start_calls() -> bytes:
    """What `at_start` was told so far, pickled: `start_worker` in another process does it."""
    return pickle.dumps(_AT_START)


def start_worker(calls: bytes) -> None:
    """Call what `start_calls` pickled, in this process."""
    for function, arguments in pickle.loads(calls):
        function(*arguments)


def in_words(error: BaseException) -> str:
    """The kind of an error and what it says, in one line.

    >>> in_words(KeyError("some key"))
    "KeyError: 'some key'"
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def placed(workers: int, devices: Sequence[str | None]) -> list[str | None]:
    """The device of each worker: the devices in turn.

    >>> placed(3, ["cuda:0", "cuda:1"])
    ['cuda:0', 'cuda:1', 'cuda:0']
    """
    return [devices[worker % len(devices)] for worker in range(workers)]


def run_jobs(
    work: Callable[..., object],
    jobs: Sequence[object],
    *,
    workers: int,
    on_event: Callable[[Event], None],
    attempts: int = ATTEMPTS,
    setup: object = None,
    devices: Sequence[str] | None = None,
    threads: int = 1,
    name: Callable[[int], str] = "job {}".format,
) -> list[int]:
    """Call `work(job, send)` for every job in spawned processes; return the indices of the jobs
    that were given up.

    work: a function that can be imported. `send(kind, content)` in it calls on_event in this
        process. What it returns is the content of "done".
    jobs: values that pickle. Each is pickled at each of its starts, so a list that on_event extends
        is sent as it is then. Jobs that on_event appends are run too.
    workers: processes, each with `threads` CPU threads. on_event: called in this process; an
        exception in it stops all.
    attempts: a job whose worker died so often is given up.
    setup: a value sent once to each worker; the call is then `work(job, send, setup)`.
    devices: given to the workers in turn; the call then has `device=` too.
    name: of a job, by its index, for messages.
    A job that runs out of memory is treated as one whose worker died.
    Raises CurvactError for workers < 1 and for another exception inside a job, which stops all jobs. The
    message is that of a CurvactError or OSError; any other exception prints its traceback in the
    worker and is named with the job.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise CurvactError(f"workers={workers!r}: a whole number >= 1")
    pool = _Pool(work, jobs, setup, devices or [None], threads)
    given_up: list[int] = []
    try:
        pool.start(min(workers, len(jobs)))
        while busy := [worker for worker in pool.workers if worker.job is not None]:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                index = worker.job
                assert index is not None
                try:
                    kind, content = pickle.loads(worker.connection.recv_bytes())
                except (EOFError, OSError):
                    kind, content = _ENDED, _end_of(worker.process)
                if kind in (_ENDED, _MEMORY):
                    started = pool.started[index]
                    cause = content if kind == _ENDED else f"out of memory: {content}"
                    on_event(Event("died", index, started, cause, worker.device or ""))
                    (pool.waiting.appendleft if started < attempts else given_up.append)(index)
                    pool.replace(worker)
                    continue
                if kind == _ERROR:
                    raise CurvactError(content)
                if kind == _FAULT:
                    raise CurvactError(f"{name(index)}: {content}")
                on_event(Event(kind, index, content, device=worker.device or ""))
                if kind == "done":
                    pool.take_up_new()
                    pool.assign(worker)
    finally:
        pool.stop()
    return given_up


_ERROR, _FAULT = "curvact: error", "curvact: fault"
_MEMORY, _ENDED = "curvact: memory", "curvact: ended"


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    device: str | None
    job: int | None = None


class _Pool:
    """The processes, and the jobs that wait. started: how often each job was given to a worker."""

    def __init__(
        self,
        work: Callable[..., object],
        jobs: Sequence[object],
        setup: object,
        devices: Sequence[str | None],
        threads: int,
    ) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.work, self.jobs, self.threads = work, jobs, threads
        self.setup = None if setup is None else pickle.dumps(setup)
        self.devices = devices
        self.waiting = deque(range(len(jobs)))
        self.started = [0] * len(jobs)
        self.workers: list[_Worker] = []

    def start(self, count: int) -> None:
        self.workers += [self._new(device) for device in placed(count, self.devices)]
        for worker in self.workers:
            self._begin(worker)

    def take_up_new(self) -> None:
        """Jobs that were appended wait too; workers without a job begin with them."""
        for index in range(len(self.started), len(self.jobs)):
            self.started.append(0)
            self.waiting.append(index)
        for worker in self.workers:
            if worker.job is None and len(self.waiting) > 1:  # one is left to the worker that is done
                self.assign(worker)

    def replace(self, worker: _Worker) -> None:
        _stop(worker)
        self.workers[self.workers.index(worker)] = new = self._new(worker.device)
        self._begin(new)

    def assign(self, worker: _Worker) -> None:
        worker.job = self.waiting.popleft() if self.waiting else None
        if worker.job is not None:
            self.started[worker.job] += 1
            _send(worker, pickle.dumps(self.jobs[worker.job]))

    def stop(self) -> None:
        for worker in self.workers:
            _stop(worker)

    def _new(self, device: str | None) -> _Worker:
        ours, theirs = self.context.Pipe()
        work = pickle.dumps(self.work)  # what it imports is imported when the process can already leave
        has_setup, starts = self.setup is not None, start_calls()
        arguments = (theirs, os.getpid(), work, has_setup, device, self.threads, starts)
        process = self.context.Process(target=_serve, args=arguments, daemon=True)
        # A Ctrl-C is for this process: one that is still starting would show a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours, device)

    def _begin(self, worker: _Worker) -> None:
        if self.setup is not None:
            _send(worker, self.setup)
        self.assign(worker)


def _end_of(process: BaseProcess) -> str:
    """How a process ended, in words."""
    process.join(timeout=5)
    code = process.exitcode
    if code is None:
        return "its pipe was closed"
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as for want of memory"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _send(worker: _Worker, content: bytes) -> None:
    with contextlib.suppress(OSError):  # it died: `run_jobs` finds the end of its pipe
        worker.connection.send_bytes(content)


def _stop(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.terminate()
    worker.process.join(timeout=1)
    if worker.process.is_alive():  # code of a user may have taken charge of the signal
        worker.process.kill()
        worker.process.join()


def _serve(
    connection: Connection,
    parent: int,
    packed: bytes,
    has_setup: bool,
    device: str | None,
    threads: int,
    starts: bytes,
) -> None:
    """A worker process: runs the jobs that it receives until its pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for a torch that is imported later

    def send(kind: str, content: object = None) -> None:
        # Plain pickles: those of multiprocessing share a tensor's memory, which ends with this
        # process.
        message = pickle.dumps((kind, content))
        try:
            connection.send_bytes(message)
        except OSError:  # the pool is gone
            os._exit(1)

    def receive() -> Any:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        return pickle.loads(message)

    try:
        work = pickle.loads(packed)
        _keep_tqdm_here()
        start_worker(starts)
        more = (receive(),) if has_setup else ()
        on = {} if device is None else {"device": device}
        while True:
            job = receive()
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(threads)
            send("start", os.getpid())
            send("done", work(job, send, *more, **on))
    except (CurvactError, OSError) as error:
        send(_ERROR, str(error))
    except Exception as error:
        if for_want_of_memory(error):
            send(_MEMORY, first_line(error))
            return
        traceback.print_exc()
        send(_FAULT, in_words(error))


def _keep_tqdm_here() -> None:
    """Let tqdm, which torch.fx uses where it is installed, lock threads only.

    Its own lock is a semaphore of the system. A worker is ended, not left, so it would stay behind, and
    Python would warn of it when the pool's process ends.
    """
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())


def _leave_with(parent: int) -> None:
    """End this process within about a second of its parent's end."""
    started_by = multiprocessing.parent_process()
    sentinels = [] if started_by is None else [started_by.sentinel]
    while not wait(sentinels, timeout=1) and os.getppid() == parent:
        pass
    os._exit(1)
