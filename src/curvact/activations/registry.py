"""Activations by name, such as `rctaf(curvature=6)`, and the registry to which users add theirs."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from curvact.activations.base import Activation
from curvact.activations.families.paf import PELU, PReLU, PReLUPlus, PSiLU, PSoftplus, ReBLU
from curvact.activations.families.power_gate import PowerGate
from curvact.activations.families.pssilu import FixedPSSiLU, PSSiLU, SSiLU
from curvact.activations.families.rcr import RCRAF
from curvact.activations.families.rct import RCTAF
from curvact.activations.families.sparta import Sparta
from curvact.activations.families.squareplus import Squareplus
from curvact.activations.families.standard import ELU, GELU, Mish, ReLU, Softplus
from curvact.activations.families.swish import SiLU, Swish
from curvact.errors import CurvactError, nearest

Factory = Callable[..., nn.Module]
ActivationLike = str | Callable[..., nn.Module] | nn.Module
Parameter = float | int | bool | str | None

_REGISTRY: dict[str, Factory] = {
    "rctaf": RCTAF,
    "rcraf": RCRAF,
    "swish": Swish,
    "squareplus": Squareplus,
    "powergate": PowerGate,
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
        `channels`, an architecture gives it the number of channels at the activation's place.
    Raises CurvactError for a name that is taken or is no identifier.

    >>> import torch
    >>> from curvact.activations import Elementwise
    >>> register("tanh_doctest", lambda: Elementwise(torch.tanh))
    >>> round(activation("tanh_doctest").max_curvature.at, 6)
    0.658479
    """
    if not name.isidentifier():
        raise CurvactError(f"cannot register {name!r}: a name has letters, digits and underscores only")
    if name.lower() in _REGISTRY:
        raise CurvactError(f"cannot register {name!r}: that name is taken")
    _REGISTRY[name.lower()] = factory


def activation(name: str) -> nn.Module:
    """Build an activation from its name, such as `relu` or `rctaf(curvature=6, beta=1)`.

    Parameters are keywords with numbers, True or False, or a word if the family takes one
    (`sparta(variant=full)`); `curvature=κ` calls the family's `from_curvature`.
    Raises CurvactError that names what is unknown and the nearest allowed name.

    >>> activation("rctaf(curvature=6, beta=1)")
    rctaf(alpha=16.0, beta=1)
    """
    return _build(name, {})


def _build(name: str, more: dict[str, Parameter]) -> nn.Module:
    family, parameters = parse_name(name)
    parameters |= more
    factory = _REGISTRY[family]
    if "curvature" in parameters:
        by_curvature = getattr(factory, "from_curvature", None)
        if by_curvature is None:
            able = ", ".join(n for n in activation_names() if hasattr(_REGISTRY[n], "from_curvature"))
            raise CurvactError(f"'{family}' has no curvature to choose in {name!r}: these have: {able}")
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
            raise CurvactError(
                f"unknown parameter '{key}' in {name!r}: allowed are {', '.join(allowed) or 'none'}{nearest(key, allowed)}"
            )
    for p in signature:
        if p.default is p.empty and p.name not in parameters:
            raise CurvactError(f"{name!r} lacks the parameter '{p.name}': write {family}({p.name}=...)")
    return factory(**parameters)


def parse_name(name: str) -> tuple[str, dict[str, Parameter]]:
    """Family and parameters of a name.

    Raises CurvactError unless it has the form `family(parameter=number, …)`.

    >>> parse_name("RCTAF(curvature=6, beta=1)")
    ('rctaf', {'curvature': 6, 'beta': 1})
    """
    form = "write it as family(parameter=number, ...), such as rctaf(curvature=6, beta=1)"
    try:
        node = ast.parse(name.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise CurvactError(f"cannot read the activation {name!r}: {form}") from None
    given: dict[str, ast.expr] = {}
    if isinstance(node, ast.Call):
        if node.args or not isinstance(node.func, ast.Name) or any(k.arg is None for k in node.keywords):
            raise CurvactError(f"cannot read the activation {name!r}: {form}")
        given = {str(keyword.arg): keyword.value for keyword in node.keywords}
        node = node.func
    if not isinstance(node, ast.Name):
        raise CurvactError(f"cannot read the activation {name!r}: {form}")
    family = node.id.lower()
    if family not in _REGISTRY:
        known = activation_names()
        raise CurvactError(
            f"unknown activation '{node.id}'{nearest(family, known)}; known are {', '.join(known)}"
        )
    defaults = {key: p.default for key, p in inspect.signature(_REGISTRY[family]).parameters.items()}
    parameters: dict[str, Parameter] = {}
    for key, value in given.items():
        words = isinstance(defaults.get(key), str)
        if words and isinstance(value, ast.Name):
            parameters[key] = value.id
            continue
        try:
            parameters[key] = ast.literal_eval(value)
        except ValueError:
            raise CurvactError(f"cannot read a parameter of the activation {name!r}: {form}") from None
        kinds = (bool, int, float, str) if words else (bool, int, float)
        if not (parameters[key] is None or isinstance(parameters[key], kinds)):
            raise CurvactError(f"cannot read a parameter of the activation {name!r}: {form}")
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

    activation_like: a name, a factory, or a module, which every place then shares.
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
    if callable(activation_like):
        return activation_like
    raise CurvactError(f"{activation_like!r} is no activation: give a name, a factory or a module")


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
    return factory


def act_layer(activation_like: ActivationLike) -> partial[nn.Module]:
    """An activation for networks that take an `act_layer`, such as those of timm.

    The result is called like `nn.ReLU`, as `layer()` or `layer(inplace=True)`. It makes a new
    module each time and ignores all arguments. It is a `functools.partial` because timm takes no
    other callable objects.

    activation_like: a name, a factory or a module, which is copied.
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
        return module.name
    return str(module) if isinstance(module, nn.Module) else getattr(module, "__name__", repr(module))
