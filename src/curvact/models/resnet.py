"""Residual networks: ResNet-18 and ResNet-34, for small images and for 224 pixels."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from typing_extensions import Unpack

from curvact.activations import ActivationLike
from curvact.errors import CurvactError
from curvact.models.layers import ActivationSource, Common, prepare, stage
from curvact.names import shortened

Stem = Literal["cifar", "imagenet"]
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks in each of the four stages, by depth."""


def stem_convolution(channels: int, width: int, size: int, stem: Stem | None) -> tuple[nn.Conv2d, nn.Module]:
    """The first convolution, and the pooling after it.

    stem: "cifar" is 3×3 without pooling. "imagenet" is 7×7 with stride 2, then a 3×3 max pool with
    stride 2: a quarter of the size. None: "imagenet" from size 96.
    """
    if stem is not None and stem not in get_args(Stem):
        raise CurvactError(f"stem={shortened(stem)}: allowed are {', '.join(get_args(Stem))} and None")
    if (stem or ("imagenet" if size >= 96 else "cifar")) == "cifar":
        return nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.Identity()
    return nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)


class BasicBlock(nn.Module):
    """act(bn(conv(act(bn(conv(x))))) + shortcut(x)), with 3×3 convolutions.

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


class ResNet(nn.Module):
    """ResNet (arXiv 1512.03385): a stem, four stages of blocks, a global average, a linear head.

    The stages have width, 2·width, 4·width and 8·width channels.

    activation: a name, a factory or a module. depth: 18 or 34. stem: "cifar" (3×3, no pooling),
    "imagenet" (7×7 and max pooling), or None: "imagenet" from size 96. Other arguments: `Common`;
    only the choice of the stem depends on `size`, and the stem's activation is stage 0.
    Maps N×channels×H×W in [0, 1] to N×classes logits. Raises CurvactError for a bad argument.

    >>> sum(p.numel() for p in ResNet("rctaf(curvature=6)").parameters())
    11173962
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        depth: int = 18,
        width: int = 64,
        stem: Stem | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__()
        if not isinstance(depth, int) or depth not in BLOCKS:
            raise CurvactError(
                f"resnet got depth={shortened(depth)}: allowed are {', '.join(map(str, BLOCKS))}"
            )
        frame = prepare(f"resnet{depth}", activation, common, width=width)
        act, counts = frame.activations, BLOCKS[depth]
        self.activation = act(0, width)
        self.normalize = frame.normalize
        self.conv1, self.pool = stem_convolution(frame.channels, width, frame.size, stem)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(BasicBlock, act, 1, width, width, counts[0])
        self.layer2 = stage(BasicBlock, act, 2, width, 2 * width, counts[1])
        self.layer3 = stage(BasicBlock, act, 3, 2 * width, 4 * width, counts[2])
        self.layer4 = stage(BasicBlock, act, 4, 4 * width, 8 * width, counts[3])
        self.linear = nn.Linear(8 * width, frame.classes)
        frame.initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.bn1(self.conv1(self.normalize(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]
