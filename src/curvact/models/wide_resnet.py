"""Wide residual networks: WRN-28-10, WRN-34-10 and any other depth and width."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from curvact.activations import ActivationLike
from curvact.errors import CurvactError
from curvact.models.layers import (
    ActivationSource,
    Dropout,
    Scope,
    activation_source,
    initialize,
    normalization,
    require_sizes,
)


class WideBlock(nn.Module):
    """conv(dropout(act(bn(conv(z))))) + shortcut with z = act(bn(x)): x, or a 1×1 convolution of z where the width changes."""

    def __init__(
        self, inputs: int, width: int, stride: int, source: ActivationSource, stage: int, dropout: Dropout
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = source(stage, inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = source(stage, width)
        self.dropout = dropout
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.bn1(x))
        out = self.conv2(self.dropout(self.act2(self.bn2(self.conv1(activated)))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-widen_factor (arXiv 1605.07146): a 3×3 stem of width 16, three stages of pre-activation blocks of 16, 32 and
    64 times the widen factor, batch norm, activation and a global average.

    activation: a name, a factory or a module. scope: "network", "stage", "layer" or "channel": what has one of its own; None:
    see `activation_source`. The last one, `activation`, is stage 0, and the only one with scope="network".
    channels, classes: of the data. size: side of the images; nothing depends on it, and 224 pixels are slow.
    mean, std: the data's normalization, which is the first layer. generator: of the initial weights.
    depth: 6n + 4 for n blocks a stage. dropout: probability inside the blocks.
    Maps N×channels×H×W in [0, 1] to N×classes logits. Raises CurvactError for a bad argument.

    >>> model = WideResNet("rctaf(curvature=6, learnable=True)", depth=10, widen_factor=1, scope="network")
    >>> next(model.named_parameters())[0], model(torch.rand(2, 3, 32, 32)).shape
    ('activation.alpha', torch.Size([2, 10]))
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        channels: int = 3,
        classes: int = 10,
        size: int = 32,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scope: Scope | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require_sizes(
            "wide_resnet",
            channels=channels,
            classes=classes,
            size=size,
            depth=depth,
            widen_factor=widen_factor,
        )
        if depth < 10 or depth % 6 != 4:
            raise CurvactError(f"wide_resnet got depth={depth}: must be 6n + 4: 10, 16, 22, 28, 34, ...")
        source = activation_source(activation, scope)
        self.activation = source(0, 64 * widen_factor)
        self.normalize = normalization(channels, mean, std)
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)

        def stage(number: int, inputs: int) -> nn.Sequential:
            outputs = 16 * widen_factor * 2 ** (number - 1)
            blocks = [
                WideBlock(
                    outputs if later else inputs,
                    outputs,
                    2 if number > 1 and not later else 1,
                    source,
                    number,
                    Dropout(dropout),
                )
                for later in range((depth - 4) // 6)
            ]
            return nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks)))

        self.block1 = stage(1, 16)
        self.block2 = stage(2, 16 * widen_factor)
        self.block3 = stage(3, 32 * widen_factor)
        self.bn1 = nn.BatchNorm2d(64 * widen_factor)
        self.fc = nn.Linear(64 * widen_factor, classes)
        initialize(self, generator, activations=source.made)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(self.normalize(x)))))
        return self.fc(self.activation(self.bn1(x)).mean((2, 3)))  # type: ignore[no-any-return]
