"""Trials side by side in worker processes, one thread each. A worker that dies is replaced and its trial run again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError

ATTEMPTS = 3
"""How often a trial is started before its worker's death counts as the trial's own fault."""


@dataclass(frozen=True)
class Event:
    """What a worker reports. kind: "start", "epoch", "done", "error" (bad input or a full disk) or "died"."""

    kind: str
    trial: int
    content: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    trial: int | None = None


def run_trials(
    configs: Sequence[dict[str, Any]], folder: Path, workers: int, on_event: Callable[[Event], None]
) -> list[int]:
    """Run every config into `folder` and return the indices of those whose worker died `ATTEMPTS` times.

    An exception inside a trial (bad input, a full disk, a fault of ours) stops all of them and is raised here as a CurvactError.
    """
    if workers < 1:
        raise CurvactError(f"--workers {workers}: must be >= 1")
    waiting = deque(range(len(configs)))
    attempts = dict.fromkeys(range(len(configs)), 0)
    given_up: list[int] = []
    context = multiprocessing.get_context("spawn")
    pool = [_start(context, folder) for _ in range(min(workers, len(configs)))]
    try:
        for worker in pool:
            _assign(worker, waiting, attempts, configs)
        while any(worker.trial is not None for worker in pool):
            ready = wait([worker.connection for worker in pool if worker.trial is not None])
            for worker in [w for w in pool if w.connection in ready]:
                trial = worker.trial
                assert trial is not None
                try:
                    kind, content = worker.connection.recv()
                except (EOFError, OSError):
                    on_event(Event("died", trial, {"attempt": attempts[trial]}))
                    (waiting.appendleft if attempts[trial] < ATTEMPTS else given_up.append)(trial)
                    _stop(worker)
                    pool[pool.index(worker)] = replacement = _start(context, folder)
                    _assign(replacement, waiting, attempts, configs)
                    continue
                if kind == "error":
                    raise CurvactError(content["message"])
                on_event(Event(kind, trial, content))
                if kind == "done":
                    _assign(worker, waiting, attempts, configs)
    finally:
        for worker in pool:
            _stop(worker)
    return given_up


def _start(context: Any, folder: Path) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, str(folder)), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _assign(
    worker: _Worker, waiting: deque[int], attempts: dict[int, int], configs: Sequence[dict[str, Any]]
) -> None:
    worker.trial = waiting.popleft() if waiting else None
    if worker.trial is not None:
        attempts[worker.trial] += 1
        with contextlib.suppress(OSError):  # it died: the main loop reads the end of its pipe
            worker.connection.send(configs[worker.trial])


def _stop(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.terminate()
    worker.process.join()


def _work(connection: Connection, folder: str) -> None:
    """A worker process: reads configs until its pipe ends, and leaves at once when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from curvact.lab.study_spec import trial_id
    from curvact.lab.trial import run_trial

    torch.set_num_threads(1)
    while True:
        try:
            config = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(("start", {"pid": os.getpid()}))
            record = run_trial(
                config, Path(folder), lambda epoch: connection.send(("epoch", epoch.as_dict()))
            )
            connection.send(("done", record))
        except BrokenPipeError:
            return
        except (CurvactError, OSError) as error:
            connection.send(("error", {"message": str(error)}))
            return
        except Exception as error:
            traceback.print_exc()
            what = f"trial {trial_id(config)}: {type(error).__name__}: {' '.join(str(error).split())}"
            connection.send(("error", {"message": what}))
            return
