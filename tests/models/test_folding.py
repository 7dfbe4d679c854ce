"""The folded twin is the eval-mode function of the network, also after the network has changed, and
shares what it can.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from curvact.models import build
from curvact.models.folding import FollowingTwin, foldable
from curvact.models.layers import Dropout


def _shaken(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters as they are after training."""
    random = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -1), (module.running_var, 0.5)):
                tensor.copy_(low + torch.rand(tensor.shape, generator=random) * 2)
            with torch.no_grad():
                module.weight.add_(torch.rand(module.weight.shape, generator=random))
                module.bias.add_(torch.rand(module.bias.shape, generator=random))
    return model


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "wide_resnet", "vgg16_bn", "mini_resnet"])
@pytest.mark.parametrize("activation", ["relu", "rctaf(curvature=6, beta=1)"])
def test_the_twin_follows(name: str, activation: str) -> None:
    size = 32 if name != "mini_resnet" else 8
    given = {"depth": 10, "widen_factor": 1} if name == "wide_resnet" else {"width": 4}
    model = _shaken(build(name, activation=activation, size=size, channels=3, **given)).double()
    x = torch.rand(3, 3, size, size, dtype=torch.float64)
    twin = FollowingTwin(model, x)
    assert twin.folds
    before_activation = name in ("preact_resnet18", "wide_resnet")  # some norms there follow a sum
    assert before_activation or not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    model.eval()
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    folded = twin.refresh()(one)
    truth = model(two)
    # float64: folding only reorders products.
    torch.testing.assert_close(folded, truth, rtol=1e-9, atol=1e-9)
    (a,) = torch.autograd.grad(folded.sum(), one)
    (b,) = torch.autograd.grad(truth.sum(), two)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_a_stale_twin_differs() -> None:
    """`refresh` is what makes it follow: without it the test above would fail."""
    model = _shaken(build("mini_resnet", width=4, channels=3, activation="silu")).eval()
    x = torch.rand(2, 3, 8, 8)
    twin = FollowingTwin(model, x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    assert not torch.allclose(twin(x), model(x), rtol=1e-3)
    torch.testing.assert_close(twin.refresh()(x), model(x), rtol=1e-4, atol=1e-5)


def test_modes_and_weights_are_left_alone() -> None:
    model = build("mini_resnet", width=4, channels=3, activation="silu").train()
    before = copy.deepcopy(model.state_dict())
    FollowingTwin(model, torch.rand(2, 3, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_a_norm_whose_input_is_used_twice_is_kept() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.conv(x)
            return self.head((self.norm(h) + h).mean((2, 3)))

    model = _shaken(Branching())
    x = torch.rand(2, 3, 8, 8)
    twin = FollowingTwin(model, x)
    assert twin.folds == []
    torch.testing.assert_close(twin(x), model.eval()(x))


def test_a_shared_layer_is_not_folded() -> None:
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    assert foldable(model.eval(), torch.rand(1, 3, 2, 2)) == []


def test_dropout_and_its_generator_survive() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Dropout(0.5), nn.Flatten(), nn.Linear(144, 2)
    )
    model.train()(torch.rand(2, 3, 8, 8))
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(FollowingTwin(model, x)(x), model.eval()(x), rtol=1e-4, atol=1e-5)
