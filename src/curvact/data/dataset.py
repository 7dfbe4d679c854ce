"""Labelled images, and the fixed split into training, validation and test images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from curvact.data.images import Images, chosen, chunks
from curvact.errors import CurvactError


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    name: for messages and records, such as "cifar10/train".
    images: N×C×H×W, uint8; or float32 in [0, 1], where the images are no multiples of 1/255. A
        tensor, or `LazyImages`, which are read when they are asked for.
    labels: int64, N, in 0 … len(classes) − 1.
    classes: the name of each class.
    mean, std: one number a channel, of the images in [0, 1], computed on the training split.
    sha256: the hash of images and labels. Results name their data by it.
    """

    name: str
    images: Images
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    def __post_init__(self) -> None:
        """CurvactError for what `from_arrays` would not have let in."""
        images, labels = self.images, self.labels
        problem = ""
        if images.dtype not in (torch.uint8, torch.float32) or len(images.shape) != 4:
            problem = f"images are {images.dtype} of shape {tuple(images.shape)}"
        elif labels.dtype != torch.int64 or tuple(labels.shape) != (len(images),):
            problem = f"labels are {labels.dtype} of shape {tuple(labels.shape)} for {len(images)} images"
        elif images.device.type != "cpu":
            pass  # values are read where the data were made, not again on each device
        elif len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(self.classes)):
            problem = (
                f"labels lie in {int(labels.min())} … {int(labels.max())} of {len(self.classes)} classes"
            )
        elif isinstance(images, Tensor) and images.dtype == torch.float32 and images.numel():
            low, high = (float(v) for v in torch.aminmax(images))
            problem = "" if low >= 0 and high <= 1 else f"images lie in [{low:.7g}, {high:.7g}]"
        if problem:
            raise CurvactError(f"{self.name}: {problem}; make it with curvact.data.from_arrays")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        """One line, without pixels.

        >>> from curvact.data import load
        >>> load("digits").test
        Dataset('digits/test': 359 images of 1×8×8, 10 classes)
        """
        shape = "×".join(str(size) for size in self.images.shape[1:])
        return f"Dataset({self.name!r}: {len(self)} images of {shape}, {len(self.classes)} classes)"

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device. Batches are made on that device too."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def inputs(self, index: Tensor | slice = slice(None)) -> Tensor:
        """The chosen images as float32 in [0, 1]. float32 images are given back as they are."""
        found = self.images[index]
        return found.float().div_(255) if found.dtype == torch.uint8 else found.clone()

    def first(self, count: int | None) -> Dataset:
        """The first `count` images, or all if `count` is None.

        Name, mean and std stay the same. The hash is that of the chosen images.
        """
        check_count(f"the first {count!r} images of {self.name}", count)
        if count is None or count >= len(self):
            return self
        images, labels = chosen(self.images, slice(count)), self.labels[:count]
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

        Raises CurvactError for anything but whole numbers >= 1.
        """
        for label, count in (("train", train), ("validation", validation), ("test", test)):
            check_count(f"{label}={count!r} images of {self.train.name}", count)
        return Splits(self.train.first(train), self.validation.first(validation), self.test.first(test))


def check_count(what: str, count: object) -> None:
    """CurvactError for anything but None and whole numbers >= 1."""
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise CurvactError(f"{what}: a whole number >= 1")


def split(data: Dataset, *, validation: float | Dataset = 0.1, test: float | Dataset = 0.2) -> Splits:
    """Cut a data set into three splits.

    The permutation depends on the number of images alone. The same images give the same splits, and
    the same hashes, on every machine. Mean and standard deviation become those of the training
    images.
    validation, test: the fraction of the images, in (0, 1), or a data set of its own, which keeps
        its order.
    Raises CurvactError for fractions that leave a split without images, and for data sets with
    other classes or images of another shape.

    >>> from curvact.data import load
    >>> splits = split(load("digits").train)
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (880, 126, 252)
    """
    if not isinstance(data, Dataset):
        raise CurvactError(
            f"split got a {type(data).__name__}: a Dataset, such as from_arrays(images, labels)"
        )
    for label, given in (("validation", validation), ("test", test)):
        if not isinstance(given, Dataset):
            continue
        for what, theirs, ours in (
            ("classes", given.classes, data.classes),
            ("images of shape", tuple(given.images.shape[1:]), tuple(data.images.shape[1:])),
        ):
            if theirs != ours:
                raise CurvactError(
                    f"{given.name}, the {label} images, has {what} {_brief(theirs)}; "
                    f"{data.name} has {_brief(ours)}"
                )
    parts = [
        (given.images, given.labels) if isinstance(given, Dataset) else given for given in (validation, test)
    ]
    return cut(data.name, (data.images, data.labels), data.classes, validation=parts[0], test=parts[1])


def _brief(values: tuple[object, ...]) -> str:
    shown = ", ".join(map(str, values[:4]))
    return f"({shown}, … {len(values)})" if len(values) > 4 else f"({shown})"


def cut(
    name: str,
    whole: tuple[Images, Tensor],
    classes: tuple[str, ...],
    *,
    validation: float | tuple[Images, Tensor],
    test: float | tuple[Images, Tensor],
) -> Splits:
    """`split` for images and labels that have been checked."""
    images, labels = whole
    counts = {}
    for label, given in (("validation", validation), ("test", test)):
        if isinstance(given, tuple):
            counts[label] = 0
            continue
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < 1:
            raise CurvactError(f"{label}={given!r} of {name}: a fraction in (0, 1), or images of their own")
        counts[label] = round(given * len(images))
        if counts[label] < 1:
            raise CurvactError(
                f"{label}={given!r} of {len(images)} images of {name}: no image is left for it"
            )
    tests, validations = counts["test"], counts["validation"]
    if tests + validations >= len(images):
        raise CurvactError(f"validation={validation!r} and test={test!r} of {name} leave no training images")
    order = permutation(len(images))
    train_index = order[tests + validations :]
    mean, std = moments(images, train_index)

    def part(label: str, images: Images, labels: Tensor) -> Dataset:
        return Dataset(f"{name}/{label}", images, labels, classes, mean, std, content_hash(images, labels))

    def of(label: str, index: Tensor) -> Dataset:
        return part(label, chosen(images, index), labels[index])

    return Splits(
        of("train", train_index),
        part("validation", *validation)
        if isinstance(validation, tuple)
        else of("validation", order[tests : tests + validations]),
        part("test", *test) if isinstance(test, tuple) else of("test", order[:tests]),
    )


def permutation(count: int) -> Tensor:
    """The fixed order of `count` images from which the splits are cut."""
    return torch.from_numpy(np.random.default_rng(20260321).permutation(count))


def moments(images: Images, index: Tensor | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the chosen images in [0, 1].

    Sums of bytes are exact; sums of floats are in float64.
    """
    exact = images.dtype == torch.uint8
    total = torch.zeros(images.shape[1], dtype=torch.int64 if exact else torch.float64)
    squares = torch.zeros_like(total)
    for part in chunks(images, index):
        pixels = part.to(total)
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    white = 255 if exact else 1
    count = (len(images) if index is None else len(index)) * images.shape[2] * images.shape[3]
    mean = total.double() / count
    variance = (squares.double() - count * mean.square()) / max(count - 1, 1)
    std = variance.clamp_min(0).sqrt() / white
    return tuple((mean / white).tolist()), tuple(std.clamp_min(1e-3).tolist())


def content_hash(images: Images, labels: Tensor) -> str:
    """sha256 of the bytes of images and labels, the same on every device."""
    digest = hashlib.sha256()
    for part in chunks(images):
        digest.update(part.contiguous().cpu().numpy().data)
    digest.update(labels.contiguous().cpu().numpy().data)
    return digest.hexdigest()
