"""Adversarial training: objectives, weight-space methods, one loop, checkpoints."""

from curvact.training.checkpoint import load_checkpoint, read_tensors, save_checkpoint
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
    "load_checkpoint",
    "objective",
    "read_tensors",
    "save_checkpoint",
    "training_attack",
]
