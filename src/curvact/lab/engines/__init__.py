"""Engines execute runs side by side. They only move specs to workers and records back."""

from curvact.lab.engines.engine import (
    ENGINES,
    Engine,
    engine_from,
    register_engine,
    room_of,
    runs_elsewhere,
)
from curvact.lab.engines.job import Job, run_job

__all__ = [
    "ENGINES",
    "Engine",
    "Job",
    "engine_from",
    "register_engine",
    "room_of",
    "run_job",
    "runs_elsewhere",
]
