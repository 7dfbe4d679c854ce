"""Data sets as one small type, and the embedded default: scikit-learn's handwritten digits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from curvact.errors import CurvactError, nearest


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    images: uint8, N×C×H×W.
    labels: int64, N, in 0 … len(classes) − 1.
    mean, std: per channel, of the inputs in [0, 1], measured on the training split.
    sha256: of the images and labels, so that a result names its data exactly.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on a device; batches and everything computed from them follow."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def inputs(self, index: Tensor | slice = slice(None)) -> Tensor:
        """The chosen images as float32 in [0, 1]."""
        return self.images[index].float().div_(255)


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images. Early stopping sees the validation split, never the test split."""

    train: Dataset
    validation: Dataset
    test: Dataset

    def to(self, device: torch.device | str) -> Splits:
        """All three on a device."""
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))


def batches(
    dataset: Dataset, size: int, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs in [0, 1], labels) in batches; shuffled where a generator is given. The last batch may be smaller.

    >>> test = load("digits").test
    >>> x, y = next(batches(test, 100))
    >>> x.shape, float(x.min()), float(x.max()), y.dtype
    (torch.Size([100, 1, 8, 8]), 0.0, 1.0, torch.int64)
    """
    count = len(dataset)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    order = order.to(dataset.images.device)
    for start in range(0, count, size):
        index = order[start : start + size]
        yield dataset.inputs(index), dataset.labels[index]


def load(name: str) -> Splits:
    """The three splits of a data set by name. An unknown name is a CurvactError.

    >>> splits = load("digits")
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1258, 180, 359)
    """
    if name not in DATASETS:
        raise CurvactError(
            f"unknown data set '{name}'{nearest(name, DATASETS)}; known are {', '.join(DATASETS)}"
        )
    return DATASETS[name]()


def split(
    name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...], *, validation: float, test: float
) -> Splits:
    """Split by a permutation that depends on the number of images only; mean and std come from the training part."""
    count = len(images)
    order = torch.from_numpy(np.random.default_rng(20260321).permutation(count))
    tests, validations = round(test * count), round(validation * count)
    train_index = order[tests + validations :]
    pixels = images[train_index].double() / 255
    mean = tuple(pixels.mean((0, 2, 3)).tolist())
    std = tuple(pixels.std((0, 2, 3)).clamp_min(1e-3).tolist())

    def part(label: str, index: Tensor) -> Dataset:
        chosen, targets = images[index].contiguous(), labels[index].contiguous()
        digest = hashlib.sha256(chosen.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
        return Dataset(f"{name}/{label}", chosen, targets, classes, mean, std, digest)

    return Splits(
        part("train", train_index),
        part("validation", order[tests : tests + validations]),
        part("test", order[:tests]),
    )


@lru_cache(maxsize=1)
def digits() -> Splits:
    """1,797 handwritten digits, 1×8×8, 17 grey levels, shipped with scikit-learn: 1,258 train, 180 validation, 359 test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return split("digits", images, labels, tuple("0123456789"), validation=0.1, test=0.2)


DATASETS: dict[str, Callable[[], Splits]] = {"digits": digits}
