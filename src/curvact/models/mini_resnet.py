"""mini-resnet: a residual network with batch norm, small enough to train adversarially in seconds on one core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations import ActivationLike
from curvact.errors import CurvactError
from curvact.models.layers import ActivationSource, Normalize, Scope, activation_source, initialize


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm around a skip: act(bn(conv(act(bn(conv(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, width: int, stride: int, source: ActivationSource, stage: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = source(stage)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = source(stage)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))  # type: ignore[no-any-return]


class MiniResNet(nn.Module):
    """A 3×3 stem and `blocks` residual stages; each stage after the first halves the size and doubles the width.

    The last feature map is averaged down to 4×4 (on 8×8 images with two blocks it has that size) and read out linearly: with the
    place of a stroke kept, digits train in a quarter of the steps that a global average needs.

    activation: a name, a factory or a module.
    scope: whether the whole network, each stage or each layer has its own activation module.
    channels, classes: of the data. mean, std: its normalization, which is the first layer.
    Maps N×channels×H×W in [0, 1] to N×classes logits.

    >>> model = MiniResNet("rctaf(curvature=6)", channels=1, classes=10, width=8)
    >>> model(torch.rand(2, 1, 8, 8)).shape, sum(p.numel() for p in model.parameters())
    (torch.Size([2, 10]), 7522)
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        channels: int = 3,
        classes: int = 10,
        width: int = 8,
        blocks: int = 2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scope: Scope = "layer",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(channels, classes, width, blocks) < 1:
            raise CurvactError(
                f"mini_resnet got channels={channels}, classes={classes}, width={width}, blocks={blocks}: each must be >= 1"
            )
        source = activation_source(activation, scope)
        self.normalize = Normalize(mean or [0.5] * channels, std or [0.5] * channels)
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.act = source(0)
        stages: list[nn.Module] = []
        inputs = width
        for stage in range(blocks):
            outputs = width * 2**stage
            stages.append(BasicBlock(inputs, outputs, 1 if stage == 0 else 2, source, stage + 1))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(inputs * 16, classes)
        initialize(self, generator if generator is not None else torch.default_generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.act(self.bn(self.conv(self.normalize(x)))))
        if x.shape[-2:] != (4, 4):
            x = F.adaptive_avg_pool2d(x, 4)
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]
