"""A small convolutional network without batch norm, as often used on MNIST."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from curvact.activations import ActivationLike
from curvact.models.layers import Common, prepare, require_square


class SmallCNN(nn.Module):
    """Four 3×3 convolutions, a hidden linear layer and a linear head.

    The convolutions have width, width, 2·width and 2·width channels. The second and the fourth
    halve the size. A last feature map of 16×16 or more is averaged in squares, to at least 8×8.
    Without batch norm the model computes the same function in train and eval mode.

    activation: a name, a factory or a module. width, hidden: of the first convolution and of the
    hidden layer. Other arguments: `Common`; stages 1 and 2 are the two widths, 3 the hidden layer.
    Maps N×channels×size×size in [0, 1] to N×classes logits. Raises CurvactError for a bad argument
    and for images of another size.

    >>> import torch
    >>> SmallCNN("rctaf(curvature=6)", channels=1, size=28)(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        width: int = 16,
        hidden: int = 128,
        **common: Unpack[Common],
    ) -> None:
        super().__init__()
        frame = prepare("small_cnn", activation, common, width=width, hidden=hidden)
        act = frame.activations
        self.size = frame.size
        if act.scope == "network":
            self.activation = act(0, width)
        self.normalize = frame.normalize
        self.conv1 = nn.Conv2d(frame.channels, width, 3, 1, 1)
        self.act1 = act(1, width)
        self.conv2 = nn.Conv2d(width, width, 3, 2, 1)
        self.act2 = act(1, width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, 1, 1)
        self.act3 = act(2, 2 * width)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, 2, 1)
        self.act4 = act(2, 2 * width)
        side = -(-frame.size // 4)
        self.average = max(1, side // 8)
        self.hidden = nn.Linear(2 * width * (side // self.average) ** 2, hidden)
        self.act5 = act(3, hidden, "vectors")
        self.linear = nn.Linear(hidden, frame.classes)
        frame.initialize(self, fan="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        require_square("small_cnn", x, self.size)
        x = self.act2(self.conv2(self.act1(self.conv1(self.normalize(x)))))
        x = self.act4(self.conv4(self.act3(self.conv3(x))))
        if self.average > 1:
            x = F.avg_pool2d(x, self.average)
        return self.linear(self.act5(self.hidden(x.flatten(1))))  # type: ignore[no-any-return]
