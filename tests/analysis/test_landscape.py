"""Loss landscapes: filter norms exactly, every point against a separate evaluation, closed forms of
linear models.
"""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.analysis import Loss, filter_normalized_direction, loss_landscape
from curvact.attacks import ThreatModel, fgsm
from curvact.errors import CurvactError
from curvact.models import build


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 3)
    ).double()


X = torch.rand(7, 1, 4, 4, generator=seeded()).double()
Y = torch.arange(7) % 3


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(0, 1))
def test_every_filter_has_the_norm_of_the_models(seed: int, index: int) -> None:
    model = small()
    direction = filter_normalized_direction(Loss(model, X, Y), seed=seed, index=index)
    assert set(direction) == {"0.weight", "4.weight"}  # neither biases nor batch norm
    for name, part in direction.items():
        for filter_, own in zip(part, model.get_parameter(name), strict=True):
            assert np.linalg.norm(filter_.numpy()) == pytest.approx(
                np.linalg.norm(own.detach().numpy()), rel=1e-13
            )
    again = filter_normalized_direction(Loss(model, X, Y), seed=seed, index=index)
    other = filter_normalized_direction(Loss(model, X, Y), seed=seed, index=1 - index)
    assert all(torch.equal(part, again[name]) for name, part in direction.items())
    assert not any(torch.equal(part, other[name]) for name, part in direction.items())


def test_a_filter_of_zeros_does_not_move() -> None:
    model = small()
    with torch.no_grad():
        model[0].weight[1].zero_()
    direction = filter_normalized_direction(Loss(model, X, Y))["0.weight"]
    assert not direction[1].any()
    assert direction[0].any()


def test_every_point_of_the_square_against_a_separate_evaluation() -> None:
    model = small().eval()
    threat = ThreatModel("linf", 0.1)
    result = loss_landscape(
        Loss(model, X, Y, batch_size=3), lambda m, x, y: fgsm(m, x, y, threat), points=5, span=0.5, seed=3
    )
    assert result.coordinates == (-0.5, -0.25, 0.0, 0.25, 0.5)
    axes = [filter_normalized_direction(Loss(model, X, Y), seed=3, index=i) for i in (0, 1)]
    for i, a in enumerate(result.coordinates):
        for j, b in enumerate(result.coordinates):
            other = copy.deepcopy(model)
            with torch.no_grad():
                for name in axes[0]:
                    other.get_parameter(name).add_(a * axes[0][name] + b * axes[1][name])
            clean = F.cross_entropy(other(X), Y).item()
            attacked = F.cross_entropy(other(fgsm(other, X, Y, threat)), Y).item()
            assert result.clean[i][j] == pytest.approx(clean, rel=1e-12)
            assert result.adversarial is not None
            assert result.adversarial[i][j] == pytest.approx(attacked, rel=1e-12)
    assert result.centre == (result.clean[2][2], result.adversarial[2][2])
    flat = [np.concatenate([p.numpy().ravel() for p in axis.values()]) for axis in axes]
    assert result.norms == pytest.approx([np.linalg.norm(f) for f in flat], rel=1e-12)
    assert result.cosine == pytest.approx(flat[0] @ flat[1] / np.prod(result.norms), rel=1e-10)


def test_the_attack_of_a_linear_model_in_closed_form() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[0.7, -1.3]], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            z = x @ self.w[0] / 2
            return torch.stack([-z, z], 1)

    x = (0.1 + 0.8 * torch.rand(8, 2, generator=seeded(1))).double()
    y, epsilon = torch.arange(8) % 2, 0.05
    threat = ThreatModel("linf", epsilon)
    directions = [{"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[0.0, 2.0]])}]
    result = loss_landscape(
        Loss(Linear(), x, y), lambda m, x, y: fgsm(m, x, y, threat), directions=directions, points=7, span=2.0
    )
    for i, a in enumerate(result.coordinates):
        for j, b in enumerate(result.coordinates):
            w = np.array([0.7 + a, -1.3 + 2 * b])
            margin = (2 * y.numpy() - 1) * (x.numpy() @ w)
            assert result.clean[i][j] == pytest.approx(np.log1p(np.exp(-margin)).mean(), rel=1e-12)
            worst = np.log1p(np.exp(epsilon * np.abs(w).sum() - margin)).mean()
            assert result.adversarial is not None
            assert result.adversarial[i][j] == pytest.approx(worst, rel=1e-12)
    assert result.cosine == 0
    assert result.norms == (1.0, 2.0)


def test_a_scale_passed_between_layers_does_not_change_the_picture() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(100)
        other[2].weight.div_(100)
    x = torch.rand(9, 5).double()
    one, two = (loss_landscape(Loss(m, x, torch.arange(9) % 3), points=5) for m in (model, other))
    np.testing.assert_allclose(one.clean, two.clean, rtol=1e-10)
    assert one.norms[0] != pytest.approx(two.norms[0], rel=0.5)


def test_one_direction_is_the_middle_of_two() -> None:
    model = small()
    line, square = (
        loss_landscape(Loss(model, X, Y), directions=1, points=5),
        loss_landscape(Loss(model, X, Y), points=5),
    )
    assert [row[0] for row in line.clean] == [row[2] for row in square.clean]
    assert (line.dimensions, line.adversarial, line.cosine, line.centre[1]) == (1, None, None, None)
    assert all(len(row) == 1 for row in line.clean)


@pytest.mark.parametrize("fails", [False, True])
def test_everything_comes_back(fails: bool) -> None:
    model = build("mini_resnet", activation="silu", channels=1, width=2, generator=seeded()).train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    random = torch.get_rng_state()
    calls = 0

    def attack(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if fails and calls == 3:
            raise KeyboardInterrupt
        return fgsm(net, images, labels, ThreatModel("linf", 0.1))

    if fails:
        with pytest.raises(KeyboardInterrupt):
            loss_landscape(Loss(model, x, y), attack, points=3)
    else:
        assert loss_landscape(Loss(model, x, y), attack, points=3).centre[0] > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_errors_progress_and_json() -> None:
    model = small()
    for text, options in {
        "points=4": {"points": 4},
        "points=1:?": {"points": 1},
        "span=0": {"span": 0},
        "3 directions": {"directions": 3},
        "0 directions": {"directions": []},
        "names '0.wieght'": {"directions": [{"0.wieght": torch.zeros(3, 1, 3, 3)}]},
        "names '1.weight'": {"directions": [{"1.weight": torch.zeros(3)}]},
        r"must be \(3, 1, 3, 3\)": {"directions": [{"0.weight": torch.zeros(3)}]},
    }.items():
        with pytest.raises(CurvactError, match=text):
            loss_landscape(Loss(model, X, Y), **options)  # type: ignore[arg-type]
    with pytest.raises(CurvactError, match="no filters"):
        loss_landscape(Loss(model, X, Y, exclude=lambda name: "weight" in name))
    seen: list[tuple[int, int | None]] = []
    result = loss_landscape(
        Loss(model, X, Y, loss=lambda out, y: out[:, 0].exp().exp().exp()),
        directions=1,
        points=3,
        on_progress=lambda *p: seen.append(p),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    broken = loss_landscape(
        Loss(model, X, Y, loss=lambda out, y: out[:, 0] * math.inf), directions=1, points=3
    )
    record = json.loads(json.dumps(broken.as_dict(), allow_nan=False))
    assert record["clean"] == [[None]] * 3
    assert len(result.clean) == 3
