"""Methods in weight space: Entropy-SGD, perturbations (AWP, SAM), averages (EMA, SWA), batch norm recalibrated for them."""

from curvact.training.methods.averaging import Average
from curvact.training.methods.entropy_sgd import EntropySGD

__all__ = ["Average", "EntropySGD"]
