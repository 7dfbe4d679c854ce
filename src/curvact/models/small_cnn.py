"""A small convolutional network without batch norm, the classic of adversarial training on MNIST."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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


class SmallCNN(nn.Module):
    """Four 3×3 convolutions (width, width, 2·width, 2·width; the second and the fourth with stride 2), a hidden layer, a head.

    No batch norm, so that training and evaluation are one function. The last feature map has a quarter of the size; from 16×16
    places on it is averaged in squares, down to between 8×8 and 15×15.

    activation: a name, a factory or a module. scope: "network", "stage" (the two widths, the hidden layer), "layer" or "channel":
    what has one of its own; None: see `activation_source`.
    channels, classes: of the data. size: side of the images in pixels, which must then be so large.
    mean, std: the data's normalization, which is the first layer. generator: of the initial weights.
    Maps N×channels×size×size in [0, 1] to N×classes logits. Raises CurvactError for a bad argument and other sizes of images.

    >>> SmallCNN("rctaf(curvature=6)", channels=1, size=28)(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        channels: int = 3,
        classes: int = 10,
        size: int = 32,
        width: int = 16,
        hidden: int = 128,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scope: Scope | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require_sizes("small_cnn", channels=channels, classes=classes, size=size, width=width, hidden=hidden)
        self.size = size
        source = activation_source(activation, scope)
        if source.scope == "network":
            self.activation = source(0, width)
        self.normalize = normalization(channels, mean, std)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1)
        self.act1 = source(1, width)
        self.conv2 = nn.Conv2d(width, width, 3, 2, 1)
        self.act2 = source(1, width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, 1, 1)
        self.act3 = source(2, 2 * width)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, 2, 1)
        self.act4 = source(2, 2 * width)
        side = -(-size // 4)
        self.average = max(1, side // 8)
        self.hidden = nn.Linear(2 * width * (side // self.average) ** 2, hidden)
        self.act5 = source(3, hidden, "vectors")
        self.linear = nn.Linear(hidden, classes)
        initialize(self, generator, activations=source.made, fan="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        require_square("small_cnn", x, self.size)
        x = self.act2(self.conv2(self.act1(self.conv1(self.normalize(x)))))
        x = self.act4(self.conv4(self.act3(self.conv3(x))))
        if self.average > 1:
            x = F.avg_pool2d(x, self.average)
        return self.linear(self.act5(self.hidden(x.flatten(1))))  # type: ignore[no-any-return]
