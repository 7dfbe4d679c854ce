"""Activations as functions of a tensor and their parameters, such as `rctaf(x, alpha, beta)`.

They run the code of the modules of the same families, and return the same numbers. x is a
floating-point tensor of any shape; the result has its shape and dtype. A parameter is a number, or
a tensor that broadcasts against x without enlarging it; the result is differentiable in x and in
parameters that are tensors, except for whole numbers such as β of RCT-AF. A number out of range is
a CurvactError; tensors are not checked.

>>> import torch
>>> alpha = torch.tensor(16.0, requires_grad=True)
>>> rctaf(torch.tensor([0.0, 1.0]), alpha, beta=1).sum().backward()
>>> alpha.grad
tensor(-0.0017)
"""

from curvact.activations.families.ctu import ctu as ctu
from curvact.activations.families.paf import pelu as pelu
from curvact.activations.families.paf import prelu as prelu
from curvact.activations.families.paf import prelu_plus as prelu_plus
from curvact.activations.families.paf import psilu as psilu
from curvact.activations.families.paf import psoftplus as psoftplus
from curvact.activations.families.paf import reblu as reblu
from curvact.activations.families.power_gate import power_gate as power_gate
from curvact.activations.families.pssilu import pssilu as pssilu
from curvact.activations.families.pssilu import pssilu_fixed as pssilu_fixed
from curvact.activations.families.pssilu import ssilu as ssilu
from curvact.activations.families.rcr import rcraf as rcraf
from curvact.activations.families.rct import rctaf as rctaf
from curvact.activations.families.squareplus import squareplus as squareplus
from curvact.activations.families.standard import gelu as gelu
from curvact.activations.families.standard import mish as mish
from curvact.activations.families.standard import softplus as softplus
from curvact.activations.families.swish import swish as swish
