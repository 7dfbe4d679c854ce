"""Which modules and functional calls of a model are activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from curvact.errors import CurvactError, nearest

Kind = type[nn.Module] | str
Selector = Kind | tuple[Kind, ...] | nn.Module | Callable[[nn.Module], bool]
Match = Callable[[nn.Module], bool]

FUNCTIONAL: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "rrelu": nn.RReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "tanh": nn.Tanh,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "hardshrink": nn.Hardshrink,
    "softshrink": nn.Softshrink,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "logsigmoid": nn.LogSigmoid,
}
"""The functional activations of torch by name, with the module of each."""

FUNCTION_NAMES: dict[Any, str] = {
    function: name
    for name in FUNCTIONAL
    for home in (F, torch, torch._C._nn, torch.Tensor)
    for spelling in (name, f"{name}_")
    if (function := getattr(home, spelling, None)) is not None
}
"""The name of every function of torch that computes one of them."""

_GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid)
TORCH_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.PReLU,
    *(kind for kind in FUNCTIONAL.values() if kind not in _GATES),
)
"""What counts as an activation by default. Sigmoids do not: mostly they are gates and outputs."""


def matcher(selector: Selector | None) -> Match:
    """A selector as a predicate; None: those of torch.nn, and modules with slope and curvature."""
    if selector is None:
        return lambda m: isinstance(m, TORCH_ACTIVATIONS) or is_activation(m)
    if isinstance(selector, nn.Module):
        wanted = selector
        return lambda m: m is wanted
    if isinstance(selector, (str, type, tuple)):
        chosen = selector if isinstance(selector, tuple) else (selector,)
        kinds = tuple(_kind(k) for k in chosen)
        names = {k for k in chosen if isinstance(k, str)}
        return lambda m: isinstance(m, kinds) or (is_activation(m) and type(m).__name__ in names)
    if callable(selector):
        predicate = selector
        return lambda m: bool(predicate(m))
    raise CurvactError(
        f"from_={selector!r} in swap_activations: give a class, a name, a tuple of them, or a predicate"
    )


def _kind(kind: Any) -> type[nn.Module]:
    found = getattr(nn, kind, None) if isinstance(kind, str) else kind
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    known = [name for name in dir(nn) if isinstance(getattr(nn, name), type)]
    hint = nearest(kind, known) if isinstance(kind, str) else ""
    raise CurvactError(f"from_={kind!r} in swap_activations: no class of torch.nn modules{hint}")


def is_activation(module: nn.Module) -> bool:
    """Whether the module has `slope` and `curvature`."""
    return callable(getattr(module, "slope", None)) and callable(getattr(module, "curvature", None))


def functional_names(match: Match) -> set[str]:
    """Names of the functional activations whose module, with default arguments, matches."""

    def meant(kind: type[nn.Module]) -> bool:
        try:
            return match(kind())
        except AttributeError:  # of a predicate that asks for what only some modules have
            return False

    return {name for name, kind in FUNCTIONAL.items() if meant(kind)}
