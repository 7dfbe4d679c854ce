"""Sparta: a gate that looks at neighbouring pixels, X ⊙ sigmoid(g_θ(X)). [ours], after arXiv 2105.08269."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations import _core, _gate
from curvact.activations.base import Activation, finite, number
from curvact.activations.curvature import Peak
from curvact.errors import CurvactError, nearest

VARIANTS = ("depthwise", "full", "agnostic")


class Sparta(Activation):
    """X ⊙ sigmoid(g_θ(X)) [ours, after arXiv 2105.08269, whose formula could not be had]: spatially attentive, learned jointly.

    variant "depthwise": g is a depthwise 3×3 convolution, zero padding, no bias; θ is C×1×3×3. It starts with β at the
        centre and 0 elsewhere, so Sparta starts as Swish(β) exactly; β → ∞ is ReLU.
    variant "full": g is a C→C 3×3 convolution; θ is C×C×3×3 and starts with β at the centre of the diagonal: Swish(β) exactly.
        With norm=True batch norm follows, whose weight starts at β (the convolution's at 1): Swish(β) in eval mode, up to
        a factor of 1 − 5e-6 inside the gate; in train mode x·sigmoid(β(x − μ)/s) with the batch's mean and deviation by channel.
    variant "agnostic": g(X) = bX + w ∗ [mean_c X, max_c X], a scalar b and a 2→1 3×3 convolution w of two maps, the same
        for all channels; 19 parameters, which fit any number of channels. It starts at b = β, w = 0: Swish(β) exactly. (The
        attention alone, b = 0, could not: x·sigmoid(β·mean_c X) is Swish only where all channels are equal.)

    Inputs are N×C×H×W, C×H×W, or N×C, which count as images of one pixel: only centre taps act there, and on 1×1 maps. The
    padding makes maps smaller than the kernel no special case. Sequences N×T×C (transformers) are an error.

    channels: C. An architecture gives it; without it "depthwise" and "full" have no parameters yet and cannot be called.
    beta: a finite number. norm: "full" only; each place then needs its own (scope="layer"), for its own statistics.
    learnable: False for a gate that training leaves as it is. centered: accepted and without effect, since Sparta(0) = 0.
    Sparta is no function of one number: it has no slope, curvature or κ, and asking for them is a CurvactError.
    An architecture shares one θ among all places of equal width unless told otherwise, so that θ moves from ResNet-18 to -34.
    Raises CurvactError for a bad argument and for inputs of another number of channels.

    >>> act = Sparta(8, beta=2.0)
    >>> x = torch.randn(1, 8, 5, 5)
    >>> torch.allclose(act(x), x * torch.sigmoid(2 * x)), act.weight.shape
    (True, torch.Size([8, 1, 3, 3]))
    """

    default_scope = "network"
    maps_only = True

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
        if variant not in VARIANTS:
            raise CurvactError(
                f"variant={variant!r} in sparta{nearest(str(variant), VARIANTS)}: allowed are {', '.join(VARIANTS)}"
            )
        if channels is not None and (
            isinstance(channels, bool) or not isinstance(channels, int) or channels < 1
        ):
            raise CurvactError(f"channels={channels!r} in sparta: channels must be a whole number >= 1")
        if not isinstance(norm, bool) or (norm and variant != "full"):
            raise CurvactError(f"norm={norm!r} in sparta: True or False, and True for variant=full only")
        self.variant = variant
        self.start = finite(beta, "beta", "sparta")
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
            index = torch.arange(channels)
            weight[index, index if variant == "full" else 0, 1, 1] = 1.0 if norm else self.start
            self.weight = nn.Parameter(weight)
            if norm:
                self.bn = nn.BatchNorm2d(channels)
                nn.init.constant_(self.bn.weight, self.start)
        self.requires_grad_(learnable)

    def forward(self, x: Tensor) -> Tensor:
        maps, z, parameters = self._parts(x)
        if self.bn is not None:
            return (maps * torch.sigmoid(self.bn(z(maps, *parameters)))).to(x.dtype).view(x.shape)
        if torch.compiler.is_compiling() or _core._transformed() or _forward_mode():
            return _gated(maps, z, parameters).view(x.shape)
        # A full convolution is too dear to be computed again for the backward pass: it is kept.
        if self.variant == "full":
            wide = _core.wide(maps)
            product: Tensor = _Product.apply(wide, z(wide, *parameters))  # type: ignore[no-untyped-call]
            return product.to(x.dtype).view(x.shape)
        out: Tensor = _Gated.apply(maps, z, *parameters)  # type: ignore[no-untyped-call]
        return out.view(x.shape)

    def gate(self, x: Tensor) -> Tensor:
        """sigmoid(g_θ(x)), of the shape of x: what each value is multiplied by."""
        maps, z, parameters = self._parts(x)
        before = z(_core.wide(maps), *parameters)
        gate = torch.sigmoid(before if self.bn is None else self.bn(before))
        return gate.to(x.dtype).view(x.shape)

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
        parts = [f"variant={self.variant}", f"beta={number(self.start)}"]
        parts += ["norm=True"] * self.norm + ["learnable=False"] * (not self.learnable)
        parts += ["centered=True"] * self.centered
        return ", ".join(parts + [f"channels={self.channels}"] * (self.channels is not None))

    def _parts(self, x: Tensor) -> tuple[Tensor, Callable[..., Tensor], tuple[Tensor, ...]]:
        """x as N×C×H×W, g before batch norm as a function of maps and parameters, and its parameters."""
        _core.floating(x)
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


def _forward_mode() -> bool:
    """Whether forward-mode differentiation is on, for which `_Gated` has no rule."""
    level: int = torch.autograd.forward_ad._current_level
    return level >= 0


def _gated(x: Tensor, z: Callable[..., Tensor], parameters: tuple[Tensor, ...]) -> Tensor:
    """x·sigmoid(z(x)) in plain code. Half precision is computed in float32 and rounded once."""
    wide = _core.wide(x)
    return (wide * torch.sigmoid(z(wide, *parameters))).to(x.dtype)


class _Product(torch.autograd.Function):
    """x·sigmoid(z), which keeps x and z."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(x, z)
        return _product(x, z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, z = ctx.saved_tensors
        if torch.is_grad_enabled():  # differentiable itself
            gate = torch.sigmoid(z)
            straight = grad * gate
            return straight, x * straight * (1 - gate)
        return _product_gradients(x, z, grad)


def _product(x: Tensor, z: Tensor) -> Tensor:
    if _in_memory(x):
        out = _gate.product(x, z)
        if out is not None:
            return out
    return x * torch.sigmoid(z)


def _product_gradients(x: Tensor, z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of z for that of x·sigmoid(z), by the native kernel or in as few tensors as can be."""
    if _in_memory(x) and _core._is_memory(grad):
        both = _gate.product_gradients(x, z, grad)
        if both is not None:
            return both
    gate = torch.sigmoid(z)
    straight = _core.wide(grad) * gate
    through = x * straight
    return straight, through.addcmul_(through, gate, value=-1)


class _Gated(torch.autograd.Function):
    """x·sigmoid(z(x, θ)), which keeps x and θ only: the backward pass computes the gate again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
        ctx.z = z
        ctx.save_for_backward(x, *parameters)
        if _native(x, z):
            out = _gate.value(_core.wide(x), parameters[0])
            if out is not None:
                return out.to(x.dtype)
        wide = _core.wide(x)
        return _product(wide, z(wide, *parameters)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
        if torch.is_grad_enabled():
            found = _again(ctx.z, ctx.saved_tensors, needed, grad)
        else:
            found = _cheaply(ctx.z, ctx.saved_tensors, needed, grad)
        return found[0], None, *found[1:]


def _native(x: Tensor, z: Callable[..., Tensor]) -> bool:
    depthwise = isinstance(z, partial) and z.func is _convolution
    return depthwise and _in_memory(x)


def _in_memory(x: Tensor) -> bool:
    return _core._fusion == "auto" and x.device.type == "cpu" and _core._is_memory(x)


def _again(
    z: Callable[..., Tensor], inputs: tuple[Tensor, ...], needed: list[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of x·sigmoid(z(x, θ)), differentiable themselves."""
    with torch.enable_grad():
        out = _gated(inputs[0], z, inputs[1:])
        wanted = [t for t, n in zip(inputs, needed, strict=True) if n]
        found = list(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [found.pop(0) if n else None for n in needed]


def _cheaply(
    z: Callable[..., Tensor], inputs: tuple[Tensor, ...], needed: list[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of x·sigmoid(z(x, θ)), by the native kernels or in as few tensors as can be."""
    if _native(inputs[0], z) and _core._is_memory(grad):
        x, weight = inputs
        both = _gate.gradients(_core.wide(x), weight, grad)
        if both is not None:
            return [
                both[0].to(x.dtype) if needed[0] else None,
                both[1].to(weight.dtype) if needed[1] else None,
            ]
    own = [t.detach().requires_grad_(n) for t, n in zip(inputs, needed, strict=True)]
    with torch.enable_grad():
        wide = _core.wide(own[0])
        before = z(wide, *own[1:])
    with torch.no_grad():
        straight, through = _product_gradients(wide, before, grad)
    wanted = [t for t, n in zip(own, needed, strict=True) if n]
    found = list(torch.autograd.grad(before, wanted, through))
    if needed[0]:
        found[0] = found[0] + straight.to(found[0].dtype)
    return [found.pop(0) if n else None for n in needed]
