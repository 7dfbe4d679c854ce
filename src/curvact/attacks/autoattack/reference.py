"""The reference's attacks (pyautoattack), set as its AutoAttack class sets them, on any callable
model.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from curvact.attacks.autoattack.ensemble import Step
from curvact.attacks.pgd import Model
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class ZeroGradients:
    """A logger for the reference that adds up the points whose gradient is zero."""

    def __init__(self) -> None:
        self.points = 0

    def warning(self, message: str) -> None:
        found = re.match(r"there are (?:tensor\()?(\d+)", message)
        self.points += int(found.group(1)) if found else 0

    debug = info = lambda self, message: None


def reference_attack(
    step: Step, model: Model, threat_model: ThreatModel, seed: int, device: torch.device, log: ZeroGradients
) -> Callable[[Tensor, Tensor], Tensor]:
    """The attack as a function (x, y) -> x_adv. It seeds torch's global generators at every call."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    common = {"norm": NORMS[threat_model.norm], "eps": threat_model.epsilon, "seed": seed, "device": device}
    if step.attack == "square":
        made = SquareAttack(
            model, p_init=0.8, n_queries=step.budget, n_restarts=1, resc_schedule=False, **common
        )
    elif step.attack.startswith("fab"):
        made = FABAttack_PT(
            model,
            n_restarts=step.restarts,
            n_iter=step.budget,
            targeted=step.attack == "fab-t",
            n_target_classes=step.targets,
            **common,
        )
    else:
        settings = {
            "n_iter": step.budget,
            "n_restarts": step.restarts,
            "eot_iter": step.averaged,
            "rho": 0.75,
            "use_largereps": step.shrinking,
            "logger": log,
        }
        if step.attack == "apgd-t":
            made = APGDAttack_targeted(model, n_target_classes=step.targets, **settings, **common)
        else:
            made = APGDAttack(model, loss=step.attack.removeprefix("apgd-"), **settings, **common)
    return made.perturb  # type: ignore[no-any-return]


def check_square(height: int, width: int, threat_model: ThreatModel) -> None:
    """CurvactError for image sizes where the reference's Square fails (l2 and l1 tile the image by
    fifths).
    """
    if threat_model.norm == "linf":
        return
    side = height // 5
    if side == 1:
        return
    if side > 1:
        start = (height - 5 * side) // 2
        if all(start + (size // side) * side <= size for size in (height, width)):
            return
    raise CurvactError(
        f"the reference's square attack cannot tile {height}×{width} images under {threat_model.norm}: "
        "use ensemble without square, mode='fast' (l2), or linf"
    )
