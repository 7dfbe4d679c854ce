"""Every model on every data set: one step of adversarial training, then an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from curvact.attacks import PGD, ThreatModel, accuracy
from curvact.data import DATASETS, load
from curvact.models import MODELS, build
from curvact.random import generator
from curvact.training import Recipe, fit

TINY: dict[str, dict[str, int]] = {
    "mlp": {"width": 3},
    "mini_resnet": {"width": 2, "blocks": 1},
    "small_cnn": {"width": 2},
    "resnet18": {"width": 2},
    "resnet34": {"width": 2},
    "preact_resnet18": {"width": 2},
    "wide_resnet": {"depth": 10, "widen_factor": 1},
    "wrn-28-10": {"widen_factor": 1},
    "wrn-34-10": {"widen_factor": 1},
    "vgg16_bn": {"width": 2},
    "vit": {"width": 8, "depth": 1, "heads": 2},
}
DEEPER = {"resnet34", "wrn-28-10", "wrn-34-10"}
"""Classes that have a shallower name too: one data set is enough."""


def test_every_model_has_a_tiny_size() -> None:
    assert set(TINY) == set(MODELS)


@pytest.mark.parametrize(
    ("name", "data"),
    [(n, d) for n in sorted(TINY) for d in sorted(DATASETS) if n not in DEEPER or d == "digits"],
)
def test_one_step_and_an_evaluation(name: str, data: str, fake_data_root: Path) -> None:
    # Wide networks do not reduce 224 pixels before their first stage, which takes long.
    size = 64 if data == "imagenette" and name == "wide_resnet" else None
    splits = load(data, root=fake_data_root, size=size, train=8, validation=4, test=4)
    model = build(
        name,
        activation="rctaf(curvature=6, beta=1)",
        channels=splits.train.images.shape[1],
        classes=len(splits.train.classes),
        size=splits.train.images.shape[-1],
        mean=splits.train.mean,
        std=splits.train.std,
        generator=generator(0, "initialization"),
        **TINY[name],
    )
    before = [p.detach().clone() for p in model.parameters()]
    threat = ThreatModel("linf", 8 / 255)
    recipe = Recipe(epochs=1, batch_size=8, attack=PGD(1), crop=2, flip=True)
    (epoch,) = fit(model, splits, recipe, threat, seed=0)
    assert epoch.gradient_evaluations == 2
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert sum(moved) >= len(moved) * 0.8
    random = generator(0, "evaluation")
    test = splits.test
    result = accuracy(model, test.inputs(), test.labels, PGD(2).on(threat, random))
    assert 0 <= result.robust <= result.clean <= 1
