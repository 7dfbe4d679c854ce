"""Swapping activations inside any `nn.Module`: modules, functions and functional calls. [ours]"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import nn

from curvact.activations.arguments import flag
from curvact.activations.functional_calls import (
    ROOT,
    functional_calls,
    is_function,
    refuse_constants,
    rewrite,
    trace,
)
from curvact.activations.inplace import InPlace, is_inplace, seen_writes, source_shows_no_harm
from curvact.activations.registry import ActivationLike, fresh
from curvact.activations.selection import FUNCTION_NAMES, Match, Selector, functional_names, matcher
from curvact.errors import CurvactError
from curvact.names import shortened

Sharing = Literal["keep", "separate", "one"]
Functional = Literal["warn", "rewrite", "ignore"]


class SwapWarning(UserWarning):
    """A swap that may not be what was meant: places left, nothing found, or lost when saved."""


@dataclass(frozen=True)
class Replacement:
    """One place. path: dotted; old, new: as text; hooks: number of lost hooks of the old module.

    function: of a functional call, what it computed of its input, with its other arguments; None where the
        network computes one of them, and for modules.
    """

    path: str
    old: str
    new: str
    hooks: int = 0
    function: Callable[[torch.Tensor], torch.Tensor] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        lost = f"  ({self.hooks} hook{'s' * (self.hooks > 1)} of the old module lost)" if self.hooks else ""
        return f"{self.path}: {self.old} -> {self.new}{lost}"


@dataclass(frozen=True)
class SwapReport:
    """What `swap_activations` did. len() is the number of places replaced.

    model: the model with its new activations. It is the given one, unless that was an activation
        itself, or was rewritten or copied.
    replaced: every place, in the order of the model.
    functional: functional calls that were not replaced, as `path: name`.
    new_model: whether `model` is another object than the given one, which then lacks some or all of
        the new activations. `str` says so.
    """

    model: nn.Module
    replaced: tuple[Replacement, ...]
    functional: tuple[str, ...] = ()
    new_model: bool = False

    def __len__(self) -> int:
        return len(self.replaced)

    def __str__(self) -> str:
        count = len(self.replaced)
        lines = [
            f"replaced {count} activation{'s' * (count != 1)}" if count else "found no activation to replace"
        ]
        lines += [f"  {r}" for r in self.replaced]
        if self.replaced and self.new_model:
            lines.append("they are in report.model, a new object: go on with it, not with the given model")
        if self.functional:
            lines += [
                "not replaced, functional calls in forward:",
                *(f"  {call}" for call in self.functional),
            ]
        return "\n".join(lines)


def swap_activations(
    model: nn.Module,
    from_: Selector | None = None,
    to: ActivationLike | None = None,
    *,
    shared: Sharing = "keep",
    functional: Functional = "warn",
    inplace: bool = True,
) -> SwapReport:
    """Replace the activations of a model, in place, and report every place.

    from_: what to replace: a class; a name such as "ReLU" or "relu", of a class of torch.nn, of an
        activation of curvact or of a class in the model; a tuple or list of these; one module
        object; or a predicate on modules (for functional calls it is asked about the torch.nn
        module of that name, with default arguments). None: the activations of torch.nn
        (`selection.TORCH_ACTIVATIONS`) and every module that has `slope` and `curvature`.
    to: a name such as "rctaf(curvature=6)", a factory called without arguments (a class, too), or a
        module, which is copied unless shared="one".
    shared: "keep": a module object that was used at several places becomes one new module at all of
        them. "separate": every place gets its own. "one": the whole model gets one. A place is an
        attribute: a module that one forward calls twice is one place. A functional call has a
        module of its own ("keep": the same at every call of that line).
    functional: what happens to `F.relu(x)`, `torch.relu(x)` and `x.relu()` in `forward`. "warn": a
        UserWarning and the report name them. "rewrite": torch.fx traces the model and modules
        replace them; `report.model` is then a GraphModule, a new object that shares parameters and
        submodules with the old (as always with fx, control flow and the training flag of functional
        dropout are fixed, and only forward survives). "ignore": do not look.
    inplace: False works on a deep copy, `report.model`.

    An activation in place (`nn.ReLU(inplace=True)`, `F.relu_(x)`) whose result is not used, or whose
    input is used again, gets a replacement that writes into the input too (`InPlace`). So does one
    where neither torch.fx nor the source shows who holds the input.

    Functions kept as attributes (`nn.TransformerEncoderLayer.activation`) are replaced too. That
    layer's fused inference path would ignore the new activation, and is switched off. New modules
    take training mode, device and dtype from their surroundings. An optimizer made earlier does not
    hold the parameters of new, learnable activations. Not recognised: activations written out as
    `clamp(min=0)` or `maximum`, modules kept in plain lists, and functional calls that neither
    torch.fx nor the source of forward shows.

    Warns (SwapWarning) if nothing was found, with the types of module seen, and for a model whose
    own `save_pretrained` would forget the swap (Hugging Face). Raises CurvactError for
    a bad argument, for TorchScript, and for functional="rewrite" of a model that torch.fx cannot
    trace, or whose forward makes a tensor; the model is then unchanged.

    >>> from curvact.activations import RCTAF
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> print(swap_activations(net, "ReLU", lambda: RCTAF.from_curvature(6.0)))
    replaced 1 activation
      1: ReLU() -> rctaf(alpha=24.0, beta=0)
    """
    if not isinstance(model, nn.Module):
        raise CurvactError(f"swap_activations got a {type(model).__name__}: it takes an nn.Module")
    for value, name, allowed in ((shared, "shared", Sharing), (functional, "functional", Functional)):
        if not isinstance(value, str) or value not in get_args(allowed):
            raise CurvactError(
                f"{name}={shortened(value)} in swap_activations: allowed are {', '.join(get_args(allowed))}"
            )
    if isinstance(from_, nn.Module) and all(module is not from_ for module in model.modules()):
        raise CurvactError(
            f"from_={shortened(from_)} in swap_activations: this object is not in the model; give its class, "
            f"{type(from_).__name__}, or a name"
        )
    flag(inplace, "inplace", "swap_activations")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CurvactError(f"{path or 'the model'} is TorchScript: swap the activations before scripting")
    given = model
    if not inplace:
        model = copy.deepcopy(model)
    match = matcher(from_, model)
    make = _Maker(to, shared, model)
    types_seen = sorted({type(m).__name__ for m in model.modules()})

    if match(model):
        new = make(model, model)
        return SwapReport(new, (Replacement(ROOT, _text(model), _text(new), _hooks(model)),), new_model=True)
    places = list(_places(model, match))
    if functional == "rewrite":
        refuse_constants(model, trace(model, match, []))  # before anything has changed
    writing = _seen(places, model, match)
    replaced = [_replace(place, make, model, id(place) in writing) for place in places]
    calls: tuple[str, ...] = ()
    if functional == "rewrite":
        model, rewritten = rewrite(model, trace(model, match, make.made), match, make)
        replaced += [
            Replacement(place.path, f"the call of {place.call}", _text(place.new), function=place.function)
            for place in rewritten
        ]
    elif functional == "warn":
        calls = functional_calls(model, match, make.made)
    report = SwapReport(model, tuple(replaced), calls, new_model=model is not given)
    if replaced and callable(getattr(model, "save_pretrained", None)) and hasattr(model, "config"):
        warnings.warn(
            f"save_pretrained of this {type(model).__name__} keeps the weights and not the new activations: after "
            "from_pretrained, call swap_activations again with the same arguments",
            SwapWarning,
            stacklevel=2,
        )
    nothing = f"swap_activations found nothing to replace; modules seen: {', '.join(types_seen)}"
    if calls:
        warnings.warn(
            f"{'' if replaced else nothing + '. '}swap_activations left functional calls as they are: {'; '.join(calls)}. "
            "functional='rewrite' replaces them in a new model, the report's; functional='ignore' silences this",
            SwapWarning,
            stacklevel=2,
        )
    elif not replaced:
        warnings.warn(nothing, SwapWarning, stacklevel=2)
    return report


# ---- the new modules ----


class _Maker:
    """Makes the new modules, as many as `shared` says, with the dtype and mode around them."""

    def __init__(self, to: ActivationLike | None, shared: Sharing, model: nn.Module) -> None:
        self.shared = shared
        self.made: list[nn.Module] = []
        self.by_old: dict[Any, nn.Module] = {}
        self.model = model
        if not (isinstance(to, str) or callable(to)):
            raise CurvactError(f"to={shortened(to)} in swap_activations: give a name, a factory or a module")
        self.factory: Callable[[], nn.Module] = fresh(to, "swap_activations")
        if isinstance(to, nn.Module) and shared == "one":
            self.factory = lambda: to

    def __call__(self, old: nn.Module | None, parent: nn.Module, key: Any = None) -> nn.Module:
        """The new module in `parent` for `old`, or for the functional call `key`."""
        if self.shared == "one":
            key = "one"
        elif self.shared == "keep":
            key = id(old) if old is not None else key
        else:
            key = None
        if key is not None and key in self.by_old:
            return self.by_old[key]
        new = self.factory()
        tensors = chain(_tensors(parent), _tensors(self.model))
        near = next((t for t in tensors if t.is_floating_point()), None)
        if near is not None:
            new.to(device=near.device, dtype=near.dtype)
        new.train(parent.training if old is None else old.training)
        self.made.append(new)
        if key is not None:
            self.by_old[key] = new
        return new


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _text(module: nn.Module) -> str:
    return " ".join(str(module).split())


def _hooks(module: nn.Module) -> int:
    return sum(
        len(getattr(module, name, ()))
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


# ---- modules, and functions kept as attributes ----


@dataclass(frozen=True)
class _Place:
    """An attribute of `parent` that holds an activation: a module, or a function such as F.relu."""

    parent: nn.Module
    name: str
    path: str
    old: nn.Module | None
    text: str
    inplace: bool


def _places(model: nn.Module, match: Match) -> Iterator[_Place]:
    """Every attribute to replace, each once, without looking inside what is replaced."""
    seen: set[int] = set()
    wanted = functional_names(match)

    def walk(module: nn.Module, prefix: str) -> Iterator[_Place]:
        if id(module) in seen:
            return
        seen.add(id(module))
        for name, child in module._modules.items():
            if child is None:
                continue
            if match(child):
                yield _Place(module, name, prefix + name, child, _text(child), is_inplace(child))
            else:
                yield from walk(child, f"{prefix}{name}.")
        for name, value in list(vars(module).items()):
            function = value.func if isinstance(value, functools.partial) else value
            call = FUNCTION_NAMES.get(function) if is_function(function) else None
            if call in wanted:
                yield _Place(module, name, prefix + name, None, f"the function {call}", is_inplace(value))

    return walk(model, "")


def _seen(places: list[_Place], model: nn.Module, match: Match) -> set[int]:
    """The ids of the places in place whose writing is seen, or may be."""
    inplace = [place for place in places if place.inplace]
    if not inplace:
        return set()
    verdicts: dict[int, bool] = {}
    try:
        graph = trace(model, match, [])
        writing = seen_writes(graph, model)
        for node in graph.nodes:
            if node.op == "call_module":
                key = id(model.get_submodule(str(node.target)))
                verdicts[key] = verdicts.get(key, False) or node in writing
    except CurvactError:
        pass
    seen = set()
    for place in inplace:
        verdict = verdicts.get(id(place.old)) if place.old is not None else None
        if not source_shows_no_harm(place.parent, place.name) if verdict is None else verdict:
            seen.add(id(place))
    return seen


def _replace(place: _Place, make: _Maker, model: nn.Module, writes: bool) -> Replacement:
    parent = place.parent
    new = make(place.old, parent, (id(parent), place.name))
    if writes:
        new = InPlace(new).train(new.training)
    if place.old is None:
        setattr(parent, place.name, new)  # registers the module in place of the function
    else:
        parent._modules[place.name] = new
    if hasattr(parent, "activation_relu_or_gelu"):
        # nn.TransformerEncoderLayer's fused inference path computes ReLU or GELU by this flag,
        # whatever `activation` is.
        parent.activation_relu_or_gelu = 0  # type: ignore[assignment]
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder) and parent in module.layers:
                module.use_nested_tensor = False  # only that path takes nested tensors
    return Replacement(place.path, place.text, _text(new), _hooks(place.old) if place.old is not None else 0)
