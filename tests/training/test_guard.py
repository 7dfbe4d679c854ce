"""The guard's rule, its state, and real catastrophic overfitting on Fashion-MNIST."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curvact.attacks import PGD, ThreatModel, pgd
from curvact.data import load
from curvact.errors import CurvactError
from curvact.models import MiniResNet
from curvact.models.modes import mode
from curvact.random import generator
from curvact.training.guard import overfitting
from curvact.training.inner_attack import InnerAttack
from curvact.training.objectives import objective

ACCURACIES = st.lists(st.integers(0, 100), min_size=1, max_size=12)


@settings(max_examples=25)
@given(ACCURACIES, st.integers(1, 99))
@example([80, 60], 20)  # 0.8 − 0.6 > 0.2 in floating point
def test_alarm_is_a_fall_below_the_best_so_far(percent: list[int], drop: int) -> None:
    """In whole percents, so that exactly `drop` is exactly that: no alarm."""
    alarm = max(percent) - percent[-1] > drop
    assert bool(overfitting([p / 100 for p in percent], drop / 100)) == alarm


def test_the_message_names_both_checks() -> None:
    message = overfitting([0.5, 0.625, 0.125], 0.25)
    assert message.startswith(
        "catastrophic overfitting: PGD accuracy on training images fell from 0.625 (check 2) to 0.125 (check 3), "
        "by more than 0.25: keep the weights of check 2"
    )
    assert "\n" not in message
    assert overfitting([0.5, 0.625, 0.125, 0.5], 0.25) == ""


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "0.5", None, True])
def test_bad_accuracies_are_one_line(value: object) -> None:
    with pytest.raises(CurvactError, match=r"robust accuracy .* a number in \[0, 1\]") as caught:
        overfitting([value])  # type: ignore[list-item]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("drop", [0, 1, -0.2, math.nan, "0.2"])
def test_bad_drop(drop: float) -> None:
    with pytest.raises(CurvactError, match=r"drop=.* of the overfitting guard: a number in \(0, 1\)"):
        overfitting([0.5], drop)


def _train(text: str, root: Path, epochs: int) -> tuple[str, list[float], float]:
    """2,000 Fashion-MNIST images at ε = 0.2 until the alarm: its message, PGD-10 accuracies on 200
    training images after each epoch, and the accuracy of the last epoch under the objective's own
    attack.
    """
    train = load("fashion-mnist", root=root).train
    images, labels = train.images[:2000].float() / 255, train.labels[:2000]
    threat, random = ThreatModel("linf", 0.2), generator(0, "attack")
    model = MiniResNet("relu", channels=1, width=8, generator=generator(0, "initialization")).train()
    attack = InnerAttack(threat, PGD(3, step=0.5), random)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    compute_loss, message, accuracies, own = objective(text), "", [], 0.0
    for epoch in range(epochs):
        right = 0
        for index in torch.randperm(2000, generator=generator(0, "shuffle", epoch)).split(100):
            loss = compute_loss(model, images[index], labels[index], attack)
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
            right += int((loss.logits.argmax(1) == labels[index]).sum())
        own = right / 2000
        with mode(model, training=False), torch.no_grad():
            x_adv = pgd(
                model,
                images[:200],
                labels[:200],
                threat,
                steps=10,
                step=0.05 / threat.epsilon,
                generator=generator(0, "guard", epoch),
            )
            accuracies.append(float((model(x_adv).argmax(1) == labels[:200]).double().mean()))
        message = overfitting(accuracies)
        if message:
            break
    return message, accuracies, own


@pytest.mark.slow
def test_too_large_a_step_overfits_catastrophically_and_pgd_at_does_not(real_data_root: Path) -> None:
    if not (real_data_root / "fashion-mnist").is_dir():
        pytest.skip("needs the real Fashion-MNIST")
    message, accuracies, own = _train("fgsm-rs(step=2)", real_data_root, 14)
    assert "catastrophic overfitting" in message, accuracies
    # It has not forgotten how to classify: under its own one-step attack it is right on far more
    # images than under PGD.
    assert own > accuracies[-1] + 0.2
    message, accuracies, own = _train("pgd-at", real_data_root, 8)
    assert not message, accuracies
    assert max(accuracies) > 0.35
    assert own < accuracies[-1] + 0.2
