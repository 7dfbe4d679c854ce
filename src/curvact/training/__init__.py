"""Adversarial training: objectives, weight-space methods, one loop."""

from curvact.training.entropy_sgd import EntropySGD
from curvact.training.loop import Diverged, Epoch, Step, fit, training_attack
from curvact.training.objectives import OBJECTIVES, Loss, Objective, objective
from curvact.training.recipe import Recipe

__all__ = [
    "OBJECTIVES",
    "Diverged",
    "EntropySGD",
    "Epoch",
    "Loss",
    "Objective",
    "Recipe",
    "Step",
    "fit",
    "objective",
    "training_attack",
]
