"""The images of a data set: a tensor, or images that are read when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
CPU = torch.device("cpu")
VALUES = 2**20
"""Values that are looked at together, where all images are looked at once."""


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images that stay on the disk, or in a torch `Dataset`, until they are asked for.

    They are indexed as a tensor N×C×H×W is, and each index reads.
    read: from places in the source (int64, on the CPU) to their images, M×C×H×W on the CPU.
    places: the place in the source of each image, int64, N. form: channels, height, width.
    dtype: uint8, or float32 in [0, 1]. device: where images are put after reading.
    """

    read: Callable[[Tensor], Tensor]
    places: Tensor
    form: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        where = index if isinstance(index, slice) else index.cpu()
        return self.read(self.places[where]).to(self.device)

    @property
    def shape(self) -> torch.Size:
        """N, C, H, W."""
        return torch.Size([len(self), *self.form])

    def to(self, device: torch.device | str) -> LazyImages:
        """The same images, put on another device when they are read."""
        return replace(self, device=torch.device(device))

    def only(self, index: Tensor | slice) -> LazyImages:
        """A part of the images. Nothing is read."""
        return replace(self, places=self.places[index])


Images = Tensor | LazyImages
"""uint8 or float32, N×C×H×W."""


def chosen(images: Images, index: Tensor | slice) -> Images:
    """A part of the images. Of lazy images nothing is read."""
    return images[index] if isinstance(images, Tensor) else images.only(index)


def at_once(shape: Sequence[int]) -> int:
    """How many images of a shape C×H×W are looked at together, at least one.

    >>> at_once((3, 32, 32)), at_once((3, 224, 224))
    (341, 6)
    """
    return max(1, VALUES // max(1, math.prod(shape)))


def chunks(images: Images, index: Tensor | None = None) -> Iterator[Tensor]:
    """The images, or those of the index, in parts that fit into memory."""
    count, size = len(images) if index is None else len(index), at_once(images.shape[1:])
    for start in range(0, count, size):
        part = slice(start, start + size)
        yield images[part] if index is None else images[index[part]]


def read_rows(array: Array, index: Tensor) -> Array:
    """The rows of a mapped array, in its byte order. They are read in the order of the file."""
    ordered, back = index.sort()
    rows: Array = np.asarray(array[ordered.numpy()])[back.argsort().numpy()]
    return rows
