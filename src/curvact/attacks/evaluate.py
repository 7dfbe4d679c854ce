"""Clean and robust accuracy of any model under any attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvact.attacks.pgd import Attack, mode
from curvact.attacks.threat import check_images


@dataclass(frozen=True)
class Robustness:
    """clean, robust: fractions of images classified correctly. x_adv: the attacked images, N×C×H×W."""

    clean: float
    robust: float
    x_adv: Tensor


def evaluate(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, batch_size: int = 512) -> Robustness:
    """Accuracy on x and on attacked x, the model in eval mode (restored after).

    An image counts as robust only if it is classified correctly both clean and attacked.
    x: N×C×H×W in [0, 1] (CurvactError otherwise). y: N, int64.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> result = evaluate(model, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64), lambda m, x, y: x)
    >>> result.clean == result.robust
    True
    """
    check_images(x)
    clean, robust, attacked = [], [], []
    with mode(model, training=False):
        for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            x_adv = attack(model, images, labels)
            with torch.no_grad():
                right = model(images).argmax(1) == labels
                clean.append(right)
                robust.append(right & (model(x_adv).argmax(1) == labels))
            attacked.append(x_adv)
    return Robustness(
        torch.cat(clean).double().mean().item(), torch.cat(robust).double().mean().item(), torch.cat(attacked)
    )
