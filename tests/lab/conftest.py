"""Runs and sweeps small enough for a second each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from curvact.lab.settings import check_settings
from curvact.lab.spec import RunSpec

BASE: dict[str, Any] = {
    "data": {"name": "digits", "train": 100, "validation": 40, "test": 40},
    "model": {"name": "mini_resnet", "width": 2, "blocks": 1},
    "threat_model": {"norm": "linf", "epsilon": 0.2},
    "training": {
        "objective": "pgd-at(batch_norm=eval)",
        "epochs": 1,
        "batch_size": 20,
        "attack": "pgd(steps=1, step=0.4)",
    },
    "evaluation": {"attack": "pgd(steps=2, step=0.2)", "train_images": 40},
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "base": {**BASE, "activation": "rctaf(beta=1)", "hessian": {"probes": 4, "deflation": 1, "images": 16}},
    "grid": {"curvature": [1, 6], "seed": [0, 1]},
}


@pytest.fixture
def run_spec():  # type: ignore[no-untyped-def]
    """A small run with some settings changed: `run_spec(training={...}, seed=1)`."""

    def make(**changes: Any) -> RunSpec:
        content = {**BASE, "activation": "silu", **changes}
        content["training"] = {**BASE["training"], **changes.get("training", {})}
        return check_settings(RunSpec, content, "run")

    return make


@pytest.fixture
def sweep_spec():  # type: ignore[no-untyped-def]
    """A small sweep with some keys changed, its base merged: `sweep_spec(base={...}, grid={...})`."""

    from curvact.lab.sweep import SweepSpec

    def make(**changes: Any) -> SweepSpec:
        content = {**TINY, **changes, "base": {**TINY["base"], **changes.get("base", {})}}
        return check_settings(SweepSpec, content, "sweep")

    return make


@pytest.fixture(scope="session")
def tiny_content() -> dict[str, Any]:
    return TINY


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path
