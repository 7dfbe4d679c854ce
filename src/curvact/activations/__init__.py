"""What the network bends with: families, names, κ of anything, and swapping activations inside any module."""

from curvact.activations._core import kernel_info, set_fusion
from curvact.activations.base import Activation, Elementwise, ScaledActivation
from curvact.activations.curvature import Peak, max_curvature
from curvact.activations.gates import GELU, Mish, PowerGate, Squareplus, Swish
from curvact.activations.pssilu import PSSiLU
from curvact.activations.rct import RCRAF, RCTAF, Softplus
from curvact.activations.registry import (
    ActivationLike,
    activation,
    activation_names,
    as_factory,
    name_of,
    register,
)
from curvact.activations.standard import ELU, ReLU, SiLU
from curvact.activations.swap import Replacement, SwapReport, swap_activations

__all__ = [
    "ELU",
    "GELU",
    "RCRAF",
    "RCTAF",
    "Activation",
    "ActivationLike",
    "Elementwise",
    "Mish",
    "PSSiLU",
    "Peak",
    "PowerGate",
    "ReLU",
    "Replacement",
    "ScaledActivation",
    "SiLU",
    "Softplus",
    "Squareplus",
    "SwapReport",
    "Swish",
    "activation",
    "activation_names",
    "as_factory",
    "kernel_info",
    "max_curvature",
    "name_of",
    "register",
    "set_fusion",
    "swap_activations",
]
