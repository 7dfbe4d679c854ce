"""What the network bends with: families, names, κ of anything, and swapping activations inside any module."""

from curvact.activations._core import kernel_info, set_fusion
from curvact.activations.base import Activation, Elementwise, ScaledActivation
from curvact.activations.curvature import Peak, max_curvature
from curvact.activations.gates import GELU, Mish, PowerGate, Squareplus, Swish
from curvact.activations.learned import (
    activation_parameters,
    clip_beta_gradient,
    constrain_,
    current_curvature,
    current_parameters,
    known_curvature,
    penalty,
)
from curvact.activations.paf import PELU, PReLU, PReLUPlus, PSiLU, PSoftplus, ReBLU
from curvact.activations.pssilu import FixedPSSiLU, PSSiLU, SSiLU
from curvact.activations.rct import RCRAF, RCTAF, Softplus
from curvact.activations.registry import (
    ActivationLike,
    activation,
    activation_names,
    as_factory,
    default_scope,
    name_of,
    register,
    takes_channels,
)
from curvact.activations.sparta import Sparta
from curvact.activations.standard import ELU, ReLU, SiLU
from curvact.activations.swap import Replacement, SwapReport, swap_activations

__all__ = [
    "ELU",
    "GELU",
    "PELU",
    "RCRAF",
    "RCTAF",
    "Activation",
    "ActivationLike",
    "Elementwise",
    "FixedPSSiLU",
    "Mish",
    "PReLU",
    "PReLUPlus",
    "PSSiLU",
    "PSiLU",
    "PSoftplus",
    "Peak",
    "PowerGate",
    "ReBLU",
    "ReLU",
    "Replacement",
    "SSiLU",
    "ScaledActivation",
    "SiLU",
    "Softplus",
    "Sparta",
    "Squareplus",
    "SwapReport",
    "Swish",
    "activation",
    "activation_names",
    "activation_parameters",
    "as_factory",
    "clip_beta_gradient",
    "constrain_",
    "current_curvature",
    "current_parameters",
    "default_scope",
    "kernel_info",
    "known_curvature",
    "max_curvature",
    "name_of",
    "penalty",
    "register",
    "set_fusion",
    "swap_activations",
    "takes_channels",
]
