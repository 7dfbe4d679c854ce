"""What an engine is, and the engines by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError, nearest
from curvact.lab.engines.inline import run_inline
from curvact.lab.engines.job import Job
from curvact.lab.engines.local import run_local
from curvact.lab.engines.ray import RaySettings, ray_room, run_ray
from curvact.lab.engines.slurm import SlurmSettings, run_slurm, slurm_room
from curvact.lab.settings import Strict, check_settings, read_plain
from curvact.lab.spec import RunSpec
from curvact.workers import Event

Engine = Callable[[Sequence[Job], int, Callable[[Event], None]], list[int]]
"""`engine(jobs, workers, on_event)`: executes every job, `workers` at a time.

`on_event` is called in the driver with every `Event`. Its `job` is an index into `jobs`. Its kind
is "start", "epoch" (content: the epoch as a mapping), "done" (content: what `run_job` returned) or
"died" (content: the number of the attempt). A job whose `devices` are not empty is to be executed
`on` one of them. Jobs that `on_event` appends may be executed too, or
left to the next call. The engine returns the indices of the jobs whose worker died
again and again. It raises CurvactError for bad input.
"""


@dataclass(frozen=True)
class _Known:
    """run: the engine. settings: their type, for an engine that takes `settings=` too. room: see
    `register_engine`.
    """

    run: Callable[..., list[int]]
    settings: type[Strict] | None = None
    room: Callable[..., int] | None = None


ENGINES: dict[str, _Known] = {
    "local": _Known(run_local),
    "inline": _Known(run_inline),
    "ray": _Known(run_ray, RaySettings, ray_room),
    "slurm": _Known(run_slurm, SlurmSettings, slurm_room),
}


def register_engine(
    name: str,
    engine: Callable[..., list[int]],
    settings: type[Strict] | None = None,
    room: Callable[..., int] | None = None,
) -> None:
    """Make an engine known by a name.

    settings: the type of its settings. The engine is then called with `settings=` too, which a
    file such as `engine: NAME` with the keys of the settings fills.
    room: for an engine that runs on other machines: `room(specs)` is how many of the runs fit in
    there at a time, which is used where nobody gives `workers`. It is called with `settings=` too,
    before anything is written, and raises CurvactError for what cannot run there. Devices are then
    the engine's own affair: this machine need not have them.
    """
    ENGINES[name] = _Known(engine, settings, room)


def runs_elsewhere(engine: Engine) -> bool:
    """Whether an engine from `engine_from` runs on other machines."""
    return _known(engine).room is not None


def room_of(engine: Engine, specs: Sequence[RunSpec]) -> int | None:
    """How many of the runs fit in at a time where the engine runs them; None where that is this machine.

    engine: from `engine_from`. Raises CurvactError for what cannot run there.
    """
    room = _known(engine).room
    given = engine.keywords if isinstance(engine, partial) else {}
    return None if room is None else room(specs, **given)


def _known(engine: Engine) -> _Known:
    function = engine.func if isinstance(engine, partial) else engine
    return next((known for known in ENGINES.values() if known.run is function), _Known(function))


def engine_from(text: str, **settings: object) -> Engine:
    """The engine that a name or a YAML file means.

    text: a name, or a file with the key `engine` and the settings of that engine, such as
    `{engine: slurm, partition: gpu, time: 120}`.
    settings: more of them, which win over the file; None is left out.
    Raises CurvactError in one line for an unknown name or key, and for a value that is not allowed.

    >>> engine_from("inline").__name__
    'run_inline'
    """
    content: dict[str, Any] = {"engine": text}
    where = f"engine {text}"
    if text.endswith((".yaml", ".yml")):
        where, content = text, read_plain(Path(text))
        if not isinstance(content, dict) or not isinstance(content.get("engine"), str):
            raise CurvactError(f"{text} names no engine: add a line such as engine: local")
    content = {**content, **{key: value for key, value in settings.items() if value is not None}}
    name = content.pop("engine")
    if name not in ENGINES:
        raise CurvactError(f"unknown engine '{name}'{nearest(name, ENGINES)}; known are {', '.join(ENGINES)}")
    known = ENGINES[name]
    if known.settings is not None:
        return partial(known.run, settings=check_settings(known.settings, content, where))
    if content:
        raise CurvactError(f"{where}: the engine {name} has no settings, and was given {', '.join(content)}")
    return known.run
