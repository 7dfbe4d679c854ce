"""Which batch norms a convolution or linear layer feeds, and an eval-mode twin of a network without them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
"""The batch norm that can be folded into each kind of layer."""


def foldable(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of (layer, batch norm) pairs where the norm is fed by that layer's output, each called once in a forward pass.

    That the fed tensor goes nowhere else cannot be seen there: the caller compares the logits. Modes are left as they are.
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


class FollowingTwin(nn.Module):
    """The eval-mode function of a network with its batch norms folded away, to attack while the network trains.

    `refresh()` folds the weights and running statistics that the network holds then; everything that is not folded is the
    network's own, shared. A batch norm whose input is used elsewhere too is found by the example's logits and not folded.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        was = {module: module.training for module in model.modules()}
        model.eval()
        try:
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
        finally:
            for module, training in was.items():
                module.training = training

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
    """A copy of the structure whose parameters and buffers are the model's own, but for the modules named."""
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
