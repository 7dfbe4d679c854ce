"""Activations that write into their input, such as nn.ReLU(inplace=True): where that is seen. [ours]

An activation in place changes its input for everyone who holds it. Mostly nobody does, and an
activation that returns a new tensor can stand for it. Where the result is not used, or the input
is used again, the replacement has to write too.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations.selection import FUNCTION_NAMES, is_activation

_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.Linear,
    nn.LayerNorm,
    nn.GroupNorm,
)
_FRESH_FUNCTIONS = {
    *(getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "neg", "matmul", "pow")),
    *(getattr(torch, name) for name in ("add", "sub", "mul", "div", "cat", "matmul", "bmm", "stack")),
    *(F.conv1d, F.conv2d, F.conv3d, F.linear, F.batch_norm, F.layer_norm, F.group_norm),
}
"""What returns a new tensor, which nobody else holds."""


class InPlace(nn.Module):
    """An activation that writes its values into its input and returns the input.

    Stands for a module such as nn.ReLU(inplace=True) whose input is used again. The input must be
    no leaf that requires a gradient, as with torch's own.

    >>> x = torch.tensor([-1.0, 2.0])
    >>> _ = InPlace(nn.ReLU())(x)
    >>> x
    tensor([0., 2.])
    """

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        # Of a copy, because the activation keeps its input for the backward pass.
        return x.copy_(self.act(x.clone()))


def is_inplace(activation: Any) -> bool:
    """Whether a module, a function or a partial of one writes into its input."""
    if isinstance(activation, nn.Module):
        return getattr(activation, "inplace", False) is True
    if isinstance(activation, functools.partial):
        return activation.keywords.get("inplace") is True or is_inplace(activation.func)
    return str(getattr(activation, "__name__", "")).endswith("_")


def node_is_inplace(node: torch.fx.Node, model: nn.Module) -> bool:
    """Whether a node of a traced graph writes into its first argument."""
    if node.op == "call_module":
        return is_inplace(model.get_submodule(str(node.target)))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op != "call_function":
        return False
    name = str(getattr(node.target, "__name__", ""))
    if name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv", "ipow"):
        return True
    try:
        assert callable(node.target)
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):
        given = dict(node.kwargs)
    return given.get("inplace") is True


def seen_writes(graph: torch.fx.Graph, model: nn.Module) -> set[torch.fx.Node]:
    """The nodes in place whose writing is seen: unused ones, and those whose input is used later.

    A tensor counts as shared with every tensor that it may be a view of.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=-1) for node in order}
    memory: dict[torch.fx.Node, frozenset[torch.fx.Node]] = {}
    found: set[torch.fx.Node] = set()
    for node in graph.nodes:
        writes = node_is_inplace(node, model)
        inputs = node.all_input_nodes
        sources = [] if _is_fresh(node, model) and not writes else inputs[:1] if writes else inputs
        memory[node] = frozenset({node}).union(*(memory[source] for source in sources))
        if writes and inputs:
            # Of all tensors with this memory, made before; `node` itself is the new name of it.
            mine = memory[inputs[0]]
            holders = [other for other in memory if other is not node and memory[other] & mine]
            if not node.users or any(last_use[other] > order[node] for other in holders):
                found.add(node)
    return found


def _is_fresh(node: torch.fx.Node, model: nn.Module) -> bool:
    if node.op in ("placeholder", "get_attr"):
        return True
    if node.op == "call_module":
        return _makes_new(model.get_submodule(str(node.target)))
    if node.op == "call_function":
        return node.target in _FRESH_FUNCTIONS or node.target in FUNCTION_NAMES
    return node.op == "call_method" and node.target in ("clone", "add", "mul", "sub", "div")


def _makes_new(module: Any) -> bool:
    return isinstance(module, _FRESH_MODULES) or is_activation(module)


def source_shows_no_harm(parent: nn.Module, name: str) -> bool:
    """Whether every call of the activation `name` in the class of `parent` is plainly harmless.

    For models that torch.fx cannot trace. Harmless: its input comes straight from a layer that
    makes a new tensor, under the name that the result gets, or under none.
    """
    if isinstance(parent, nn.Sequential):
        names = list(parent._modules)
        place = names.index(name)
        return place > 0 and _makes_new(parent._modules[names[place - 1]])
    calls = 0
    for function in _methods(type(parent)):
        me = function.args.args[0].arg if function.args.args else ""
        statements = [s for s in ast.walk(function) if isinstance(s, ast.stmt)]
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if _attribute_of(call.func, me) != name:
                continue
            calls += 1
            if len(call.args) != 1 or not _harmless(call, statements, parent, me):
                return False
    return calls > 0


def _harmless(call: ast.Call, statements: list[ast.stmt], parent: nn.Module, me: str) -> bool:
    given = call.args[0]
    if any(isinstance(s, ast.Expr) and s.value is call for s in statements):
        return False
    if isinstance(given, ast.Call):
        return _makes_new(getattr(parent, _attribute_of(given.func, me) or " ", None))
    if not isinstance(given, ast.Name):
        return False
    assigned = [s for s in statements if isinstance(s, ast.Assign)]
    named = [(s, name) for s in assigned if (name := _one_name(s)) is not None]
    copies = any(isinstance(s.value, ast.Name) and s.value.id == given.id for s, _ in named)
    same = any(s.value is call and target == given.id for s, target in named)
    earlier = [s for s, target in named if target == given.id and s.lineno < call.lineno]
    if copies or not same or not earlier:
        return False
    made = max(earlier, key=lambda s: s.lineno).value
    return isinstance(made, ast.Call) and _makes_new(
        getattr(parent, _attribute_of(made.func, me) or " ", None)
    )


def _one_name(statement: ast.Assign) -> str | None:
    """`name` of the statement `name = ...`."""
    target = statement.targets[0]
    return target.id if len(statement.targets) == 1 and isinstance(target, ast.Name) else None


def _attribute_of(node: ast.expr, me: str) -> str | None:
    """`name` of the expression `self.name`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == me:
        return node.attr
    return None


def _methods(kind: type) -> Iterator[ast.FunctionDef]:
    for base in kind.__mro__:
        if base in (nn.Module, object):
            return
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
