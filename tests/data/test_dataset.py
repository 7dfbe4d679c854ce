"""`Dataset` and `split` on the digits: the split is fixed; mean and std are of its training part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from curvact.data import load


def _pairs(images: np.ndarray, targets: np.ndarray) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), int(target)) for image, target in zip(images, targets, strict=True))


def test_digits_are_the_real_ones_split_once() -> None:
    splits = load("digits")
    parts = [splits.train, splits.validation, splits.test]
    assert [len(p) for p in parts] == [1258, 180, 359]
    together = torch.cat([p.images for p in parts])
    labels = torch.cat([p.labels for p in parts])
    source = load_digits()
    grey = np.round(source.images * 255 / 16).astype(np.uint8)
    assert _pairs(together.numpy().reshape(-1, 8, 8), labels.numpy()) == _pairs(grey, source.target)
    assert together.dtype == torch.uint8
    assert labels.dtype == torch.int64


def test_the_split_never_moves() -> None:
    """Results name their data by these hashes."""
    splits = load("digits")
    assert splits.train.sha256.startswith("87f109382103e2fd")
    assert splits.validation.sha256.startswith("1dd0adc59207b8a5")
    assert splits.test.sha256.startswith("ed82e9beb98817f9")


def test_mean_and_std_are_of_the_training_split() -> None:
    train = load("digits").train
    x = train.images.double() / 255
    assert train.mean[0] == pytest.approx(float(x.mean()), rel=1e-12)
    assert train.std[0] == pytest.approx(float(x.std()), rel=1e-12)
    assert load("digits").test.mean == train.mean


def test_inputs_are_the_images_in_0_to_1() -> None:
    test = load("digits").test
    x = test.inputs(torch.tensor([5, 0]))
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.stack([test.images[5], test.images[0]]).float() / 255)
    assert len(test.inputs()) == len(test) == 359
