"""What an engine is, and the engines by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from curvact.errors import CurvactError, nearest
from curvact.lab.engines.inline import run_inline
from curvact.lab.engines.job import Job
from curvact.lab.engines.local import run_local
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

ENGINES: dict[str, Engine] = {"local": run_local, "inline": run_inline}


def register_engine(name: str, engine: Engine) -> None:
    """Make an engine known by a name."""
    ENGINES[name] = engine


def engine_named(name: str) -> Engine:
    """The engine of that name. CurvactError for an unknown one."""
    if name not in ENGINES:
        raise CurvactError(f"unknown engine '{name}'{nearest(name, ENGINES)}; known are {', '.join(ENGINES)}")
    return ENGINES[name]
