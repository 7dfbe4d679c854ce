"""A convolutional network after a small window of its input changed: only the outputs that the
window reaches are recomputed.

torch.fx traces the network. Convolutions, pointwise modules and sums pass a window on, a little
larger. Feature maps are computed whole after any other operation, and where the window covers most
of the map. The result is exact up to rounding, and compared with the whole network before it is
used.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks.autoattack.winograd import WinogradConv2d

LARGEST = 0.5
"""A window that covers more of a feature map than this is computed whole."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Window:
    """The changed part of a node's value: rows top … bottom − 1, columns left … right − 1."""

    node: torch.fx.Node
    box: Box
    patch: Tensor


class Windowed:
    """The network, with its feature maps at the current images kept.

    `begin(x)` computes them; `logits(rows, box, x_window)` are those of the chosen images with a
    window replaced; `accept(taken)` keeps the last call's change for the rows of it that are True;
    `keep(rows)` drops the other images.
    """

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        self._graph = graph
        self._modules = dict(graph.named_modules())
        self._local = _local_nodes(graph, self._modules)
        self._maps: dict[str, Tensor] = {}
        self._rows: Tensor | None = None
        self._changes: dict[str, _Window | Tensor] = {}

    def begin(self, x: Tensor) -> Tensor:
        """The logits of x: n×C×H×W; its feature maps are kept."""
        values: dict[str, Any] = {}
        for node in self._graph.graph.nodes:
            values[node.name] = self._whole(node, values, x)
            if node.op == "output":
                break
        self._maps = {name: values[name] for name in self._local}
        logits: Tensor = values["output"]
        return logits

    def logits(self, rows: Tensor, box: Box, patch: Tensor) -> Tensor:
        """Of the images `rows` (m of them), with m×C×h×w in the place of the box."""
        values: dict[str, Any] = {}
        for node in self._graph.graph.nodes:
            if node.op == "placeholder":
                values[node.name] = _Window(node, box, patch)
            else:
                values[node.name] = self._step(node, values, rows)
            if node.op == "output":
                break
        self._rows = rows
        self._changes = {name: values[name] for name in self._local}
        logits: Tensor = values["output"]
        return logits

    def accept(self, taken: Tensor) -> None:
        """Of the rows of the last call, those that keep the change."""
        assert self._rows is not None
        taken = taken.nonzero().squeeze(1)
        if not len(taken):
            return
        rows = self._rows[taken]
        for name, change in self._changes.items():
            if isinstance(change, _Window):
                top, bottom, left, right = change.box
                self._maps[name][rows, :, top:bottom, left:right] = change.patch[taken]
            else:
                self._maps[name][rows] = change[taken]

    def keep(self, rows: Tensor) -> None:
        """Only these images stay; they are counted anew."""
        self._maps = {name: value[rows] for name, value in self._maps.items()}

    def prune(self, rows: Tensor, box: Box, patch: Tensor) -> None:
        """Keep the maps of those nodes only that such a window does not fill."""
        self.logits(rows, box, patch)
        self._local = tuple(name for name in self._local if isinstance(self._changes[name], _Window))

    @property
    def saves(self) -> bool:
        """Whether a convolution is among the nodes that windows reach."""
        local = [
            node for node in self._graph.graph.nodes if node.name in self._local and node.op == "call_module"
        ]
        return any(isinstance(self._modules[str(node.target)], nn.Conv2d) for node in local)

    def _whole(self, node: torch.fx.Node, values: dict[str, Any], x: Tensor | None) -> Any:
        if node.op == "placeholder":
            return x
        arguments = torch.fx.node.map_arg(node.args, lambda n: values[n.name])
        named = torch.fx.node.map_arg(node.kwargs, lambda n: values[n.name])
        if node.op == "output":
            return arguments[0]
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._graph)
        if node.op == "call_module":
            return self._modules[str(node.target)](*arguments, **named)
        if node.op == "call_method":
            return getattr(arguments[0], str(node.target))(*arguments[1:], **named)
        assert callable(node.target)
        return node.target(*arguments, **named)

    def _step(self, node: torch.fx.Node, values: dict[str, Any], rows: Tensor) -> Any:
        inputs = node.all_input_nodes
        windows = [values[n.name] for n in inputs if isinstance(values[n.name], _Window)]
        if windows and node.name in self._local and len(windows) == len(inputs):
            height, width = self._maps[node.name].shape[2:]
            module = self._modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, nn.Conv2d):
                box = _union([_grown(windows[0].box, module, height, width), *(w.box for w in windows[1:])])
            else:
                box = _union([window.box for window in windows])
            if (box[1] - box[0]) * (box[3] - box[2]) <= LARGEST * height * width:
                return _Window(node, box, self._patch(module, windows, box, rows))
        for n in inputs:
            value = values[n.name]
            if isinstance(value, _Window):
                height, width = self._maps[n.name].shape[2:]
                values[n.name] = self._filled(value, (0, height, 0, width), rows)
        return self._whole(node, values, None)

    def _patch(self, module: nn.Module | None, windows: Sequence[_Window], box: Box, rows: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            (k, j), (s, t), (d, e) = module.kernel_size, module.stride, module.dilation
            p, q = (int(side) for side in module.padding)
            wanted = (
                box[0] * s - p,
                (box[1] - 1) * s - p + (k - 1) * d + 1,
                box[2] * t - q,
                (box[3] - 1) * t - q + (j - 1) * e + 1,
            )
            source = self._filled(windows[0], wanted, rows)
            if isinstance(module, WinogradConv2d):
                return module.padded(source, 0, *(self._filled(window, box, rows) for window in windows[1:]))
            return F.conv2d(
                source, module.weight, module.bias, module.stride, 0, module.dilation, module.groups
            )
        parts = [window.patch if window.box == box else self._filled(window, box, rows) for window in windows]
        if module is not None:
            patched: Tensor = module(parts[0])
            return patched
        return parts[0] + parts[-1]

    def _filled(self, window: _Window, box: Box, rows: Tensor) -> Tensor:
        """The map of the window's node within a box, the window's change in it; 0 outside of the
        map.
        """
        whole = self._maps[window.node.name]
        height, width = whole.shape[2:]
        top, bottom, left, right = max(box[0], 0), min(box[1], height), max(box[2], 0), min(box[3], width)
        part = whole[rows, :, top:bottom, left:right]
        a, b = max(window.box[0], top), min(window.box[1], bottom)
        c, d = max(window.box[2], left), min(window.box[3], right)
        if a < b and c < d:
            x, y = window.box[0], window.box[2]
            part[:, :, a - top : b - top, c - left : d - left] = window.patch[
                :, :, a - x : b - x, c - y : d - y
            ]
        border = [left - box[2], box[3] - right, top - box[0], box[1] - bottom]
        return F.pad(part, border) if any(border) else part


def windowed(model: nn.Module, example: Tensor, query: Callable[[Tensor], Tensor]) -> Windowed | None:
    """The prepared model, or None if it cannot be traced, has no convolution, or gives other
    logits.

    example: a few images. query: the model as it is called. On the CPU only.
    """
    if example.device.type != "cpu" or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return None
    try:
        with torch.no_grad():
            made = Windowed(torch.fx.GraphModule(model, Tracer(example).trace(model)))
            made.begin(example)
            (height, width), rows = example.shape[2:], torch.arange(len(example))
            box = (height // 2, min(height // 2 + 3, height), width // 2, min(width // 2 + 3, width))
            made.prune(rows, box, example[:, :, box[0] : box[1], box[2] : box[3]])
        if not made.saves:
            return None
        return made if _holds(made, example, query) else None
    except Exception:
        return None


class _Shaped(torch.fx.Proxy):
    """A proxy with its value on the example, so that code may read its shape. Other numbers of
    images are checked later.
    """

    value: Any

    @property
    def shape(self) -> Any:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return int(self.value.ndim)

    def dim(self) -> int:
        return int(self.value.dim())

    def size(self, dim: int | None = None) -> Any:
        return self.value.size() if dim is None else self.value.size(dim)


class Tracer(torch.fx.Tracer):
    """Modules without children are leaves. Every step is also computed on the example."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._example = example
        self._real = False

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._real else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._real else super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Shaped(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        arguments, named = (
            torch.fx.node.map_aggregate(part, lambda a: a.value if isinstance(a, _Shaped) else a)
            for part in (args, kwargs)
        )
        before, self._real = self._real, True  # modules and attributes are themselves, not traced
        try:
            if kind == "placeholder":
                proxy.value = self._example
            elif kind == "get_attr":
                proxy.value = operator.attrgetter(target)(self.root)
            elif kind == "call_module":
                proxy.value = self.root.get_submodule(target)(*arguments, **named)
            elif kind == "call_method":
                proxy.value = getattr(arguments[0], target)(*arguments[1:], **named)
            elif kind == "call_function":
                proxy.value = target(*arguments, **named)
        finally:
            self._real = before
        return proxy


def _is_pointwise(module: nn.Module, channels: int | None) -> bool:
    """Whether a leaf maps each place of a feature map by itself; tried with one place changed."""
    if any(True for _ in module.children()):
        return False
    for count in (channels,) if channels else (3, 1):
        random = torch.Generator().manual_seed(0)
        x = torch.randn(2, count, 5, 6, generator=random)
        changed = x.clone()
        changed[:, :, 2, 3] += torch.randn(2, count, generator=random)
        try:
            with torch.no_grad():
                before, after, small = module(x), module(changed), module(x[:, :, 1:4, 2:5])
        except Exception:  # another number of channels
            continue
        if before.shape != x.shape:
            continue
        same = before == after
        same[:, :, 2, 3] = True
        return bool(same.all()) and torch.allclose(small, before[:, :, 1:4, 2:5], rtol=1e-5, atol=1e-6)
    return False


def _channels(node: torch.fx.Node, modules: dict[str, nn.Module]) -> int | None:
    """Output channels of the nearest convolution before the node."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d):
            return layer.out_channels
    return None


def _local_nodes(graph: torch.fx.GraphModule, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """Nodes whose value is a feature map that depends on the input by convolutions, pointwise
    modules and sums only.
    """
    local: list[str] = []
    for node in graph.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "placeholder":
            local.append(node.name)
            continue
        if not inputs or any(n.name not in local for n in inputs):
            continue
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        plain = len(node.args) == len(inputs) and not node.kwargs
        if isinstance(module, nn.Conv2d):
            if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str):
                local.append(node.name)
        elif module is not None:
            if plain and _is_pointwise(module, _channels(node, modules)):
                local.append(node.name)
        elif (
            node.op == "call_function"
            and node.target in (operator.add, torch.add)
            and len(node.args) == 2
            and plain
        ):
            local.append(node.name)
    return tuple(local)


def _grown(box: Box, conv: nn.Conv2d, height: int, width: int) -> Box:
    """The outputs that see the box."""
    result = []
    for axis, size in ((0, height), (1, width)):
        first, last = box[2 * axis], box[2 * axis + 1] - 1
        padding, stride = int(conv.padding[axis]), conv.stride[axis]
        reach = (conv.kernel_size[axis] - 1) * conv.dilation[axis]
        low = min(max(-((reach - first - padding) // stride), 0), size - 1)
        high = min(max((last + padding) // stride, low), size - 1)
        result += [low, high + 1]
    return (result[0], result[1], result[2], result[3])


def _union(boxes: Sequence[Box]) -> Box:
    return (
        min(b[0] for b in boxes),
        max(b[1] for b in boxes),
        min(b[2] for b in boxes),
        max(b[3] for b in boxes),
    )


def _holds(made: Windowed, example: Tensor, query: Callable[[Tensor], Tensor]) -> bool:
    """Whether windows in the corners and the middle give the logits of the whole, for any number of
    images.
    """
    height, width = example.shape[2:]
    random = torch.Generator().manual_seed(0)
    x = torch.cat([example, example.flip(0)])
    rows = torch.arange(len(x) - 1)
    with torch.no_grad():
        truth = query(x)
        scale = 1e-4 * float(truth.abs().max()) + 1e-6
        if not torch.allclose(made.begin(x), truth, rtol=0, atol=scale):
            return False
        for side in (1, 3, 4):
            for row, column in (
                (0, 0),
                (height - side, width - side),
                (height // 2, width // 3),
                (0, width - side),
            ):
                row, column = max(row, 0), max(column, 0)
                box = (row, min(row + side, height), column, min(column + side, width))
                patch = torch.rand(len(rows), x.shape[1], box[1] - box[0], box[3] - box[2], generator=random)
                x[rows, :, box[0] : box[1], box[2] : box[3]] = patch
                if not torch.allclose(made.logits(rows, box, patch), query(x)[rows], rtol=0, atol=scale):
                    return False
                made.accept(torch.ones(len(rows), dtype=torch.bool))
    return True
