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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


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
