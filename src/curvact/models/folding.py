"""Batch norm folded into the convolution or linear layer before it, in a copy of a network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from curvact.models.modes import mode

NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
"""The batch norm that can be folded into each kind of layer."""


def foldable(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of (layer, batch norm) pairs: the norm's input is the layer's output, and each runs
    once in a forward pass.

    A forward pass does not show whether that output is used elsewhere too: compare the logits after
    folding. Modes are left as they are.
    """
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            calls.append((module, inputs[0], output))

    kinds = (*NORMS, *NORMS.values())
    handles = [module.register_forward_hook(watch) for module in names if isinstance(module, kinds)]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    times: dict[nn.Module, int] = {}
    for module, _, _ in calls:
        times[module] = times.get(module, 0) + 1
    made_by = {id(output): module for module, _, output in calls if isinstance(module, tuple(NORMS))}
    pairs = []
    for norm, fed, _ in calls:
        layer = made_by.get(id(fed))
        if (
            layer is not None
            and type(norm) is NORMS.get(type(layer))
            and times[layer] == times[norm] == 1
            and getattr(norm, "running_mean", None) is not None
            and "weight" in layer._parameters
            and not (isinstance(layer, nn.Linear) and fed.dim() != 2)
        ):
            pairs.append((names[layer], names[norm]))
    return pairs


def folded(model: nn.Module, example: Tensor) -> tuple[nn.Module, int]:
    """A copy in eval mode with its batch norms folded away, and how many they are; `foldable` finds
    them.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    >>> folded(net, torch.rand(4, 2))
    (Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): Identity()
    ), 1)
    """
    twin = copy.deepcopy(model)
    pairs = foldable(twin, example)
    for layer_name, norm_name in pairs:
        layer: Any = twin.get_submodule(layer_name)
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        _replace(twin, layer_name, fuse(layer, twin.get_submodule(norm_name)).requires_grad_(False))
        _replace(twin, norm_name, nn.Identity())
    return twin.eval(), len(pairs)


class FollowingTwin(nn.Module):
    """The eval-mode function of a network, its batch norms folded away, to attack while the network
    trains.

    `refresh()` folds the current weights and running statistics. All other parameters are shared
    with the network. A batch norm whose input is used elsewhere too would change the example's
    logits, and is not folded.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        with mode(model, training=False):
            pairs = foldable(model, example)
            with torch.no_grad():
                truth = model(example)
            self._fold(model, pairs)
            if not self._agrees(example, truth):
                alone = []
                for pair in pairs:
                    self._fold(model, [pair])
                    if self._agrees(example, truth):
                        alone.append(pair)
                self._fold(model, alone)

    def _fold(self, model: nn.Module, pairs: list[tuple[str, str]]) -> None:
        self.module = _sharing_copy(model, {layer for layer, _ in pairs}).eval()
        self.folds: list[tuple[Any, Any, Any]] = []
        for layer_name, norm_name in pairs:
            layer: Any = model.get_submodule(layer_name)
            norm: Any = model.get_submodule(norm_name)
            own: Any = self.module.get_submodule(layer_name)
            own.weight = nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
            own.bias = nn.Parameter(torch.empty_like(norm.running_mean), requires_grad=False)
            _replace(self.module, norm_name, nn.Identity())
            self.folds.append((layer, norm, own))
        self.refresh()

    def _agrees(self, example: Tensor, truth: Tensor) -> bool:
        with torch.no_grad():
            return bool(
                (truth - self.module(example)).abs().max() <= 1e-3 * truth.abs().max().clamp_min(1e-6)
            )

    @torch.no_grad()
    def refresh(self) -> FollowingTwin:
        """Fold the network as it is now; returns the twin."""
        for layer, norm, own in self.folds:
            scale = (norm.running_var + norm.eps).rsqrt()
            if norm.weight is not None:
                scale = scale * norm.weight
            own.weight.copy_(layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
            bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
            bias = bias * scale
            own.bias.copy_(bias if norm.bias is None else bias + norm.bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        return logits


def _sharing_copy(model: nn.Module, apart: set[str]) -> nn.Module:
    """A copy of the structure whose parameters and buffers are the model's own, but for the modules
    named.
    """
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        memo.update({id(v): v for v in vars(module).values() if isinstance(v, torch.Generator)})
        if name not in apart:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    memo[id(tensor)] = tensor
    return copy.deepcopy(model, memo)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
