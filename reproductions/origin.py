"""Where results come from: a JSON beside each csv."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from curvact.files import atomic_write
from curvact.lab.environment import environment

PLACE = ("commit", "processor", "torch", "kernels")
"""What `curvact.lab.environment` says that goes into the file."""


def write_origin(results: Path, places: Iterable[Mapping[str, Any]], runs: int, seconds: float) -> None:
    """Write commit, hardware and cost of the runs in `results` beside it, as NAME.json.

    places: the environment of each run, or what `read_origin` gave of several. seconds: of all runs together.
    """
    known = list(places)
    about: dict[str, object] = {}
    for key in PLACE:
        values = {str(place.get(key, "unknown")) for place in known}
        inside = {one for one in values for other in values if one != other and one in other}
        about[key] = ", ".join(sorted(values - inside))
    about |= {"runs": runs, "hours_of_runs": round(seconds / 3600, 2)}
    atomic_write(results.with_suffix(".json"), json.dumps(about, indent=1) + "\n")


def read_origin(results: Path) -> dict[str, Any]:
    """What is written beside `results`; empty where nothing is."""
    path = results.with_suffix(".json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def begin_origin(results: Path) -> Callable[[int], None]:
    """A function that writes the origin of `results`, with the number of runs, as a script goes on with them.

    What is written already stays, and the time from now on is added. Runs without an origin are "unknown". The
    environment is that of now: the results themselves make the working tree dirty.
    """
    before, begun, here = read_origin(results), time.perf_counter(), environment()
    places = [before] if results.exists() else []

    def write(runs: int) -> None:
        seconds = 3600 * before.get("hours_of_runs", 0.0) + time.perf_counter() - begun
        write_origin(results, [*places, here], runs, seconds)

    return write
