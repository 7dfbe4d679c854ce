"""`fit` refuses a model that does not suit the images or the labels, before it trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from curvact.attacks import ThreatModel
from curvact.data import from_arrays, load
from curvact.errors import CurvactError
from curvact.models import MiniResNet, build
from curvact.training import Recipe, fit
from curvact.training.batches import check_fit

RECIPE, THREAT = Recipe(epochs=1, batch_size=32, attack="pgd-1"), ThreatModel("linf", 0.1)
DIGITS = load("digits").first(train=64, validation=20)


def test_labels_beyond_the_outputs_are_refused_before_training() -> None:
    model = MiniResNet(channels=1, width=2, classes=5)
    before = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(
        CurvactError, match=r"training labels of digits/train lie in 0 … 9, and the model has 5"
    ):
        fit(model, DIGITS, RECIPE, THREAT)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert model.training


def test_validation_labels_count_too() -> None:
    few = replace(DIGITS.train, labels=DIGITS.train.labels % 5)
    with pytest.raises(CurvactError, match="the validation labels"):
        fit(MiniResNet(channels=1, width=2, classes=5), replace(DIGITS, train=few), RECIPE, THREAT)


def test_more_outputs_than_classes_train() -> None:
    assert len(fit(MiniResNet(channels=1, width=2, classes=12), DIGITS, RECIPE, THREAT)) == 1


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (MiniResNet(channels=3, width=2), "(1, 1, 8, 8) for a network of 3 channels"),
        (build("vit", channels=1, size=12, width=8, heads=1), "built with size=12 and got images of 8×8"),
        (torch.nn.Conv2d(1, 3, 1), "the outputs have shape"),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 10)), "fails on images (1, 1, 8, 8)"),
    ],
)
def test_a_model_of_other_images(model: torch.nn.Module, part: str) -> None:
    with pytest.raises(CurvactError) as caught:
        check_fit(model, DIGITS)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rectangles_pass_where_the_network_pools(tmp_path: object) -> None:
    images = torch.cat([DIGITS.train.images, DIGITS.train.images[..., :4]], 3)
    data = from_arrays(images, DIGITS.train.labels, test=0.2)
    model = MiniResNet(channels=1, width=2)
    assert data.train.images.shape[1:] == (1, 8, 12)
    assert len(fit(model, data, replace(RECIPE, crop=1, flip=True), THREAT)) == 1
    with pytest.raises(CurvactError, match="got images of 8×12 pixels"):
        fit(build("small_cnn", channels=1, size=12), data, RECIPE, THREAT)
