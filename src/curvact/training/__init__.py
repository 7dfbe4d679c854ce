"""Adversarial training: objectives, one loop, checkpoints."""

from curvact.training.checkpoint import load_checkpoint, read_tensors, save_checkpoint
from curvact.training.loop import Diverged, Epoch, Recipe, fit, training_attack
from curvact.training.objectives import OBJECTIVES, Loss, Objective, objective

__all__ = [
    "OBJECTIVES",
    "Diverged",
    "Epoch",
    "Loss",
    "Objective",
    "Recipe",
    "fit",
    "load_checkpoint",
    "objective",
    "read_tensors",
    "save_checkpoint",
    "training_attack",
]
