"""Small changes of the input against the whole network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvact.activations import activation
from curvact.attacks.autoattack import windows
from curvact.models import build

ALL = ["apgd-ce", "apgd-t", "fab-t", "square"]
SMALL: dict[str, Any] = {"attacks": ALL, "steps": 8, "queries": 40}
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 2.0}


class _Odd(nn.Module):
    """Strides, dilation, groups, a sum of three, and a branch that windows do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, 1, 2, dilation=2, groups=2)
        self.b = nn.Conv2d(6, 6, (5, 1), (2, 1), (2, 0))
        self.c = nn.Conv2d(6, 6, 1, (2, 1))
        self.act, self.pool, self.linear = nn.SiLU(), nn.MaxPool2d(2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        h = self.b(h) + self.c(h) + self.c(h)
        return self.linear((self.pool(h) * 2).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg16_bn", "odd"])
def test_windows_give_the_logits_of_the_whole(name: str) -> None:
    """Against the network itself, over many places and sizes, with some rows left out, some changes
    taken back.
    """
    g = torch.Generator().manual_seed(0)
    channels, size = (2, 16) if name == "odd" else (3, 32)
    model = _Odd() if name == "odd" else build(name, width=4, channels=3, size=32, activation="silu")
    model.requires_grad_(False).eval()
    x = torch.rand(6, channels, size, size, generator=g)
    made = windows.windowed(model, x[:2], model)
    assert made is not None
    made.begin(x)
    local = 0
    for _ in range(25):
        side = int(torch.randint(1, 7, (), generator=g))
        top, left = torch.randint(0, size - side + 1, (2,), generator=g).tolist()
        rows = torch.randperm(len(x), generator=g)[:4].sort().values
        patch = torch.rand(4, channels, side, side, generator=g)
        changed = x.clone()
        changed[rows, :, top : top + side, left : left + side] = patch
        logits = made.logits(rows, (top, top + side, left, left + side), patch)
        torch.testing.assert_close(
            logits, model(changed)[rows], rtol=1e-4, atol=1e-5 * float(logits.abs().max())
        )
        local += sum(isinstance(change, windows._Window) for change in made._changes.values())
        taken = torch.rand(4, generator=g) < 0.5
        made.accept(taken)
        x[rows[taken]] = changed[rows[taken]]
    assert local > 25 * 3
    keep = torch.tensor([True, False, True, True, False, True])
    made.keep(keep)
    logits = made.logits(torch.arange(4), (0, 1, 0, 1), x[keep][:, :, :1, :1])
    torch.testing.assert_close(logits, model(x[keep]), rtol=1e-4, atol=1e-5 * float(logits.abs().max()))


def test_windows_are_left_where_they_do_not_fit(net: Any) -> None:
    class Shuffled(nn.Module):
        """Looks pointwise by its shape, but moves what it gets."""

        def forward(self, x: Tensor) -> Tensor:
            return x.flip(3)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x if x.sum() > 0 else -x).mean((2, 3))  # type: ignore[no-any-return]

    class Counting(Branching):
        """Looks at its shape, as it may, but holds on to the number of images."""

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).reshape(x.shape[0], 4, -1).mean(2)  # type: ignore[no-any-return]

    x = torch.rand(2, 3, 12, 12)
    assert windows.windowed(Counting().eval(), x, Counting().eval()) is None
    assert not windows._is_pointwise(Shuffled(), 3)
    assert not windows._is_pointwise(nn.InstanceNorm2d(3), 3)
    assert windows._is_pointwise(nn.BatchNorm2d(7).eval(), 7)
    assert windows._is_pointwise(activation("rctaf(curvature=6)"), 7)
    assert windows.windowed(Branching().eval(), x, Branching().eval()) is None
    assert windows.windowed(nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), x, lambda x: x) is None
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert windows.windowed(net, x, net) is not None
    assert windows.windowed(net, x, lambda x: net(x) + 1) is None
