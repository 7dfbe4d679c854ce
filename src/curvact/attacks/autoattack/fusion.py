"""A traced network with its convolutions by Winograd, each one together with the sum and the ReLU
that follow it.
"""

from __future__ import annotations

import operator

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp

from curvact.attacks.autoattack.windows import Tracer
from curvact.attacks.autoattack.winograd import WinogradConv2d, fits, kernel

RELUS = (F.relu, torch.relu)
SUMS = (operator.add, operator.iadd, torch.add)


def fused(model: nn.Module, example: Tensor) -> tuple[nn.Module, int]:
    """The rewritten network, and its number of Winograd convolutions; the model itself and 0 if it
    cannot be traced.

    example: a few images. The parameters are the model's own, and must not change after.
    """
    if example.device.type != "cpu" or kernel() is None or not any(map(fits, model.modules())):
        return model, 0
    try:
        with torch.no_grad():
            graph = torch.fx.GraphModule(model, Tracer(example).trace(model))
            ShapeProp(graph).propagate(example)
    except Exception:
        return model, 0
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.Identity:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)
    count = 0
    for node in list(graph.graph.nodes):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not fits(conv) or len(node.args) != 1 or node.kwargs:
            continue
        assert isinstance(conv, nn.Conv2d)
        last, added = node, None
        follower = _only_user(last)
        if follower is not None and (other := _summand(follower, node)) is not None:
            last, added = follower, other
            follower = _only_user(last)
        relu = follower is not None and _is_relu(follower, modules)
        if relu:
            assert follower is not None
            last = follower
        name = f"winograd_{count}"
        graph.add_submodule(name, WinogradConv2d(conv, relu=relu).requires_grad_(False).eval())
        with graph.graph.inserting_before(last):
            new = graph.graph.call_module(name, (*node.args, *([] if added is None else [added])))
            new.meta = dict(last.meta)
        last.replace_all_uses_with(new)
        count += 1
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph, count


def _only_user(node: torch.fx.Node) -> torch.fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _summand(node: torch.fx.Node, conv: torch.fx.Node) -> torch.fx.Node | None:
    """The other summand, if the node adds a tensor of equal shape to the convolution's output; in
    place only into that output.
    """
    if node.op != "call_function" or node.target not in SUMS or len(node.args) != 2 or node.kwargs:
        return None
    others = [part for part in node.all_input_nodes if part is not conv]
    if len(others) != 1 or not all(isinstance(part, torch.fx.Node) for part in node.args):
        return None
    if node.target is operator.iadd and node.args[0] is not conv:
        return None
    same = conv.meta["tensor_meta"].shape == others[0].meta["tensor_meta"].shape
    return others[0] if same else None


def _is_relu(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_function":
        return node.target in RELUS
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    return module is not None and len(node.args) == 1 and not node.kwargs and acts_as_relu(module)


def acts_as_relu(module: nn.Module) -> bool:
    """Whether a module without parameters computes the ReLU: values and gradients of all sizes are
    compared.

    >>> acts_as_relu(nn.ReLU()), acts_as_relu(nn.ReLU6()), acts_as_relu(nn.SiLU())
    (True, False, False)
    """
    if module.training or any(True for _ in module.children()) or module.state_dict():
        return type(module) is nn.ReLU
    sizes = torch.logspace(-6, 4, 128)
    values = torch.cat([sizes, -sizes, torch.zeros(256 - 2 * len(sizes) + 16)])
    values = torch.cat([values, values.flip(0)]).view(2, 16, -1, 1).contiguous()
    try:
        with torch.enable_grad():
            x = values.clone().requires_grad_()
            out = module(x.clone())
            (gradient,) = torch.autograd.grad(out.sum(), x)
    except Exception:
        return False
    return torch.equal(out.detach(), values.clamp_min(0)) and torch.equal(gradient, (values > 0).float())
