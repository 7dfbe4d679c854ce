"""Losses that attacks maximize, per image: cross-entropy, margins of logits and of probabilities, and
the difference-of-logits ratio.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.errors import CurvactError, nearest

AttackLoss = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def ce(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """−log p(y), or log p(target) with targets. logits: N×classes. y, targets: N, int64. Returns N.

    >>> ce(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor([0.6931])
    """
    if targets is None:
        return F.cross_entropy(logits, y, reduction="none")
    return -F.cross_entropy(logits, targets, reduction="none")


def margin(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Highest wrong logit minus the right one, or the target's minus the highest other; positive
    where the attack succeeds.

    Carlini and Wagner (arXiv 1608.04644), without their cut at a confidence. Shapes as `ce`.

    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([-1.])
    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), torch.tensor([1]))
    tensor([-2.])
    """
    if targets is None:
        return _highest_other(logits, y) - _at(logits, y)
    return _at(logits, targets) - _highest_other(logits, targets)


def dlr(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Difference-of-logits ratio (arXiv 2003.01690): the margin free of the logits' shift and
    scale. Shapes as `ce`.

    With π the order of the logits, highest first: −(z_y − max_{i≠y} z_i)/(z_π1 − z_π3), which needs
    3 classes, or with targets −(z_y − z_t)/(z_π1 − (z_π3 + z_π4)/2), which needs 4: CurvactError
    for fewer.

    >>> dlr(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([-0.5000])
    """
    needed = 3 if targets is None else 4
    if logits.shape[1] < needed:
        form = "dlr" if targets is None else "targeted dlr"
        raise CurvactError(
            f"loss '{form}' needs {needed} classes, the model has {logits.shape[1]}: use 'margin' or 'ce'"
        )
    highest = logits.topk(needed, dim=1).values
    if targets is None:
        spread = highest[:, 0] - highest[:, 2]
        return margin(logits, y) / (spread + 1e-12)
    spread = highest[:, 0] - (highest[:, 2] + highest[:, 3]) / 2
    return (_at(logits, targets) - _at(logits, y)) / (spread + 1e-12)


def pma(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """The margin of the probabilities, max_{j≠y} p_j − p_y, the loss of PMA (arXiv 2411.15210);
    with targets that of the target over the highest other. Shapes as `ce`.

    >>> pma(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([0]))
    tensor([0.])
    """
    return margin(logits.softmax(1), y, targets)


LOSSES: dict[str, AttackLoss] = {"ce": ce, "margin": margin, "dlr": dlr, "pma": pma}


def attack_loss(loss: str | AttackLoss) -> AttackLoss:
    """A loss by name; a callable `(logits, y, targets) -> N` is returned as it is. An unknown name
    is a CurvactError.

    >>> attack_loss("dlr").__name__
    'dlr'
    """
    if callable(loss):
        return loss
    if not isinstance(loss, str):
        raise CurvactError(
            f"loss={loss!r} of an attack: a name, or a function (logits, y, targets) -> N losses"
        )
    if loss not in LOSSES:
        raise CurvactError(
            f"unknown loss '{loss}' of an attack{nearest(loss, LOSSES)}; known are {', '.join(LOSSES)}"
        )
    return LOSSES[loss]


def succeeded(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Whether the attack succeeded: another class than y, or with targets the target. Bool, N."""
    predicted = classes(logits)
    return predicted != y if targets is None else predicted == targets


def classes(logits: Tensor) -> Tensor:
    """The predicted class of each row of logits; −1 where the row holds NaN, which is never right.
    int64, N.

    >>> classes(torch.tensor([[0.0, 2.0], [float("nan"), 1.0]]))
    tensor([ 1, -1])
    """
    return logits.max(1)[1].masked_fill_(logits.isnan().any(1), -1)


def _at(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def _highest_other(logits: Tensor, y: Tensor) -> Tensor:
    others = torch.zeros_like(logits, dtype=torch.bool).scatter(1, y[:, None], True)
    return logits.masked_fill(others, -torch.inf).amax(1)
