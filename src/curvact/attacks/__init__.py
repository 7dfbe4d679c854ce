"""Threat models, attacks on any callable model, and checks for gradient masking."""

from curvact.attacks.accuracy import Accuracy, accuracy
from curvact.attacks.adapters import Adapted, from_adv_lib, from_torchattacks
from curvact.attacks.adaptive import Adaptive, AdaptiveResult, adaptive_attack
from curvact.attacks.autoattack import (
    ATTACKS,
    CLEAN,
    AutoAttack,
    AutoAttackResult,
    AutoAttackSettings,
    Mode,
    Precision,
    Progress,
    Version,
    autoattack,
    ensemble,
)
from curvact.attacks.batch import SuspectModelWarning, check_images, check_model, two_logits
from curvact.attacks.corruption import CorruptionAccuracy, corruption_accuracy
from curvact.attacks.losses import LOSSES, AttackLoss, attack_loss, ce, dlr, margin, pma
from curvact.attacks.malt import MaltOrder, malt_order
from curvact.attacks.masking import Finding, MaskingReport, masking_report
from curvact.attacks.pgd import FGSM, PGD, Attack, Model, Start, default_step, fgsm, pgd
from curvact.attacks.radius import minimum_radius
from curvact.attacks.registry import (
    FunctionAttack,
    NamedAttack,
    as_named_attack,
    attack_names,
    named_attack,
    register_attack,
)
from curvact.attacks.threat import Norm, ThreatModel, as_radius, distance, radius_text

__all__ = [
    "ATTACKS",
    "CLEAN",
    "FGSM",
    "LOSSES",
    "PGD",
    "Accuracy",
    "Adapted",
    "Adaptive",
    "AdaptiveResult",
    "Attack",
    "AttackLoss",
    "AutoAttack",
    "AutoAttackResult",
    "AutoAttackSettings",
    "CorruptionAccuracy",
    "Finding",
    "FunctionAttack",
    "MaltOrder",
    "MaskingReport",
    "Mode",
    "Model",
    "NamedAttack",
    "Norm",
    "Precision",
    "Progress",
    "Start",
    "SuspectModelWarning",
    "ThreatModel",
    "Version",
    "accuracy",
    "adaptive_attack",
    "as_named_attack",
    "as_radius",
    "attack_loss",
    "attack_names",
    "autoattack",
    "ce",
    "check_images",
    "check_model",
    "corruption_accuracy",
    "default_step",
    "distance",
    "dlr",
    "ensemble",
    "fgsm",
    "from_adv_lib",
    "from_torchattacks",
    "malt_order",
    "margin",
    "masking_report",
    "minimum_radius",
    "named_attack",
    "pgd",
    "pma",
    "radius_text",
    "register_attack",
    "two_logits",
]
