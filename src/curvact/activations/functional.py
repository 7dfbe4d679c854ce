"""Activations as functions of a tensor and their parameters, such as `rctaf(x, alpha, beta)`.

They run the code of the modules of the same families, and return the same numbers. x is a floating-point tensor of any shape;
the result has its shape and dtype. A parameter is a number, or a tensor that broadcasts against x without enlarging it; the
result is differentiable in x and in parameters that are tensors, except for whole numbers such as β of RCT-AF. A number
out of range is a CurvactError; tensors are not checked.

>>> import torch
>>> alpha = torch.tensor(16.0, requires_grad=True)
>>> rctaf(torch.tensor([0.0, 1.0]), alpha, beta=1).sum().backward()
>>> alpha.grad
tensor(-0.0017)
"""

from curvact.activations.families.paf import pelu, prelu, prelu_plus, psilu, psoftplus, reblu
from curvact.activations.families.power_gate import power_gate
from curvact.activations.families.pssilu import pssilu, pssilu_fixed, ssilu
from curvact.activations.families.rcr import rcraf
from curvact.activations.families.rct import rctaf
from curvact.activations.families.squareplus import squareplus
from curvact.activations.families.standard import gelu, mish, softplus
from curvact.activations.families.swish import swish

__all__ = [
    "gelu",
    "mish",
    "pelu",
    "power_gate",
    "prelu",
    "prelu_plus",
    "psilu",
    "psoftplus",
    "pssilu",
    "pssilu_fixed",
    "rcraf",
    "rctaf",
    "reblu",
    "softplus",
    "squareplus",
    "ssilu",
    "swish",
]
