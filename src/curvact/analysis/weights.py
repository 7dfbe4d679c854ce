"""The parameters of a model as a point that can be moved, and random directions from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from curvact.analysis.loss import Loss
from curvact.errors import CurvactError

NORMALIZATION: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Batch, instance, layer, group and RMS normalization."""


class Weights:
    """The moving parameters of a model. Made by `moving`.

    names, parameters: of the tensors that move. start: copies of them. norms: of these, in float64.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self._saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
        values = {id(tensor): value for tensor, value in self._saved}
        self.names = tuple(names)
        self.parameters = tuple(model.get_parameter(name) for name in names)
        self.start = tuple(values[id(p)] for p in self.parameters)
        self.norms = tuple(norm_of(p) for p in self.start)

    @property
    def size(self) -> int:
        """The number of elements that move."""
        return sum(p.numel() for p in self.start)

    @torch.no_grad()
    def set(self, offsets: Sequence[Tensor | None]) -> None:
        """Each parameter at its start plus its offset, of its shape; None for no offset."""
        for parameter, start, offset in zip(self.parameters, self.start, offsets, strict=True):
            parameter.copy_(start if offset is None else start + offset.to(start))

    @torch.no_grad()
    def put_back(self) -> None:
        """Every parameter and buffer of the model, bit for bit."""
        for tensor, value in self._saved:
            tensor.copy_(value)

    def direction(
        self, random: torch.Generator, *, radius: float = 1.0, by_filter: bool = False
    ) -> list[Tensor | None]:
        """One random direction, a Gaussian one scaled to the norms of the parameters: one offset
        for each tensor.

        Every tensor has radius times the norm of its parameters, so that it is uniform on that
        sphere. by_filter: every slice along the first dimension has the norm of the model's own
        slice, and tensors of one dimension have no offset (None).
        """
        return [self._offset(i, random, radius, by_filter) for i in range(len(self.start))]

    def _offset(self, index: int, random: torch.Generator, radius: float, by_filter: bool) -> Tensor | None:
        start = self.start[index]
        if by_filter and start.dim() < 2:
            return None
        noise = torch.randn(start.shape, generator=random, dtype=torch.float64, device=random.device)
        noise = noise.to(start.device)
        offset: Tensor
        if by_filter:
            filters, own = noise.flatten(1), start.double().flatten(1)
            scale = own.norm(dim=1, keepdim=True) / filters.norm(dim=1, keepdim=True)
            offset = (filters * scale).view_as(noise)
        else:
            offset = noise * (radius * self.norms[index] / norm_of(noise).clamp_min(1e-300))
        return offset.to(start.dtype)


@contextmanager
def moving(loss: Loss, where: str, *, normalization: bool = True) -> Iterator[Weights]:
    """The measured parameters of a loss, to be moved inside. Afterwards the model is bit for bit
    what it was.

    normalization: False holds the parameters of normalization layers fixed.
    Inside, the model is in the mode of the loss, only the moving parameters ask for gradients, and
    no `.grad` is set.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> loss = Loss(model, torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
    >>> with moving(loss, "here", normalization=False) as weights:
    ...     weights.names
    ('0.weight', '0.bias')
    """
    model = loss.model
    norms = [m for m in model.modules() if not normalization and isinstance(m, NORMALIZATION)]
    fixed = {id(p) for m in norms for p in m.parameters(recurse=False)}
    with loss.running(where, twice=False):
        names = [name for name in loss.parameters if id(model.get_parameter(name)) not in fixed]
        if not names:
            raise CurvactError(f"no parameters to move in {where}: the model has none, or all are excluded")
        weights = Weights(model, names)
        before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        wanted = {id(p) for p in weights.parameters}
        try:
            for p, _, _ in before:
                p.grad = None
                p.requires_grad_(id(p) in wanted)
            yield weights
        finally:
            weights.put_back()
            for p, flag, gradient in before:
                p.requires_grad_(flag)
                p.grad = gradient


def norm_of(tensor: Tensor) -> Tensor:
    """The Euclidean norm in float64."""
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm
