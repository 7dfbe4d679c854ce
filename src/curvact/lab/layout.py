"""The names of the files in a run's folder. Light: commands that only list runs need no torch."""

from __future__ import annotations

from typing import Final

SPEC_FILE = "spec.yaml"
RECORD_FILE = "record.json"
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "state.safetensors"
STATE_BEFORE_FILE = "state.previous.safetensors"
"""The state before the last one, which `curvact.training.state` keeps."""
ENVIRONMENT_FILE = "environment.json"
ACTIVATION_FILE = "activation.safetensors"
"""A run that starts with a learned activation keeps a copy of it under this name."""

CODE_FOLDER = "code"
"""Copies of the files of Python that a run or a sweep imports."""

SLURM_FOLDER = "slurm"
"""What the slurm engine keeps in a sweep's folder: the jobs of the runs, and the logs of their tasks."""

RUNS = "runs"
"""The folder of the runs in a sweep's or a search's folder."""

LISTED_FILE = ".store.json"
"""In the local copy of a store's folder, and there: the list of its files, see `curvact.lab.remote`."""

WANDB_FILE = "wandb-id.txt"
"""The id of a run in Weights & Biases. It moves with the folder."""

LOCK_FILE = ".lock"
INDEX_FILE = ".runs.sqlite"
"""The index of the runs below a folder: `curvact.lab.stored`."""

RECORD_SCHEMA: Final = 4
"""The `schema_version` of records."""
