"""Residual networks: ResNet-18 and -34, and PreAct-ResNet-18, for small images and for 224 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from curvact.activations import ActivationLike
from curvact.errors import CurvactError
from curvact.models.layers import (
    ActivationSource,
    Scope,
    activation_source,
    initialize,
    normalization,
    require_sizes,
)

Stem = Literal["cifar", "imagenet"]
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks in each of the four stages, by depth."""


def stem_convolution(channels: int, width: int, size: int, stem: Stem | None) -> tuple[nn.Conv2d, nn.Module]:
    """The first convolution, and the pooling after it.

    "cifar": 3×3, no pooling. "imagenet": 7×7 with stride 2, then a 3×3 max pool with stride 2, for a quarter of the size.
    None: "imagenet" from size 96.
    """
    if stem is not None and stem not in get_args(Stem):
        raise CurvactError(f"stem={stem!r}: allowed are {', '.join(get_args(Stem))} and None")
    if (stem or ("imagenet" if size >= 96 else "cifar")) == "cifar":
        return nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.Identity()
    return nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm around a skip: act(bn(conv(act(bn(conv(x))))) + shortcut(x)).

    The shortcut is x, or a 1×1 convolution with batch norm where size or width change.
    """

    def __init__(self, inputs: int, width: int, stride: int, source: ActivationSource, stage: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = source(stage, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = source(stage, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))  # type: ignore[no-any-return]


class PreActBlock(nn.Module):
    """BasicBlock with norm and activation before each convolution: conv(act(bn(conv(z)))) + shortcut, z = act(bn(x)).

    The shortcut is x, or a 1×1 convolution of x (of z with out_shortcut) where size or width change.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, source: ActivationSource, stage: int, out_shortcut: bool
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = source(stage, inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = source(stage, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != width
        self.shortcut: nn.Module = nn.Identity()
        if changes:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False))
        self.from_activated = out_shortcut and changes

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.bn1(x))
        out = self.conv2(self.act2(self.bn2(self.conv1(activated))))
        return out + self.shortcut(activated if self.from_activated else x)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """ResNet (arXiv 1512.03385): a stem and four stages of basic blocks of width, 2·width, 4·width and 8·width; global average.

    activation: a name, a factory or a module. scope: "network", "stage", "layer" or "channel": what has one of its own; None:
    see `activation_source`. The stem's activation is stage 0.
    channels, classes: of the data. size: side of the images in pixels; only the choice of the stem depends on it.
    mean, std: the data's normalization, which is the first layer. generator: of the initial weights.
    depth: 18 or 34. stem: "cifar" (3×3, no pooling), "imagenet" (7×7 and max pooling), or None: "imagenet" from size 96.
    Maps N×channels×H×W in [0, 1] to N×classes logits. Raises CurvactError for a bad argument.

    >>> sum(p.numel() for p in ResNet("rctaf(curvature=6)").parameters())
    11173962
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        channels: int = 3,
        classes: int = 10,
        size: int = 32,
        depth: int = 18,
        width: int = 64,
        stem: Stem | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scope: Scope | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise CurvactError(f"resnet got depth={depth!r}: allowed are {', '.join(map(str, BLOCKS))}")
        require_sizes(f"resnet{depth}", channels=channels, classes=classes, size=size, width=width)
        source = activation_source(activation, scope)
        self.activation = source(0, width)
        self.normalize = normalization(channels, mean, std)
        self.conv1, self.pool = stem_convolution(channels, width, size, stem)
        self.bn1 = nn.BatchNorm2d(width)

        def stage(number: int, inputs: int, outputs: int) -> nn.Sequential:
            strides = [1 if number == 1 else 2] + [1] * (BLOCKS[depth][number - 1] - 1)
            ins = [inputs] + [outputs] * (len(strides) - 1)
            return nn.Sequential(
                *(BasicBlock(i, outputs, s, source, number) for i, s in zip(ins, strides, strict=True))
            )

        self.layer1 = stage(1, width, width)
        self.layer2 = stage(2, width, 2 * width)
        self.layer3 = stage(3, 2 * width, 4 * width)
        self.layer4 = stage(4, 4 * width, 8 * width)
        self.linear = nn.Linear(8 * width, classes)
        initialize(self, generator, activations=source.made)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.bn1(self.conv1(self.normalize(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


class PreActResNet(nn.Module):
    """PreAct-ResNet-18 (arXiv 1603.05027): ResNet-18 with norm and activation before each convolution.

    bn_before_fc: batch norm and activation after the last stage, too, as the paper has it. The default leaves them out, as
    the usual CIFAR code does; nothing bounds the features then, and training diverges at smaller learning rates [ours].
    out_shortcut: see `PreActBlock`; RobustBench's `PreActBlockV2` has it True.
    stem: as in `ResNet`. scope: the activation of bn_before_fc is stage 0. All else as in `ResNet`.
    Maps N×channels×H×W in [0, 1] to N×classes logits. Raises CurvactError for a bad argument.

    >>> sum(p.numel() for p in PreActResNet("silu").parameters())
    11171146
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        channels: int = 3,
        classes: int = 10,
        size: int = 32,
        width: int = 64,
        stem: Stem | None = None,
        bn_before_fc: bool = False,
        out_shortcut: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scope: Scope | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require_sizes("preact_resnet18", channels=channels, classes=classes, size=size, width=width)
        source = activation_source(activation, scope)
        if bn_before_fc or source.scope == "network":
            self.activation = source(0, 8 * width)
        self.normalize = normalization(channels, mean, std)
        self.conv1, self.pool = stem_convolution(channels, width, size, stem)

        def stage(number: int, inputs: int, outputs: int) -> nn.Sequential:
            first = PreActBlock(inputs, outputs, 1 if number == 1 else 2, source, number, out_shortcut)
            return nn.Sequential(first, PreActBlock(outputs, outputs, 1, source, number, out_shortcut))

        self.layer1 = stage(1, width, width)
        self.layer2 = stage(2, width, 2 * width)
        self.layer3 = stage(3, 2 * width, 4 * width)
        self.layer4 = stage(4, 4 * width, 8 * width)
        self.bn = nn.BatchNorm2d(8 * width) if bn_before_fc else None
        self.linear = nn.Linear(8 * width, classes)
        initialize(self, generator, activations=source.made)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(self.normalize(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.bn is not None:
            x = self.activation(self.bn(x))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]
