"""What adversarial training minimizes: standard training and PGD adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks import Attack, mode
from curvact.errors import CurvactError, nearest


@dataclass(frozen=True)
class Loss:
    """One batch's loss.

    value: scalar, to be differentiated with respect to the parameters.
    logits: N×classes, at the images that were trained on, detached.
    x_adv: the images that were trained on.
    gradient_evaluations: forward-backward passes of the batch, the training pass included.
    """

    value: Tensor
    logits: Tensor
    x_adv: Tensor
    gradient_evaluations: int


Objective = Callable[[nn.Module, Tensor, Tensor, Attack, int], Loss]


def standard(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, attack_steps: int) -> Loss:
    """Cross-entropy on clean images."""
    logits = model(x)
    return Loss(F.cross_entropy(logits, y), logits.detach(), x, 1)


def pgd_at(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, attack_steps: int) -> Loss:
    """Cross-entropy on attacked images only (Madry et al. 2018); batch norm in eval mode in the attack, as PAF has it. [paper]"""
    with mode(model, training=False):
        x_adv = attack(model, x, y)
    logits = model(x_adv)
    return Loss(F.cross_entropy(logits, y), logits.detach(), x_adv, attack_steps + 1)


OBJECTIVES: dict[str, Objective] = {"standard": standard, "pgd-at": pgd_at}


def objective(name: str) -> Objective:
    """An objective by name. An unknown name is a CurvactError.

    >>> objective("pgd-at").__name__
    'pgd_at'
    """
    if name not in OBJECTIVES:
        raise CurvactError(
            f"unknown objective '{name}'{nearest(name, OBJECTIVES)}; known are {', '.join(OBJECTIVES)}"
        )
    return OBJECTIVES[name]
