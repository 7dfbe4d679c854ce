"""The table of architectures, and building a model by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from curvact.errors import CurvactError, nearest
from curvact.models.layers import Common
from curvact.models.mini_resnet import MiniResNet
from curvact.models.mlp import MLP
from curvact.models.named import builder_of, named_network, takes_any
from curvact.models.preact_resnet import PreActResNet
from curvact.models.resnet import ResNet
from curvact.models.small_cnn import SmallCNN
from curvact.models.vgg import VGG
from curvact.models.vit import ViT
from curvact.models.wide_resnet import WideResNet
from curvact.names import shortened


class _Models(dict[str, Callable[..., nn.Module]]):
    """Builders by name; it knows the names of `named_network` too."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and named_network(name) is not None)

    def __missing__(self, name: str) -> Callable[..., nn.Module]:
        found = named_network(name)
        if found is None:
            raise KeyError(name)
        return found


MODELS: dict[str, Callable[..., nn.Module]] = _Models(
    {
        "mlp": MLP,
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
)
"""Builders by name. An argument that a `partial` fixes belongs to the name: `build` refuses it.

`FILE.py:NAME`, `timm:NAME` and `hf:NAME` are names too, see `named_network`.
"""

_OURS = tuple(MODELS.values())

COMMON = ("activation", *Common.__annotations__)
"""The arguments that every model takes."""


def register_model(name: str, builder: Callable[..., nn.Module]) -> None:
    """Add an architecture, so that `build`, checkpoints and configs know it by its name.

    builder: a class or function that returns a module from N×channels×size×size images in [0, 1] to
    N×classes logits. If it takes the arguments in `COMMON`, for example as
    `(activation="relu", *, width=8, **common)`, it gets them; `curvact.models.layers.prepare`
    checks them. Any other class of networks gets what it has, as `named_network` describes: its
    activations are swapped, and a normalization goes before it.
    Raises CurvactError for a name that is taken.

    >>> class Linear(nn.Sequential):
    ...     def __init__(self, activation="relu", *, channels=3, classes=10, size=32, **common):
    ...         super().__init__(nn.Flatten(), nn.Linear(channels * size**2, classes))
    >>> register_model("linear", Linear)
    >>> build("linear", channels=1, size=8)[1]
    Linear(in_features=64, out_features=10, bias=True)
    >>> del MODELS["linear"]
    """
    if not isinstance(name, str) or not name.strip():
        raise CurvactError(f"name={shortened(name)} of an architecture: give a word")
    if name in MODELS:
        raise CurvactError(f"a model named '{name}' exists: choose another name")
    if not callable(builder) or isinstance(builder, nn.Module):
        raise CurvactError(
            f"the builder of '{name}' is {shortened(builder)}: give a class or a function that makes a module"
        )
    parameters = inspect.signature(builder).parameters
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not any_keyword and any(key not in parameters for key in COMMON):
        builder = builder_of(name, builder)
    MODELS[name] = builder


def build(name: str, **arguments: Any) -> nn.Module:
    """A model by name, from N×channels×size×size images in [0, 1] to N×classes logits.

    arguments: `activation`, those of `curvact.models.layers.Common`, and the model's own ones
    (`arguments_of`). Raises CurvactError for an unknown name or argument and for a bad value.

    >>> type(build("mini_resnet", activation="silu", channels=1)).__name__
    'MiniResNet'
    """
    allowed = [*COMMON, *arguments_of(name)]
    for key in arguments:
        if key not in allowed and not takes_any(MODELS[name]):
            raise CurvactError(
                f"{name} has no argument '{key}'{nearest(key, allowed)}; allowed are {', '.join(allowed)}"
            )
    model: object = MODELS[name](**arguments)
    if not isinstance(model, nn.Module):
        raise CurvactError(
            f"the builder of '{name}' made a {type(model).__name__}: it must make an nn.Module"
        )
    return model


def is_known(name: object) -> bool:
    """Whether an architecture has this name."""
    return isinstance(name, str) and name in MODELS


def skeleton(arguments: Mapping[str, Any]) -> nn.Module | None:
    """The model that `build(**arguments)` makes, without weights (on the device "meta"), in no time.

    None where the code of others cannot do without weights. Draws no random numbers. Raises
    CurvactError as `build` does.

    >>> skeleton({"name": "resnet18", "width": 4096}).conv1.weight.device
    device(type='meta')
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return build(**{**arguments, "generator": torch.Generator(device="cpu")})
    except Exception:
        name = arguments.get("name")
        if not is_known(name) or MODELS[str(name)] in _OURS:
            raise
        return None


def arguments_of(name: str) -> dict[str, Any]:
    """The arguments that this model has beside the common ones, with their defaults.

    >>> arguments_of("resnet18")
    {'width': 64, 'stem': None}
    """
    if not is_known(name):
        near = nearest(name, MODELS) if isinstance(name, str) else ""
        raise CurvactError(f"unknown model {shortened(name)}{near}; known are {', '.join(MODELS)}")
    builder = MODELS[name]
    fixed = builder.keywords if isinstance(builder, partial) else {}
    return {
        key: parameter.default
        for key, parameter in inspect.signature(builder).parameters.items()
        if key not in COMMON and key not in fixed and parameter.kind is not parameter.VAR_KEYWORD
    }


def takes_any_argument(name: str) -> bool:
    """Whether the model takes more arguments than `arguments_of` says: one of a library."""
    return takes_any(MODELS[name])
