"""AutoAttack: the reference's verdict, sharded and resumable, and a faster mode."""

from curvact.attacks.autoattack.verdict import Progress, Verdict, autoattack, ensemble

__all__ = ["Progress", "Verdict", "autoattack", "ensemble"]
