"""The loss along one or two random directions in the weights, with filter normalization (Li et al.
2018).

Each filter of a random Gaussian direction d is scaled to the norm of the model's own filter, d_j ←
d_j·‖w_j‖/‖d_j‖. Without this, a scale that one layer passes to another would change the picture. A
filter is one slice of a tensor along its first
dimension: the weights of one output channel or one neuron. Tensors of one dimension (biases,
scalars of activations) and normalization layers do not move. [paper: arXiv 1712.09913]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvact.analysis.flatness import mean_loss
from curvact.analysis.loss import Loss
from curvact.analysis.records import OnProgress, plain
from curvact.analysis.weights import Weights, moving
from curvact.attacks.arguments import door
from curvact.attacks.pgd import Attack
from curvact.errors import CurvactError
from curvact.random import generator

Direction = Mapping[str, Tensor]
"""From the names of parameters to tensors of their shapes; parameters not named do not move."""
Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Landscape:
    """The mean loss at w + a·d₁ (+ b·d₂), on a grid around the model.

    coordinates: of a and of b, the same; their middle one is 0, the model itself.
    clean, adversarial: losses, one row for every a and one column for every b; with one direction
    each row has one number. adversarial is None without an attack.
    dimensions: 1 or 2. norms: ‖d₁‖ (, ‖d₂‖). cosine: between the two directions, None for one.
    inputs: the number of examples.
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
        row = len(self.coordinates) // 2
        column = row if self.dimensions == 2 else 0
        return self.clean[row][column], self.adversarial[row][column] if self.adversarial else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; losses that are not finite are None."""
        record: dict[str, Any] = plain(self)
        return record


@door
def loss_landscape(
    loss: Loss,
    attack: Attack | None = None,
    *,
    directions: int | Sequence[Direction] = 2,
    points: int = 21,
    span: float = 1.0,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Landscape:
    """The loss on a line or a square around a model, with the attack run anew at every point.
    [paper]

    The model is bit for bit what it was afterwards. Costs points^dimensions passes over the data
    and as many attacks.

    loss: with one number for each example; its excluded parameters do not move.
    attack: `(model, x, y) -> x_adv`; None for the clean loss alone.
    directions: 1 or 2 filter-normalized random ones, drawn from `seed`, or the directions
    themselves, used as they are.
    points: along each direction, odd. span: coordinates from −span to span.
    Raises CurvactError for arguments out of range, and for directions that do not fit the model.

    >>> loss = Loss(torch.nn.Linear(2, 3), torch.rand(4, 2), torch.tensor([0, 1, 2, 0]))
    >>> result = loss_landscape(loss, directions=1, points=5)
    >>> result.coordinates, len(result.clean), result.centre[1]
    ((-1.0, -0.5, 0.0, 0.5, 1.0), 5, None)
    """
    where = "loss_landscape"
    if points < 3 or points % 2 == 0:
        raise CurvactError(f"points={points} in {where}: an odd number from 3, so that one is the model")
    if not (math.isfinite(span) and span > 0):
        raise CurvactError(f"span={span} in {where}: a finite number > 0")
    count = directions if isinstance(directions, int) else len(directions)
    if count not in (1, 2):
        raise CurvactError(f"{count} directions in {where}: 1 or 2")
    coordinates = tuple(span * (2 * i - points + 1) / (points - 1) for i in range(points))
    second = coordinates if count == 2 else (0.0,)
    with moving(loss, where, normalization=False) as weights:
        batches = loss.inputs()
        if isinstance(directions, int):
            axes = [_random(weights, seed, index) for index in range(count)]
        else:
            axes = [_given(weights, direction) for direction in directions]
        clean, adversarial = [], []
        for done, (a, b) in enumerate(((a, b) for a in coordinates for b in second), 1):
            weights.set([_sum(parts, (a, b)[:count]) for parts in zip(*axes, strict=True)])
            clean.append(mean_loss(loss, batches, None))
            if attack is not None:
                adversarial.append(mean_loss(loss, batches, attack))
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
        inputs=loss.images,
    )


@door
def filter_normalized_direction(loss: Loss, *, seed: int = 0, index: int = 0) -> dict[str, Tensor]:
    """A random direction in which every filter has the norm of the model's own. [paper]

    seed, index: different indices are independent directions; `loss_landscape` takes 0 and 1.
    Returns the tensors that move, by the names of the parameters.

    >>> model = torch.nn.Linear(3, 2)
    >>> direction = filter_normalized_direction(Loss(model, torch.rand(1, 3), torch.tensor([0])))
    >>> list(direction), torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1))
    (['weight'], True)
    """
    with moving(loss, "filter_normalized_direction", normalization=False) as weights:
        parts = _random(weights, seed, index)
    return {name: part for name, part in zip(weights.names, parts, strict=True) if part is not None}


def _random(weights: Weights, seed: int, index: int) -> list[Tensor | None]:
    direction = weights.direction(generator(seed, "landscape", index), by_filter=True)
    if all(part is None for part in direction):
        raise CurvactError("no filters to move in loss_landscape: every free parameter has one dimension")
    return direction


def _given(weights: Weights, direction: Direction) -> list[Tensor | None]:
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
                f"a direction has shape {tuple(part.shape)} for {name!r} in loss_landscape: "
                f"it must be {tuple(start.shape)}"
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
