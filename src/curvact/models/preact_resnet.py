"""PreAct-ResNet-18: a residual network with batch norm and activation before each convolution."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import Unpack

from curvact.activations import ActivationLike
from curvact.activations.arguments import flag
from curvact.models.layers import ActivationSource, Common, prepare, stage
from curvact.models.resnet import Stem, stem_convolution


class PreActBlock(nn.Module):
    """conv(act(bn(conv(z)))) + shortcut(x) with z = act(bn(x)) and 3×3 convolutions.

    The shortcut is x, or a 1×1 convolution of x where size or width change.
    out_shortcut: that convolution takes z instead of x.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        source: ActivationSource,
        stage: int,
        *,
        out_shortcut: bool,
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


class PreActResNet(nn.Module):
    """PreAct-ResNet-18 (arXiv 1603.05027): `ResNet` of depth 18 with blocks as `PreActBlock`.

    bn_before_fc: batch norm and activation (stage 0) after the last stage too, as in the paper. The
    default leaves them out, as most CIFAR code does. Nothing bounds the features then, and training
    diverges at smaller learning rates [ours].
    out_shortcut: see `PreActBlock`. RobustBench's `PreActBlockV2` has it True.
    activation: a name, a factory or a module. width, stem: as in `ResNet`. Other arguments:
    `Common`.
    Maps N×channels×H×W in [0, 1] to N×classes logits. Raises CurvactError for a bad argument.

    >>> sum(p.numel() for p in PreActResNet("silu").parameters())
    11171146
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        width: int = 64,
        stem: Stem | None = None,
        bn_before_fc: bool = False,
        out_shortcut: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__()
        for name, value in (("bn_before_fc", bn_before_fc), ("out_shortcut", out_shortcut)):
            flag(value, name, "preact_resnet18")
        frame = prepare("preact_resnet18", activation, common, width=width)
        act = frame.activations
        if bn_before_fc or act.scope == "network":
            self.activation = act(0, 8 * width)
        self.normalize = frame.normalize
        self.conv1, self.pool = stem_convolution(frame.channels, width, frame.size, stem)
        self.layer1 = stage(PreActBlock, act, 1, width, width, 2, out_shortcut=out_shortcut)
        self.layer2 = stage(PreActBlock, act, 2, width, 2 * width, 2, out_shortcut=out_shortcut)
        self.layer3 = stage(PreActBlock, act, 3, 2 * width, 4 * width, 2, out_shortcut=out_shortcut)
        self.layer4 = stage(PreActBlock, act, 4, 4 * width, 8 * width, 2, out_shortcut=out_shortcut)
        self.bn = nn.BatchNorm2d(8 * width) if bn_before_fc else None
        self.linear = nn.Linear(8 * width, frame.classes)
        frame.initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(self.normalize(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.bn is not None:
            x = self.activation(self.bn(x))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]
