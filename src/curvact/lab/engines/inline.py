"""The inline engine: one run after another in this process. A debugger and a profiler see them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from curvact.lab.engines.job import Job, run_job
from curvact.workers import Event


def run_inline(jobs: Sequence[Job], workers: int, on_event: Callable[[Event], None]) -> list[int]:
    """Execute every job in this process, with one thread as a local worker has. `workers` is not used."""
    with _one_thread():
        for index, job in enumerate(jobs):

            def tell(epoch: dict[str, Any], index: int = index) -> None:
                on_event(Event("epoch", index, epoch))

            device = job.devices[0] if job.devices else None
            on_event(Event("start", index, os.getpid(), device=device or ""))
            on_event(Event("done", index, run_job(job.on(device), tell)))
    return []


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
