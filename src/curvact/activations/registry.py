"""Activations by name: `rctaf(curvature=6, beta=1)` from a string, and the register that users add their own to."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable

from torch import nn

from curvact.activations.base import Activation
from curvact.activations.gates import GELU, Mish, PowerGate, Squareplus, Swish
from curvact.activations.pssilu import PSSiLU
from curvact.activations.rct import RCRAF, RCTAF, Softplus
from curvact.activations.standard import ELU, ReLU, SiLU
from curvact.errors import CurvactError, nearest

Factory = Callable[..., nn.Module]
ActivationLike = str | Callable[[], nn.Module] | nn.Module

_REGISTRY: dict[str, Factory] = {
    "rctaf": RCTAF,
    "rcraf": RCRAF,
    "swish": Swish,
    "squareplus": Squareplus,
    "powergate": PowerGate,
    "softplus": Softplus,
    "pssilu": PSSiLU,
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

    A `from_curvature` classmethod, where there is one, answers `name(curvature=…)`. A name that is taken is a CurvactError.

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

    Parameters are keywords with numbers, True or False; `curvature=κ` calls the family's `from_curvature`.
    Raises CurvactError that names what is unknown and the nearest thing that is allowed.

    >>> activation("rctaf(curvature=6, beta=1)")
    rctaf(alpha=16.0, beta=1)
    """
    family, parameters = parse_name(name)
    factory = _REGISTRY[family]
    if "curvature" in parameters:
        by_curvature = getattr(factory, "from_curvature", None)
        if by_curvature is None:
            able = ", ".join(n for n in activation_names() if hasattr(_REGISTRY[n], "from_curvature"))
            raise CurvactError(f"'{family}' has no curvature to choose in {name!r}: these have: {able}")
        factory = by_curvature
    allowed = [
        p.name
        for p in inspect.signature(factory).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if hasattr(factory, "from_curvature"):
        allowed.insert(0, "curvature")
    for key in parameters:
        if key not in allowed:
            raise CurvactError(
                f"unknown parameter '{key}' in {name!r}: allowed are {', '.join(allowed) or 'none'}{nearest(key, allowed)}"
            )
    return factory(**parameters)


def parse_name(name: str) -> tuple[str, dict[str, float | int | bool | None]]:
    """Family and parameters of a name; CurvactError where it is not of the form `family(parameter=number, …)`.

    >>> parse_name("RCTAF(curvature=6, beta=1)")
    ('rctaf', {'curvature': 6, 'beta': 1})
    """
    form = "write it as family(parameter=number, ...), such as rctaf(curvature=6, beta=1)"
    try:
        node = ast.parse(name.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise CurvactError(f"cannot read the activation {name!r}: {form}") from None
    parameters: dict[str, float | int | bool | None] = {}
    if isinstance(node, ast.Call):
        if node.args or not isinstance(node.func, ast.Name):
            raise CurvactError(f"cannot read the activation {name!r}: {form}")
        for keyword in node.keywords:
            try:
                value = ast.literal_eval(keyword.value)
            except ValueError:
                value = ""
            if keyword.arg is None or not (value is None or isinstance(value, (bool, int, float))):
                raise CurvactError(f"cannot read a parameter of the activation {name!r}: {form}")
            parameters[keyword.arg] = value
        node = node.func
    if not isinstance(node, ast.Name):
        raise CurvactError(f"cannot read the activation {name!r}: {form}")
    family = node.id.lower()
    if family not in _REGISTRY:
        known = activation_names()
        raise CurvactError(
            f"unknown activation '{node.id}'{nearest(family, known)}; known are {', '.join(known)}"
        )
    return family, parameters


def as_factory(activation_like: ActivationLike) -> Callable[[], nn.Module]:
    """What a network calls for each activation it needs: from a name, a factory, or a module (which every place then shares).

    >>> as_factory("silu")()
    swish(beta=1.0)
    """
    if isinstance(activation_like, str):
        name = activation_like
        activation(name)
        return lambda: activation(name)
    if isinstance(activation_like, nn.Module):
        module = activation_like
        return lambda: module
    if callable(activation_like):
        return activation_like
    raise CurvactError(f"{activation_like!r} is no activation: give a name, a factory or a module")


def name_of(module: nn.Module | Callable[..., object]) -> str:
    """The name of any activation, also of one that is not ours.

    >>> name_of(nn.ReLU())
    'ReLU()'
    """
    if isinstance(module, Activation):
        return module.name
    return str(module) if isinstance(module, nn.Module) else getattr(module, "__name__", repr(module))
