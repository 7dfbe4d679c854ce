"""curvact: robust activations, chosen by their curvature."""

__version__ = "0.1.0"

from curvact.activations import (
    ELU,
    GELU,
    RCRAF,
    RCTAF,
    Activation,
    Elementwise,
    Mish,
    Peak,
    PowerGate,
    PSiLU,
    PSoftplus,
    PSSiLU,
    ReLU,
    SiLU,
    Softplus,
    Sparta,
    Squareplus,
    Swish,
    activation,
    activation_names,
    max_curvature,
    register,
    swap_activations,
)
from curvact.analysis import diagonal_norms, exact_diagonal, hutchinson_diagonal
from curvact.attacks import ThreatModel, autoattack, evaluate, fgsm, masking_report, minimum_radius, pgd
from curvact.data import load
from curvact.errors import CurvactError
from curvact.evaluation import evaluate_model
from curvact.models import MiniResNet, build
from curvact.models.foreign import logits_of
from curvact.training import EntropySGD, Recipe, fit, load_checkpoint, save_checkpoint

__all__ = [
    "ELU",
    "GELU",
    "RCRAF",
    "RCTAF",
    "Activation",
    "CurvactError",
    "Elementwise",
    "EntropySGD",
    "MiniResNet",
    "Mish",
    "PSSiLU",
    "PSiLU",
    "PSoftplus",
    "Peak",
    "PowerGate",
    "ReLU",
    "Recipe",
    "SiLU",
    "Softplus",
    "Sparta",
    "Squareplus",
    "Swish",
    "ThreatModel",
    "activation",
    "activation_names",
    "autoattack",
    "build",
    "diagonal_norms",
    "evaluate",
    "evaluate_model",
    "exact_diagonal",
    "fgsm",
    "fit",
    "hutchinson_diagonal",
    "load",
    "load_checkpoint",
    "logits_of",
    "masking_report",
    "max_curvature",
    "minimum_radius",
    "pgd",
    "register",
    "save_checkpoint",
    "swap_activations",
]
