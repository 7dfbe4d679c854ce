"""What every architecture shares: normalization as a layer, activations by sharing scope, weights from a generator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from curvact.activations import Activation, ActivationLike, as_factory, default_scope, takes_channels
from curvact.errors import CurvactError

Scope = Literal["network", "stage", "layer", "channel"]
Layout = Literal["maps", "vectors", "tokens"]
"""What an activation gets: N×C×H×W, N×C or N×T×C."""


def require_sizes(model: str, **sizes: object) -> None:
    """Raise CurvactError unless every size is a whole number >= 1.

    >>> require_sizes("vit", width=0, depth=6)
    Traceback (most recent call last):
        ...
    curvact.errors.CurvactError: vit got width=0, depth=6: each must be a whole number >= 1
    """
    if not all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in sizes.values()):
        got = ", ".join(f"{name}={value!r}" for name, value in sizes.items())
        raise CurvactError(f"{model} got {got}: each must be a whole number >= 1")


def require_square(model: str, x: Tensor, size: int) -> None:
    """Raise CurvactError unless the images of a batch are size×size: for models whose last layers depend on it."""
    if x.shape[-2:] != (size, size):
        raise CurvactError(
            f"this {model} was built with size={size} and got images of {x.shape[-2]}×{x.shape[-1]} pixels"
        )


class Normalize(nn.Module):
    """(x − mean)/std per channel: part of the model, so that attacks work on inputs in [0, 1]. N×C×H×W in and out.

    grey: images of one channel become as many as there are constants; otherwise another number of channels is a CurvactError.

    >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, grey: bool = False) -> None:
        super().__init__()
        self.grey = grey
        if len(mean) != len(std) or any(not s > 0 for s in std):
            raise CurvactError(f"mean={list(mean)}, std={list(std)}: one of each per channel, std > 0")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Broadcasting would run a grey image through a network for colours. A proxy of torch.fx has no shape to look at.
        if isinstance(x, Tensor) and (
            x.dim() < 3 or x.shape[-3] not in ((1, len(self.mean)) if self.grey else (len(self.mean),))
        ):
            raise CurvactError(
                f"images of shape {tuple(x.shape)} for a network of {len(self.mean)} channels: give N×{len(self.mean)}×H×W"
            )
        return (x - self.mean) / self.std


def normalization(channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalize:
    """The first layer of a model for so many channels; without mean and std it maps [0, 1] to [−1, 1].

    >>> normalization(1, None, None)(torch.zeros(1, 1, 1, 1)).item()
    -1.0
    """
    mean, std = list(mean or [0.5] * channels), list(std or [0.5] * channels)
    if {len(mean), len(std)} != {channels}:
        raise CurvactError(f"mean={mean}, std={std} for channels={channels}: one of each per channel")
    return Normalize(mean, std)


class ActivationSource:
    """From a place in a network to the activation to use there. `made`: all that it has given out, each once.

    scope: as in `activation_source`, resolved.
    """

    def __init__(self, activation: ActivationLike, scope: Scope | None = None) -> None:
        chosen = default_scope(activation) if scope is None else scope
        if chosen not in get_args(Scope):
            raise CurvactError(f"activation scope {chosen!r}: allowed are {', '.join(get_args(Scope))}")
        if chosen == "channel" and isinstance(activation, nn.Module):
            raise CurvactError("scope 'channel' needs a name or a factory of activations, not one module")
        self.scope = cast(Scope, chosen)
        self.made: list[nn.Module] = []
        self._factory = as_factory(activation)
        self._sized = takes_channels(self._factory)
        self._shared: dict[tuple[int, int | None], nn.Module] = {}

    def __call__(self, stage: int, channels: int | None = None, layout: Layout = "maps") -> nn.Module:
        """The activation for a place of that stage, with so many channels (only some activations and scopes need them)."""
        if self.scope in ("layer", "channel"):
            return self._make(channels, layout)
        key = (0 if self.scope == "network" else stage, channels if self._sized else None)
        if key not in self._shared:
            self._shared[key] = self._make(channels, layout)
        return self._shared[key]

    def _make(self, channels: int | None, layout: Layout) -> nn.Module:
        module: object = self._factory(channels=channels) if self._sized else self._factory()
        if not isinstance(module, nn.Module):
            raise CurvactError(f"the activation's factory made {module!r}: it must make an nn.Module")
        if isinstance(module, Activation):
            self._check(module, layout)
        if self.scope == "channel":
            if not isinstance(module, Activation) or channels is None:
                lack = (
                    "needs an Activation of curvact's or of yours"
                    if channels
                    else "needs the number of channels"
                )
                raise CurvactError(f"scope 'channel' {lack}, at {module}")
            module.per_channel_(channels, maps=layout == "maps")
        if not any(module is made for made in self.made):
            self.made.append(module)
        return module

    def _check(self, module: Activation, layout: Layout) -> None:
        if module.maps_only and layout == "tokens":
            raise CurvactError(
                f"{module.name} gates by neighbouring pixels, and this network has a sequence of tokens: choose a convolutional "
                "network, or another activation"
            )
        if not module.shareable and self.scope in ("network", "stage"):
            raise CurvactError(
                f"{module.name} keeps the statistics of its place and cannot be shared: use scope='layer' not {self.scope!r}"
            )


def activation_source(activation: ActivationLike, scope: Scope | None = None) -> ActivationSource:
    """A function from the stage number (and channels and layout) of a place to the activation to use there.

    scope: "network" (one module for all), "stage" (one a stage), "layer" (a new one at every place) or "channel" (that, with
    learned parameters for each channel); None: the activation's own, see `default_scope`. A factory that takes `channels`
    is called with their number, and what it makes is shared among places of equal width only. A module given as the activation is
    one object, so every place shares it whatever the scope.

    >>> source = activation_source("silu", "stage")
    >>> source(1) is source(1), source(1) is source(2)
    (True, False)
    >>> source = activation_source("sparta")
    >>> source(1, 64) is source(2, 64), source(1, 64) is source(2, 128)
    (True, False)
    """
    return ActivationSource(activation, scope)


class Dropout(nn.Module):
    """While training, each entry is 0 with probability `rate` and divided by 1 − rate otherwise. The mean is kept. Any shape.

    The masks come from a generator of its own, seeded by `seed`, which `initialize` draws: torch's global state is not
    touched. Inside `torch.compile`, which takes no generators, they do come from the global one.

    >>> layer = Dropout(0.5)
    >>> sorted(set(layer(torch.ones(99)).tolist())), layer.eval()(torch.ones(1)).item()
    ([0.0, 2.0], 1.0)
    """

    def __init__(self, rate: float, seed: int = 0) -> None:
        super().__init__()
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise CurvactError(f"dropout={rate!r}: must be a number in [0, 1)")
        self.rate = rate
        self.seed = seed
        self._masks: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        if torch.compiler.is_compiling():
            return nn.functional.dropout(x, self.rate)
        kept = torch.rand(x.shape, generator=self.masks(x.device), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)

    def masks(self, device: torch.device) -> torch.Generator:
        """The generator of the masks, which training keeps with its state."""
        if self._masks is None or self._masks.device != device:
            self._masks = torch.Generator(device=device).manual_seed(self.seed)
        return self._masks

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


@torch.no_grad()
def initialize(
    model: nn.Module,
    generator: torch.Generator | None,
    *,
    activations: Iterable[nn.Module] = (),
    fan: Literal["fan_in", "fan_out"] = "fan_out",
    lecun: bool = False,
) -> None:
    """Weights from the generator: He-normal convolutions, uniform ±1/√fan-in linear layers, norms at 1 and 0.

    generator: None is torch's global one. activations: modules left as they are; they bring their own parameters.
    fan: of the convolutions; "fan_in" keeps the scale of the forward pass where there is no batch norm.
    lecun: all convolutions and linear layers have normal weights of variance 1/fan-in instead, and biases of 0.
    """
    if generator is None:
        generator = torch.default_generator
    left = {id(module) for activation in activations for module in activation.modules()}
    for module in model.modules():
        if id(module) in left:
            continue
        if isinstance(module, (nn.Conv2d, nn.Linear)) and lecun:
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.reset_parameters()
    for module in model.modules():
        if isinstance(module, Dropout) and module.rate:
            module.seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
