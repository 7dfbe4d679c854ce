"""AutoAttack: the result of the reference, sharded and resumable, and a faster mode."""

from curvact.attacks.autoattack.ensemble import ATTACKS, Mode, Precision, Version
from curvact.attacks.autoattack.shard import CLEAN
from curvact.attacks.autoattack.verdict import (
    AutoAttack,
    AutoAttackResult,
    AutoAttackSettings,
    Progress,
    autoattack,
    ensemble,
)

__all__ = [
    "ATTACKS",
    "CLEAN",
    "AutoAttack",
    "AutoAttackResult",
    "AutoAttackSettings",
    "Mode",
    "Precision",
    "Progress",
    "Version",
    "autoattack",
    "ensemble",
]
