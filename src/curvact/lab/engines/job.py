"""The unit that engines move: a run and its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curvact.lab.spec import RunSpec


@dataclass(frozen=True)
class Job:
    """A run and its folder."""

    spec: RunSpec
    folder: Path
