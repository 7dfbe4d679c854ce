"""A study small enough to run in a second a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": "digits",
    "model": {"name": "mini_resnet", "width": 2, "blocks": 1},
    "factors": {"family": ["rctaf(beta=1)"], "curvature": [1, 6], "epochs": [1], "seed": [0, 1]},
    "training": {"batch_size": 256, "attack": "pgd-1"},
    "evaluation": {"steps": 1},
    "hessian": {"probes": 4, "deflation": 1, "images": 16},
}


@pytest.fixture(scope="session")
def tiny_content() -> dict[str, Any]:
    return TINY


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path
