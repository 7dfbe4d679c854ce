"""What bends the input: threat models, attacks on any callable model, and checks that the attacks can be believed."""

from curvact.attacks.autoattack.verdict import Progress, Verdict, autoattack, ensemble
from curvact.attacks.evaluate import Robustness, evaluate
from curvact.attacks.losses import LOSSES, AttackLoss, attack_loss, ce, dlr, margin
from curvact.attacks.masking import Finding, MaskingReport, masking_report
from curvact.attacks.pgd import Attack, Model, fgsm, frozen, mode, pgd
from curvact.attacks.radius import minimum_radius
from curvact.attacks.threat import (
    Norm,
    SuspectModelWarning,
    ThreatModel,
    check_images,
    check_model,
    distance,
)

__all__ = [
    "LOSSES",
    "Attack",
    "AttackLoss",
    "Finding",
    "MaskingReport",
    "Model",
    "Norm",
    "Progress",
    "Robustness",
    "SuspectModelWarning",
    "ThreatModel",
    "Verdict",
    "attack_loss",
    "autoattack",
    "ce",
    "check_images",
    "check_model",
    "distance",
    "dlr",
    "ensemble",
    "evaluate",
    "fgsm",
    "frozen",
    "margin",
    "masking_report",
    "minimum_radius",
    "mode",
    "pgd",
]
