"""MALT: the classes whose boundaries are nearest if the network is linear around an image.

Targeted attacks try some classes, in an order. AutoAttack takes the order of the logits; MALT
(arXiv 2407.02240) divides each difference of logits by the length of its gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from curvact.attacks.arguments import door
from curvact.attacks.batch import Guarded, check_number, checked
from curvact.attacks.pgd import Model, gradient_of
from curvact.attacks.threat import Norm, ThreatModel
from curvact.models.modes import frozen

CANDIDATES = 100
"""Classes that are looked at: those with the highest logits. [paper]"""
_DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": torch.inf}
"""The norm of a gradient that measures how far a step of the threat model's norm leads."""


class MaltOrder(NamedTuple):
    """Classes in the order of their distance, and that distance, each N×candidates.

    distances: in the units and the norm of the threat model; infinite where the difference of the
        logits has no gradient.
    """

    classes: Tensor
    distances: Tensor


@door
def malt_order(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    candidates: int = CANDIDATES,
    batch_size: int = 256,
    check: bool = True,
) -> MaltOrder:
    """The other classes of each image, the one with the nearest boundary first. [paper]

    The distance to class j is estimated as (z_y − z_j)/‖∇ₓ(z_y − z_j)‖, with the 1-norm under l∞,
    the 2-norm under l2, and [derived] the maximum norm under l1. It is exact for a linear model away
    from the walls of [0, 1]. A class without a gradient comes last [ours]; the authors' code puts
    it first.

    model: maps N×… inputs in [0, 1] to N×classes logits; its mode is left as it is, and no weight
        gradient is computed. x: N×…. y: N. threat_model: only its norm counts.
    candidates: how many classes are looked at, those with the highest logits; all others at most.
    check: as in `pgd`.
    Cost for each image: one forward pass and one backward pass a candidate. Nothing waits for the
    device without `check`.
    Raises CurvactError for numbers below 1, and for images and labels as `pgd` does.

    >>> model = lambda x: torch.stack([x[:, 0] * 0, x[:, 0] - 0.5, 8 * x[:, 1] - 6], 1)
    >>> order = malt_order(model, torch.tensor([[0.0, 0.5]]), torch.tensor([0]), ThreatModel("linf", 0.1))
    >>> order.classes, order.distances
    (tensor([[2, 1]]), tensor([[0.2500, 0.5000]]))
    """
    for name, value in (("candidates", candidates), ("batch_size", batch_size)):
        check_number(value, name, "malt_order")
    if check:
        x, y, highest = checked(x, y, "malt_order", threat_model=threat_model)
        model = Guarded(model, "malt_order", highest)
    with frozen(model):
        parts = [
            _order(model, images, labels, _DUAL[threat_model.norm], candidates)
            for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
        ]
    return MaltOrder(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _order(model: Model, x: Tensor, y: Tensor, dual: float, candidates: int) -> MaltOrder:
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        own = logits.gather(1, y[:, None])
        others = logits.detach().scatter(1, y[:, None], -torch.inf)
        count = min(candidates, logits.shape[1] - 1)
        chosen = others.topk(count, dim=1).indices
        gaps = own - logits.gather(1, chosen)
        lengths = [
            _length(gradient_of(gaps[:, k], leaf, "malt_order", retain_graph=k < count - 1), dual)
            for k in range(count)
        ]
    length = torch.stack(lengths, 1)
    distance = torch.where(length > 0, gaps.detach() / length, torch.inf)
    distances, order = distance.sort(dim=1, stable=True)
    return MaltOrder(chosen.gather(1, order), distances)


def _length(gradient: Tensor, dual: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1)
    return length
