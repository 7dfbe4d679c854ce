"""What bends the input: threat models, FGSM and PGD on any callable model."""

from curvact.attacks.evaluate import Robustness, evaluate
from curvact.attacks.pgd import Attack, Model, fgsm, frozen, mode, pgd
from curvact.attacks.threat import ThreatModel, check_images

__all__ = [
    "Attack",
    "Model",
    "Robustness",
    "ThreatModel",
    "check_images",
    "evaluate",
    "fgsm",
    "frozen",
    "mode",
    "pgd",
]
