"""Where results come from: a JSON beside each csv."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from curvact.files import atomic_write

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
