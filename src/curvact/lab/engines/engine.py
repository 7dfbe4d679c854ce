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
from curvact.lab.settings import Strict, check_settings, read_plain
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
    """run: the engine. settings: their type, for an engine that takes `settings=` too."""

    run: Callable[..., list[int]]
    settings: type[Strict] | None = None


ENGINES: dict[str, _Known] = {"local": _Known(run_local), "inline": _Known(run_inline)}


def register_engine(
    name: str, engine: Callable[..., list[int]], settings: type[Strict] | None = None
) -> None:
    """Make an engine known by a name.

    settings: the type of its settings. The engine is then called with `settings=` too, which a
    file such as `engine: NAME` with the keys of the settings fills.
    """
    ENGINES[name] = _Known(engine, settings)


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
