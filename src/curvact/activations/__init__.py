"""Activations: families, names, κ of anything, and swapping activations inside any module."""

from curvact.activations import functional
from curvact.activations.base import Activation, Elementwise, ScaledActivation
from curvact.activations.curvature import Peak, max_curvature
from curvact.activations.families.paf import PELU, PReLU, PReLUPlus, PSiLU, PSoftplus, ReBLU
from curvact.activations.families.power_gate import PowerGate
from curvact.activations.families.pssilu import FixedPSSiLU, PSSiLU, SSiLU
from curvact.activations.families.rcr import RCRAF
from curvact.activations.families.rct import RCTAF
from curvact.activations.families.sparta import Sparta
from curvact.activations.families.squareplus import Squareplus
from curvact.activations.families.standard import ELU, GELU, Mish, ReLU, Softplus
from curvact.activations.families.swish import SiLU, Swish
from curvact.activations.kernels.execution import kernel_info, set_fusion
from curvact.activations.learned import (
    activation_parameters,
    clip_beta_gradient,
    constrain_,
    current_curvature,
    current_parameters,
    known_curvature,
    penalty,
)
from curvact.activations.registry import (
    ActivationLike,
    act_layer,
    activation,
    activation_names,
    as_factory,
    default_scope,
    name_of,
    register,
    takes_channels,
)
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
    "act_layer",
    "activation",
    "activation_names",
    "activation_parameters",
    "as_factory",
    "clip_beta_gradient",
    "constrain_",
    "current_curvature",
    "current_parameters",
    "default_scope",
    "functional",
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
