"""The digits, their splits, and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from curvact.data import batches, load
from curvact.errors import CurvactError
from curvact.random import generator


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
    """Fixed hashes: a result names its data by these."""
    splits = load("digits")
    assert splits.train.sha256.startswith("87f109382103e2fd")
    assert splits.test.sha256.startswith("ed82e9beb98817f9")


def test_normalization_is_of_the_training_split() -> None:
    train = load("digits").train
    x = train.images.double() / 255
    assert train.mean[0] == pytest.approx(float(x.mean()), rel=1e-12)
    assert train.std[0] == pytest.approx(float(x.std()), rel=1e-12)


def test_batches_cover_everything_once_in_a_seeded_order() -> None:
    train = load("digits").train
    plain = list(batches(train, 500))
    assert [len(y) for _, y in plain] == [500, 500, 258]
    assert torch.equal(torch.cat([y for _, y in plain]), train.labels)
    first = torch.cat([y for _, y in batches(train, 64, generator(0, "shuffle", 1))])
    again = torch.cat([y for _, y in batches(train, 64, generator(0, "shuffle", 1))])
    other = torch.cat([y for _, y in batches(train, 64, generator(0, "shuffle", 2))])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first.bincount(), train.labels.bincount())


def test_unknown_name() -> None:
    with pytest.raises(CurvactError, match="unknown data set 'digit'; did you mean 'digits'"):
        load("digit")
