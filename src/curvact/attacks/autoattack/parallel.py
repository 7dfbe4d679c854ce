"""Shards over processes and devices. A shard whose worker died goes on after its last finished
attack.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn

from curvact.attacks.autoattack.shard import Job, Runner, Unit
from curvact.errors import CurvactError
from curvact.workers import ATTEMPTS, Event, Send, run_jobs


def packed(job: Job) -> bytes:
    """The job on the CPU, pickled for other processes. Raises CurvactError for a model that does
    not pickle.
    """
    model = job.model
    try:
        if isinstance(model, nn.Module) and any(
            t.device.type != "cpu" for t in (*model.parameters(), *model.buffers())
        ):
            model = copy.deepcopy(model).cpu()
        return pickle.dumps(replace(job, model=model, x=job.x.cpu(), y=job.y.cpu()))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CurvactError(
            f"workers > 1 sends the model to other processes, and this one does not pickle ({reason}): use workers=1"
        ) from None


def run_shards(
    content: bytes,
    done: Mapping[int, list[Unit]],
    waiting: Sequence[int],
    workers: int,
    devices: Sequence[torch.device],
    threads: int,
    on_unit: Callable[[Unit], None],
) -> None:
    """Run the waiting shards of a packed job, `workers` at a time, each worker on the next of the
    devices.

    done: each shard's finished units. on_unit: called with every new unit; it must add the unit to
        `done`.
    Raises CurvactError if a shard fails, or if its workers died 3 times.
    """

    def on_event(event: Event) -> None:
        if event.kind == "unit":
            on_unit(event.content)
        elif event.kind == "died" and event.content >= ATTEMPTS:
            raise CurvactError(
                f"the worker process of shard {waiting[event.job]} died {ATTEMPTS} times (out of memory, or a script "
                "without `if __name__ == '__main__':`?): use workers=1 to see why"
            )

    run_jobs(
        _run_shard,
        [(shard, done[shard]) for shard in waiting],
        workers=workers,
        on_event=on_event,
        setup=content,
        devices=[str(device) for device in devices],
        threads=threads,
        name=lambda index: f"shard {waiting[index]} of autoattack",
    )


def _run_shard(work: tuple[int, list[Unit]], send: Send, content: bytes, *, device: str) -> None:
    shard, done = work
    _runner(content, device).run(shard, done, lambda unit: send("unit", unit))


@lru_cache(maxsize=1)
def _runner(content: bytes, device: str) -> Runner:
    """The runner of this process: its twins are made once."""
    return Runner(pickle.loads(content), torch.device(device))
