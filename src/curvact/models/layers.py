"""Parts of every architecture: common arguments, normalization, activations by scope, weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast, get_args

import torch
from torch import Tensor, nn

from curvact.activations import Activation, ActivationLike, as_factory, default_scope, takes_channels
from curvact.activations.registry import made_by
from curvact.errors import CurvactError, nearest
from curvact.names import shortened

Scope = Literal["network", "stage", "layer", "channel"]
Layout = Literal["maps", "vectors", "tokens"]
"""Shape of an activation's inputs: N×C×H×W, N×C or N×T×C."""


class Common(TypedDict, total=False):
    """The arguments that every architecture takes, beside `activation` and its own.

    channels, classes: number of image channels (default 3) and of classes (default 10).
    size: side of the square images in pixels (default 32).
    mean, std: normalization of the images, one number for each channel. It is the first layer of
        the network, so inputs are images in [0, 1]. Default: 0.5 and 0.5.
    scope: which places share one activation module, see `ActivationSource`. Default: the
        activation's own scope.
    generator: source of the initial weights. Default: torch's global generator.
    """

    channels: int
    classes: int
    size: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    scope: Scope | None
    generator: torch.Generator | None


@dataclass(frozen=True)
class Frame:
    """The common arguments after `prepare` has checked them. normalize: the first layer.

    activations: gives each place of the network its activation.
    """

    channels: int
    classes: int
    size: int
    normalize: Normalize
    activations: ActivationSource
    generator: torch.Generator | None

    def initialize(self, model: nn.Module, **options: Any) -> None:
        """Draw the weights of the finished model. options: as in `initialize`."""
        initialize(model, self.generator, activations=self.activations.made, **options)


def prepare(model: str, activation: ActivationLike, common: Common, **sizes: object) -> Frame:
    """Check the common arguments and the sizes of the architecture `model`, and fill in defaults.

    sizes: the architecture's own arguments that must be whole numbers >= 1.
    Raises CurvactError for an unknown or bad argument.

    >>> prepare("vit", "relu", {"classes": 100}, width=192).classes
    100
    """
    for key in common:
        if key not in Common.__annotations__:
            allowed = [*sizes, *Common.__annotations__]
            raise CurvactError(f"{model} has no argument '{key}'{nearest(key, allowed)}")
    channels, classes, size = common.get("channels", 3), common.get("classes", 10), common.get("size", 32)
    source_of_weights = common.get("generator")
    if source_of_weights is not None and not isinstance(source_of_weights, torch.Generator):
        raise CurvactError(f"{model} got generator={shortened(source_of_weights)}: a torch.Generator or None")
    require_sizes(model, channels=channels, classes=classes, size=size, **sizes)
    source = ActivationSource(activation, common.get("scope"))
    normalize = normalization(channels, common.get("mean"), common.get("std"))
    return Frame(channels, classes, size, normalize, source, common.get("generator"))


LARGEST = {"depth": 1000, "blocks": 1000, "heads": 1000}
"""The largest value of a size. Others: `LARGEST_OTHER`."""
LARGEST_OTHER = 2**20


def require_sizes(model: str, **sizes: object) -> None:
    """Raise CurvactError unless every size is a whole number >= 1, and not absurdly large.

    >>> require_sizes("vit", width=0, depth=6)
    Traceback (most recent call last):
        ...
    curvact.errors.CurvactError: vit got width=0, depth=6: each must be a whole number >= 1
    """
    if not all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in sizes.values()):
        got = ", ".join(f"{name}={shortened(value)}" for name, value in sizes.items())
        raise CurvactError(f"{model} got {got}: each must be a whole number >= 1")
    for name, value in sizes.items():
        most = LARGEST.get(name, LARGEST_OTHER)
        if isinstance(value, int) and value > most:
            raise CurvactError(f"{model} got {name}={shortened(value)}: the largest is {most}")


def require_square(model: str, x: Tensor, size: int) -> None:
    """Raise CurvactError unless the images are size×size. For models with layers of that size."""
    if isinstance(x, Tensor) and x.shape[-2:] != (size, size):  # torch.fx passes a proxy
        got = f"{x.shape[-2]}×{x.shape[-1]}"
        raise CurvactError(f"this {model} was built with size={size} and got images of {got} pixels")


def stage(
    block: Callable[..., nn.Module],
    source: ActivationSource,
    number: int,
    inputs: int,
    outputs: int,
    count: int,
    **options: Any,
) -> nn.Sequential:
    """`count` residual blocks: block(inputs, outputs, stride, source, number, **options).

    The first block changes the width and, except in stage 1, halves the size.
    """
    shapes = [(inputs, 1 if number == 1 else 2), *[(outputs, 1)] * (count - 1)]
    return nn.Sequential(*(block(i, outputs, stride, source, number, **options) for i, stride in shapes))


def constants(given: Iterable[float] | str, name: str) -> list[float]:
    """Finite numbers, as a list. Raises CurvactError for anything else.

    >>> constants((0, 1), "mean")
    [0.0, 1.0]
    """
    try:
        numbers = [float(number) for number in given]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if isinstance(given, str) or not all(math.isfinite(number) for number in numbers):
        raise CurvactError(f"{name}={shortened(given)}: finite numbers, one for each channel")
    return numbers


class Normalize(nn.Module):
    """(x − mean)/std for each channel, as a layer: attacks then work on images in [0, 1].

    Takes and returns N×C×H×W. grey: images of one channel become as many channels as there are
    constants. Any other number of channels is a CurvactError.

    >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, grey: bool = False) -> None:
        super().__init__()
        self.grey = grey
        mean, std = constants(mean, "mean"), constants(std, "std")
        if len(mean) != len(std) or any(not s > 0 for s in std):
            raise CurvactError(f"mean={list(mean)}, std={list(std)}: one of each per channel, std > 0")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Broadcasting would accept a grey image in a network for colours. torch.fx passes a proxy,
        # which has no shape.
        channels = len(self.mean)
        allowed = (1, channels) if self.grey else (channels,)
        if isinstance(x, Tensor) and (x.dim() < 3 or x.shape[-3] not in allowed):
            raise CurvactError(
                f"images of shape {tuple(x.shape)} for a network of {channels} channels: give N×{channels}×H×W"
            )
        return (x - self.mean) / self.std


def normalization(channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalize:
    """The first layer of a network. Without mean and std it maps [0, 1] to [−1, 1].

    >>> normalization(1, None, None)(torch.zeros(1, 1, 1, 1)).item()
    -1.0
    """
    usual = [0.5] * channels
    mean = usual if mean is None else constants(mean, "mean") or usual
    std = usual if std is None else constants(std, "std") or usual
    if {len(mean), len(std)} != {channels}:
        raise CurvactError(f"mean={mean}, std={std} for channels={channels}: one of each per channel")
    return Normalize(mean, std)


def check_scope(scope: str) -> Scope:
    """The scope, if it is one. Otherwise CurvactError."""
    if not isinstance(scope, str) or scope not in get_args(Scope):
        raise CurvactError(f"activation scope {shortened(scope)}: allowed are {', '.join(get_args(Scope))}")
    return cast(Scope, scope)


class ActivationSource:
    """Gives each place of a network its activation. made: the modules given so far, each once.

    scope: which places share a module. "network": all. "stage": those of one stage. "layer": none.
        "channel": none, and each channel has learned parameters of its own. None: the scope of the
        activation itself (`default_scope`).
    A factory with an argument `channels` gets the number of channels at the place; only places of
    equal width then share a module. An activation given as a module is shared by all places.

    >>> source = ActivationSource("silu", "stage")
    >>> source(1) is source(1), source(1) is source(2)
    (True, False)
    >>> source = ActivationSource("sparta")
    >>> source(1, 64) is source(2, 64), source(1, 64) is source(2, 128)
    (True, False)
    """

    def __init__(self, activation: ActivationLike, scope: Scope | None = None) -> None:
        self.scope = check_scope(default_scope(activation) if scope is None else scope)
        if self.scope == "channel" and isinstance(activation, nn.Module):
            raise CurvactError("scope 'channel' needs a name or a factory of activations, not one module")
        self.made: list[nn.Module] = []
        self._factory = as_factory(activation)
        self._sized = takes_channels(self._factory)
        self._shared: dict[tuple[int, int | None], nn.Module] = {}

    def __call__(self, stage: int, channels: int | None = None, layout: Layout = "maps") -> nn.Module:
        """The activation for a place. channels: needed by some activations and scopes only."""
        if self.scope in ("layer", "channel"):
            return self._make(channels, layout)
        key = (0 if self.scope == "network" else stage, channels if self._sized else None)
        if key not in self._shared:
            self._shared[key] = self._make(channels, layout)
        return self._shared[key]

    def _make(self, channels: int | None, layout: Layout) -> nn.Module:
        module = made_by(self._factory, **({"channels": channels} if self._sized else {}))
        if isinstance(module, Activation):
            self._check(module, layout)
        if self.scope == "channel":
            if channels is None:
                raise CurvactError(f"scope 'channel' needs the number of channels, at {module}")
            if not isinstance(module, Activation):
                raise CurvactError(f"scope 'channel' needs a subclass of curvact's Activation, at {module}")
            module.per_channel_(channels, maps=layout == "maps")
        if not any(module is made for made in self.made):
            self.made.append(module)
        return module

    def _check(self, module: Activation, layout: Layout) -> None:
        if module.maps_only and layout == "tokens":
            raise CurvactError(
                f"{module.name} needs neighbouring pixels, and this network has a sequence of tokens: "
                "choose a convolutional network or another activation"
            )
        if not module.shareable and self.scope in ("network", "stage"):
            raise CurvactError(
                f"{module.name} keeps statistics of its place and cannot be shared: "
                f"use scope='layer', not {self.scope!r}"
            )


class Dropout(nn.Module):
    """In training, sets each entry to 0 with probability `rate` and divides the rest by 1 − rate.

    Any shape. The masks come from a generator of the layer itself. Its seed is drawn by
    `initialize`. Inside `torch.compile`, which supports no generators, they come from torch's
    global one.

    >>> layer = Dropout(0.5)
    >>> sorted(set(layer(torch.ones(99)).tolist())), layer.eval()(torch.ones(1)).item()
    ([0.0, 2.0], 1.0)
    """

    def __init__(self, rate: float, seed: int = 0) -> None:
        super().__init__()
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise CurvactError(f"dropout={shortened(rate)}: must be a number in [0, 1)")
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
        """The generator of the masks. Training saves it with its own state."""
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
    """Draw all weights: He-normal convolutions, uniform ±1/√fan-in linear layers, norms at 1 and 0.

    generator: None means torch's global generator. activations: modules that keep their values.
    fan: of the convolutions. "fan_in" keeps the scale of the forward pass without batch norm.
    lecun: convolutions and linear layers get normal weights of variance 1/fan-in and biases 0.
    A model on the device "meta" has no weights to draw.
    """
    if any(p.is_meta for p in model.parameters()):
        return
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
