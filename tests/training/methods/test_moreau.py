"""ME-A against numpy, the Moreau envelope of a quadratic, a training by hand, and SWA and EMA."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks import ThreatModel
from curvact.data import Splits
from curvact.errors import CurvactError
from curvact.random import generator
from curvact.training import Recipe, extension_problem, fit
from curvact.training.methods.moreau import MoreauEnvelope

SIZE = 4
_random = np.random.default_rng(0)
_half = _random.normal(size=(SIZE, SIZE))
HESSIAN = _half @ _half.T / SIZE + 0.1 * np.eye(SIZE)
LINEAR = _random.normal(size=SIZE)
THREAT = ThreatModel("linf", 0.1)
Digits = Callable[[int], Splits]
Model = Callable[..., nn.Module]


class Weights(nn.Module):
    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(values.copy()))


def _loss(w: Tensor) -> Tensor:
    """No quadratic: with a cosine."""
    return w @ torch.from_numpy(HESSIAN) @ w / 2 - torch.from_numpy(LINEAR) @ w + w.cos().sum()


def _gradient(w: np.ndarray) -> np.ndarray:
    return HESSIAN @ w - LINEAR - np.sin(w)


@pytest.mark.parametrize("outer", ["swa", "ema"])
def test_both_updates_are_the_formulas(outer: str) -> None:
    """Three times four steps of SGD with momentum and decay, in float64, beside numpy."""
    rho, rate, momentum, decay, d = 0.7, 0.05, 0.9, 0.01, 0.3
    start = np.linspace(-1, 1, SIZE)
    model = Weights(start)
    envelope = MoreauEnvelope(model, rho=rho, outer=outer, decay=d)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
    envelope.begin()

    w, u, velocity, updates = start.copy(), start.copy(), np.zeros(SIZE), 0
    for step in range(12):
        optimizer.zero_grad()
        (_loss(model.w) + envelope.penalty()).backward()
        optimizer.step()
        velocity = momentum * velocity + _gradient(w) + rho * (w - u) + decay * w
        w = w - rate * velocity
        if outer == "ema" or step % 4 == 3:
            envelope.update()
            fading = 1 - min(d, (1 + updates) / (10 + updates)) if updates else 1
            share = 1 / (updates + 1) if outer == "swa" else fading
            u, updates = u + share * (w - u), updates + 1
        np.testing.assert_allclose(model.w.detach(), w, rtol=0, atol=1e-13)
        np.testing.assert_allclose(envelope._averages[0], u, rtol=0, atol=1e-13)
    assert np.abs(w - u).max() > 1e-2
    with envelope.weights():
        np.testing.assert_allclose(model.w.detach(), u, rtol=0, atol=1e-13)


def test_the_slow_copy_descends_the_moreau_envelope_of_a_quadratic() -> None:
    """The minimum over w has a closed form; the gradient of the envelope is taken by differences."""
    rho, h = 0.5, 1e-5
    model = Weights(np.ones(SIZE))
    envelope = MoreauEnvelope(model, rho=rho)
    envelope.begin()

    def quadratic(w: np.ndarray) -> float:
        return float(w @ HESSIAN @ w / 2 - LINEAR @ w)

    def nearest(u: np.ndarray) -> np.ndarray:
        return np.linalg.solve(HESSIAN + rho * np.eye(SIZE), LINEAR + rho * u)

    def value(u: np.ndarray) -> float:
        w = nearest(u)
        return quadratic(w) + rho / 2 * float((w - u) @ (w - u))

    envelope.update()  # the first one takes the weights: these are still u
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / (np.linalg.eigvalsh(HESSIAN)[-1] + rho))
    u = np.ones(SIZE)
    for n in range(1, 4):
        for _ in range(400):
            optimizer.zero_grad()
            w = model.w
            loss = w @ torch.from_numpy(HESSIAN) @ w / 2 - torch.from_numpy(LINEAR) @ w
            (loss + envelope.penalty()).backward()
            optimizer.step()
        np.testing.assert_allclose(model.w.detach(), nearest(u), atol=1e-10)
        slope = np.array([(value(u + h * e) - value(u - h * e)) / (2 * h) for e in np.eye(SIZE)])
        envelope.update()
        rate = 1 / (n + 1) / rho
        u = u - rate * slope
        np.testing.assert_allclose(envelope._averages[0], u, atol=1e-8)
        u = envelope._averages[0].numpy().copy()


def test_a_training_by_hand(digits: Digits, small_model: Model) -> None:
    """Two epochs of four steps; the pull begins at the third step. Nesterov SGD, cross-entropy and pull
    by hand, without the loop, torch.optim or the method.
    """
    data, rho = digits(64), 0.5
    recipe = Recipe(
        objective="standard", epochs=2, batch_size=16, learning_rate=0.05, schedule="constant", warmup=0,
        validation="pgd-0", averaging=f"me-a(rho={rho}, start=0.2)", weight_decay=0.0,
    )  # fmt: skip
    trained = small_model()
    fit(trained, data, recipe, THREAT, seed=3)

    model = small_model().train()
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    slow: list[Tensor] = []
    ends: list[list[Tensor]] = []
    for epoch in (1, 2):
        order = torch.randperm(64, generator=generator(3, "shuffle", epoch))
        for batch in range(4):
            if (epoch, batch) == (1, 2):
                slow = [p.detach().clone() for p in parameters]
            index = order[16 * batch : 16 * batch + 16]
            loss = F.cross_entropy(model(data.train.images[index].float() / 255), data.train.labels[index])
            gradients = list(torch.autograd.grad(loss, parameters))
            if slow:
                gradients = [g + rho * (p - u) for g, p, u in zip(gradients, parameters, slow, strict=True)]
            with torch.no_grad():
                for p, g, v in zip(parameters, gradients, velocity, strict=True):
                    v.mul_(0.9).add_(g)
                    p.sub_(0.05 * (g + 0.9 * v))
        ends.append([p.detach().clone() for p in parameters])
        slow = [torch.stack(values).mean(0) for values in zip(*ends, strict=True)]
    for found, expected, last in zip(trained.parameters(), slow, ends[-1], strict=True):
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, last, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("envelope", "average"),
    [
        ("me-a(rho=0, start=0.3)", "swa(start=0.3)"),
        ("me-a(rho=0, outer=ema, start=0, decay=0.9)", "ema(decay=0.9)"),
    ],
)
def test_without_a_pull_it_is_the_average_bit_for_bit(
    digits: Digits, small_model: Model, envelope: str, average: str
) -> None:
    data, found = digits(64), []
    pulled = envelope.replace("rho=0,", "rho=0.5,")
    for averaging in (envelope, average, pulled):
        recipe = Recipe(objective="standard", epochs=2, batch_size=16, averaging=averaging)
        model = small_model()
        history = fit(model, data, recipe, THREAT)
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(torch.allclose(a, b) for a, b in zip(found[1], found[2], strict=True))
    # 8 steps, and a recalibration of batch norm on 4 batches: the pull costs no gradient.
    assert history[-1].gradient_evaluations == 8 + 4


def test_a_state_before_the_first_update_keeps_the_slow_copy() -> None:
    model = Weights(np.ones(SIZE))
    first = MoreauEnvelope(model, rho=2.0)
    first.begin()
    with torch.no_grad():
        model.w.add_(1)
    second = MoreauEnvelope(model, rho=2.0)
    assert not second.begun
    second.load_state_dict(first.state_dict())
    second.begin()  # the copy is there: this changes nothing
    assert second.penalty().item() == first.penalty().item() == SIZE
    with second.weights():
        assert model.w.tolist() == [2.0] * SIZE  # nothing has entered the average


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_run_is_extended_where_the_pull_begins_at_the_same_step(start: float) -> None:
    short, long = (
        Recipe(epochs=n, schedule="constant", warmup=0, averaging=f"me-a(start={start})") for n in (2, 4)
    )
    problem = extension_problem(short, long, steps_done=20, steps_per_epoch=10)
    assert ("starts at another step" in problem) is (start > 0)


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("rho=-1", "a number >= 0"),
        ("outer=mean", "allowed are ema, swa"),
        ("start=1", r"a number in \[0, 1\)"),
        ("decay=1", r"a number in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_one_line(setting: str, allowed: str) -> None:
    with pytest.raises(CurvactError, match=f"{setting.split('=')[0]}=.* of me-a: {allowed}"):
        Recipe(averaging=f"me-a({setting})")
    settings: dict[str, Any] = {"rho": math.nan}
    with pytest.raises(CurvactError, match="rho=nan of me-a"):
        MoreauEnvelope(nn.Linear(1, 1), **settings)
