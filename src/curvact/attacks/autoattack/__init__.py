"""AutoAttack: the result of the reference, sharded and resumable, and a faster mode."""

from curvact.attacks.autoattack.ensemble import ATTACKS, MALT, Mode, Precision, Version
from curvact.attacks.autoattack.result import AutoAttackResult, Progress
from curvact.attacks.autoattack.run import AutoAttack, AutoAttackSettings, autoattack, ensemble
from curvact.attacks.autoattack.shard import CLEAN

__all__ = [
    "ATTACKS",
    "CLEAN",
    "MALT",
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
