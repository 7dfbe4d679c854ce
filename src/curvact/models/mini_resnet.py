"""A residual network with batch norm, small enough for adversarial training on one core."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from curvact.activations import ActivationLike
from curvact.models.layers import Common, prepare
from curvact.models.resnet import BasicBlock


class MiniResNet(nn.Module):
    """A 3×3 stem and `blocks` stages of one residual block each, as `BasicBlock`.

    Each stage after the first halves the size and doubles the width. The last feature map is
    averaged to 4×4 and read out by one linear layer. It keeps the place of a stroke, so digits
    train in a quarter of the steps that a global average needs.

    activation: a name, a factory or a module. width: of the stem and of the first stage. Other
    arguments: `Common`; nothing depends on `size`, and the stem's activation is stage 0.
    Maps N×channels×H×W in [0, 1] to N×classes logits. Raises CurvactError for a bad argument.

    >>> import torch
    >>> model = MiniResNet("rctaf(curvature=6)", channels=1, classes=10, width=8)
    >>> model(torch.rand(2, 1, 8, 8)).shape, sum(p.numel() for p in model.parameters())
    (torch.Size([2, 10]), 7522)
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        width: int = 8,
        blocks: int = 2,
        **common: Unpack[Common],
    ) -> None:
        super().__init__()
        frame = prepare("mini_resnet", activation, common, width=width, blocks=blocks)
        self.normalize = frame.normalize
        self.conv = nn.Conv2d(frame.channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.act = frame.activations(0, width)
        widths = [width, *(width * 2**number for number in range(blocks))]
        shapes = enumerate(pairwise(widths), start=1)
        self.stages = nn.Sequential(
            *(BasicBlock(i, o, 1 if n == 1 else 2, frame.activations, n) for n, (i, o) in shapes)
        )
        self.linear = nn.Linear(widths[-1] * 16, frame.classes)
        frame.initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.act(self.bn(self.conv(self.normalize(x)))))
        if not isinstance(x, Tensor) or x.shape[-2:] != (4, 4):  # torch.fx passes a proxy
            x = F.adaptive_avg_pool2d(x, 4)
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]
