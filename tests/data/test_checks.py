"""What is no image and no label is refused in one line; what is one is kept exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curvact.data.checks import Look, channels_first, check_labels, labelled, names_of, whole_images
from curvact.errors import CurvactError
from fake_data import fake_arrays

IMAGES, LABELS = fake_arrays("cifar10", 7)


def refused(path: Path, run: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(CurvactError) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        (IMAGES / 1.0, LABELS, "[0, 255]; floats in [0, 1] are needed (of 0 … 255? divide them by 255)"),
        (np.full(IMAGES.shape, np.nan, np.float32), LABELS, "NaN"),
        (IMAGES.astype(np.int16), LABELS, "int16"),
        (IMAGES[:, :2], LABELS, "neither 1 nor 3 channels"),
        (IMAGES.reshape(7, -1), LABELS, "(7, 3072)"),
        (IMAGES[:, :, :0], LABELS, "(7, 3, 0, 32)"),
        (IMAGES[:0], LABELS[:0], "no images"),
        (IMAGES, LABELS[:5], "5 labels for 7 images"),
        (IMAGES, LABELS.astype(np.float32), "float32"),
        (IMAGES, np.full(7, np.nan), "float64"),
        (IMAGES, np.array(["cat"] * 7), "labels"),
        (IMAGES, np.zeros((7, 10), np.int64), "(7, 10)"),
    ],
)
def test_what_is_no_data_set(images: Any, labels: Any, part: str) -> None:
    refused(Path("some.file"), lambda: labelled(Path("some.file"), images, labels), part)


def test_labels_out_of_range() -> None:
    check_labels(Path("f"), torch.tensor([0, 9]), 10)
    refused(Path("f"), lambda: check_labels(Path("f"), torch.tensor([0, 10]), 10), "0 … 9", "10")
    refused(Path("f"), lambda: check_labels(Path("f"), torch.tensor([-1, 3]), 10), "-1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_are_bytes_where_that_is_exact(dtype: torch.dtype) -> None:
    """Every one of the 256 values, as `ToTensor` and as a division in float64 make it."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    found = whole_images("x", levels.to(dtype) / 255)
    assert found.dtype == torch.uint8
    assert torch.equal(found, levels)
    off = (levels.to(dtype) / 255).clone()
    off[0, 0, 3, 4] += 1e-6
    kept = whole_images("x", off)
    assert kept.dtype == torch.float32
    assert torch.equal(kept, off.float())


def test_axes() -> None:
    x = torch.zeros(2, 5, 7, 3)
    assert channels_first("x", x).shape == (2, 3, 5, 7)
    assert channels_first("x", x.permute(0, 3, 1, 2)).shape == (2, 3, 5, 7)
    assert channels_first("x", x[..., 0]).shape == (2, 1, 5, 7)
    for shape in ((2, 3, 5, 3), (2, 1, 8, 1), (2, 3, 3, 1)):
        refused(Path("x"), lambda shape=shape: channels_first("x", torch.zeros(shape)), "can be N×C×H×W and")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([-2.1, 2.6], "normalized?"),
        ([0, 254.0], "divide them by 255"),
        ([0, 16.0], "of 0 … 16? divide them by 16"),
        ([0, 65535.0], "16 bits"),
        ([0, 1.0000001], "clip them"),
        ([0, 1.2], "clip them"),
        ([0, 1 / 255], "almost black; 1 is white (divided by 255 twice? multiply them by 255)"),
        (
            [0, 16 / 255],
            "almost black; 1 is white (whole numbers up to 16, divided by 255? divide those by 16)",
        ),
        ([0, float("inf")], "infinity"),
    ],
)
def test_floats_outside_of_0_to_1_say_what_they_may_be(values: list[float], part: str) -> None:
    images = torch.tensor(values).repeat(32).view(1, 1, 8, 8)
    refused(Path("x"), lambda: whole_images("x", images), part)


def test_dark_floats_that_are_no_bytes_are_images() -> None:
    images = torch.linspace(0, 0.05, 64).view(1, 1, 8, 8)
    assert torch.equal(whole_images("x", images), images)


def test_bytes_of_0_and_1_are_almost_black() -> None:
    look = Look("x")
    look.at(torch.tensor([0, 1], dtype=torch.uint8))
    refused(Path("x"), look.dtype, "almost black")
    look.at(torch.tensor([16], dtype=torch.uint8))
    refused(Path("x"), look.dtype, "uint8 in 0 … 16, ", "scikit-learn's digits? divide them by 16")
    look.at(torch.tensor([17], dtype=torch.uint8))
    assert look.dtype() == torch.uint8


def test_names_of_classes() -> None:
    assert names_of(3, "x") == ("0", "1", "2")
    assert names_of(["a", "b"], "x") == ("a", "b")
    for classes in (1, True, 10**9, "ab", ["a", 1], ["a"], []):
        refused(Path("x"), lambda classes=classes: names_of(classes, "x"), "classes=")


def test_labels_have_a_limit_before_memory_is_taken() -> None:
    labels = LABELS.copy()
    labels[3] = 10**9
    refused(Path("f"), lambda: labelled("f", IMAGES, labels), "1000000000", "100,000 classes")
    labels = LABELS.astype(np.uint64)
    labels[3] = 2**63 + 5
    refused(Path("f"), lambda: labelled("f", IMAGES, labels), "100,000 classes")
