"""Wide residual networks: WRN-28-10, WRN-34-10 and any other depth and width."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from typing_extensions import Unpack

from curvact.activations import ActivationLike
from curvact.errors import CurvactError
from curvact.models.layers import ActivationSource, Common, Dropout, prepare, stage


class WideBlock(nn.Module):
    """conv(dropout(act(bn(conv(z))))) + shortcut with z = act(bn(x)) and 3×3 convolutions.

    The shortcut is x, or a 1×1 convolution of z where the width changes.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, source: ActivationSource, stage: int, *, dropout: float
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = source(stage, inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = source(stage, width)
        self.dropout = Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.bn1(x))
        out = self.conv2(self.dropout(self.act2(self.bn2(self.conv1(activated)))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-widen_factor (arXiv 1605.07146): a 3×3 stem of width 16 and three stages of blocks.

    The stages have 16, 32 and 64 times the widen factor channels. Batch norm, activation (stage 0),
    a global average and a linear head follow.

    activation: a name, a factory or a module. depth: 6n + 4 for n blocks a stage. dropout:
    probability inside the blocks. Other arguments: `Common`; nothing depends on `size`.
    Maps N×channels×H×W in [0, 1] to N×classes logits. Raises CurvactError for a bad argument.

    >>> import torch
    >>> act = "rctaf(curvature=6, learnable=True)"
    >>> model = WideResNet(act, depth=10, widen_factor=1, scope="network")
    >>> next(model.named_parameters())[0], model(torch.rand(2, 3, 32, 32)).shape
    ('activation.alpha', torch.Size([2, 10]))
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__()
        frame = prepare("wide_resnet", activation, common, depth=depth, widen_factor=widen_factor)
        if depth < 10 or depth % 6 != 4:
            raise CurvactError(f"wide_resnet got depth={depth}: must be 6n + 4: 10, 16, 22, 28, 34, ...")
        act = frame.activations
        width = 16 * widen_factor
        self.activation = act(0, 4 * width)
        self.normalize = frame.normalize
        self.conv1 = nn.Conv2d(frame.channels, 16, 3, 1, 1, bias=False)

        def block(number: int, inputs: int, outputs: int) -> nn.Sequential:
            blocks = stage(WideBlock, act, number, inputs, outputs, (depth - 4) // 6, dropout=dropout)
            return nn.Sequential(OrderedDict(layer=blocks))

        self.block1 = block(1, 16, width)
        self.block2 = block(2, width, 2 * width)
        self.block3 = block(3, 2 * width, 4 * width)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, frame.classes)
        frame.initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(self.normalize(x)))))
        return self.fc(self.activation(self.bn1(x)).mean((2, 3)))  # type: ignore[no-any-return]
