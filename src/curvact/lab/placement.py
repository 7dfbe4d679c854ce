"""Which devices the runs of a sweep or a search are executed on, and by how many workers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from curvact.devices import check_device_name, device_names
from curvact.errors import CurvactError
from curvact.lab.run import device_of
from curvact.lab.spec import RunSpec


def devices_of(spec: RunSpec, wanted: str, *, elsewhere: bool = False) -> tuple[str, ...]:
    """The devices that the run may be given, of which its worker has one; empty where its spec decides.

    wanted: names with commas between them. "auto": all CUDA devices, where there are several and the
    spec leaves the choice. elsewhere: the engine runs on other machines, whose devices it gives itself.
    """
    if elsewhere:
        return ()
    if wanted != "auto":
        return device_names(wanted, "--device")
    names = device_names("auto") if spec.hardware.accelerator in ("auto", "cuda") else ()
    return names if len(names) > 1 else ()


def on_device(spec: RunSpec, wanted: str, *, elsewhere: bool = False) -> RunSpec:
    """The run on the first of the devices; as it is where "auto" is wanted.

    elsewhere: of another machine, so that one name is allowed, and this machine need not have it.
    """
    if elsewhere:
        check_device_name(wanted, "--device")
        return spec if wanted == "auto" else spec.on(wanted)
    return spec if wanted == "auto" else spec.on(device_names(wanted, "--device")[0])


def worker_count(workers: int | None, wanted: str, specs: Sequence[RunSpec], room: int | None = None) -> int:
    """The number of workers: as given, else one a GPU that the runs use, else one a core.

    room: how many runs fit in where an engine of a cluster runs them, see `room_of`; None: here.
    Where hardware.gpus of all runs is a part of a GPU, so many as it has parts: four for 0.25.

    Raises CurvactError for less than one, and for a device that is not there.
    """
    if workers is None and room is not None:
        return room
    if workers is None:
        places = {
            place
            for spec in specs
            for place in devices_of(spec, wanted) or (str(device_of(spec.hardware)),)
            if not place.startswith("cpu")
        }
        most = max((1.0 if s.hardware.gpus is None else s.hardware.share for s in specs), default=1.0)
        return len(places) * int(1 / min(most or 1.0, 1.0) + 1e-9) or os.cpu_count() or 1
    if workers < 1:
        raise CurvactError(f"--workers {workers}: must be >= 1")
    return workers
