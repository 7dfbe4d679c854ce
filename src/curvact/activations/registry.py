"""Activations by name: `rctaf(curvature=6, beta=1)` from a string, and the register that users add their own to."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from curvact.activations.base import Activation
from curvact.activations.gates import GELU, Mish, PowerGate, Squareplus, Swish
from curvact.activations.paf import PELU, PReLU, PReLUPlus, PSiLU, PSoftplus, ReBLU
from curvact.activations.pssilu import FixedPSSiLU, PSSiLU, SSiLU
from curvact.activations.rct import RCRAF, RCTAF, Softplus
from curvact.activations.sparta import Sparta
from curvact.activations.standard import ELU, ReLU, SiLU
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

    A `from_curvature` classmethod, where there is one, answers `name(curvature=…)`. Where the factory has a parameter `channels`,
    an architecture gives it the number of channels at the activation's place. A name that is taken is a CurvactError.

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

    Parameters are keywords with numbers, True or False, or a word where the family takes one (`sparta(variant=full)`);
    `curvature=κ` calls the family's `from_curvature`.
    Raises CurvactError that names what is unknown and the nearest thing that is allowed.

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
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
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
    """Family and parameters of a name; CurvactError where it is not of the form `family(parameter=number, …)`.

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
    """Whether an architecture is to call the factory with the number of channels: whether it has a free parameter `channels`."""
    if isinstance(factory, partial) and "channels" in factory.keywords:
        return False
    try:
        return "channels" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def as_factory(activation_like: ActivationLike) -> Callable[..., nn.Module]:
    """What a network calls for each activation it needs: from a name, a factory, or a module (which every place then shares).

    Where `takes_channels` says so, it is called with `channels=`, the number of channels at the place.

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


def default_scope(activation_like: ActivationLike) -> str:
    """How widely an architecture shares it unless told otherwise: "network" for what its authors share, else "layer".

    >>> default_scope("psilu"), default_scope("pssilu(learnable=True)"), default_scope("rctaf(learnable=True)")
    ('network', 'network', 'layer')
    """
    made = as_factory(activation_like)() if isinstance(activation_like, str) else activation_like
    return str(getattr(made, "default_scope", "layer"))


def name_of(module: nn.Module | Callable[..., object]) -> str:
    """The name of any activation, also of one that is not ours.

    >>> name_of(nn.ReLU())
    'ReLU()'
    """
    if isinstance(module, Activation):
        return module.name
    return str(module) if isinstance(module, nn.Module) else getattr(module, "__name__", repr(module))
