"""Small data and models for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from curvact.data import Splits, load
from curvact.models import build
from curvact.random import generator


@pytest.fixture(scope="session")
def digits() -> Callable[[int], Splits]:
    """digits(n): n images of 8×8 in the training split, and at most 20 in the others."""
    return lambda count: load("digits", train=count, validation=min(count, 20), test=10)


@pytest.fixture(scope="session")
def small_model() -> Callable[..., nn.Module]:
    """small_model(activation): a ResNet with batch norm for digits, the same at each call."""

    def make(activation: str = "silu", **more: Any) -> nn.Module:
        arguments = {"activation": activation, "channels": 1, "width": 2, **more}
        return build("mini_resnet", **arguments, generator=generator(0, "initialization"))

    return make
