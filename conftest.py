"""For tests and doctests alike: one thread, and nothing that one of them leaves behind reaches
another.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from curvact.activations import registry

torch.set_num_threads(1)
# How long an example takes on a busy machine says nothing.
settings.register_profile("curvact", deadline=None)
settings.load_profile("curvact")


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """torch's global generator starts from the same state, and names registered inside are
    forgotten, in any order of tests.
    """
    torch.manual_seed(0)
    before = dict(registry._REGISTRY)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)
