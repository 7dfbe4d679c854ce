"""Adversarial training: a recipe says how, one loop does it for every objective and method."""

from curvact.training.evaluation import most_evaluations
from curvact.training.inner_attack import InnerAttack, Maximization, TrainingAttack
from curvact.training.loop import fit
from curvact.training.methods import EntropySGD
from curvact.training.objectives import (
    OBJECTIVES,
    Objective,
    ObjectiveValue,
    objective,
    register_objective,
)
from curvact.training.processes import Compute
from curvact.training.progress import Diverged, Epoch, Step, Watch
from curvact.training.recipe import Recipe
from curvact.training.schedule import extension_problem, learning_rate

__all__ = [
    "OBJECTIVES",
    "Compute",
    "Diverged",
    "EntropySGD",
    "Epoch",
    "InnerAttack",
    "Maximization",
    "Objective",
    "ObjectiveValue",
    "Recipe",
    "Step",
    "TrainingAttack",
    "Watch",
    "extension_problem",
    "fit",
    "learning_rate",
    "most_evaluations",
    "objective",
    "register_objective",
]
