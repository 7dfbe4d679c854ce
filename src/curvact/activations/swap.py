"""Swapping activations inside any `nn.Module`: modules, functions kept as attributes, functional calls in `forward`. [ours]"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from curvact.errors import CurvactError, nearest

Sharing = Literal["keep", "separate", "one"]
Functional = Literal["warn", "rewrite", "ignore"]
Kind = type[nn.Module] | str
Selector = Kind | tuple[Kind, ...] | nn.Module | Callable[[nn.Module], bool]
Replacer = str | nn.Module | Callable[[], nn.Module]
Match = Callable[[nn.Module], bool]

USUAL: tuple[type[nn.Module], ...] = (
    *(
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.PReLU,
        nn.RReLU,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
    ),
    *(
        nn.Softplus,
        nn.Hardswish,
        nn.Hardtanh,
        nn.Tanh,
        nn.Softsign,
        nn.Tanhshrink,
        nn.Hardshrink,
        nn.Softshrink,
    ),
)
"""What is swapped by default. Sigmoid, Hardsigmoid and LogSigmoid are not among them: they mostly serve as gates and outputs."""

_CALLS: dict[str, type[nn.Module]] = {
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
FUNCTION_NAMES: dict[Any, str] = {
    function: name
    for name in _CALLS
    for home in (F, torch, torch._C._nn, torch.Tensor)
    for spelling in (name, f"{name}_")
    if (function := getattr(home, spelling, None)) is not None
}
ROOT = "(the model itself)"


@dataclass(frozen=True)
class Replacement:
    """One place. path: dotted; old, new: as text; hooks: how many hooks of the old module are gone."""

    path: str
    old: str
    new: str
    hooks: int = 0

    def __str__(self) -> str:
        lost = f"  ({self.hooks} hook{'s' * (self.hooks > 1)} of the old module lost)" if self.hooks else ""
        return f"{self.path}: {self.old} -> {self.new}{lost}"


@dataclass(frozen=True)
class SwapReport:
    """What `swap_activations` did. len() is the number of places replaced.

    model: the model with its new activations; the one passed in, unless it was an activation itself, was rewritten or copied.
    replaced: every place, in the order of the model.
    functional: functional calls that were not replaced, as `path: name`.
    """

    model: nn.Module
    replaced: tuple[Replacement, ...]
    functional: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.replaced)

    def __str__(self) -> str:
        count = len(self.replaced)
        lines = [
            f"replaced {count} activation{'s' * (count != 1)}" if count else "found no activation to replace"
        ]
        lines += [f"  {r}" for r in self.replaced]
        if self.functional:
            lines += [
                "not replaced, functional calls in forward:",
                *(f"  {call}" for call in self.functional),
            ]
        return "\n".join(lines)


def swap_activations(
    model: nn.Module,
    from_: Selector | None = None,
    to: Replacer | None = None,
    *,
    shared: Sharing = "keep",
    functional: Functional = "warn",
    inplace: bool = True,
) -> SwapReport:
    """Replace the activations of a model, in place, and report every place.

    from_: what to replace: a class, a name of a torch.nn class such as "ReLU" (ours of that name too), a tuple of these,
        one module object, or a predicate on modules (for functional calls it is asked about the torch.nn module of that
        name, with default arguments). None: the usual activations of torch.nn (`USUAL`) and every module that has `slope`
        and `curvature`.
    to: a name such as "rctaf(curvature=6)", a factory called without arguments (a class, too), or a module, which is
        copied unless shared="one".
    shared: a module object that was used at several places becomes one new module at all of them ("keep"), or every place
        gets its own ("separate"), or the whole model gets one ("one"). A place is an attribute: a module that one forward
        calls twice is one place. A functional call has a module of its own ("keep": the same at every call of that line).
    functional: what to do about `F.relu(x)`, `torch.relu(x)` and `x.relu()` in `forward`. "warn": name them in a UserWarning
        and in the report. "rewrite": trace the model with torch.fx and put modules in their place; `report.model` is then a
        GraphModule, a new object that shares parameters and submodules with the old (as always with fx, control flow and
        the training flag of functional dropout are fixed, and nothing but forward survives). "ignore": do not look.
    inplace: False works on a deep copy, `report.model`.

    Functions kept as attributes (`nn.TransformerEncoderLayer.activation`) are replaced too, and that layer's fused inference
    path, which would ignore the new activation, is switched off. New modules take training mode, device and dtype from
    their surroundings. Optimizers made before do not know the parameters of new, learnable activations. Not recognised:
    activations written out as `clamp(min=0)` or `maximum`, modules kept in plain lists, and functional calls that neither
    torch.fx nor the source of forward shows.

    Warns (UserWarning) when nothing was found, with the types of module seen. Raises CurvactError for a bad argument,
    TorchScript, and functional="rewrite" of a model that torch.fx cannot trace; the model is then unchanged.

    >>> from curvact.activations import RCTAF
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> print(swap_activations(net, "ReLU", lambda: RCTAF.from_curvature(6.0)))
    replaced 1 activation
      1: ReLU() -> rctaf(alpha=24.0, beta=0)
    """
    if not isinstance(model, nn.Module):
        raise CurvactError(f"swap_activations got a {type(model).__name__}: it takes an nn.Module")
    for value, name, allowed in ((shared, "shared", Sharing), (functional, "functional", Functional)):
        if value not in get_args(allowed):
            raise CurvactError(
                f"{name}={value!r} in swap_activations: allowed are {', '.join(get_args(allowed))}"
            )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CurvactError(f"{path or 'the model'} is TorchScript: swap the activations before scripting")
    if not inplace:
        model = copy.deepcopy(model)
    match = matcher(from_)
    make = _Maker(to, shared)
    types_seen = sorted({type(m).__name__ for m in model.modules()})

    if match(model):
        new = make(model, model)
        return SwapReport(new, (Replacement(ROOT, _text(model), _text(new), _hooks(model)),))
    places = list(_places(model, match))
    if functional == "rewrite":
        _trace(model, match, [])  # fails before anything has changed
    replaced = [_replace(place, make, model) for place in places]
    calls: tuple[str, ...] = ()
    if functional == "rewrite":
        model, rewritten = _rewrite(model, _trace(model, match, make.made), match, make)
        replaced += rewritten
    elif functional == "warn":
        calls = _functional_calls(model, match, make.made)
    report = SwapReport(model, tuple(replaced), calls)
    nothing = f"swap_activations found nothing to replace; modules seen: {', '.join(types_seen)}"
    if calls:
        warnings.warn(
            f"{'' if replaced else nothing + '. '}swap_activations left functional calls as they are: {'; '.join(calls)}. "
            "functional='rewrite' replaces them, functional='ignore' silences this",
            stacklevel=2,
        )
    elif not replaced:
        warnings.warn(nothing, stacklevel=2)
    return report


# ---- what is matched and what it becomes ----


def matcher(selector: Selector | None) -> Match:
    if selector is None:
        return lambda m: isinstance(m, USUAL) or _is_activation(m)
    if isinstance(selector, nn.Module):
        wanted = selector
        return lambda m: m is wanted
    if isinstance(selector, (str, type, tuple)):
        chosen = selector if isinstance(selector, tuple) else (selector,)
        kinds = tuple(_kind(k) for k in chosen)
        names = {k for k in chosen if isinstance(k, str)}
        return lambda m: isinstance(m, kinds) or (_is_activation(m) and type(m).__name__ in names)
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


def _is_activation(module: nn.Module) -> bool:
    return callable(getattr(module, "slope", None)) and callable(getattr(module, "curvature", None))


def functional_names(match: Match) -> set[str]:
    """Names of the functional activations that are meant: those whose module, with default arguments, matches."""

    def meant(kind: type[nn.Module]) -> bool:
        try:
            return match(kind())
        except AttributeError:  # of a predicate that asks for what only some modules have
            return False

    return {name for name, kind in _CALLS.items() if meant(kind)}


class _Maker:
    """Makes the new modules, as many as `shared` says, and fits them into their surroundings. made: all of them."""

    def __init__(self, to: Replacer | None, shared: Sharing) -> None:
        self.shared = shared
        self.made: list[nn.Module] = []
        self.by_old: dict[Any, nn.Module] = {}
        self.factory: Callable[[], Any]
        if isinstance(to, str):
            from curvact.activations.registry import as_factory, takes_channels

            self.factory = as_factory(to)
            if takes_channels(self.factory):
                raise CurvactError(
                    f"to={to!r} in swap_activations: it needs the number of channels at each place, which is not known here; "
                    "build one of curvact's architectures with it, or write channels=... where all places have as many"
                )
        elif isinstance(to, nn.Module):
            module = to
            self.factory = (lambda: module) if shared == "one" else (lambda: copy.deepcopy(module))
        elif callable(to):
            self.factory = to
        else:
            raise CurvactError(f"to={to!r} in swap_activations: give a name, a factory or a module")

    def __call__(self, old: nn.Module | None, parent: nn.Module, key: Any = None) -> nn.Module:
        """The new module for `old`, or for the functional call `key`, that will live in `parent`."""
        if self.shared == "one":
            key = "one"
        elif self.shared == "keep":
            key = id(old) if old is not None else key
        else:
            key = None
        if key is not None and key in self.by_old:
            return self.by_old[key]
        new = self.factory()
        if not isinstance(new, nn.Module):
            raise CurvactError(
                f"the factory for swap_activations made a {type(new).__name__}: it must make an nn.Module"
            )
        near = next((t for t in _tensors(parent) if t.is_floating_point()), None)
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
                yield _Place(module, name, prefix + name, child, _text(child))
            else:
                yield from walk(child, f"{prefix}{name}.")
        for name, value in list(vars(module).items()):
            function = value.func if isinstance(value, functools.partial) else value
            call = FUNCTION_NAMES.get(function) if _is_function(function) else None
            if call in wanted:
                yield _Place(module, name, prefix + name, None, f"the function {call}")

    return walk(model, "")


def _is_function(value: Any) -> bool:
    return isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType))


def _replace(place: _Place, make: _Maker, model: nn.Module) -> Replacement:
    parent = place.parent
    new = make(
        place.old, parent if next(_tensors(parent), None) is not None else model, (id(parent), place.name)
    )
    if place.old is None:
        setattr(parent, place.name, new)  # registers the module in place of the function
    else:
        parent._modules[place.name] = new
    if hasattr(parent, "activation_relu_or_gelu"):
        # nn.TransformerEncoderLayer's fused inference path computes ReLU or GELU by this flag, whatever `activation` is.
        parent.activation_relu_or_gelu = 0  # type: ignore[assignment]
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder) and parent in module.layers:
                module.use_nested_tensor = False  # only that path takes nested tensors
    return Replacement(place.path, place.text, _text(new), _hooks(place.old) if place.old is not None else 0)


# ---- functional calls: found by torch.fx and in the source ----


class _Tracer(torch.fx.Tracer):
    """Does not look into activations, nor, as usual, into modules of torch.nn."""

    def __init__(self, opaque: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.opaque(m) or super().is_leaf_module(m, module_qualified_name)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Undo what tracing leaves in a model whose forward writes to its attributes."""
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in model.modules():
        stores: tuple[Any, ...] = (vars(module), module._parameters, module._buffers, module._modules)
        before += [(store, dict(store)) for store in stores]
    try:
        yield
    finally:
        for store, content in before:
            store.clear()
            store.update(content)


def _trace(model: nn.Module, match: Match, new: list[nn.Module]) -> torch.fx.Graph:
    added = {id(m) for m in new}
    try:
        with _untouched(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Tracer(lambda m: id(m) in added or match(m) or _is_activation(m)).trace(model)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CurvactError(
            f"torch.fx cannot trace {type(model).__name__} to rewrite its functional calls: {reason}"
        ) from None


def _call_name(node: torch.fx.Node) -> str | None:
    if node.op == "call_function":
        return FUNCTION_NAMES.get(node.target)
    if node.op == "call_method" and isinstance(node.target, str):
        name = node.target.removesuffix("_")
        return name if name in _CALLS else None
    return None


def _owner(node: torch.fx.Node) -> tuple[str, str]:
    """The path of the module whose forward holds the node, and a key of that very call of it."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return "", ""
    key, (path, _) = list(stack.items())[-1]
    return str(path), str(key)


def _functional_calls(model: nn.Module, match: Match, new: list[nn.Module]) -> tuple[str, ...]:
    """`path: name` of all functional activations in forward methods, but for those of activations."""
    added = {id(m) for m in new}
    wanted = functional_names(match)

    def opaque(module: nn.Module) -> bool:
        return id(module) in added or match(module) or _is_activation(module)

    found: dict[tuple[str, str], None] = {}
    for path, module in _transparent(model, opaque):
        if not type(module).__module__.startswith("torch.nn."):
            for name in _in_source(type(module).forward, type(module)):
                if name in wanted:
                    found[path, name] = None
    try:
        with _untouched(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer(opaque).trace(model)
    except Exception:
        graph = torch.fx.Graph()
    for node in graph.nodes:
        call = _call_name(node)
        if call is not None and call in wanted:
            found[_owner(node)[0], call] = None
    return tuple(f"{path or ROOT}: {name}" for path, name in found)


def _transparent(model: nn.Module, opaque: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    closed: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{c}.") for c in closed):
            continue
        if opaque(module):
            closed.append(path)
        else:
            yield path, module


def _in_source(function: Any, owner: type, seen: set[Any] | None = None) -> list[str]:
    """Names of the activations that a function calls, through methods of `owner` and plain functions of the same package."""
    seen = set() if seen is None else seen
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None or code in seen:
        return []
    seen.add(code)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return []
    names = dict(function.__globals__)
    with_cells = zip(code.co_freevars, function.__closure__ or (), strict=False)
    for free, cell in with_cells:
        try:
            names[free] = cell.cell_contents
        except ValueError:
            continue
    me = code.co_varnames[0] if code.co_argcount else None
    package = str(names.get("__name__", "")).split(".")[0]
    found: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        target = _resolve(node.func, names)
        if target is not None:
            if _is_function(target) and target in FUNCTION_NAMES:
                found.append(FUNCTION_NAMES[target])
            elif (
                isinstance(target, types.FunctionType) and (target.__module__ or "").split(".")[0] == package
            ):
                found += _in_source(target, owner, seen)
        elif isinstance(node.func, ast.Attribute):
            name = node.func.attr
            home = node.func.value
            if isinstance(home, ast.Call) and isinstance(home.func, ast.Name) and home.func.id == "super":
                for base in owner.__mro__[1:]:
                    if isinstance(vars(base).get(name), types.FunctionType):
                        found += _in_source(vars(base)[name], owner, seen)
            elif isinstance(node.func.value, ast.Name) and node.func.value.id == me:
                method = getattr(owner, name, None)
                if isinstance(method, types.FunctionType):
                    found += _in_source(method, owner, seen)
            elif name.removesuffix("_") in _CALLS and not _inside(node.func.value, me):
                found.append(name.removesuffix("_"))
    return found


def _resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object that a dotted name means, or None."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        home = _resolve(node.value, names)
        return None if home is None else getattr(home, node.attr, None)
    return None


def _inside(node: ast.expr, me: str | None) -> bool:
    """Whether a dotted name starts at `self`: then it is a submodule, not a tensor."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id == me


# ---- functional calls: rewritten ----


def _rewrite(
    model: nn.Module, graph: torch.fx.Graph, match: Match, make: _Maker
) -> tuple[nn.Module, list[Replacement]]:
    """The model as a GraphModule, with a submodule in place of every functional activation."""
    sites: list[tuple[torch.fx.Node, str, str, int]] = []
    count: dict[str, int] = {}
    wanted = functional_names(match)
    for node in graph.nodes:
        call = _call_name(node)
        if node.op == "call_function" and isinstance(node.kwargs.get("training"), bool):
            warnings.warn(
                f"functional='rewrite' fixes training={node.kwargs['training']} in {node.name} of "
                f"{_owner(node)[0] or ROOT}: a module, such as nn.Dropout, would follow train() and eval()",
                stacklevel=3,
            )
        if call is not None and call in wanted:
            path, key = _owner(node)
            count[key] = count.get(key, -1) + 1
            sites.append((node, call, path, count[key]))
    result = torch.fx.GraphModule(model, graph, class_name=type(model).__name__)
    replaced: list[Replacement] = []
    used: dict[str, nn.Module] = {}
    for node, call, path, index in sites:
        parent = model.get_submodule(path)
        new = make(None, parent if next(_tensors(parent), None) is not None else model, (path, index))
        stem = f"{path}.{call}".lstrip(".")
        target, number = stem, 1
        while used[target] is not new if target in used else _has(result, target):
            target, number = f"{stem}_{number}", number + 1
        if target not in used:
            used[target] = new
            result.add_submodule(target, new)
            replaced.append(Replacement(target, f"the call of {call}", _text(new)))
        given = node.args[0] if node.args else node.kwargs["input"]
        with graph.inserting_before(node):
            made = result.graph.call_module(target, (given,))
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    result.recompile()
    result.train(model.training)
    return result, replaced


def _has(module: nn.Module, path: str) -> bool:
    home: Any = module
    for name in path.split("."):
        home = getattr(home, name, None)
    return home is not None
