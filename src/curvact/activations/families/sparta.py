"""Sparta: a gate of neighbouring pixels, X ⊙ sigmoid(g_θ(X)). [ours], after arXiv 2105.08269."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations.arguments import finite, trainable, written
from curvact.activations.base import Activation
from curvact.activations.curvature import Peak
from curvact.activations.kernels.shape import floating, wide
from curvact.errors import CurvactError, nearest
from curvact.names import shortened

MOST_KERNELS = 2**24
"""Kernels of one gate, 3×3 each: 600 MB."""

VARIANTS = ("depthwise", "full", "agnostic")


class Sparta(Activation):
    """X ⊙ sigmoid(g_θ(X)), a spatially attentive, learned gate. [ours, after arXiv 2105.08269]

    The formula of the paper was not available. Without batch norm Sparta starts as Swish(β)
    exactly; β → ∞ is ReLU.

    variant "depthwise": g is a depthwise 3×3 convolution with zero padding and no bias. θ is
        C×1×3×3 and starts with β at the centre and 0 elsewhere.
    variant "full": g is a C→C 3×3 convolution. θ is C×C×3×3 and starts with β at the centre of the
        diagonal. With norm=True batch norm follows. Its weight starts at β, the convolution's at 1.
        In eval mode this is Swish(β), up to a factor of 1 − 5e-6 inside the gate; in train mode
        x·sigmoid(β(x − μ)/s) with the batch's mean and deviation by channel.
    variant "agnostic": g(X) = bX + w ∗ [mean_c X, max_c X], with a scalar b, which starts at β, and
        a 2→1 3×3 convolution w, which starts at 0. All channels share it: 19 parameters fit any
        number of channels. The term bX is needed because x·sigmoid(β·mean_c X) is Swish only if all
        channels are equal.

    Inputs are N×C×H×W, C×H×W or N×C. N×C counts as images of one pixel: only the centre taps act.
    Maps smaller than the kernel are padded with zeros. Sequences N×T×C (transformers) are an error.

    channels: C. An architecture gives it; without it "depthwise" and "full" have no parameters yet
        and cannot be called.
    beta: a finite number. norm: "full" only; each place then keeps statistics of its own and needs
        scope="layer".
    learnable: False for a gate that training does not change. centered: accepted and without
        effect, since Sparta(0) = 0.
    Sparta is no function of one number: its slope, curvature and κ are a CurvactError.
    By default an architecture shares one θ among all places of equal width, so that θ moves from
    ResNet-18 to ResNet-34.
    Raises CurvactError for a bad argument and for inputs of another number of channels.

    >>> act = Sparta(8, beta=2.0)
    >>> x = torch.randn(1, 8, 5, 5)
    >>> torch.allclose(act(x), x * torch.sigmoid(2 * x)), act.weight.shape
    (True, torch.Size([8, 1, 3, 3]))
    """

    default_scope = "network"
    maps_only = True
    learned_by_default = True

    def __init__(
        self,
        channels: int | None = None,
        *,
        variant: str = "depthwise",
        beta: float = 1.0,
        norm: bool = False,
        learnable: bool = True,
        centered: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(variant, str) or variant not in VARIANTS:
            raise CurvactError(
                f"variant={shortened(variant)} in sparta{nearest(str(variant), VARIANTS)}: allowed are {', '.join(VARIANTS)}"
            )
        if channels is not None and (
            isinstance(channels, bool) or not isinstance(channels, int) or channels < 1
        ):
            raise CurvactError(
                f"channels={shortened(channels)} in sparta: channels must be a whole number >= 1"
            )
        if not isinstance(norm, bool) or (norm and variant != "full"):
            raise CurvactError(
                f"norm={shortened(norm)} in sparta: True or False, and True for variant=full only"
            )
        count = channels or 0
        if count * (count if variant == "full" else 1) > MOST_KERNELS:
            raise CurvactError(
                f"channels={channels!r} in sparta: at most {math.isqrt(MOST_KERNELS) if variant == 'full' else MOST_KERNELS} "
                f"for variant={variant}"
            )
        self.variant = variant
        self.start = finite(beta, "beta", "sparta")
        trainable(self.start, "beta", "sparta", finite)
        self.norm = norm
        self.learnable = learnable
        self.centered = centered
        self.any_channels = variant == "agnostic"
        self.channels = None if self.any_channels else channels
        if norm:
            self.default_scope, self.shareable = "layer", False
        self.beta: nn.Parameter | None = None
        self.weight: nn.Parameter | None = None
        self.bn: nn.BatchNorm2d | None = None
        if variant == "agnostic":
            self.beta = nn.Parameter(torch.tensor(self.start))
            self.weight = nn.Parameter(torch.zeros(1, 2, 3, 3))
        elif channels is not None:
            weight = torch.zeros(channels, channels if variant == "full" else 1, 3, 3)
            if not weight.is_meta:
                index = torch.arange(channels)
                weight[index, index if variant == "full" else 0, 1, 1] = 1.0 if norm else self.start
            self.weight = nn.Parameter(weight)
            if norm:
                self.bn = nn.BatchNorm2d(channels)
                nn.init.constant_(self.bn.weight, self.start)
        self.requires_grad_(learnable)

    def forward(self, x: Tensor) -> Tensor:
        return (wide(x) * self._gate(x)).to(x.dtype)

    def gate(self, x: Tensor) -> Tensor:
        """sigmoid(g_θ(x)), of the shape and dtype of x: the factor of each value."""
        return self._gate(x).to(x.dtype)

    def _gate(self, x: Tensor) -> Tensor:
        """The gate; of half precision, in float32."""
        maps, before, parameters = self._parts(x)
        z = before(wide(maps), *parameters)
        if self.bn is not None:
            z = self.bn(z.to(self.bn.weight.dtype)).to(z.dtype)
        return torch.sigmoid(z).view(x.shape)

    def __dir__(self) -> list[str]:
        # torch.jit asks for every attribute of this list.
        return [name for name in super().__dir__() if name != "max_curvature"]  # type: ignore[no-untyped-call]

    def slope(self, x: Tensor) -> Tensor:
        raise CurvactError(f"{self.name} has no slope: {_WHY}")

    def curvature(self, x: Tensor) -> Tensor:
        raise CurvactError(f"{self.name} has no curvature: {_WHY}")

    @property
    def max_curvature(self) -> Peak:
        raise CurvactError(f"{self.name} has no κ: {_WHY}")

    def per_channel_(self, channels: int, *, maps: bool = True) -> None:
        raise CurvactError(
            f"scope 'channel' is for scalar parameters, and those of {self.name} are not: use scope='layer'"
        )

    def extra_repr(self) -> str:
        parts = [f"variant={self.variant}", f"beta={written(self.start)}"]
        parts += ["norm=True"] * self.norm + ["learnable=False"] * (not self.learnable)
        parts += ["centered=True"] * self.centered
        return ", ".join(parts + [f"channels={self.channels}"] * (self.channels is not None))

    def _parts(self, x: Tensor) -> tuple[Tensor, Callable[..., Tensor], tuple[Tensor, ...]]:
        """x as N×C×H×W, the function g without batch norm, and the parameters of g."""
        floating(x)
        if self.weight is None:
            raise CurvactError(
                f"{self.name} does not know its number of channels: write it, such as sparta(channels=64), or give the name "
                "to one of curvact's architectures"
            )
        if x.dim() not in (2, 3, 4):
            raise CurvactError(f"{self.name} got a tensor of shape {tuple(x.shape)}: {_SHAPES}")
        maps = x[:, :, None, None] if x.dim() == 2 else x[None] if x.dim() == 3 else x
        if self.channels is not None and maps.shape[1] != self.channels:
            raise CurvactError(
                f"{self.name} got {maps.shape[1]} channels, in a tensor of shape {tuple(x.shape)}: {_SHAPES}"
            )
        if self.beta is not None:
            return maps, _attention, (self.beta, self.weight)
        return (
            maps,
            partial(_convolution, groups=1 if self.variant == "full" else maps.shape[1]),
            (self.weight,),
        )


_WHY = "its gate depends on neighbouring pixels, so it is no function of one number"
_SHAPES = "it takes N×C×H×W, C×H×W or N×C with its own C"


def _convolution(x: Tensor, weight: Tensor, *, groups: int) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype), padding=1, groups=groups)


def _attention(x: Tensor, beta: Tensor, weight: Tensor) -> Tensor:
    seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return beta * x + F.conv2d(seen, weight.to(x.dtype), padding=1)
