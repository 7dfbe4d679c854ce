"""Architectures that take an activation: by name, from one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from curvact.errors import CurvactError, nearest
from curvact.models.layers import Normalize, Scope, activation_source, initialize
from curvact.models.mini_resnet import MiniResNet

MODELS: dict[str, Callable[..., nn.Module]] = {"mini_resnet": MiniResNet}


def build(name: str, **arguments: Any) -> nn.Module:
    """A model by name. An unknown name is a CurvactError.

    >>> type(build("mini_resnet", activation="silu", channels=1)).__name__
    'MiniResNet'
    """
    if name not in MODELS:
        raise CurvactError(f"unknown model '{name}'{nearest(name, MODELS)}; known are {', '.join(MODELS)}")
    return MODELS[name](**arguments)


__all__ = ["MODELS", "MiniResNet", "Normalize", "Scope", "activation_source", "build", "initialize"]
