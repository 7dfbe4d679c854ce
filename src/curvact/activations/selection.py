"""Which modules and functional calls of a model are activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from curvact.activations.registry import activation_names
from curvact.errors import CurvactError, nearest
from curvact.names import shortened

Kind = type[nn.Module] | str
Selector = Kind | Sequence[Kind] | nn.Module | Callable[[nn.Module], bool]
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


def matcher(selector: Selector | None, model: nn.Module | None = None) -> Match:
    """A selector as a predicate; None: those of torch.nn, and modules with slope and curvature.

    A name is that of a class of torch.nn, of a function of torch, of an activation of curvact or of
    a class of modules in `model`; case does not matter.
    """
    if selector is None:
        return lambda m: isinstance(m, TORCH_ACTIVATIONS) or is_activation(m)
    if isinstance(selector, nn.Module):
        wanted = selector
        return lambda m: m is wanted
    if isinstance(selector, (str, type, tuple, list)):
        chosen = selector if isinstance(selector, (tuple, list)) else (selector,)
        classes = sorted({type(m).__name__ for m in model.modules()}) if model is not None else []
        kinds, names = [], set()
        for choice in chosen:
            if isinstance(choice, str):
                names.add(choice.lower())
                kinds += _named(choice, classes)
            elif isinstance(choice, type) and issubclass(choice, nn.Module):
                kinds.append(choice)
            else:
                raise CurvactError(
                    f"from_={shortened(choice)} in swap_activations: no class of torch.nn modules"
                )
        return lambda m: isinstance(m, tuple(kinds)) or not names.isdisjoint(_names_of(m))
    if callable(selector):
        predicate = selector
        return lambda m: bool(predicate(m))
    raise CurvactError(
        f"from_={shortened(selector)} in swap_activations: give a class, a name, a tuple of them, or a predicate"
    )


def _names_of(module: nn.Module) -> set[str]:
    """The names, in lower case, by which a selector means this module, beside those of torch."""
    family = getattr(module, "family", None)
    known = {family()} if is_activation(module) and callable(family) else set()
    return {type(module).__name__.lower(), *known}


def _named(name: str, classes: list[str]) -> list[type[nn.Module]]:
    """The classes of torch.nn that a name means; none if it only means others."""
    own = {key.lower(): kind for key, kind in vars(nn).items() if _is_module_class(kind)}
    found = own.get(name.lower()) or FUNCTIONAL.get(name.lower())
    if found is not None:
        return [found]
    others = [*classes, *activation_names()]
    if name.lower() in (other.lower() for other in others):
        return []
    known = [kind.__name__ for kind in own.values()]
    raise CurvactError(
        f"from_={shortened(name)} in swap_activations: no class of torch.nn, no activation of curvact and no class "
        f"in this model{nearest(name, [*known, *FUNCTIONAL, *others])}"
    )


def _is_module_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module)


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
