"""Engines execute runs side by side. They only move specs to workers and records back."""

from curvact.lab.engines.engine import ENGINES, Engine, Job, engine_named, register_engine

__all__ = ["ENGINES", "Engine", "Job", "engine_named", "register_engine"]
