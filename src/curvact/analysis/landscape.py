"""Analysis room: the loss along one or two random directions in the weights, with filter normalization (Li et al. 2018).

Each filter of a random Gaussian direction d is scaled to the norm of the model's own filter, d_j ← d_j·‖w_j‖/‖d_j‖, so that the
picture does not depend on a scale that one layer could pass to another. A filter is one slice of a tensor along its first
dimension: the weights of one output channel or one neuron. Tensors of one dimension (biases, scalars of activations) and
normalization layers do not move. [paper: arXiv 1712.09913]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvact.analysis.flatness import Displacement, Exclude, Loss, displaced, mean_loss, pieces
from curvact.analysis.records import OnProgress, finite
from curvact.attacks.losses import ce
from curvact.attacks.pgd import Attack, mode
from curvact.errors import CurvactError
from curvact.random import generator

Direction = Mapping[str, Tensor]
"""From the names of parameters to tensors of their shapes; parameters not named do not move."""
Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Landscape:
    """The mean loss at w + a·d₁ (+ b·d₂), on a grid around the model.

    coordinates: of a and of b, the same; their middle one is 0, the model itself.
    clean, adversarial: losses, one row for every a and one column for every b; with one direction each row has one number.
    adversarial is None without an attack.
    dimensions: 1 or 2. norms: ‖d₁‖ (, ‖d₂‖). cosine: between the two directions, None for one.
    inputs: how many examples.
    """

    coordinates: tuple[float, ...]
    clean: Grid
    adversarial: Grid | None
    dimensions: int
    norms: tuple[float, ...]
    cosine: float | None
    inputs: int

    @property
    def centre(self) -> tuple[float, float | None]:
        """Clean and adversarial loss of the model itself."""
        middle = len(self.coordinates) // 2
        clean, adversarial = (
            None if grid is None else grid[middle][middle if self.dimensions == 2 else 0]
            for grid in (self.clean, self.adversarial)
        )
        assert clean is not None
        return clean, adversarial

    def as_dict(self) -> dict[str, Any]:
        """For JSON; losses that are not finite are None."""
        clean, adversarial = (
            None if grid is None else [[finite(v) for v in row] for row in grid]
            for grid in (self.clean, self.adversarial)
        )
        return {
            "dimensions": self.dimensions,
            "coordinates": list(self.coordinates),
            "clean": clean,
            "adversarial": adversarial,
            "norms": list(self.norms),
            "cosine": self.cosine,
            "inputs": self.inputs,
        }


def loss_landscape(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None = None,
    *,
    directions: int | Sequence[Direction] = 2,
    points: int = 21,
    span: float = 1.0,
    seed: int = 0,
    loss: Loss = ce,
    exclude: Exclude = (),
    batch_size: int = 512,
    on_progress: OnProgress | None = None,
) -> Landscape:
    """The loss on a line or a square around a model, in eval mode, with the attack run anew at every point. [paper]

    The parameters are bit for bit what they were afterwards. Costs points^dimensions passes over the data and as many attacks.

    x, y: inputs (N, …) and targets (N, …). attack: `(model, x, y) -> x_adv`; None for the clean loss alone.
    directions: 1 or 2 filter-normalized random ones, drawn from `seed`, or the directions themselves, taken as they are.
    points: a direction, odd. span: coordinates from −span to span. loss: of one example each; cross-entropy.
    exclude: parameters that do not move: names, or a test of a name.
    Raises CurvactError for arguments out of range, and directions that do not fit the model.

    >>> model = nn.Linear(2, 3)
    >>> result = loss_landscape(model, torch.rand(4, 2), torch.tensor([0, 1, 2, 0]), directions=1, points=5)
    >>> result.coordinates, len(result.clean), result.centre[1]
    ((-1.0, -0.5, 0.0, 0.5, 1.0), 5, None)
    """
    if len(x) != len(y) or len(x) == 0:
        raise CurvactError(
            f"{len(x)} inputs and {len(y)} targets in loss_landscape: as many of each, at least 1"
        )
    if points < 3 or points % 2 == 0:
        raise CurvactError(
            f"points={points} in loss_landscape: an odd number from 3, so that one is the model"
        )
    if not (math.isfinite(span) and span > 0) or batch_size < 1:
        raise CurvactError(
            f"span={span}, batch_size={batch_size} in loss_landscape: span > 0, batch_size >= 1"
        )
    count = directions if isinstance(directions, int) else len(directions)
    if count not in (1, 2):
        raise CurvactError(f"{count} directions in loss_landscape: 1 or 2")
    coordinates = tuple(span * (2 * i - points + 1) / (points - 1) for i in range(points))
    batches = pieces(x.detach(), y, batch_size)
    with mode(model, training=False), displaced(model, exclude) as weights:
        if isinstance(directions, int):
            axes = [_filter_normalized(weights, seed, index) for index in range(count)]
        else:
            axes = [_given(weights, direction) for direction in directions]
        second = coordinates if count == 2 else (0.0,)
        clean, adversarial = [], []
        for done, (a, b) in enumerate(((a, b) for a in coordinates for b in second), 1):
            scales = (a, b)[:count]
            weights.set([_sum(parts, scales) for parts in zip(*axes, strict=True)])
            clean.append(mean_loss(model, batches, None, loss))
            if attack is not None:
                adversarial.append(mean_loss(model, batches, attack, loss))
            if on_progress is not None:
                on_progress(done, points**count)
    flat = [torch.cat([part.double().reshape(-1) for part in axis if part is not None]) for axis in axes]
    norms = [axis.norm().item() for axis in flat]
    return Landscape(
        coordinates=coordinates,
        clean=_grid(clean, len(second)),
        adversarial=_grid(adversarial, len(second)) if adversarial else None,
        dimensions=count,
        norms=tuple(norms),
        cosine=_cosine(axes[0], axes[1], norms) if count == 2 else None,
        inputs=len(x),
    )


def filter_normalized_direction(
    model: nn.Module, *, seed: int = 0, index: int = 0, exclude: Exclude = ()
) -> dict[str, Tensor]:
    """A random direction with the norm of every filter that of the model's. [paper]

    seed, index: different indices are independent directions; `loss_landscape` takes 0 and 1.
    Returns the tensors that move, by the names of the parameters.

    >>> model = nn.Linear(3, 2)
    >>> direction = filter_normalized_direction(model)
    >>> list(direction), torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1))
    (['weight'], True)
    """
    with displaced(model, exclude) as weights:
        parts = _filter_normalized(weights, seed, index)
    return {name: part for name, part in zip(weights.names, parts, strict=True) if part is not None}


def _filter_normalized(weights: Displacement, seed: int, index: int) -> list[Tensor | None]:
    random = generator(seed, "landscape", index)
    direction: list[Tensor | None] = []
    for start in weights.start:
        if start.dim() < 2:
            direction.append(None)
            continue
        noise = torch.randn(start.shape, generator=random, dtype=torch.float64).to(start.device)
        filters, own = noise.flatten(1), start.double().flatten(1)
        scale = own.norm(dim=1, keepdim=True) / filters.norm(dim=1, keepdim=True)
        direction.append((filters * scale).view_as(noise).to(start.dtype))
    if all(part is None for part in direction):
        raise CurvactError("no filters to move in loss_landscape: every free parameter has one dimension")
    return direction


def _given(weights: Displacement, direction: Direction) -> list[Tensor | None]:
    for name in direction:
        if name not in weights.names:
            raise CurvactError(
                f"a direction names {name!r} in loss_landscape, which is no free parameter of the model"
            )
    parts = []
    for name, start in zip(weights.names, weights.start, strict=True):
        part = direction.get(name)
        if part is not None and part.shape != start.shape:
            raise CurvactError(
                f"a direction has shape {tuple(part.shape)} for {name!r} in loss_landscape: it must be {tuple(start.shape)}"
            )
        parts.append(None if part is None else part.detach().to(start))
    return parts


def _sum(parts: Sequence[Tensor | None], scales: Sequence[float]) -> Tensor | None:
    """Σ scale·part, None where nothing moves."""
    moved = [part * scale for part, scale in zip(parts, scales, strict=True) if part is not None and scale]
    return sum(moved[1:], moved[0]) if moved else None


def _cosine(one: Sequence[Tensor | None], two: Sequence[Tensor | None], norms: Sequence[float]) -> float:
    both = [
        (a.double() * b.double()).sum()
        for a, b in zip(one, two, strict=True)
        if a is not None and b is not None
    ]
    return float(torch.stack(both).sum()) / (norms[0] * norms[1]) if both and all(norms) else 0.0


def _grid(values: Sequence[Tensor], columns: int) -> Grid:
    flat = torch.stack(list(values)).tolist()
    return tuple(tuple(flat[i : i + columns]) for i in range(0, len(flat), columns))
