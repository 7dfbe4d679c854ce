"""MALT's targets against linear programs, and on a planted network where the order of the logits is
the wrong one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from curvact.attacks import (
    Adaptive,
    Norm,
    ThreatModel,
    adaptive_attack,
    ensemble,
    malt_order,
    named_attack,
)
from curvact.attacks.autoattack.apgd import targets_of
from curvact.data import from_arrays
from curvact.errors import CurvactError
from curvact.lab.record import evaluate

SIZE, CLASSES = 10, 6
EPSILON = 0.1
THREAT = ThreatModel("linf", EPSILON)


def _linear() -> tuple[nn.Linear, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(SIZE, CLASSES, dtype=torch.float64)
    with torch.no_grad():
        model.weight.normal_(generator=g).mul_(torch.linspace(0.2, 3, CLASSES)[:, None])
        model.bias.normal_(generator=g)
    x = torch.rand(7, SIZE, generator=g, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def _shortest(normal: np.ndarray, gap: float, norm: Norm) -> float:
    """The length of the shortest δ with normal·δ = gap, by a linear program or least squares."""
    if norm == "l2":
        return float(np.linalg.norm(np.linalg.lstsq(normal[None], [gap], rcond=None)[0]))
    one, eye = np.ones((SIZE, 1)), np.eye(SIZE)
    if norm == "linf":  # variables δ and its largest size
        cost, sides = np.r_[np.zeros(SIZE), 1], np.block([[eye, -one], [-eye, -one]])
        equal, bounds = np.r_[normal, 0], [(None, None)] * (SIZE + 1)
    else:  # the positive and the negative part of δ
        cost, sides = np.ones(2 * SIZE), -np.eye(2 * SIZE)
        equal, bounds = np.r_[normal, -normal], [(0, None)] * (2 * SIZE)
    found = linprog(cost, sides, np.zeros(2 * SIZE), equal[None], [gap], bounds)
    return float(found.fun)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_on_a_linear_model_the_distances_are_exact(norm: Norm) -> None:
    model, x, y = _linear()
    order = malt_order(model, x, y, ThreatModel(norm, 0.1), batch_size=3)
    weight, logits = model.weight.detach().numpy(), model(x).detach().numpy()
    moved = 0
    for i, own in enumerate(y.tolist()):
        truth = {
            j: _shortest(weight[j] - weight[own], logits[i, own] - logits[i, j], norm)
            for j in range(CLASSES)
            if j != own
        }
        assert order.classes[i].tolist() == sorted(truth, key=lambda j: truth[j])
        np.testing.assert_allclose(order.distances[i], sorted(truth.values()), rtol=1e-7)
        moved += order.classes[i].tolist() != sorted(truth, key=lambda j: -logits[i, j])
    assert moved > 3  # the order of the logits is another one
    assert model.weight.grad is None
    assert model.weight.requires_grad


def test_candidates_are_those_with_the_highest_logits() -> None:
    model, x, y = _linear()
    few, threat = malt_order(model, x, y, THREAT, candidates=2), THREAT
    highest = targets_of(model, x, 100, 2)
    assert torch.equal(few.classes.sort(1).values, highest.sort(1).values)
    assert malt_order(model, x, y, threat, candidates=99).classes.shape == (7, CLASSES - 1)


class Decoys(nn.Module):
    """Twelve classes. Ten have high logits that hardly move; the last is far below and steep."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x.flatten(1)
        own = 0 * x[:, 0]
        decoys = 0.01 * x[:, :1] * torch.linspace(0.5, 1, 10) - 1
        # 16 pixels must all go up by 0.8 ε: no random start does.
        steep = 100 * ((x[:, 1:17] - 0.5).mean(1) - 0.8 * EPSILON)
        return self.scale * torch.cat([own[:, None], decoys, steep[:, None]], 1)


def _planted(count: int = 4) -> tuple[Tensor, Tensor]:
    return torch.full((count, 1, 5, 5), 0.5), torch.zeros(count, dtype=torch.int64)


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_a_planted_network_falls_to_the_right_targets_only(mode: Any) -> None:
    model, (x, y) = Decoys().eval(), _planted()
    assert malt_order(model, x, y, THREAT).classes[:, 0].tolist() == [11] * 4
    assert not (targets_of(model, x, 4, 9) == 11).any()
    by_logits = ensemble(model, x, y, THREAT, attacks=["apgd-t"], steps=20, mode=mode)
    by_malt = ensemble(model, x, y, THREAT, attacks=["apgd-malt"], steps=20, mode=mode)
    assert (by_logits.robust_accuracy, by_malt.robust_accuracy) == (1, 0)
    assert set(by_malt.broken_by) == {"apgd-malt"}
    assert by_malt.name == "apgd-malt(20 steps)"
    with torch.no_grad():
        assert (model(by_malt.x_adv).argmax(1) == 11).all()
    assert float((by_malt.x_adv - x).abs().max()) <= EPSILON + 1e-6
    # 11 gradients an image for the order, and at most 21 for the one target that was needed.
    assert 11 * 4 < by_malt.gradient_evaluations <= (11 + 21) * 4
    assert model.scale.grad is None


def test_the_order_is_one_forward_pass() -> None:
    model, (x, y) = Decoys().eval(), _planted()
    malt_order(model, x, y, THREAT, check=False)
    assert model.calls == 1


def test_a_class_without_a_gradient_comes_last() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], 0.9 * x[:, 0].detach() + 0 * x[:, 1], x[:, 0] - 5, 0.1 * x[:, 1]], 1)

    order = malt_order(lambda x: model(x) - x[:, :1], torch.ones(1, 2), torch.tensor([0]), THREAT)
    assert order.classes[0].tolist() == [1, 3, 2]
    assert order.distances[0, -1] == torch.inf


def test_the_adaptive_attack_runs_it_where_asked_and_says_so() -> None:
    """Logits × 10⁴: the cross-entropy has no gradient, and the margin looks at decoys."""
    model, (x, y) = Decoys(1e4).eval(), _planted()
    without = adaptive_attack(model, x, y, THREAT, steps=10)
    found = adaptive_attack(model, x, y, THREAT, steps=10, malt=1)
    assert (without.robust_accuracy, "apgd-malt" in without.accuracy_after) == (1, False)
    assert (found.robust_accuracy, found.plain_accuracy) == (0, 0)
    assert set(found.broken_by) == {"apgd-malt"}
    assert list(found.accuracy_after)[3:5] == ["pgd-pma", "apgd-malt"]
    assert named_attack(str(Adaptive(malt=1))) == Adaptive(malt=1) != Adaptive()
    assert str(Adaptive()) == "adaptive"  # records made before keep their names


def test_a_record_names_it() -> None:
    x, y = _planted(5)
    data = from_arrays(x.numpy(), y.numpy(), classes=[str(c) for c in range(12)])
    record = evaluate(Decoys().eval(), data, THREAT, attack="malt", masking="none")
    assert (record.attack, record.ensemble) == ("apgd-malt", False)
    assert record.broken_by == ["apgd-malt"] * 5


def test_refusals() -> None:
    model, x, y = _linear()
    x, model = x.float().view(7, 1, 1, SIZE), nn.Sequential(nn.Flatten(), model.float())
    for wrong, threat, net in (
        ("under linf or l2", "l1", model),
        ("needs 4 classes", "linf", lambda x: model(x)[:, :3]),
    ):
        labels = net(x).argmax(1)
        for call in (
            lambda n, t, k=labels: ensemble(n, x, k, t, attacks=["apgd-malt"], steps=2),
            lambda n, t, k=labels: adaptive_attack(n, x, k, t, steps=2, malt=1),
        ):
            with pytest.raises(CurvactError, match=wrong):
                call(net, ThreatModel(threat, 0.1))
    with pytest.raises(CurvactError, match="malt=-1 of adaptive"):
        Adaptive(malt=-1)
    with pytest.raises(CurvactError, match="at least 2 classes"):
        malt_order(lambda x: x.flatten(1)[:, :1], x, 0 * y, THREAT)
