"""Calls of activations: their names, their curvature, and something else in their place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations import Activation
from curvact.activations.selection import matcher
from curvact.analysis.calls import call_sites, curvature_at, replaced
from curvact.models import build


def test_a_shared_module_has_a_site_for_every_call() -> None:
    x = torch.rand(2, 3, 8, 8)
    shared = build("mini_resnet", activation="silu", scope="network")
    own = build("mini_resnet", activation="silu", scope="layer")
    names = ["act", "stages.0.act1", "stages.0.act2", "stages.1.act1", "stages.1.act2"]
    for model in (shared, own):
        assert [site.name for site in call_sites(model, x)] == names
    assert len({id(site.function) for site in call_sites(shared, x)}) == 1
    cnn = build("small_cnn", activation="silu", scope="network", size=8)
    # It holds the activation under six names and calls it five times, so that no call is sure of
    # its name.
    assert [s.name for s in call_sites(cnn, x)] == ["activation", *(f"activation#{i}" for i in range(2, 6))]


class Cubic(Activation):
    def forward(self, x: Tensor) -> Tensor:
        return x + x**3 / 6


@pytest.mark.parametrize(
    ("function", "truth"),
    [
        (nn.Tanh(), lambda a: -2 * np.tanh(a) * (1 - np.tanh(a) ** 2)),
        (F.softplus, lambda a: np.exp(a) / (1 + np.exp(a)) ** 2),
        (Cubic(), lambda a: a),
        (nn.Hardtanh(inplace=True), lambda a: 0 * a),
    ],
)
def test_curvature_of_anything(function: nn.Module, truth: object) -> None:
    a = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = a.clone()
    with torch.no_grad():
        found = curvature_at(function, a)
    assert torch.equal(a, before)
    np.testing.assert_allclose(found.numpy(), truth(a.numpy()), atol=1e-12)  # type: ignore[operator]


class Mixed(nn.Module):
    """A module in place, a function in place, and a function by its argument's name."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.SELU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = x * 1
        self.act(h)
        return F.silu(input=(h - 1).relu_())


def test_calls_go_to_the_visit_and_the_model_comes_back() -> None:
    model, x = Mixed(), torch.linspace(-2, 2, 9)
    seen: list[Tensor] = []

    def straight(function: object, compute: object, a: Tensor) -> Tensor:
        seen.append(a)
        return 2 * a

    plain = model(x)
    with replaced(model, matcher(None), straight):
        out = model(x)
    torch.testing.assert_close(out, 2 * (2 * (2 * x - 1)))
    torch.testing.assert_close(torch.stack(seen), torch.stack([x, 2 * x - 1, 2 * (2 * x - 1)]))
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)
    assert "forward" not in vars(model.act)
