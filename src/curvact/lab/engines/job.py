"""The unit that engines move: a run and its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvact.lab.loggers import BY_ITSELF, Shown
from curvact.lab.remote import Store, is_of_a_list
from curvact.lab.spec import RunSpec

if TYPE_CHECKING:
    from curvact.lab.store import Record


@dataclass(frozen=True)
class Job:
    """A run and its folder.

    stop_below: a run whose best validation robust accuracy so far is lower than entry e - 1 after
    epoch e stops there: it keeps its state, and has no record. Epochs without an entry do not stop.
    devices: where it may run; the engine chooses. Empty where the spec says it.
    store: of the run. The run then has the store's local folder on the machine where it runs, and goes
    on from what the store has.
    shown: how loggers name it.
    """

    spec: RunSpec
    folder: Path
    stop_below: tuple[float, ...] = ()
    devices: tuple[str, ...] = ()
    store: Store | None = None
    shown: Shown = BY_ITSELF

    def on(self, device: str | None) -> Job:
        """The job on that device, as far as it may run there. None changes nothing."""
        return replace(self, spec=self.spec.on(device)) if device in self.devices and device else self


class _Stopped(Exception):
    """The run is not worth its end."""


def run_job(job: Job, on_epoch: Callable[[dict[str, Any]], None], *, patience: float = 0) -> Record | None:
    """Execute the job in this process: what a worker of an engine does.

    on_epoch: called with each epoch as a mapping. patience: seconds to wait for a folder that another
    process holds. Returns the record; None where `stop_below` stopped the run.
    """
    from curvact.lab.run import execute
    from curvact.lab.store import read_history
    from curvact.training import Epoch

    best = -1.0

    def check(number: int, robust: float) -> None:
        nonlocal best
        best = max(best, robust)
        if number <= len(job.stop_below) and best < job.stop_below[number - 1]:
            raise _Stopped

    def tell(event: object) -> None:
        if isinstance(event, Epoch):
            on_epoch(event.as_dict())
            check(event.epoch, event.validation_robust_accuracy)

    try:
        folder = job.folder if job.store is None else job.store.folder
        if job.stop_below:
            if job.store is not None:
                job.store.pull(is_of_a_list)
            for epoch in read_history(folder):
                check(epoch["epoch"], epoch["validation_robust_accuracy"])
        return execute(job.spec, folder, on_event=tell, store=job.store, shown=job.shown, patience=patience)
    except _Stopped:
        return None
