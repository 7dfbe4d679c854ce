"""VGG16-BN: thirteen 3×3 convolutions with batch norm, max pooling between them, and a linear head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from curvact.activations import ActivationLike
from curvact.models.layers import (
    Scope,
    activation_source,
    initialize,
    normalization,
    require_sizes,
    require_square,
)

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Width, in multiples of `width`, and number of convolutions of each stage; a 2×2 max pool ends it."""


class VGG(nn.Module):
    """VGG16-BN (arXiv 1409.1556) in its usual form for CIFAR: the classifier is one linear layer on the global average.

    Every stage ends with a 2×2 max pool. On images below 32 pixels those are left out that would leave less than 2×2 to the
    next convolution [ours]; layers keep their names. From 64 pixels the average is over more than one place.

    activation: a name, a factory or a module. scope: "network", "stage", "layer" or "channel": what has one of its own; None:
    see `activation_source`.
    channels, classes: of the data. size: side of the images in pixels, which must then be so large. width: of the first
    stage.
    mean, std: the data's normalization, which is the first layer. generator: of the initial weights.
    Maps N×channels×size×size in [0, 1] to N×classes logits. Raises CurvactError for a bad argument and other sizes of images.

    >>> sum(p.numel() for p in VGG("relu").parameters())
    14728266
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        channels: int = 3,
        classes: int = 10,
        size: int = 32,
        width: int = 64,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scope: Scope | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require_sizes("vgg16_bn", channels=channels, classes=classes, size=size, width=width)
        self.size = size
        source = activation_source(activation, scope)
        if source.scope == "network":
            self.activation = source(0, 8 * width)
        self.normalize = normalization(channels, mean, std)
        layers: list[nn.Module] = []
        inputs, side = channels, size
        for stage, (multiple, convolutions) in enumerate(STAGES, start=1):
            outputs = multiple * width
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(inputs, outputs, 3, 1, 1),
                    nn.BatchNorm2d(outputs),
                    source(stage, outputs),
                ]
                inputs = outputs
            pools = side >= (2 if stage == len(STAGES) else 4)
            layers.append(nn.MaxPool2d(2) if pools else nn.Identity())
            side = side // 2 if pools else side
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(8 * width, classes)
        initialize(self, generator, activations=source.made)

    def forward(self, x: Tensor) -> Tensor:
        require_square("vgg16_bn", x, self.size)
        return self.classifier(self.features(self.normalize(x)).mean((2, 3)))  # type: ignore[no-any-return]
