"""What images and labels must be, wherever they come from: one line for what they are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curvact.data.images import at_once
from curvact.errors import CurvactError

Labelled = tuple[Tensor, Tensor]
"""Images, N×C×H×W, and labels, int64, N."""

Array = NDArray[Any]
CLASSES = 100_000
"""The largest number of classes. A damaged label would otherwise make millions of names."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def labelled(
    path: Path | str,
    images: Array,
    labels: Array,
    *,
    label_path: Path | str | None = None,
    classes: int | None = None,
) -> Labelled:
    """Checked tensors of images and labels.

    images: uint8, or floats in [0, 1]; N×H×W, N×H×W×C or N×C×H×W, with 1 or 3 channels.
    labels: whole numbers, N or N×1, below `classes` if given.
    """
    found = whole_images(path, channels_first(path, as_tensor(path, images)))
    targets = whole_labels(label_path or path, without_column(labels), len(images), path)
    if classes is not None:
        check_labels(label_path or path, targets, classes)
    return found, targets


def as_tensor(where: Path | str, images: Array | Tensor) -> Tensor:
    """Images as a tensor of a type that images can have. CurvactError for other types."""
    if isinstance(images, Tensor) and images.dtype in (torch.uint8, *FLOATS):
        return images.detach()
    kind = str(images.dtype).removeprefix("torch.") if isinstance(images, Tensor) else images.dtype.name
    if not isinstance(images, Tensor) and kind in ("uint8", "float16", "float32", "float64"):
        # torch reads arrays that it may write, in the machine's byte order.
        native = images.astype(images.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    hint = ""
    if kind == "bool":
        hint = " (masks? write images.astype(np.uint8) * 255)"
    elif "int" in kind:
        hint = " (values of 0 … 255? write images.astype(np.uint8))"
    raise CurvactError(f"{where}: images are {kind}; uint8 in 0 … 255, or floats in [0, 1], are needed{hint}")


def channels_first(where: Path | str, images: Tensor) -> Tensor:
    """N×H×W, N×H×W×C or N×C×H×W as a view N×C×H×W.

    CurvactError where the shape is none of them, or where it can be both of the last two.
    """
    shape = tuple(images.shape)
    if len(shape) == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise CurvactError(f"{where}: images of shape {shape}; N×H×W, N×H×W×C or N×C×H×W is needed")
    if len(images) == 0:
        raise CurvactError(f"{where} holds no images")
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if len(shape) == 3 or (first and not last):
        return images
    if not first and not last:
        raise CurvactError(f"{where}: images of shape {shape} have neither 1 nor 3 channels")
    if first and images.shape[1] * images.shape[2] * images.shape[3] > 1:
        raise CurvactError(
            f"{where}: images of shape {shape} can be N×C×H×W and N×H×W×C: images must be wider than 3 pixels"
        )
    return images.permute(0, 3, 1, 2)


class Look:
    """What the values of images are, part by part: the lowest and highest one, and whether all are
    multiples of 1/255.
    """

    def __init__(self, where: Path | str) -> None:
        self.where = where
        self.low, self.high, self.in_bytes, self.uint8 = np.inf, -np.inf, True, False

    def at(self, images: Tensor) -> None:
        """Look at more images. CurvactError for NaN and infinity."""
        self.uint8 = images.dtype == torch.uint8
        values = images if self.uint8 else images.float()
        if not self.uint8 and not bool(values.isfinite().all()):
            raise CurvactError(f"{self.where}: images hold NaN or infinity; floats in [0, 1] are needed")
        low, high = (float(v) for v in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not self.uint8 and self.in_bytes and self.low >= 0 and self.high <= 1:
            self.in_bytes = torch.equal(as_bytes(values).float().div_(255), values)

    def dtype(self) -> torch.dtype:
        """The type that keeps the images exactly: uint8, or float32.

        CurvactError for values outside of [0, 1], with what they probably are.
        """
        if self.uint8:
            if 1 <= self.high <= 16:
                meaning = "masks? multiply them by 255" if self.high == 1 else "as in scikit-learn's digits?"
                raise CurvactError(
                    f"{self.where}: images are uint8 in 0 … {self.high:.0f}, which is almost black; 255 is white "
                    f"({meaning}{'' if self.high == 1 else f' divide them by {self.high:.0f}'})"
                )
            return torch.uint8
        whole = round(self.high * 255) if self.in_bytes else 0
        twice = 0 < self.high <= 1.0001 / 255
        if self.low >= 0 and (twice or 0 < whole <= 16):
            meaning = "divided by 255 twice? multiply them by 255"
            if not twice:
                meaning = f"whole numbers up to {whole}, divided by 255? divide those by {whole}"
            raise CurvactError(
                f"{self.where}: images are floats in [0, {self.high:.4g}], which is almost black; 1 is white ({meaning})"
            )
        if self.low >= 0 and self.high <= 1:
            return torch.uint8 if self.in_bytes else torch.float32
        if self.low > -0.01 and self.high < 1.01:
            meaning = "rounding or interpolation? clip them to [0, 1]"
        elif self.low < 0:
            meaning = "normalized? give them before the normalization, which belongs into the model"
        elif self.high <= 2:
            meaning = "interpolated or augmented? clip them to [0, 1]"
        elif self.high <= 255:
            white = 255 if self.high > 32 else f"{self.high:.7g}"
            meaning = f"of 0 … {white}? divide them by {white}"
        else:
            meaning = "of 16 bits? divide them by 65535"
        raise CurvactError(
            f"{self.where}: images lie in [{self.low:.7g}, {self.high:.7g}]; floats in [0, 1] are needed "
            f"({meaning})"
        )


def as_bytes(images: Tensor) -> Tensor:
    """Floats in [0, 1] as the nearest of 0, 1, …, 255."""
    return (images.float() * 255).round_().to(torch.uint8)


def stored_as(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images in the type that `Look.dtype` has found for them."""
    if images.dtype == dtype:
        return images
    return as_bytes(images) if dtype == torch.uint8 else images.float()


def whole_images(where: Path | str, images: Tensor) -> Tensor:
    """N×C×H×W with checked values: uint8 where that keeps them exactly, else float32."""
    look = Look(where)
    parts = images.split(at_once(images.shape[1:]))  # type: ignore[no-untyped-call]
    for part in parts:
        look.at(part)
    dtype = look.dtype()
    if images.dtype == dtype:
        return images.contiguous()
    return torch.cat([stored_as(part, dtype) for part in parts]).contiguous()


def without_column(labels: Array) -> Array:
    """Labels of a file, N×1 as N."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def whole_labels(path: Path | str, labels: Array, count: int, images: Path | str) -> Tensor:
    """Labels, N whole numbers, as int64. CurvactError unless they are `count` of them."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        hint = ""
        if labels.ndim == 2 and labels.shape[1] == 1:
            hint = " (write labels[:, 0])"
        elif labels.ndim == 2:
            hint = " (one-hot? write labels.argmax(1))"
        raise CurvactError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}; one whole number an image is needed"
            f"{hint}"
        )
    if len(labels) != count:
        raise CurvactError(f"{path}: {len(labels):,} labels for {count:,} images in {images}")
    if labels.size and int(labels.max()) >= CLASSES:
        raise CurvactError(
            f"{path}: labels from {labels.min()} to {labels.max()}; at most {CLASSES:,} classes are read"
        )
    return torch.from_numpy(labels.astype(np.int64))


def check_labels(path: Path | str, labels: Tensor, classes: int) -> None:
    """CurvactError unless every label lies in 0 … classes − 1."""
    low, high = (int(v) for v in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise CurvactError(f"{path}: labels from {low} to {high}; they must lie in 0 … {classes - 1}")


def numbered_classes(path: Path | str, labels: Tensor, *others: Tensor) -> tuple[str, ...]:
    """The names 0, 1, … of classes that have no others.

    labels: of the training images. CurvactError unless every class has a training image.
    """
    count = 1 + max(int(given.max()) for given in (labels, *others))
    for given in (labels, *others):
        check_labels(path, given, count)
    present = labels.bincount(minlength=count)
    if not bool(present.all()):
        raise CurvactError(f"{path} has no image of class {int(present.argmin())}, but of class {count - 1}")
    return tuple(map(str, range(count)))


def names_of(classes: Sequence[str] | int, where: str) -> tuple[str, ...]:
    """Names of classes, or 0, 1, … for a number of them. CurvactError for names that are no text."""
    if isinstance(classes, int) and not isinstance(classes, bool) and 2 <= classes <= CLASSES:
        return tuple(map(str, range(classes)))
    names = [] if isinstance(classes, (int, str)) or not isinstance(classes, Iterable) else list(classes)
    if 2 <= len(names) <= CLASSES and all(isinstance(name, str) for name in names):
        return tuple(map(str, names))
    shown = f"{names[:5]} ({len(names)} names)" if names else classes
    raise CurvactError(
        f"classes={shown!r} of {where}: at least 2 names, or their number, at most {CLASSES:,}"
    )
