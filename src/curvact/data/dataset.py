"""What a data set is: labelled uint8 images, split into training, validation and test the same way on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from curvact.errors import CurvactError


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

    def first(self, count: int | None) -> Dataset:
        """The first `count` images (all where None), under the same name and normalization, with their own hash."""
        if count is None or count >= len(self):
            return self
        images, labels = self.images[:count], self.labels[:count]
        return replace(self, images=images, labels=labels, sha256=content_hash(images, labels))


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images. Early stopping sees the validation split, never the test split."""

    train: Dataset
    validation: Dataset
    test: Dataset

    def to(self, device: torch.device | str) -> Splits:
        """All three on a device."""
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))

    def first(
        self, *, train: int | None = None, validation: int | None = None, test: int | None = None
    ) -> Splits:
        """At most so many images of each split, from its beginning; mean and std stay those of the whole training split."""
        for label, count in (("train", train), ("validation", validation), ("test", test)):
            if count is not None and count < 1:
                raise CurvactError(f"{label}={count} images of {self.train.name}: must be >= 1")
        return Splits(self.train.first(train), self.validation.first(validation), self.test.first(test))


def batches(
    dataset: Dataset, size: int, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs in [0, 1], labels) in batches; shuffled where a generator is given. The last batch may be smaller.

    >>> from curvact.data import load
    >>> x, y = next(batches(load("digits").test, 100))
    >>> x.shape, float(x.min()), float(x.max()), y.dtype
    (torch.Size([100, 1, 8, 8]), 0.0, 1.0, torch.int64)
    """
    count = len(dataset)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    order = order.to(dataset.images.device)
    for start in range(0, count, size):
        index = order[start : start + size]
        yield dataset.inputs(index), dataset.labels[index]


def split(
    name: str,
    images: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    validation: float = 0.1,
    test: float | tuple[Tensor, Tensor],
) -> Splits:
    """The three splits of labelled images.

    The permutation depends on the number of images only, so that the same files give the same split, and the same hashes,
    everywhere.
    images: uint8, N×C×H×W. labels: int64, N. classes: their names.
    validation: the fraction of `images` set aside for early stopping.
    test: the fraction set aside for testing, or the (images, labels) of an official test set, which keep their order.
    mean and std are those of the training part.
    """
    order = permutation(len(images))
    tests = round(test * len(images)) if isinstance(test, float) else 0
    validations = round(validation * len(images))
    train_index = order[tests + validations :]
    mean, std = moments(images, train_index)

    def part(label: str, images: Tensor, labels: Tensor) -> Dataset:
        return Dataset(
            f"{name}/{label}", images, labels, classes, mean, std, sha256=content_hash(images, labels)
        )

    def chosen(label: str, index: Tensor) -> Dataset:
        return part(label, images[index], labels[index])

    return Splits(
        chosen("train", train_index),
        chosen("validation", order[tests : tests + validations]),
        chosen("test", order[:tests]) if isinstance(test, float) else part("test", *test),
    )


def permutation(count: int) -> Tensor:
    """The fixed order of `count` images from which splits are cut."""
    return torch.from_numpy(np.random.default_rng(20260321).permutation(count))


def moments(images: Tensor, index: Tensor, chunk: int = 1024) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the chosen images, as inputs in [0, 1], from exact integer sums."""
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for part in torch.split(index, chunk):
        pixels = images[part].long()
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    count = len(index) * images.shape[2] * images.shape[3]
    mean = total.double() / count
    variance = (squares.double() - count * mean.square()) / max(count - 1, 1)
    std = variance.clamp_min(0).sqrt() / 255
    return tuple((mean / 255).tolist()), tuple(std.clamp_min(1e-3).tolist())


def content_hash(images: Tensor, labels: Tensor) -> str:
    """sha256 of the bytes of the images and of the labels, whatever device they are on."""
    digest = hashlib.sha256(images.contiguous().cpu().numpy().data)
    digest.update(labels.contiguous().cpu().numpy().data)
    return digest.hexdigest()
