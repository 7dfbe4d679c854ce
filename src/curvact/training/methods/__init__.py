"""Weight-space methods: Entropy-SGD, AWP and SAM, EMA and SWA, batch norm recalibrated for them."""

from curvact.training.methods.averaging import Average
from curvact.training.methods.entropy_sgd import EntropySGD

__all__ = ["Average", "EntropySGD"]
