"""Weight-space methods: Entropy-SGD, ME-A, AWP and SAM, EMA and SWA, batch norm recalibrated for them."""

from curvact.training.methods.averaging import Average
from curvact.training.methods.entropy_sgd import EntropySGD
from curvact.training.methods.moreau import MoreauEnvelope

__all__ = ["Average", "EntropySGD", "MoreauEnvelope"]
