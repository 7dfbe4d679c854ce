"""What an activation is: an elementwise module that knows its slope, its curvature and where that is largest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from curvact.activations import _core
from curvact.activations.curvature import Peak, max_curvature
from curvact.errors import CurvactError

LEAST_SCALE = 1e-6
"""`constrain_` keeps learned scales this far from 0."""


class Activation(nn.Module):
    """An elementwise activation: abstract, subclass it and write `forward`.

    `slope`, `curvature` and `max_curvature` follow from `forward` by automatic differentiation and a numerical search; a family
    that has closed forms overrides them. `str(act)` is a name that `curvact.activation` parses back to an equal activation.

    >>> class Cubic(Activation):
    ...     def forward(self, x):
    ...         return x + x.clamp(-1, 1) ** 3
    >>> act = Cubic()
    >>> act.slope(torch.tensor([0.5])).item(), act.curvature(torch.tensor([0.5])).item()
    (1.75, 3.0)

    default_scope: how widely an architecture shares it unless told otherwise: "network" for what its authors share, else "layer".
    shareable: whether several places of a network may share one. maps_only: whether it needs N×C×H×W or N×C inputs.
    """

    default_scope: str = "layer"
    shareable: bool = True
    maps_only: bool = False
    _family: str = ""
    _channels: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """σ(x), of the shape and dtype of x."""
        raise NotImplementedError

    def slope(self, x: Tensor) -> Tensor:
        """σ'(x), elementwise."""
        slope: Tensor = torch.func.grad(lambda t: self(t).sum())(x)
        return slope

    def curvature(self, x: Tensor) -> Tensor:
        """σ''(x), elementwise; 0 at a kink."""
        curvature: Tensor = torch.func.grad(lambda t: self.slope(t).sum())(x)
        return curvature

    @property
    def max_curvature(self) -> Peak:
        """κ = sup|σ''| and where it is attained; infinite where the slope jumps."""
        return max_curvature(self)

    @property
    def name(self) -> str:
        """The name that parses back: the family in lower case and its parameters."""
        parts = [self.extra_repr(), f"channels={self._channels}" if self._channels else ""]
        family = self._family or type(self).__name__.lower()
        return f"{family}({', '.join(filter(None, parts))})".removesuffix("()")

    def per_channel_(self, channels: int, *, maps: bool = True) -> None:
        """Give each of so many channels a value of its own of every scalar parameter, in place: the scope "channel".

        maps: inputs are …×C×H×W and parameters become C×1×1; otherwise inputs are …×C and parameters C.
        The name then ends in `channels=C`, shows the values that are largest in size, and does not parse.
        Raises CurvactError where there are no parameters, or others than scalars.
        """
        own = {name: p for name, p in self._parameters.items() if p is not None}
        if not own:
            raise CurvactError(
                f"scope 'channel' gives every channel parameters of its own, and {self.name} has none: give a learnable "
                "activation, or scope='layer'"
            )
        if any(p.numel() != 1 for p in own.values()):
            raise CurvactError(
                f"scope 'channel' needs scalar parameters, and those of {self.name} are not: use another scope"
            )
        shape = (channels, 1, 1) if maps else (channels,)
        for name, p in own.items():
            each = p.detach().reshape(()).expand(shape).clone()
            setattr(self, name, nn.Parameter(each, requires_grad=p.requires_grad))
        self._channels = channels

    def constrain_(self) -> None:
        """Bring learned parameters back to where the family is defined, in place: to be called after every optimizer step."""

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__


class ScaledActivation(Activation):
    """σ(x) = φ(αx)/α for a fixed φ: α sets the curvature, κ = α·max|φ''|, and any κ > 0 is met exactly. Abstract. [derived]

    learnable: α becomes a trainable scalar parameter.
    centered: σ(x) − σ(0) instead of σ(x).
    signed: |α| takes the place of α. `constrain_` keeps α > 0 otherwise, by reflection.
    """

    alpha: float | nn.Parameter

    def __init__(
        self, shape: _core.Shape, alpha: float, *, learnable: bool, centered: bool, signed: bool = False
    ) -> None:
        super().__init__()
        self.shape = replace(shape, centered=True) if centered else shape
        self.signed = signed
        self.centered = centered
        self.learnable = learnable
        if learnable:
            self.alpha = nn.Parameter(torch.tensor(alpha))
        else:
            self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return _core.apply(x, self._scale(), self.shape)

    def slope(self, x: Tensor) -> Tensor:
        return _core.derivative(x, self._scale(), self.shape, 1)

    def curvature(self, x: Tensor) -> Tensor:
        return _core.derivative(x, self._scale(), self.shape, 2)

    @property
    def scale(self) -> float:
        """The present value of α as a number; with one a channel, that of largest size."""
        return present(self.alpha)

    @property
    def max_curvature(self) -> Peak:
        alpha = abs(self.scale)
        if alpha == 0 or not math.isfinite(alpha):
            raise CurvactError(f"{type(self).__name__} has α = {self.scale}: κ needs a finite α other than 0")
        return Peak(alpha * self.shape.peak, self.shape.peak_at / (alpha if self.signed else self.scale))

    @torch.no_grad()
    def constrain_(self) -> None:
        if isinstance(self.alpha, Tensor):
            away_from_zero_(self.alpha)
            if not self.signed:
                self.alpha.abs_()

    def _scale(self) -> _core.Scale:
        return size(self.alpha) if self.signed else self.alpha

    def _parameters_text(self) -> str:
        """The family's own parameters, as they are written in a name."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        flags = [f"{flag}=True" for flag in ("learnable", "centered") if getattr(self, flag)]
        return ", ".join([self._parameters_text(), *flags])


class Elementwise(Activation):
    """Any elementwise function of a tensor, or module, as an activation.

    >>> Elementwise(torch.tanh).max_curvature.value  # 4/(3√3)
    0.7698...
    """

    def __init__(self, function: Callable[[Tensor], Tensor], *, centered: bool = False) -> None:
        super().__init__()
        self.function = function
        self.centered = centered

    def forward(self, x: Tensor) -> Tensor:
        out = self.function(x)
        return out - self.function(torch.zeros((), dtype=x.dtype, device=x.device)) if self.centered else out

    @property
    def name(self) -> str:
        given = getattr(self.function, "__name__", None)
        return given if isinstance(given, str) else repr(self.function)


def present(parameter: float | Tensor) -> float:
    """A parameter's present value; of several, that of largest size (NaN where there is one)."""
    if not isinstance(parameter, Tensor):
        return parameter
    flat = parameter.detach().flatten()
    return float(flat[flat.abs().argmax()])


def size(parameter: float | Tensor) -> float | Tensor:
    """|parameter|, with derivative 0 at 0 even where what follows has none there."""
    if not isinstance(parameter, Tensor):
        return abs(parameter)
    return torch.where(parameter == 0, parameter.detach(), parameter).abs()


def away_from_zero_(parameter: Tensor) -> None:
    """At least LEAST_SCALE in size, in place and by sign: the gradient of |α| is 0 at 0, where α would stay for ever."""
    least = torch.full_like(parameter, LEAST_SCALE).copysign_(parameter)
    parameter.copy_(torch.where(parameter.abs() < LEAST_SCALE, least, parameter))


def finite(value: float, name: str, where: str) -> float:
    """`value` as a float, or a clear error unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CurvactError(f"{name}={value!r} in {where}: {name} must be a finite number")
    return float(value)


def positive(value: float, name: str, where: str) -> float:
    """`value` as a float, or a clear error unless it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CurvactError(f"{name}={value!r} in {where}: {name} must be a number > 0")
    if not (math.isfinite(value) and value > 0):
        raise CurvactError(f"{name}={value!r} in {where}: {name} must be a finite number > 0")
    return float(value)


def one_of(value: int, allowed: range, name: str, where: str) -> int:
    """`value` as an int of the range, or a clear error."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != int(value)
        or int(value) not in allowed
    ):
        raise CurvactError(
            f"{name}={value!r} in {where}: {name} must be a whole number from {allowed.start} to {allowed.stop - 1}"
        )
    return int(value)


def number(value: float) -> str:
    """The shortest text that parses back to the same float."""
    return repr(float(value))
