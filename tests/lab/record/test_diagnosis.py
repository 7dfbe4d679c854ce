"""A model that is read in the wrong way is told apart: each fault planted on a network that knows
digits in three different channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from curvact.attacks import ThreatModel
from curvact.data import Dataset, load
from curvact.lab.record import evaluate
from curvact.lab.record.diagnosis import KNOWN, diagnose
from curvact.models import build, select_outputs
from curvact.models.foreign import logits_of
from curvact.models.hashing import model_hash
from curvact.random import generator
from curvact.training import Recipe, fit


def _coloured(data: Dataset) -> Dataset:
    """Digits in red; blue is their mirror image, green a ramp."""
    red = data.images
    ramp = torch.arange(8, dtype=torch.uint8).mul(30).view(1, 1, 8, 1).expand_as(red)
    images = torch.cat([red, ramp, red.flip(3)], 1)
    x = images.float() / 255
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    return replace(data, images=images, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


@pytest.fixture(scope="module")
def test_images() -> Dataset:
    return _coloured(load("digits").test)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Sees images in [0, 1], and knows nine of ten digits or more."""
    splits = load("digits")
    splits = replace(
        splits, **{name: _coloured(getattr(splits, name)) for name in ("train", "validation", "test")}
    )
    model = build("mini_resnet", activation="silu", width=4, generator=generator(0, "initialization"))
    recipe = Recipe(objective="standard", epochs=2)
    fit(model, splits, recipe, ThreatModel("linf", 0.1), seed=0)
    return model.eval()


class _After(nn.Module):
    """A network of somebody else: it works on what `read` makes of its inputs."""

    def __init__(self, model: nn.Module, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden = [model]  # without its own normalization among the modules
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](self.read(x))  # type: ignore[no-any-return]


def _constants(name: str, images: Dataset) -> tuple[Tensor, Tensor]:
    mean, std = KNOWN.get(name, (images.mean, images.std))
    return torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)


def test_a_sound_model_has_no_findings(network: nn.Module, test_images: Dataset) -> None:
    assert diagnose(network, test_images) == []
    right = (network(test_images.inputs()).argmax(1) == test_images.labels).double().mean()
    assert right > 0.85, "the other tests plant faults in a network that knows the digits"


@pytest.mark.parametrize("name", [*KNOWN, "the constants of digits/test"])
def test_a_missing_normalization_is_named(network: nn.Module, test_images: Dataset, name: str) -> None:
    mean, std = _constants(name, test_images)
    theirs = _After(network, lambda z: z * std + mean)
    found = diagnose(theirs, test_images)
    right = diagnose(logits_of(theirs, mean=mean.flatten().expand(3).tolist(), std=std.flatten().expand(3).tolist()),
                     test_images)  # fmt: skip
    assert right == []
    (line,) = found
    assert line.startswith("normalization: clean accuracy is ")
    assert name.partition(" ")[0] in line
    assert "on 300 images" in line
    assert "\n" not in line


def test_a_wrong_normalization_is_undone(network: nn.Module, test_images: Dataset) -> None:
    """The wrapper's constants are in the model: the finding still names those that fit."""
    mean, std = _constants("0.5 and 0.5", test_images)
    theirs = _After(network, lambda z: z * std + mean)
    (line,) = diagnose(logits_of(theirs, mean=[0.9] * 3, std=[0.1] * 3), test_images)
    assert "with 0.5 and 0.5 (mean 0.5, std 0.5" in line
    (line,) = diagnose(logits_of(network, mean=[0.9] * 3, std=[0.1] * 3), test_images)
    assert line.startswith("normalization: clean accuracy is ")
    assert "without a normalization" in line


def test_the_order_of_the_channels(network: nn.Module, test_images: Dataset) -> None:
    (line,) = diagnose(_After(network, lambda z: z.flip(1)), test_images)
    assert line.startswith("channels: clean accuracy is ")
    assert "in the order BGR" in line


def test_images_from_0_to_255(network: nn.Module, test_images: Dataset) -> None:
    (line,) = diagnose(_After(network, lambda z: z / 255), test_images)
    assert line.startswith("range: clean accuracy is ")
    assert "with images from 0 to 255" in line


def test_classes_in_another_order(network: nn.Module, test_images: Dataset) -> None:
    order = [1, 2, 0, 3, 4, 5, 6, 7, 9, 8]
    shuffled = select_outputs(network, order)
    (line,) = diagnose(shuffled, test_images)
    assert line.startswith("order of the classes: clean accuracy is ")
    assert "class 0 is output 2, 1 is output 0, 2 is output 1, 8 is output 9" in line
    inverse = [order.index(k) for k in range(10)]
    assert diagnose(select_outputs(shuffled, inverse), test_images) == []


def test_more_outputs_than_classes(network: nn.Module, test_images: Dataset) -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = network(x)
            return torch.cat([logits.new_full((len(x), 990), -30.0), logits], 1)

    wide = Wide()
    (line,) = diagnose(wide, test_images)
    assert line.startswith("outputs: the model has 1,000 outputs, the data 10 classes, and 300 of 300 images")
    record = evaluate(wide, test_images.first(30), ThreatModel("linf", 0.01), attack="fgsm", masking="none")
    assert record.clean_accuracy == 0
    assert [f.partition(":")[0] for f in record.findings] == ["outputs"]
    chosen = select_outputs(wide, range(990, 1000))
    assert diagnose(chosen, test_images) == []


def test_running_statistics_that_do_not_fit(network: nn.Module, test_images: Dataset) -> None:
    from copy import deepcopy

    spoiled = deepcopy(network)
    for layer in spoiled.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    before, modes = model_hash(spoiled), [m.training for m in spoiled.modules()]
    (line,) = diagnose(spoiled, test_images)
    assert line.startswith("batch norm: clean accuracy is ")
    assert "with the statistics of the batch" in line
    assert (model_hash(spoiled), [m.training for m in spoiled.modules()]) == (before, modes)


def test_guessing_is_said_and_nothing_random_is_used_up(test_images: Dataset) -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand(len(x), 10)

    torch.manual_seed(0)
    (line,) = diagnose(Noise(), test_images)
    assert line.startswith("guessing: clean accuracy is ")
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert diagnose(Noise(), test_images.first(10)) == [], "ten images say nothing"
    assert diagnose(nn.Linear(3, 2), test_images) == [], "the attack says what does not fit"
