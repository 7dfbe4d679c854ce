"""Shards over processes and devices. A worker that dies is replaced and its shard run again, from its last finished attack."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import nn

from curvact.attacks.autoattack.shard import Job, Runner, Unit
from curvact.errors import CurvactError

ATTEMPTS = 3
"""How often a shard is started before its worker's death is taken for the shard's own fault."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    device: torch.device
    shard: int | None = None


def run_shards(
    content: bytes,
    done: dict[int, list[Unit]],
    waiting: Sequence[int],
    workers: int,
    devices: Sequence[torch.device],
    threads: int,
    on_unit: Callable[[Unit], None],
) -> None:
    """Run the waiting shards of a packed job, `workers` at a time, each worker on the next of the devices.

    on_unit gets every unit. done: each shard's finished units; `on_unit` is expected to add to it, so that a shard whose worker
    died goes on there.
    Raises CurvactError if a shard fails, or if its worker dies 3 times.
    """
    context = multiprocessing.get_context("spawn")
    queue, attempts = deque(waiting), dict.fromkeys(waiting, 0)
    pool = [
        _start(context, devices[number % len(devices)], threads) for number in range(min(workers, len(queue)))
    ]
    try:
        for worker in pool:
            _send(worker, content)
            _assign(worker, queue, attempts, done)
        while any(worker.shard is not None for worker in pool):
            ready = wait([worker.connection for worker in pool if worker.shard is not None])
            for worker in [w for w in pool if w.connection in ready]:
                shard = worker.shard
                assert shard is not None
                try:
                    kind, unit = pickle.loads(worker.connection.recv_bytes())
                except (EOFError, OSError):
                    _stop(worker)
                    if attempts[shard] >= ATTEMPTS:
                        raise CurvactError(
                            f"the worker process of shard {shard} died {ATTEMPTS} times (exit code {worker.process.exitcode}; "
                            "out of memory, or a script without `if __name__ == '__main__':`?): use workers=1 to see why"
                        ) from None
                    queue.appendleft(shard)
                    pool[pool.index(worker)] = replacement = _start(context, worker.device, threads)
                    _send(replacement, content)
                    _assign(replacement, queue, attempts, done)
                    continue
                if kind == "error":
                    raise CurvactError(unit)
                if kind == "unit":
                    on_unit(unit)
                else:
                    _assign(worker, queue, attempts, done)
    finally:
        for worker in pool:
            _stop(worker)


def packed(job: Job) -> bytes:
    """The job as it is sent to other processes. CurvactError if it cannot be."""
    model = job.model
    try:
        if isinstance(model, nn.Module) and any(t.is_cuda for t in (*model.parameters(), *model.buffers())):
            model = copy.deepcopy(model).cpu()
        return pickle.dumps(replace(job, model=model, x=job.x.cpu(), y=job.y.cpu()))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CurvactError(
            f"workers > 1 sends the model to other processes, and this one does not pickle ({reason}): use workers=1"
        ) from None


def _start(context: Any, device: torch.device, threads: int) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, str(device), threads), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, device)


def _assign(
    worker: _Worker, queue: deque[int], attempts: dict[int, int], done: dict[int, list[Unit]]
) -> None:
    worker.shard = queue.popleft() if queue else None
    if worker.shard is not None:
        attempts[worker.shard] += 1
        _send(worker, pickle.dumps((worker.shard, done[worker.shard])))


def _send(worker: _Worker, content: bytes) -> None:
    with contextlib.suppress(OSError):  # it died: the main loop reads the end of its pipe
        worker.connection.send_bytes(content)


def _stop(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.terminate()
    worker.process.join()


def _work(connection: Connection, device: str, threads: int) -> None:
    """A worker process: runs the shards it is told until its pipe ends; it leaves at once when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def tell(kind: str, content: object = None) -> None:
        # Plain pickles: those of multiprocessing share a tensor's memory, which is gone when this process dies.
        connection.send_bytes(pickle.dumps((kind, content)))

    try:
        runner = Runner(pickle.loads(connection.recv_bytes()), torch.device(device))
        while True:
            shard, done = pickle.loads(connection.recv_bytes())
            runner.run(shard, done, lambda unit: tell("unit", unit))
            tell("done")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except CurvactError as error:
        tell("error", str(error))
    except Exception as error:
        traceback.print_exc()
        tell(
            "error", f"a worker of autoattack failed: {type(error).__name__}: {' '.join(str(error).split())}"
        )


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
