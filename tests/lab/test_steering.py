"""Steering: what is replaced, how β is chosen and judged, and the verdict in words."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations import CTU, ReLU
from curvact.attacks import PGD, ThreatModel
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab.statistics.interval import proportion
from curvact.lab.steering import Steered, Steering, betas_of, steer
from curvact.models import MiniResNet, model_hash
from curvact.random import generator

THREAT = ThreatModel("linf", 0.05)


@cache
def _network() -> MiniResNet:
    train, g = load("digits").train, torch.Generator().manual_seed(0)
    model = MiniResNet("relu", channels=1, width=4, mean=train.mean, std=train.std, generator=g)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for index in torch.randperm(len(train), generator=g).split(25):
        loss = F.cross_entropy(model(train.inputs(index)), train.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _steer(**settings: Any) -> Steering:
    splits = load("digits")
    validation = settings.pop("validation", splits.validation.first(40))
    test = settings.pop("test", splits.test.first(40))
    return steer(_network(), validation, test, THREAT, **{"attack": PGD(3), "betas": [0.8, 0.97], **settings})


class ByHand(nn.Module):
    """A network whose activations are called as the formula is printed."""

    def __init__(self, model: nn.Module, beta: float) -> None:
        super().__init__()
        self.model = model
        for module in model.modules():
            if isinstance(module, ReLU):
                module.forward = lambda x: (
                    0.5 * x * torch.sigmoid(beta / (1 - beta) * x)
                    + 0.5
                    * (  # type: ignore[method-assign]
                        1 - beta
                    )
                    * F.softplus(x / (1 - beta))
                )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def test_numbers_are_those_of_the_network_built_by_hand() -> None:
    before = model_hash(_network())
    result = _steer()
    assert model_hash(_network()) == before
    assert not any(isinstance(m, CTU) for m in _network().modules())
    assert [row.beta for row in result.validation] == [None, 0.8, 0.97]
    images = load("digits").validation.first(40)
    x, y = images.inputs(), images.labels
    for row in result.validation[1:]:
        assert row.beta is not None
        other = ByHand(copy.deepcopy(_network()), row.beta).eval()
        with torch.no_grad():
            clean = other(x).argmax(1) == y
        found = PGD(3)(other, x, y, THREAT, generator=generator(0, "steer/pgd-3"))
        with torch.no_grad():
            robust = clean & (other(found).argmax(1) == y)
        assert row.clean == proportion(int(clean.sum()), 40)
        # The formula rounds otherwise, which may tip an image.
        assert abs(40 * row.robust.value - int(robust.sum())) <= 1
        assert row.curvature == pytest.approx((row.beta + 0.5) / (4 * (1 - row.beta)))


def test_beta_is_chosen_on_validation_images_alone() -> None:
    result = _steer()
    best = max(result.validation[1:], key=lambda row: (row.robust.value, row.clean.value, row.beta))
    assert result.beta == best.beta
    test = load("digits").test.first(40)
    other = _steer(test=replace(test, labels=(test.labels + 1) % 10))
    assert other.beta == result.beta
    assert other.validation == result.validation
    assert other.test[0].clean.value < 0.2 < result.test[0].clean.value


def test_no_beta_helps_is_said() -> None:
    result = _steer(betas=[0.0])  # far from ReLU
    assert result.validation[1].robust.value < result.validation[0].robust.value
    assert not result.helps
    assert result.verdict.startswith("no β helps: none is more robust on the validation images")


def _with(validation: tuple[int, int], test: tuple[int, int], gained: int, lost: int, p: float) -> Steering:
    rows = [
        tuple(
            Steered(beta, None, proportion(90, 100), proportion(count, 100))
            for beta, count in zip((None, 0.9), pair, strict=True)
        )
        for pair in (validation, test)
    ]
    first, second = rows
    return Steering("pgd-20", THREAT, 0.5, 1, first, 0.9, (second[0], second[1]), gained, lost, p)


def test_the_verdict_in_words() -> None:
    assert _with((40, 60), (40, 60), 25, 5, 1e-4).verdict.startswith("β = 0.9 helps: robust 60.0 [")
    assert "may be chance" in _with((40, 60), (40, 44), 9, 5, 0.42).verdict
    assert "is not there on the test images" in _with((40, 60), (40, 30), 5, 15, 0.04).verdict


def test_a_fair_coin() -> None:
    from curvact.lab.steering import _sign_test

    tails = sum(math.comb(10, k) for k in (0, 1, 9, 10)) / 2**10
    assert _sign_test(9, 1) == pytest.approx(tails)


def test_functional_activations_are_steered_too() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(F.relu(self.first(x.flatten(1))))
            return out

    splits = load("digits")
    images = splits.validation.first(8)
    assert steer(Plain(), images, images, THREAT, betas=[0.9], attack="pgd-1").replaced == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betas": []}, "betas=[] of steer: at least one number, each once"),
        ({"betas": [0.9, 0.9]}, "each once"),
        ({"betas": [1.0]}, "beta=1.0 in ctu: beta must be a number >= 0 and < 1"),
        ({"from_": "gelu"}, "the network has no gelu to steer"),
        ({"attack": "pdg-20"}, "unknown attack 'pdg-20'"),
    ],
)
def test_bad_arguments_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CurvactError) as error:
        _steer(**settings)
    assert message in str(error.value)


def test_the_values_of_an_option() -> None:
    assert betas_of("0.7..0.99", 30) == pytest.approx([0.7 + 0.01 * k for k in range(30)])
    for text in ("0.9..0.7", "0.7..1", "a..b", "0.7..0.8..0.9", "-0.1"):
        with pytest.raises(CurvactError, match=f"^--beta {text}: "):
            betas_of(text, 3)
