"""Adversarial training: objectives, weight-space methods, one loop, checkpoints."""

from curvact.models.weights import read_tensors
from curvact.training.checkpoint import load_checkpoint, save_checkpoint
from curvact.training.entropy_sgd import EntropySGD
from curvact.training.loop import Diverged, Epoch, Step, fit, training_attack
from curvact.training.objectives import OBJECTIVES, Loss, Objective, objective
from curvact.training.recipe import Recipe
from curvact.training.transfer import (
    LearnedActivation,
    extract_activation,
    insert_activation,
    read_learned,
    write_learned,
)

__all__ = [
    "OBJECTIVES",
    "Diverged",
    "EntropySGD",
    "Epoch",
    "LearnedActivation",
    "Loss",
    "Objective",
    "Recipe",
    "Step",
    "extract_activation",
    "fit",
    "insert_activation",
    "load_checkpoint",
    "objective",
    "read_learned",
    "read_tensors",
    "save_checkpoint",
    "training_attack",
    "write_learned",
]
