"""The harness as the module `harness`, and what it measured at the end of the session."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

if "harness" not in sys.modules:
    spec = importlib.util.spec_from_file_location("harness", Path(__file__).with_name("harness.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules["harness"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["harness"])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    notes = sys.modules["harness"].NOTES
    if notes:
        terminalreporter.section("soak")
    for fact, values in sorted(notes.items()):
        times = fact.endswith(", s")
        more = f", at most {max(values):.2f}, mean {sum(values) / len(values):.2f}" if times else ""
        terminalreporter.line(f"{fact}: {len(values) if times else sum(values):g}{more}")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> Any:
    """Random moments, from CURVACT_SOAK_SEED and the name of the test."""
    import random

    return random.Random(f"{sys.modules['harness'].SEED} {request.node.name}")
