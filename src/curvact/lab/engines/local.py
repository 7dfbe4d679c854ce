"""The local engine: runs in worker processes of this machine, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from curvact.lab.engines.job import Job, run_job
from curvact.workers import Event, run_jobs


def run_local(jobs: Sequence[Job], workers: int, on_event: Callable[[Event], None]) -> list[int]:
    """Execute every job in worker processes, which have the jobs' devices in turn. A worker that dies
    is replaced and its run goes on."""
    devices = list(dict.fromkeys(device for job in jobs for device in job.devices))
    return run_jobs(
        _execute,
        jobs,
        workers=workers,
        on_event=on_event,
        devices=devices or None,
        name=lambda index: f"run {jobs[index].spec.id}",
    )


def _execute(job: Job, send: Callable[[str, Any], None], *, device: str | None = None) -> Any:
    """One run, inside a worker."""
    return run_job(job.on(device), partial(send, "epoch"))
