"""What an activation is: an elementwise module that knows its slope, its curvature and its κ."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from curvact.activations.arguments import flag, nonzero, positive, present, reached, trainable, written
from curvact.activations.curvature import Peak, max_curvature
from curvact.activations.kernels.autograd import apply, derivative
from curvact.activations.kernels.shape import Scale, Shape
from curvact.errors import CurvactError
from curvact.names import shortened

if TYPE_CHECKING:
    from typing_extensions import Self

LEAST_SCALE = 1e-6
"""`constrain_` keeps learned scales this far from 0."""


class Activation(nn.Module):
    """An elementwise activation. Abstract: subclass it and write `forward`.

    `slope`, `curvature` and `max_curvature` follow from `forward` by automatic differentiation and
    a numerical search; a family that has closed forms overrides them. `str(act)` is a name that
    `curvact.activation` parses back to an equal activation: it has the arguments of the constructor,
    from the attributes of the same names. Every subclass also takes `inplace` and
    ignores it, so that it can stand for `nn.ReLU` in other people's networks.

    >>> class Cubic(Activation):
    ...     def forward(self, x):
    ...         return x + x.clamp(-1, 1) ** 3
    >>> act = Cubic(inplace=True)
    >>> act.slope(torch.tensor([0.5])).item(), act.curvature(torch.tensor([0.5])).item()
    (1.75, 3.0)

    Class attributes that a family may set:

    default_scope: how widely an architecture shares it by default: "network" if its authors share
        it so, else "layer".
    shareable: whether several places of a network may share one.
    maps_only: whether it needs N×C×H×W or N×C inputs.
    learned_by_default: whether its parameters are trained unless `learnable=False`.
    """

    default_scope: str = "layer"
    shareable: bool = True
    maps_only: bool = False
    learned_by_default: ClassVar[bool] = False
    learnable: bool = False
    centered: bool = False
    _family: str = ""
    _channels: int | None = None

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()

    __jit_ignored_attributes__: ClassVar[list[str]] = ["max_curvature", "name", "scale"]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = dict(vars(cls))
        if "forward" in own:
            setattr(cls, "forward", _as_leaf(own["forward"]))  # noqa: B010
        if "__init__" in own:
            setattr(cls, "__init__", _without_inplace(own["__init__"], cls.__module__))  # noqa: B010
        if isinstance(own.get("from_curvature"), classmethod):
            made = _without_inplace(own["from_curvature"].__func__, cls.__module__)
            setattr(cls, "from_curvature", classmethod(made))  # noqa: B010

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
        """κ = sup|σ''| and where it is attained; infinite if the slope jumps."""
        return max_curvature(self)

    @classmethod
    def family(cls) -> str:
        """The name of the family, in lower case: the registered one, else that of the class."""
        return str(vars(cls).get("_family") or cls.__name__.lower())

    @property
    def name(self) -> str:
        """The name that parses back: the family and its parameters."""
        parts = [self.extra_repr(), f"channels={self._channels}" if self._channels else ""]
        return f"{self.family()}({', '.join(filter(None, parts))})".removesuffix("()")

    def per_channel_(self, channels: int, *, maps: bool = True) -> None:
        """Give each channel its own value of every scalar parameter, in place: the scope "channel".

        maps: inputs are …×C×H×W and parameters become C×1×1; otherwise inputs are …×C and
            parameters C.
        The name then ends in `channels=C`, shows the values of largest size, and does not parse.
        Raises CurvactError if there are no parameters, or others than scalars.
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

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script takes in its place: the plain formula, traced."""
        example = next((p.detach() for p in self.parameters()), torch.zeros(()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.trace(  # type: ignore[no-untyped-call]
                copy.deepcopy(self).eval(), torch.zeros(1, 1, 1, 1).to(example), check_trace=False
            )

    def constrain_(self) -> None:
        """Bring learned parameters back to their domain, in place, after an optimizer step."""

    def __repr__(self) -> str:
        try:
            return self.name
        except CurvactError:
            return f"{self.family()}(...)"

    def __str__(self) -> str:
        return self.name

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from curvact.activations.html import html_of  # it imports this module

        return html_of(self)

    def extra_repr(self) -> str:
        """The arguments of the constructor that differ from their defaults, as `key=value`.

        Each is read from the attribute of its name. Raises CurvactError where there is none, or
        where its value cannot be written in a name.
        """
        parts = []
        for key, default in _arguments_of(type(self)).items():
            value = getattr(self, key, _MISSING)
            if isinstance(value, Tensor) and (value.numel() == 1 or self._channels):
                value = present(value)
            kinds = (bool, int, float, str, NoneType)
            if value is not default and not (
                isinstance(value, kinds) and value not in (math.inf, -math.inf) and value == value
            ):
                lacks = "is no attribute of it" if value is _MISSING else f"is {shortened(value)}"
                raise CurvactError(
                    f"{self.family()} has no name that parses back: its argument '{key}' {lacks}; write self.{key} = "
                    f"{key} in __init__ with a number or a word, or an extra_repr"
                )
            if type(value) is not type(default) or value != default:
                parts.append(f"{key}={value!r}")
        return ", ".join(parts)

    def _described(self, *names: str) -> str:
        """`name=value` of these parameters, and the options that differ from their defaults."""
        parts = [f"{name}={written(getattr(self, name))}" for name in names]
        if self.learnable != self.learned_by_default:
            parts.append(f"learnable={self.learnable}")
        return ", ".join(parts + ["centered=True"] * self.centered)


_MISSING = object()


def _kind(of: Any) -> Any:
    """The class of an activation, or the class itself."""
    return of if isinstance(of, type) else type(of)


def _arguments_of(kind: type) -> dict[str, Any]:
    """The named arguments of a constructor, with their defaults; `channels` is the caller's."""
    parameters = inspect.signature(kind).parameters.values()
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return {p.name: p.default for p in named if p.name != "inplace"}


def _as_leaf(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that torch.fx does not look into: an activation is one node of a graph."""

    @functools.wraps(forward)
    def traced(self: Any, x: Any) -> Any:
        if isinstance(x, Proxy):
            tracer: Any = x.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x,), {})
        return forward(self, x)

    return traced if len(inspect.signature(forward).parameters) == 2 else forward


def _without_inplace(method: Callable[..., Any], home: str) -> Callable[..., Any]:
    """A constructor that also takes `inplace`, and ignores it. Its signature stays as it was.

    Its switches `learnable` and `centered` are checked: anything but True and False is an error. So
    is a tensor for a parameter of a family of ours, which would be no parameter of the module.
    """
    ours = home.startswith("curvact.activations.families.")
    parameters = inspect.signature(method).parameters
    if "inplace" in parameters:
        return method
    switches = [
        key
        for key in ("learnable", "centered")
        if key in parameters and isinstance(parameters[key].default, bool)
    ]

    @functools.wraps(method)
    def made(self: Any, *arguments: Any, inplace: bool = False, **options: Any) -> Any:
        for key in switches:
            if key in options:
                flag(options[key], key, _kind(self).family())
        if ours:
            for value in (*arguments, *options.values()):
                if isinstance(value, Tensor):
                    raise CurvactError(
                        f"{shortened(value)} in {_kind(self).family()}: give a number; learnable=True makes it a parameter"
                    )
        return method(self, *arguments, **options)

    return made


class ScaledActivation(Activation):
    """σ(x) = φ(αx)/α for a fixed φ. Abstract. [derived]

    α sets the curvature, κ = α·max|φ''|, and any κ > 0 is met exactly.

    A family sets these class attributes:

    formula: φ. If it depends on other parameters, the family overrides `unit_shape` instead.
    scale_name: the name of α in its constructor. others: the names of its other parameters.
    signed: whether |α| takes the place of α. Otherwise `constrain_` keeps α > 0, by reflection.

    alpha: a finite number, > 0 unless `signed`, else not 0.
    learnable: α becomes a trainable scalar parameter.
    centered: σ(x) − σ(0) instead of σ(x).
    """

    formula: ClassVar[Shape]
    scale_name: ClassVar[str] = "alpha"
    others: ClassVar[tuple[str, ...]] = ()
    signed: ClassVar[bool] = False

    alpha: float | nn.Parameter

    def __init__(self, alpha: float = 1.0, *, learnable: bool = False, centered: bool = False) -> None:
        super().__init__()
        check = nonzero if self.signed else positive
        alpha = check(alpha, self.scale_name, self.family())
        shape = self.unit_shape()
        self.shape = replace(shape, centered=True) if centered else shape
        self.centered = centered
        self.learnable = learnable
        self.alpha = trainable(alpha, self.scale_name, self.family(), check) if learnable else alpha

    @classmethod
    def from_curvature(cls, curvature: float, *, learnable: bool = False, centered: bool = False) -> Self:
        """The member with κ = `curvature` exactly. Training keeps that κ unless `learnable`."""
        kappa = positive(curvature, "curvature", cls.family())
        alpha = reached(kappa / cls.formula.peak, kappa, cls.family())
        return cls(alpha, learnable=learnable, centered=centered)

    def unit_shape(self) -> Shape:
        """φ and its derivatives, for the other parameters of this activation."""
        return self.formula

    def forward(self, x: Tensor) -> Tensor:
        return apply(x, self._scale(), self.shape)

    def slope(self, x: Tensor) -> Tensor:
        return derivative(x, self._scale(), self.shape, 1)

    def curvature(self, x: Tensor) -> Tensor:
        return derivative(x, self._scale(), self.shape, 2)

    @property
    def scale(self) -> float:
        """The present value of α as a number; if every channel has one, that of largest size."""
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

    def extra_repr(self) -> str:
        first = f"{self.scale_name}={written(self._constructor_scale())}"
        return ", ".join(filter(None, [first, self._described(*self.others)]))

    def _scale(self) -> Scale:
        return size(self.alpha) if self.signed else self.alpha

    def _constructor_scale(self) -> float:
        """The value that the constructor takes for the present α."""
        return self.scale


class Elementwise(Activation):
    """Any elementwise function of a tensor, or module, as an activation.

    registered: the name of a registered one, with its parameters; else "".

    >>> Elementwise(torch.tanh).max_curvature.value  # 4/(3√3)
    0.7698...
    """

    registered = ""

    def __init__(self, function: Callable[[Tensor], Tensor], *, centered: bool = False) -> None:
        super().__init__()
        if not callable(function):
            raise CurvactError(f"Elementwise got {shortened(function)}: it takes a function of one tensor")
        self.function = function
        self.centered = centered

    def forward(self, x: Tensor) -> Tensor:
        out = self.function(x)
        return out - self.function(torch.zeros((), dtype=x.dtype, device=x.device)) if self.centered else out

    @property
    def name(self) -> str:
        if self.registered:
            return self.registered
        given = getattr(self.function, "__name__", None)
        return given if isinstance(given, str) else repr(self.function)


def size(parameter: float | Tensor) -> float | Tensor:
    """|parameter|, with derivative 0 at 0 even if the operation that follows has none there."""
    if not isinstance(parameter, Tensor):
        return abs(parameter)
    return torch.where(parameter == 0, parameter.detach(), parameter).abs()


def away_from_zero_(parameter: Tensor) -> None:
    """Make it LEAST_SCALE or more in size, in place: at 0 |α| has no gradient and would stay."""
    least = torch.full_like(parameter, LEAST_SCALE).copysign_(parameter)
    parameter.copy_(torch.where(parameter.abs() < LEAST_SCALE, least, parameter))
