"""Labelled images, and the fixed split into training, validation and test images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from curvact.errors import CurvactError


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    name: for messages and records, such as "cifar10/train".
    images: uint8, N×C×H×W.
    labels: int64, N, in 0 … len(classes) − 1.
    classes: the name of each class.
    mean, std: one number a channel, of the images in [0, 1], computed on the training split.
    sha256: the hash of images and labels. Results name their data by it.
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
        """The same data on another device. Batches are made on that device too."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def inputs(self, index: Tensor | slice = slice(None)) -> Tensor:
        """The chosen images as float32 in [0, 1]."""
        return self.images[index].float().div_(255)

    def first(self, count: int | None) -> Dataset:
        """The first `count` images, or all if `count` is None.

        Name, mean and std stay the same. The hash is that of the chosen images.
        """
        if count is None or count >= len(self):
            return self
        images, labels = self.images[:count], self.labels[:count]
        return replace(self, images=images, labels=labels, sha256=content_hash(images, labels))


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images. The best epoch is chosen on the validation split."""

    train: Dataset
    validation: Dataset
    test: Dataset

    def to(self, device: torch.device | str) -> Splits:
        """All three splits on another device."""
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))

    def first(
        self, *, train: int | None = None, validation: int | None = None, test: int | None = None
    ) -> Splits:
        """At most so many images of each split. Mean and std do not change.

        Raises CurvactError for a number below 1.
        """
        for label, count in (("train", train), ("validation", validation), ("test", test)):
            if count is not None and count < 1:
                raise CurvactError(f"{label}={count} images of {self.train.name}: must be >= 1")
        return Splits(self.train.first(train), self.validation.first(validation), self.test.first(test))


def split(
    name: str,
    images: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    validation: float = 0.1,
    test: float | tuple[Tensor, Tensor],
) -> Splits:
    """Cut labelled images into three splits.

    The permutation depends on the number of images alone. The same files give the same splits, and
    the same hashes, on every machine.
    images: uint8, N×C×H×W. labels: int64, N. classes: the name of each class.
    validation: the fraction of the images for validation.
    test: the fraction of the images for testing, or the (images, labels) of an official test set.
    An official test set keeps its order.
    """
    order = permutation(len(images))
    tests = round(test * len(images)) if isinstance(test, float) else 0
    validations = round(validation * len(images))
    train_index = order[tests + validations :]
    mean, std = moments(images, train_index)

    def part(label: str, images: Tensor, labels: Tensor) -> Dataset:
        return Dataset(f"{name}/{label}", images, labels, classes, mean, std, content_hash(images, labels))

    def chosen(label: str, index: Tensor) -> Dataset:
        return part(label, images[index], labels[index])

    return Splits(
        chosen("train", train_index),
        chosen("validation", order[tests : tests + validations]),
        chosen("test", order[:tests]) if isinstance(test, float) else part("test", *test),
    )


def permutation(count: int) -> Tensor:
    """The fixed order of `count` images from which the splits are cut."""
    return torch.from_numpy(np.random.default_rng(20260321).permutation(count))


def moments(images: Tensor, index: Tensor, chunk: int = 1024) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the chosen images in [0, 1]. Sums are exact."""
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
    """sha256 of the bytes of images and labels, the same on every device."""
    digest = hashlib.sha256(images.contiguous().cpu().numpy().data)
    digest.update(labels.contiguous().cpu().numpy().data)
    return digest.hexdigest()
