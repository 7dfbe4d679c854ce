"""One thread a test process: tests run side by side, and results must not depend on the number of threads."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet_global_generator() -> None:
    """Tests that use torch's global generator start from the same state, in any order."""
    torch.manual_seed(0)
