"""Activations by name, such as `rctaf(curvature=6)`, and the registry to which users add theirs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from curvact.activations.arguments import flag
from curvact.activations.base import Activation, Elementwise, ScaledActivation
from curvact.activations.families.ctu import CTU
from curvact.activations.families.paf import PELU, PReLU, PReLUPlus, PSiLU, PSoftplus, ReBLU
from curvact.activations.families.pointwise import CELU, SELU, Hardswish, LeakyReLU, Tanh
from curvact.activations.families.power_gate import PowerGate
from curvact.activations.families.pssilu import FixedPSSiLU, PSSiLU, SSiLU
from curvact.activations.families.rcr import RCRAF
from curvact.activations.families.rct import RCTAF
from curvact.activations.families.sparta import Sparta
from curvact.activations.families.squareplus import Squareplus
from curvact.activations.families.standard import ELU, GELU, Mish, ReLU, Softplus
from curvact.activations.families.swish import SiLU, Swish
from curvact.errors import CurvactError, first_line, nearest
from curvact.names import parse_call, shortened

Factory = Callable[..., nn.Module]
ActivationLike = str | Callable[..., nn.Module] | Callable[[Tensor], Tensor] | nn.Module
Parameter = float | int | bool | str | None

_REGISTRY: dict[str, Factory] = {
    "rctaf": RCTAF,
    "rcraf": RCRAF,
    "swish": Swish,
    "squareplus": Squareplus,
    "powergate": PowerGate,
    "ctu": CTU,
    "softplus": Softplus,
    "pssilu": PSSiLU,
    "pssilu_fixed": FixedPSSiLU,
    "ssilu": SSiLU,
    "psilu": PSiLU,
    "psoftplus": PSoftplus,
    "prelu": PReLU,
    "prelu_plus": PReLUPlus,
    "pelu": PELU,
    "reblu": ReBLU,
    "sparta": Sparta,
    "gelu": GELU,
    "mish": Mish,
    "silu": SiLU,
    "relu": ReLU,
    "elu": ELU,
    "celu": CELU,
    "selu": SELU,
    "leaky_relu": LeakyReLU,
    "tanh": Tanh,
    "hardswish": Hardswish,
}


def activation_names() -> list[str]:
    """All registered names, sorted.

    >>> "rctaf" in activation_names()
    True
    """
    return sorted(_REGISTRY)


def register(name: str, factory: Factory) -> None:
    """Add an activation under a name, so that strings such as `name(parameter=1)` build it.

    factory: a class or function that returns a module. Its parameters are those of the name. If it
        has a classmethod `from_curvature`, `name(curvature=…)` calls that. If it has a parameter
        `channels`, an architecture gives it the number of channels at the activation's place. A
        function of one tensor becomes an `Elementwise` without parameters.
    `str` of an activation of a registered class has the values of its parameters, from the
    attributes of the same names.
    Raises CurvactError for a name that is taken or is no identifier, and for a class whose
    parameters are no attributes.

    >>> import torch
    >>> register("tanh_doctest", torch.tanh)
    >>> round(activation("tanh_doctest").max_curvature.at, 6)
    0.658479
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise CurvactError(
            f"cannot register {shortened(name)}: a name has letters, digits and underscores only"
        )
    if name.lower() in _REGISTRY:
        raise CurvactError(f"cannot register {name!r}: that name is taken")
    if isinstance(factory, (str, nn.Module)):
        raise CurvactError(f"cannot register {shortened(factory)} as {name!r}: give a class or a function")
    factory = as_factory(factory)
    if isinstance(factory, type) and issubclass(factory, Activation):
        _check_named(name, factory)
        if "_family" not in vars(factory):
            factory._family = name.lower()
    _REGISTRY[name.lower()] = factory


def _check_named(name: str, kind: type[Activation]) -> None:
    """Raise CurvactError for a class whose `str` would leave out an argument of its constructor."""
    arguments = [key for key in inspect.signature(kind).parameters if key != "inplace"]
    said: list[str] = []
    if issubclass(kind, ScaledActivation) and kind.extra_repr is ScaledActivation.extra_repr:
        said = [kind.scale_name, *kind.others, "learnable", "centered"]
    elif kind.extra_repr is Activation.extra_repr and kind.name is Activation.name:
        try:
            made = kind()
        except Exception:  # it needs arguments, or channels: `str` looks then
            return
        said = [key for key in arguments if hasattr(made, key)]
    else:
        return
    for key in arguments:
        if key not in said:
            raise CurvactError(
                f"cannot register {name!r}: `str` of a {kind.__name__} would not say its argument '{key}'; write "
                f"self.{key} = {key} in __init__, or an extra_repr"
            )


def activation(activation_like: ActivationLike) -> nn.Module:
    """Build an activation from its name, such as `relu` or `rctaf(curvature=6, beta=1)`.

    Parameters are keywords with numbers, True or False, or a word if the family takes one
    (`sparta(variant=full)`); `curvature=κ` calls the family's `from_curvature`. A module is
    returned as it is, a class or factory is called, and an elementwise function of a tensor becomes
    an `Elementwise`.
    Raises CurvactError that names what is unknown and the nearest allowed name.

    >>> activation("rctaf(curvature=6, beta=1)")
    rctaf(alpha=16.0, beta=1)
    """
    if isinstance(activation_like, str):
        return _build(activation_like, {})
    return made_by(as_factory(activation_like))


def made_by(factory: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """The module that a factory makes. Raises CurvactError if it fails or makes something else."""
    try:
        made: object = factory(**options)
    except CurvactError:
        raise
    except Exception as error:
        raise CurvactError(
            f"the factory {name_of(factory)} of activations fails: {first_line(error)}"
        ) from None
    if not isinstance(made, nn.Module):
        raise CurvactError(
            f"the factory {name_of(factory)} of activations made a {type(made).__name__}: it must make an nn.Module"
        )
    return made


def _build(name: str, more: dict[str, Parameter]) -> nn.Module:
    family, own = parse_name(name)
    parameters = own | more
    factory = _REGISTRY[family]
    shown = shortened(name)
    if "curvature" in parameters:
        by_curvature = getattr(factory, "from_curvature", None)
        if by_curvature is None:
            able = ", ".join(n for n in activation_names() if hasattr(_REGISTRY[n], "from_curvature"))
            raise CurvactError(f"'{family}' has no curvature to choose in {shown}: these have: {able}")
        factory = by_curvature
    signature = [
        p
        for p in inspect.signature(factory).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "inplace"
    ]
    allowed = [p.name for p in signature]
    if hasattr(factory, "from_curvature"):
        allowed.insert(0, "curvature")
    for key in parameters:
        if key not in allowed:
            means_curvature = key in ("kappa", "κ") and "curvature" in allowed
            hint = "; did you mean 'curvature'?" if means_curvature else nearest(key, allowed)
            raise CurvactError(
                f"unknown parameter '{key}' in {shown}: allowed are {', '.join(allowed) or 'none'}{hint}"
            )
    for p in signature:
        if p.default is p.empty and p.name not in parameters:
            raise CurvactError(f"{shown} lacks the parameter '{p.name}': write {family}({p.name}=...)")
        if isinstance(p.default, bool) and p.name in parameters:
            flag(parameters[p.name], p.name, family)
    made = made_by(factory, **parameters)
    if isinstance(made, Elementwise) and not made.registered:
        inside = ", ".join(f"{key}={value}" for key, value in own.items())
        made.registered = f"{family}({inside})" if inside else family
    return made


def parse_name(name: str) -> tuple[str, dict[str, Parameter]]:
    """Family and parameters of a name.

    Raises CurvactError unless it has the form `family(parameter=number, …)`.

    >>> parse_name("RCTAF(curvature=6, beta=1)")
    ('rctaf', {'curvature': 6, 'beta': 1})
    """
    form = "family(parameter=number, ...), such as rctaf(curvature=6, beta=1)"
    given, parameters = parse_call(name, "activation", form)
    family = given.lower()
    if not given.isidentifier():
        raise CurvactError(f"cannot read the activation {shortened(name)}: write it as {form}")
    if family not in _REGISTRY:
        known = activation_names()
        raise CurvactError(
            f"unknown activation {shortened(given)}{nearest(family, known)}; known are {', '.join(known)}"
        )
    signature = inspect.signature(_REGISTRY[family]).parameters
    for key, value in parameters.items():
        words = key in signature and isinstance(signature[key].default, str)
        kinds = (bool, int, float, str) if words else (bool, int, float)
        if not (value is None or isinstance(value, kinds)):
            raise CurvactError(
                f"cannot read a parameter of the activation {shortened(name)}: write it as {form}"
            )
    return family, parameters


def takes_channels(factory: Callable[..., nn.Module]) -> bool:
    """Whether the factory has a free parameter `channels`, which an architecture then gives."""
    if isinstance(factory, partial) and "channels" in factory.keywords:
        return False
    try:
        return "channels" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def as_factory(activation_like: ActivationLike) -> Callable[..., nn.Module]:
    """What a network calls for each activation that it needs.

    activation_like: a name, a factory (a class, too), an elementwise function of a tensor, or a
    module, which every place then shares.
    If `takes_channels` is true of the result, it is called with `channels=`, the number of channels
    at the place.

    >>> as_factory("silu")()
    swish(beta=1.0)
    >>> as_factory("sparta")(channels=3)
    sparta(variant=depthwise, beta=1.0, channels=3)
    """
    if isinstance(activation_like, str):
        name = activation_like
        family, parameters = parse_name(name)
        if takes_channels(_REGISTRY[family]) and "channels" not in parameters:
            if not getattr(_build(name, {"channels": 1}), "any_channels", False):
                return lambda channels=None: _build(name, {"channels": channels})
        else:
            activation(name)
        return lambda: activation(name)
    if isinstance(activation_like, nn.Module):
        module = activation_like
        return lambda: module
    given: Any = activation_like
    if _makes_modules(given):
        return given  # type: ignore[no-any-return]
    if callable(given) and not isinstance(given, type):
        _check_function(given)
        return partial(Elementwise, given)
    raise CurvactError(
        f"{shortened(activation_like)} is no activation: give a name, a factory, a module or an elementwise function"
    )


def _makes_modules(value: Any) -> bool:
    """Whether a callable is a factory of modules. Otherwise it is a function of a tensor.

    A factory needs no argument, or `channels` only.
    """
    made_by_class = value
    while isinstance(made_by_class, partial):
        made_by_class = made_by_class.func
    if isinstance(made_by_class, type):
        return issubclass(made_by_class, nn.Module)
    if not callable(value):
        return False
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # of C code, such as torch.relu
        return False
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in named if p.default is p.empty]
    if required:
        return required == ["channels"]
    if not parameters:
        return True
    try:
        return isinstance(value(), nn.Module)
    except Exception:
        return False


def _check_function(function: Callable[..., Any]) -> None:
    """Raise CurvactError unless it maps tensors elementwise, the same at every call."""
    x = torch.linspace(-2.0, 2.0, 7)
    what = f"the function {name_of(function)} is no activation"
    try:
        with torch.no_grad():
            whole, part = function(x.clone()), function(x[2:].clone().view(1, 5))
    except CurvactError:
        raise
    except Exception as error:
        raise CurvactError(f"{what}: given a tensor it fails, {first_line(error)}") from None
    shapes = isinstance(whole, Tensor) and whole.shape == x.shape and part.shape == (1, 5)
    if not shapes or not torch.allclose(whole[2:], part[0], equal_nan=True):
        raise CurvactError(f"{what}: it is not elementwise, or differs from call to call")


def fresh(activation_like: ActivationLike, where: str) -> Callable[[], nn.Module]:
    """A function without arguments that makes a new module at each call; a module is copied.

    Raises CurvactError, naming `where`, for an activation that needs the number of channels of its
    place.
    """
    if isinstance(activation_like, nn.Module):
        module = activation_like
        return lambda: copy.deepcopy(module)
    factory = as_factory(activation_like)
    if isinstance(activation_like, str) and takes_channels(factory):
        raise CurvactError(
            f"{activation_like!r} in {where} needs the number of channels at each place, which is not known: "
            "write channels=... if all places have as many, or build one of curvact's architectures with it"
        )
    return partial(made_by, factory)


def act_layer(activation_like: ActivationLike) -> partial[nn.Module]:
    """An activation for networks that take an `act_layer`, such as those of timm.

    The result is called like `nn.ReLU`, as `layer()` or `layer(inplace=True)`. It makes a new
    module each time and ignores all arguments. It is a `functools.partial` because timm takes no
    other callable objects.

    activation_like: a name, a factory, an elementwise function or a module, which is copied.
    Raises CurvactError for a bad name, and for an activation that needs the number of channels of
    its place.

    >>> layer = act_layer("rctaf(curvature=6)")
    >>> layer(inplace=True)
    rctaf(alpha=24.0, beta=0)
    """
    fresh(activation_like, "act_layer")
    return partial(_made, activation_like)


def _made(activation_like: ActivationLike, *_: object, **__: object) -> nn.Module:
    return fresh(activation_like, "act_layer")()


def default_scope(activation_like: ActivationLike) -> str:
    """How widely an architecture shares it by default: "network" or "layer".

    >>> default_scope("psilu"), default_scope("rctaf(learnable=True)")
    ('network', 'layer')
    """
    made = as_factory(activation_like)() if isinstance(activation_like, str) else activation_like
    return str(getattr(made, "default_scope", "layer"))


def name_of(module: nn.Module | Callable[..., object]) -> str:
    """The name of any activation, also of a foreign one.

    >>> name_of(nn.ReLU())
    'ReLU()'
    """
    if isinstance(module, Activation):
        return repr(module)
    if isinstance(module, nn.Module):
        return str(module)
    return str(getattr(module, "__name__", None) or shortened(module))
