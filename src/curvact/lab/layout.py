"""The names of the files in a run's folder. Light: commands that only list runs need no torch."""

from __future__ import annotations

from typing import Final

SPEC_FILE = "spec.yaml"
RECORD_FILE = "record.json"
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "state.safetensors"
ENVIRONMENT_FILE = "environment.json"
ACTIVATION_FILE = "activation.safetensors"
"""A run that starts with a learned activation keeps a copy of it under this name."""

LOCK_FILE = ".lock"
INDEX_FILE = ".runs.sqlite"
"""The index of the runs below a folder: `curvact.lab.stored`."""

RECORD_SCHEMA: Final = 4
"""The `schema_version` of records."""
