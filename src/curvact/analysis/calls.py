"""The calls of activations in a forward pass: where they are, what they see, and how to put
something in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from curvact.activations import name_of
from curvact.activations.selection import FUNCTION_NAMES, Match, Selector, functional_names, matcher
from curvact.attacks.batch import checked_module, first_outputs
from curvact.errors import CurvactError
from curvact.models.modes import mode

Function = Callable[[Tensor], Tensor]
Visit = Callable[[Function, Function, Tensor], Tensor]
"""(activation, what computes it, pre-activations) to what the call returns."""
See = Callable[[str, Function, Tensor], None]
"""(path of the calling module, activation, pre-activations)."""


@dataclass(frozen=True)
class CallSite:
    """One call of an activation in the forward pass.

    name: the path of the module. Where a module is called more often than it has paths, `#2` marks
        its second call, and so on. For a functional call: the module whose forward makes it and the
        function, as in `layer1.0:relu`.
    function: the activation itself: elementwise, of one tensor.
    """

    name: str
    function: Function

    @property
    def activation(self) -> str:
        """The activation as text."""
        return " ".join(name_of(self.function).split())


def call_sites(model: nn.Module, x: Tensor, *, match: Selector | None = None) -> tuple[CallSite, ...]:
    """The calls of activations in a forward pass over x (N, …), in order, in eval mode.

    match: other modules to find, as `from_` of `swap_activations`. CurvactError where no activation
    is called.

    >>> act = nn.ReLU()
    >>> [site.name for site in call_sites(nn.Sequential(act, nn.Linear(2, 2), act), torch.zeros(1, 2))]
    ['0', '2']
    """
    calls: list[tuple[str, Function]] = []
    model = checked_module(model, "call_sites")
    if not isinstance(x, Tensor) or x.dim() == 0:
        raise CurvactError(f"inputs of call_sites are a {type(x).__name__}: a tensor (N, …)")
    with (
        torch.no_grad(),
        mode(model, training=False),
        watched(model, matcher(match), lambda frame, function, _: calls.append((frame, function))),
    ):
        first_outputs(model, x, "call_sites")
    if not calls:
        kinds = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise CurvactError(f"no activation was called in the forward pass; modules seen: {kinds}")
    paths = _paths(model)
    counts: dict[str, int] = {}
    sites = []
    for index, (_, function) in enumerate(calls):
        name = _named(calls, index, paths)
        counts[name] = counts.get(name, 0) + 1
        sites.append(CallSite(name if counts[name] == 1 else f"{name}#{counts[name]}", function))
    return tuple(sites)


def curvature_at(function: Function, a: Tensor) -> Tensor:
    """σ″(a), elementwise: the activation's own `curvature` where it has one, else by autograd.
    Detached.

    >>> curvature_at(torch.nn.functional.silu, torch.zeros(1))
    tensor([0.5000])
    """
    own = getattr(function, "curvature", None)
    if callable(own):
        with torch.no_grad():
            bent: Tensor = own(a.detach())
            return bent
    with torch.enable_grad():
        a = a.detach().clone().requires_grad_()
        # An inplace activation must not write to a leaf.
        out = function(a * 1)
        (slope,) = torch.autograd.grad(out.sum(), a, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(a)
        (second,) = torch.autograd.grad(slope.sum(), a, allow_unused=True, materialize_grads=True)
    return second.detach()


def identity_of(function: Function) -> object:
    """The same for calls of one module, and for functional calls with the same arguments: they have
    the same κ.
    """
    if isinstance(function, _Functional):
        return function.__name__, repr(function.args), repr(function.kwargs)
    return id(function)


@contextmanager
def watched(model: nn.Module, match: Match, see: See) -> Iterator[None]:
    """Calls `see` before each activation. Calls that an activation makes inside itself are not
    seen.
    """
    paths = _paths(model)
    activations = {id(module) for module in model.modules() if match(module)}
    frames: list[str] = []

    def enter(module: nn.Module, _args: Any) -> None:
        prefix = f"{frames[-1]}." if frames and frames[-1] else ""
        mine = paths[id(module)]
        frames.append(next((path for path in mine if path.startswith(prefix)), mine[0]))

    def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
        frames.pop()

    def visit(function: Function, compute: Function, a: Tensor) -> Tensor:
        see(frames[-1] if frames else "", function, a)
        return compute(a)

    handles = []
    try:
        for module in model.modules():
            if id(module) not in activations:
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
        with replaced(model, match, visit):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(model: nn.Module, match: Match, visit: Visit) -> Iterator[None]:
    """Calls of the matching modules, and functional calls of the same activations, go to `visit`.

    `visit` gets copies of the pre-activations, for the model may write to its own tensors later.
    """
    busy = False

    def call(function: Function, compute: Function, a: Tensor, inplace: bool) -> Tensor:
        nonlocal busy
        if busy:
            return compute(a)
        busy = True
        try:
            out = visit(function, (lambda t: compute(t.clone())) if inplace else compute, a.clone())
        finally:
            busy = False
        return a.copy_(out) if inplace else out

    wanted = functional_names(match)

    class Calls(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            name = FUNCTION_NAMES.get(func)
            if busy or name not in wanted:
                return func(*args, **kwargs)
            inplace = bool(kwargs.get("inplace")) or getattr(func, "__name__", "").endswith("_")
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "inplace")}
            function = _Functional(name, func, args[1:], rest)
            return call(function, function, args[0] if args else kwargs["input"], inplace)

    def forward_of(module: nn.Module, original: Function) -> Function:
        def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
            a = args[0] if args else next(iter(kwargs.values()))
            return call(module, original, a, bool(getattr(module, "inplace", False)))

        return forward

    activations = [module for module in model.modules() if match(module)]
    before = [(module, vars(module).get("forward")) for module in activations]
    # The fused path of transformer layers calls no activation.
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module in activations:
            module.forward = forward_of(module, module.forward)
        with Calls():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, forward in before:
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


class _Functional:
    """A function of torch with its arguments but for the first."""

    def __init__(self, name: str, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.__name__ = name
        self.function = function
        self.args = tuple(args)
        self.kwargs = kwargs

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x, *self.args, **self.kwargs)
        return out


def _paths(model: nn.Module) -> dict[int, list[str]]:
    """All paths of each module."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    return paths


def _named(calls: Sequence[tuple[str, Function]], index: int, paths: dict[int, list[str]]) -> str:
    """The path of the called module. A parent may hold it under several names and call each once:
    they then come in turn.
    """
    frame, function = calls[index]
    if isinstance(function, _Functional):
        return f"{frame}:{function.__name__}" if frame else function.__name__
    here = [i for i, (where, other) in enumerate(calls) if where == frame and other is function]
    prefix = f"{frame}." if frame else ""
    own = [p for p in paths[id(function)] if p.startswith(prefix) and "." not in p[len(prefix) :]]
    if len(own) == len(here):
        return own[here.index(index)] or "(the model itself)"
    return (own or paths[id(function)])[0] or "(the model itself)"
