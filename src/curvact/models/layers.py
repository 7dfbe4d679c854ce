"""What every architecture shares: normalization as a layer, activations by sharing scope, weights from a generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from curvact.activations import ActivationLike, as_factory
from curvact.errors import CurvactError

Scope = Literal["network", "stage", "layer"]
ActivationSource = Callable[[int], nn.Module]


class Normalize(nn.Module):
    """(x − mean)/std per channel: part of the model, so that attacks work on inputs in [0, 1]. N×C×H×W in and out.

    >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or any(not s > 0 for s in std):
            raise CurvactError(f"mean={list(mean)}, std={list(std)}: one of each per channel, std > 0")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def activation_source(activation: ActivationLike, scope: Scope) -> ActivationSource:
    """A function from the stage number to the activation to use there.

    scope: "network" (one module for all), "stage" (one a stage) or "layer" (a new one at every place). A module given as the
    activation is one object, so every place shares it whatever the scope.

    >>> source = activation_source("silu", "stage")
    >>> source(1) is source(1), source(1) is source(2)
    (True, False)
    """
    if scope not in get_args(Scope):
        raise CurvactError(f"activation scope {scope!r}: allowed are {', '.join(get_args(Scope))}")
    factory = as_factory(activation)
    if scope == "layer":
        return lambda stage: factory()
    made: dict[int, nn.Module] = {}

    def source(stage: int) -> nn.Module:
        key = 0 if scope == "network" else stage
        if key not in made:
            made[key] = factory()
        return made[key]

    return source


@torch.no_grad()
def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Weights from the generator: He-normal (fan out) convolutions, uniform ±1/√fan-in linear layers, batch norm at 1 and 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
