"""Every architecture in its smallest size."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from curvact.models import build
from curvact.random import generator

TINY: dict[str, dict[str, Any]] = {
    "mlp": {"width": 5},
    "mini_resnet": {"width": 2},
    "small_cnn": {"width": 2, "hidden": 7},
    "resnet18": {"width": 2},
    "resnet34": {"width": 2},
    "preact_resnet18": {"width": 2},
    "wide_resnet": {"depth": 10, "widen_factor": 1},
    "wrn-28-10": {"widen_factor": 1},
    "wrn-34-10": {"widen_factor": 1},
    "vgg16_bn": {"width": 2},
    "vit": {"width": 6, "depth": 2, "heads": 2},
}


class Tiny:
    """Builds the smallest model of a name. sizes: its arguments for that."""

    sizes = TINY

    def __call__(self, name: str, activation: Any = "rctaf(curvature=6, beta=1)", **more: Any) -> nn.Module:
        arguments = {"classes": 5, "size": 8, "generator": generator(0, "initialization"), **TINY[name]}
        return build(name, activation=activation, **{**arguments, **more})


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()
