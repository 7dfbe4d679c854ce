"""Architectures that take an activation: by name, from one table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from curvact.errors import CurvactError, nearest
from curvact.models.layers import Normalize, Scope, activation_source, initialize
from curvact.models.mini_resnet import MiniResNet
from curvact.models.resnet import PreActResNet, ResNet
from curvact.models.small_cnn import SmallCNN
from curvact.models.vgg import VGG
from curvact.models.vit import ViT
from curvact.models.wide_resnet import WideResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mini_resnet": MiniResNet,
    "small_cnn": SmallCNN,
    "resnet18": partial(ResNet, depth=18),
    "resnet34": partial(ResNet, depth=34),
    "preact_resnet18": PreActResNet,
    "wide_resnet": WideResNet,
    "wrn-28-10": partial(WideResNet, depth=28),
    "wrn-34-10": partial(WideResNet, depth=34),
    "vgg16_bn": VGG,
    "vit": ViT,
}
"""Builders by name. What a `partial` binds belongs to the name and is no argument of it."""

_COMMON = ("activation", "channels", "classes", "size", "mean", "std", "scope", "generator")


def build(name: str, **arguments: Any) -> nn.Module:
    """A model by name. An unknown name or argument, or a bad value, is a CurvactError.

    Every model takes activation, channels, classes, size (side of the square images), mean, std, scope and generator, and
    its own arguments (`arguments_of`); it maps N×channels×size×size images in [0, 1] to N×classes logits.

    >>> type(build("mini_resnet", activation="silu", channels=1)).__name__
    'MiniResNet'
    """
    allowed = [*_COMMON, *arguments_of(name)]
    for key in arguments:
        if key not in allowed:
            raise CurvactError(
                f"{name} has no argument '{key}'{nearest(key, allowed)}; allowed are {', '.join(allowed)}"
            )
    return MODELS[name](**arguments)


def arguments_of(name: str) -> dict[str, Any]:
    """The arguments of one model's own, such as its width, with their defaults: those that not every model has.

    >>> arguments_of("resnet18")
    {'width': 64, 'stem': None}
    """
    if name not in MODELS:
        raise CurvactError(f"unknown model '{name}'{nearest(name, MODELS)}; known are {', '.join(MODELS)}")
    builder = MODELS[name]
    fixed = builder.keywords if isinstance(builder, partial) else {}
    return {
        key: parameter.default
        for key, parameter in inspect.signature(builder).parameters.items()
        if key not in _COMMON and key not in fixed
    }


__all__ = [
    "MODELS",
    "VGG",
    "MiniResNet",
    "Normalize",
    "PreActResNet",
    "ResNet",
    "Scope",
    "SmallCNN",
    "ViT",
    "WideResNet",
    "activation_source",
    "arguments_of",
    "build",
    "initialize",
]
