"""Functional activations in forward methods, such as F.relu(x): found, or rewritten to modules."""

from __future__ import annotations

import ast
import inspect
import operator
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn

from curvact.activations.inplace import seen_writes
from curvact.activations.selection import FUNCTION_NAMES, FUNCTIONAL, Match, functional_names, is_activation
from curvact.errors import CurvactError, first_line

ROOT = "(the model itself)"
Make = Callable[[nn.Module | None, nn.Module, Any], nn.Module]


def is_function(value: Any) -> bool:
    """Whether a value is a plain, built-in or tensor function."""
    return isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType))


class _Tracer(torch.fx.Tracer):
    """Does not look into activations, nor into modules of torch.nn."""

    def __init__(self, opaque: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.opaque(m) or super().is_leaf_module(m, module_qualified_name)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Undo what tracing writes to the attributes of a model."""
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


def trace(model: nn.Module, match: Match, new: list[nn.Module]) -> torch.fx.Graph:
    """The graph of the model; activations and the modules `new` are leaves. May raise CurvactError."""
    added = {id(m) for m in new}
    try:
        with _untouched(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Tracer(lambda m: id(m) in added or match(m) or is_activation(m)).trace(model)
    except Exception as error:
        raise CurvactError(
            f"torch.fx cannot trace {type(model).__name__} to rewrite its functional calls: {first_line(error)}"
        ) from None


def refuse_constants(model: nn.Module, graph: torch.fx.Graph) -> None:
    """CurvactError where forward makes a tensor: the graph would keep its value of now for ever."""
    for node in graph.nodes:
        if node.op == "get_attr" and not _has(model, str(node.target)):
            raise CurvactError(
                f"functional='rewrite' of {type(model).__name__}: its forward makes a tensor, such as torch.zeros(1), "
                "whose value the graph would keep: make it in the constructor, with register_buffer"
            )


def _call_name(node: torch.fx.Node) -> str | None:
    if node.op == "call_function":
        return FUNCTION_NAMES.get(node.target)
    if node.op == "call_method" and isinstance(node.target, str):
        name = node.target.removesuffix("_")
        return name if name in FUNCTIONAL else None
    return None


def _owner(node: torch.fx.Node) -> tuple[str, str]:
    """The path of the module whose forward holds the node, and a key of that very call of it."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return "", ""
    key, (path, _) = list(stack.items())[-1]
    return str(path), str(key)


def functional_calls(model: nn.Module, match: Match, new: list[nn.Module]) -> tuple[str, ...]:
    """`path: name` of the functional activations in forward, by torch.fx and by the source."""
    added = {id(m) for m in new}
    wanted = functional_names(match)

    def opaque(module: nn.Module) -> bool:
        return id(module) in added or match(module) or is_activation(module)

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
    """Names of the activations that a function calls, also through methods and its own package."""
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
            if is_function(target) and target in FUNCTION_NAMES:
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
            elif name.removesuffix("_") in FUNCTIONAL and not _inside(node.func.value, me):
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


class Rewritten(NamedTuple):
    """Calls of an activation that a module stands for now.

    function: what they compute of their input, with their other arguments; None where one of these is computed,
        or differs between the calls.
    """

    path: str
    call: str
    new: nn.Module
    function: Callable[[Tensor], Tensor] | None


def rewrite(
    model: nn.Module, graph: torch.fx.Graph, match: Match, make: Make
) -> tuple[nn.Module, list[Rewritten]]:
    """The model as a GraphModule with modules for calls of activations; each place.

    Where the writing of a call in place is seen, the new values are copied into its input.
    """
    writing = seen_writes(graph, model)
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
    replaced: list[Rewritten] = []
    used: dict[str, nn.Module] = {}
    arguments: dict[str, Any] = {}
    for node, call, path, index in sites:
        new = make(None, model.get_submodule(path), (path, index))
        stem = f"{path}.{call}".lstrip(".")
        target, number = stem, 1
        while used[target] is not new if target in used else _has(result, target):
            target, number = f"{stem}_{number}", number + 1
        if target not in used:
            used[target] = new
            result.add_submodule(target, new)
            arguments[target] = _other_arguments(node, model)
            function = _with_arguments(node.target, arguments[target])
            replaced.append(Rewritten(target, call, new, function))
        elif not _same(arguments[target], _other_arguments(node, model)):
            replaced = [r._replace(function=None) if r.path == target else r for r in replaced]
        given = node.args[0] if node.args else node.kwargs["input"]
        with graph.inserting_before(node):
            if node in writing:
                copied = result.graph.call_method("clone", (given,))
                values = result.graph.call_module(target, (copied,))
                made = result.graph.call_method("copy_", (given, values))
            else:
                made = result.graph.call_module(target, (given,))
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    result.recompile()
    result.train(model.training)
    return result, replaced


def _other_arguments(node: torch.fx.Node, model: nn.Module) -> tuple[Any, Any] | None:
    """The arguments of a call but for its input, by place and by name; None where the graph computes one."""
    named = {name: value for name, value in node.kwargs.items() if name != "input"}
    inside: list[torch.fx.Node] = []
    torch.fx.node.map_arg((node.args[1:], named), inside.append)
    if any(other.op != "get_attr" for other in inside):
        return None

    def kept(other: torch.fx.Node) -> Any:
        return operator.attrgetter(str(other.target))(model)

    found: tuple[Any, Any] = torch.fx.node.map_arg((node.args[1:], named), kept)
    return found


def _with_arguments(target: Any, others: tuple[Any, Any] | None) -> Callable[[Tensor], Tensor] | None:
    """The function of a call as one of its input alone."""
    if others is None:
        return None
    function, (rest, named) = getattr(Tensor, target) if isinstance(target, str) else target, others
    return lambda x: function(x, *rest, **named)


def _same(first: tuple[Any, Any] | None, second: tuple[Any, Any] | None) -> bool:
    try:
        return first is not None and bool(first == second)
    except RuntimeError:  # tensors of several numbers
        return False


def _has(module: nn.Module, path: str) -> bool:
    home: Any = module
    for name in path.split("."):
        home = getattr(home, name, None)
    return home is not None
