"""A small network for digits, its images, and what every result must hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from curvact.activations import activation
from curvact.attacks import PGD, AutoAttackResult, ThreatModel
from curvact.data import load
from curvact.training import Recipe, fit


class Scaled(nn.Module):
    """Logits × 1000: the cross-entropy of a right answer has no gradient in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.model(x)  # type: ignore[no-any-return]


@cache
def _net(name: str) -> nn.Module:
    data, g = load("digits"), torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        activation(name),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    with torch.no_grad():
        for p in (model[0].weight, model[4].weight):
            p.normal_(0, 0.15, generator=g)
    recipe = Recipe(objective="pgd-at(batch_norm=eval)", epochs=3, attack=PGD(2, step=0.75))
    fit(model, data, recipe, ThreatModel("linf", 0.08), seed=0)
    return model.eval()


@pytest.fixture(scope="session")
def net() -> Callable[..., nn.Module]:
    """net(name): a convolution net with that activation, adversarially trained until it stands
    about half the time.

    net("hard"): the ReLU network with logits × 1000.
    """
    return lambda name="relu": Scaled(_net("relu")).eval() if name == "hard" else _net(name)


@pytest.fixture(scope="session")
def images() -> Callable[..., tuple[Tensor, Tensor]]:
    """images(count): the first test images of digits and their labels."""
    test = load("digits").test
    return lambda count=20: (test.inputs(slice(0, count)), test.labels[:count])


@pytest.fixture(scope="session")
def assert_sound() -> Callable[[AutoAttackResult, nn.Module, Tensor, Tensor], None]:
    """Check a result by other arithmetic: float64 differences, and the model alone on each point."""

    def check(result: AutoAttackResult, model: nn.Module, x: Tensor, y: Tensor) -> None:
        order = {"linf": math.inf, "l2": 2, "l1": 1}[result.threat_model.norm]
        epsilon = result.threat_model.epsilon
        with torch.no_grad():
            for point, by in enumerate(result.broken_by):
                x_adv = result.x_adv[point]
                right = bool(model(x_adv[None]).argmax() == y[point])
                if by is None:
                    assert right
                    assert torch.equal(x_adv, x[point])
                    continue
                assert not right
                assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
                delta = (x_adv.double() - x[point].double()).flatten()
                size = float(torch.linalg.vector_norm(delta, ord=order))
                assert size <= epsilon * (1 + 1e-4) + 1e-5
                assert float(result.perturbation[point]) == pytest.approx(size, abs=1e-6)
        broken = sum(by is not None for by in result.broken_by)
        assert result.robust_accuracy == pytest.approx(1 - broken / len(x))
        assert int(result.robust.sum()) == len(x) - broken
        expected = nn.functional.cross_entropy(model(result.x_adv), y, reduction="none")
        torch.testing.assert_close(result.loss, expected.detach(), rtol=1e-4, atol=1e-5)

    return check


@pytest.fixture(scope="session")
def same() -> Callable[[AutoAttackResult, AutoAttackResult], None]:
    """Check that all fields that a seed determines are equal, bit by bit."""

    def check(a: AutoAttackResult, b: AutoAttackResult) -> None:
        for key in ("name", "clean_accuracy", "robust_accuracy", "broken_by", "accuracy_after"):
            assert getattr(a, key) == getattr(b, key)
        for key in ("x_adv", "y_adv", "loss", "perturbation"):
            assert torch.equal(getattr(a, key), getattr(b, key))

    return check
