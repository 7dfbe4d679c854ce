"""VGG16-BN: thirteen convolutions with batch norm, max pooling, and a linear head."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import Unpack

from curvact.activations import ActivationLike
from curvact.models.layers import Common, prepare, require_square

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Width in multiples of `width`, and number of convolutions, of each stage."""


class VGG(nn.Module):
    """VGG16-BN (arXiv 1409.1556) in its CIFAR form: one linear layer on the global average.

    A 2×2 max pool ends every stage. On images below 32 pixels, a pool that would leave less than
    2×2 to the next convolution is left out [ours]. The layers keep their names.

    activation: a name, a factory or a module. width: of the first stage. Other arguments: `Common`.
    Maps N×channels×size×size in [0, 1] to N×classes logits. Raises CurvactError for a bad argument
    and for images of another size.

    >>> sum(p.numel() for p in VGG("relu").parameters())
    14728266
    """

    def __init__(
        self, activation: ActivationLike = "relu", *, width: int = 64, **common: Unpack[Common]
    ) -> None:
        super().__init__()
        frame = prepare("vgg16_bn", activation, common, width=width)
        act = frame.activations
        self.size = frame.size
        if act.scope == "network":
            self.activation = act(0, 8 * width)
        self.normalize = frame.normalize
        layers: list[nn.Module] = []
        inputs, side = frame.channels, frame.size
        for stage, (multiple, convolutions) in enumerate(STAGES, start=1):
            outputs = multiple * width
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), act(stage, outputs)]
                inputs = outputs
            pools = side >= (2 if stage == len(STAGES) else 4)
            layers.append(nn.MaxPool2d(2) if pools else nn.Identity())
            side = side // 2 if pools else side
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(8 * width, frame.classes)
        frame.initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        require_square("vgg16_bn", x, self.size)
        return self.classifier(self.features(self.normalize(x)).mean((2, 3)))  # type: ignore[no-any-return]
