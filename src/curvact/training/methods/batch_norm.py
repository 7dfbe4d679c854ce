"""Batch norm's running statistics: frozen, saved, or computed anew for other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvact.errors import CurvactError
from curvact.training.processes import reduce_together


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a layer of the model keeps running statistics of batches.

    >>> has_batch_norm(nn.BatchNorm2d(3)), has_batch_norm(nn.LayerNorm(3))
    (True, False)
    """
    return bool(_layers(model))


@contextmanager
def statistics_frozen(model: nn.Module) -> Iterator[None]:
    """Inside, the running statistics and counters of batch norm do not move.

    In train mode it normalizes by its batch, in eval mode by the running statistics, as usual.
    Nothing is copied.

    >>> layer = nn.BatchNorm1d(2)
    >>> with statistics_frozen(layer):
    ...     y = layer(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    >>> [round(v, 2) for v in y[1].tolist()], layer.running_mean.tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    layers = _layers(model)
    tracked = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer, was in zip(layers, tracked, strict=True):
            layer.track_running_stats = was


@contextmanager
def saved_statistics(model: nn.Module) -> Iterator[None]:
    """At the end the running statistics and counters are those at the start, bit for bit.

    >>> layer = nn.BatchNorm1d(1)
    >>> with saved_statistics(layer):
    ...     y = layer(torch.tensor([[1.0], [3.0]]))
    ...     round(layer.running_mean.item(), 2)
    0.2
    >>> layer.running_mean.item()
    0.0
    """
    saved = [(buffer, buffer.clone()) for layer in _layers(model) for buffer in layer.buffers(recurse=False)]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Tensor], *, reduce: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Replace the running statistics by the plain average over the given batches of inputs.

    Each layer's mean is the mean of its batch means, its variance the mean of its (unbiased) batch
    variances. Batch norm runs in train mode, the rest (such as dropout) in eval mode, without
    gradients. Modes and momenta are restored. Without batch norm no batch is drawn.
    reduce: from a tensor to its average over processes; called once, with all statistics.

    Raises CurvactError if there is no batch. On any failure the statistics stay as they were.

    >>> layer = nn.BatchNorm1d(1)
    >>> recalibrate(layer, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [4.0]])])
    >>> layer.running_mean, layer.running_var, layer.num_batches_tracked
    (tensor([2.5000]), tensor([1.]), tensor(2))
    """
    layers = _layers(model)
    if not layers:
        return
    inputs = iter(batches)
    first = next(inputs, None)
    if first is None:
        raise CurvactError("recalibrating batch norm got no batch of inputs: at least one batch")
    saved = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    calls = dict.fromkeys(layers, 0)

    def count(layer: nn.Module, _: Any) -> None:
        calls[layer] += 1  # type: ignore[index]
        layer.momentum = 1 / calls[layer]  # type: ignore[index, assignment]

    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        for x in chain([first], inputs):
            model(x)
        if reduce is not None:
            statistics = [(layer.running_mean, layer.running_var) for layer in layers]
            reduce_together([s for pair in statistics for s in pair if s is not None], reduce)
    except BaseException:
        for buffer, value in saved:
            buffer.copy_(value)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _layers(model: nn.Module) -> list[_BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
