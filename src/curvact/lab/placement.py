"""Where the runs of a sweep or a search are executed: the engine, its workers and their devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from curvact.devices import check_device_name, device_names
from curvact.errors import CurvactError
from curvact.lab.engines import Engine, engine_from, room_of, runs_elsewhere
from curvact.lab.run import device_of
from curvact.lab.spec import RunSpec


@dataclass(frozen=True)
class Placement:
    """Where runs are executed, and how many at a time.

    engine: a name or a YAML file (text or a path), see `engine_from`. address: of its cluster, such as "head:6379".
    workers: runs at a time, one thread each. None: one a core, or one a GPU where GPUs are used. On a
        CPU the records do not depend on it. With an engine of a cluster, the most runs at a time; None:
        as many as the cluster has room for.
    device: names with commas between them, such as "cuda:0,cuda:1", which the workers have in turn.
        "auto" leaves it to the spec of a run, and spreads runs with the accelerator auto or cuda over
        all CUDA devices.

    Raises CurvactError for an unknown engine, settings that it does not have, and less than one worker.

    >>> Placement("inline", workers=3).count([])
    3
    """

    engine: str | Path = "local"
    workers: int | None = None
    device: str = "auto"
    address: str | None = None

    def __post_init__(self) -> None:
        _ = self.run
        count = self.workers
        if count is not None and (type(count) is not int or count < 1):
            raise CurvactError(f"--workers {count!r}: must be a whole number >= 1")

    @cached_property
    def run(self) -> Engine:
        """The engine itself."""
        return engine_from(str(self.engine), address=self.address)

    @property
    def elsewhere(self) -> bool:
        """Whether the engine runs on other machines, whose devices it gives itself."""
        return runs_elsewhere(self.run)

    def devices(self, spec: RunSpec) -> tuple[str, ...]:
        """The devices that the run may be given, of which its worker has one; empty where its spec decides."""
        if self.elsewhere:
            return ()
        if self.device != "auto":
            return device_names(self.device, "--device")
        names = device_names("auto") if spec.hardware.accelerator in ("auto", "cuda") else ()
        return names if len(names) > 1 else ()

    def settled(self, spec: RunSpec) -> RunSpec:
        """The run on the first of the devices; as it is where "auto" is wanted.

        On other machines one name is allowed, and this machine need not have it.
        """
        if self.elsewhere:
            check_device_name(self.device, "--device")
            return spec if self.device == "auto" else spec.on(self.device)
        return spec if self.device == "auto" else spec.on(device_names(self.device, "--device")[0])

    def count(self, specs: Sequence[RunSpec]) -> int:
        """The number of workers: as given, else all that a cluster has room for, else one a GPU that the
        runs use, else one a core.

        Where hardware.gpus of all runs is a part of a GPU, so many as it has parts: four for 0.25.
        Raises CurvactError for a device that is not there, and for what cannot run on the cluster.
        """
        room = room_of(self.run, specs)
        if self.workers is not None:
            return self.workers
        if room is not None:
            return room
        places = {
            place
            for spec in specs
            for place in self.devices(spec) or (str(device_of(spec.hardware)),)
            if not place.startswith("cpu")
        }
        most = max((1.0 if s.hardware.gpus is None else s.hardware.share for s in specs), default=1.0)
        return len(places) * int(1 / min(most or 1.0, 1.0) + 1e-9) or os.cpu_count() or 1
