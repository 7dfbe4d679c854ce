"""Training batches: shuffled, shifted, flipped and cut out on the device of the data, from a seed.

Images stay as they are stored until a batch is made. Batches are float32 in [0, 1]; models normalize
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from curvact.data.dataset import Dataset
from curvact.data.extra import ExtraImages
from curvact.errors import CurvactError
from curvact.random import generator


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    crop: the image is shifted by up to so many pixels in each direction, and zeros (black) come in.
        This is the usual random crop of the zero-padded image.
    flip: the image is mirrored left to right with probability 1/2.
    cutout: the side in pixels of one square in the mean colour of the data set. Its centre is
        anywhere in the image (arXiv 1708.04552).

    Raises CurvactError for anything but whole numbers of pixels >= 0 and a bool.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop", "cutout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise CurvactError(f"{name}={value!r} of an augmentation: a whole number of pixels >= 0")
        if not isinstance(self.flip, bool):
            raise CurvactError(f"flip={self.flip!r} of an augmentation: True or False")


@dataclass(frozen=True)
class Draws:
    """The random numbers that augment N images, on the CPU.

    shift: int64, N×2, pixels down and right, in −crop … crop. flip: bool, N.
    centre: int64, N×2, row and column of the cutout's centre.
    """

    shift: Tensor
    flip: Tensor
    centre: Tensor

    def __getitem__(self, index: Tensor) -> Draws:
        return Draws(self.shift[index], self.flip[index], self.centre[index])


def draw(count: int, augmentation: Augmentation, height: int, width: int, random: torch.Generator) -> Draws:
    """Random numbers for `count` images. Raises CurvactError for a crop larger than the images.

    >>> draws = draw(5, Augmentation(crop=4, flip=True), 32, 32, generator(0, "augment", 1))
    >>> draws.shift.shape, int(draws.shift.abs().max()) <= 4, draws.flip.dtype
    (torch.Size([5, 2]), True, torch.bool)
    """
    crop = augmentation.crop
    if crop > min(height, width):
        raise CurvactError(f"crop={crop} is larger than the images, which are {height}×{width} pixels")
    shift = torch.randint(-crop, crop + 1, (count, 2), generator=random)
    flip = torch.rand(count, generator=random) < (0.5 if augmentation.flip else 0.0)
    rows = torch.randint(0, height, (count, 1), generator=random)
    columns = torch.randint(0, width, (count, 1), generator=random)
    return Draws(shift, flip, torch.cat([rows, columns], 1))


def augment(
    images: Tensor, index: Tensor, augmentation: Augmentation, draws: Draws, fill: Tensor | None = None
) -> Tensor:
    """The chosen images, flipped, then shifted, then cut out: float32 in [0, 1], on their device.

    images: uint8, N×C×H×W. index: int64, M, on the CPU. draws: for M images.
    fill: the colour of the cutout, C numbers in [0, 1]; black if None.
    Raises CurvactError for images of another type or shape, and for draws of another number.

    >>> one = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    >>> draws = Draws(torch.tensor([[0, 1]]), torch.tensor([True]), torch.tensor([[0, 0]]))
    >>> augment(one, torch.tensor([0]), Augmentation(crop=1, flip=True), draws)
    tensor([[[[0.0000, 0.2000],
              [0.0000, 1.0000]]]])
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise CurvactError(
            f"images to augment are {images.dtype} of shape {tuple(images.shape)}: "
            "uint8, N×C×H×W, none of C, H, W 0"
        )
    shapes = [tuple(t.shape) for t in (index, draws.shift, draws.flip, draws.centre)]
    count = index.numel()
    if shapes != [(count,), (count, 2), (count,), (count, 2)]:
        raise CurvactError(
            f"index, shift, flip and centre have shapes {shapes}: (M,), (M, 2), (M,) and (M, 2) are needed"
        )
    return _augmented(images, index, augmentation, draws, fill)


def _augmented(
    images: Tensor, index: Tensor, augmentation: Augmentation, draws: Draws, fill: Tensor | None
) -> Tensor:
    """`augment` without its checks; float32 images in [0, 1] keep their values."""
    out = _moved(images.index_select(0, index.to(images.device)), draws)
    out = out.float().div_(255) if out.dtype == torch.uint8 else out
    if augmentation.cutout:
        colour = out.new_zeros(images.shape[1]) if fill is None else fill
        out = _cut_out(out, draws.centre.to(out.device), augmentation.cutout, colour)
    return out


def _moved(images: Tensor, draws: Draws) -> Tensor:
    """The images, N×C×H×W, each flipped and shifted. Zeros come in.

    Whole rows are taken from the zero-padded images first, then the pixels of each row: this needs
    two small indices, and no index of every pixel.
    """
    if not (bool(draws.shift.any()) or bool(draws.flip.any())):
        return images
    device, (count, channels, height, width) = images.device, images.shape
    margin = int(draws.shift.abs().max())
    shift, flip = draws.shift.to(device), draws.flip.to(device)
    rows = torch.arange(height, device=device) - shift[:, :1] + margin
    columns = torch.arange(width, device=device) - shift[:, 1:]
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + margin
    padded = F.pad(images, (margin,) * 4)
    first = torch.arange(count * channels, device=device) * padded.shape[2]
    chosen = (first.view(count, channels, 1) + rows[:, None]).flatten()
    lines = padded.reshape(-1, padded.shape[3]).index_select(0, chosen).view(count, channels * height, -1)
    return lines.gather(2, columns[:, None].expand(-1, channels * height, -1)).view(images.shape)


def _cut_out(images: Tensor, centre: Tensor, side: int, fill: Tensor) -> Tensor:
    def inside(length: int, middle: Tensor) -> Tensor:
        place = torch.arange(length, device=images.device)
        low = middle[:, None] - side // 2
        return (place >= low) & (place < low + side)

    rows, columns = inside(images.shape[2], centre[:, 0]), inside(images.shape[3], centre[:, 1])
    square = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(square, fill.view(-1, 1, 1), images)


def composition(batch_size: int, extra: ExtraImages | None) -> tuple[int, int]:
    """The numbers of real and of extra images in a batch.

    Raises CurvactError where a batch would have none of one kind.

    >>> composition(512, None)
    (512, 0)
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise CurvactError(f"batch_size={batch_size!r}: a whole number >= 1")
    if extra is None:
        return batch_size, 0
    count = round(batch_size * extra.fraction) if 0 < extra.fraction < 1 else 0
    if not 0 < count < batch_size:
        raise CurvactError(
            f"extra_fraction={extra.fraction} of batches of {batch_size}: "
            "in (0, 1), with at least one image of each kind"
        )
    return batch_size - count, count


def batches_per_epoch(dataset: Dataset, batch_size: int, extra: ExtraImages | None = None) -> int:
    """The number of batches of an epoch, which is one pass over the real images."""
    real, _ = composition(batch_size, extra)
    return math.ceil(len(dataset) / real)


def whole_batch(dataset: Dataset, batch_size: int, index: int, extra: ExtraImages | None = None) -> int:
    """The number of images in batch `index` of an epoch (from 0), over all ranks.

    >>> from curvact.data import load
    >>> whole_batch(load("digits").train, 48, 0), whole_batch(load("digits").train, 48, 26)
    (48, 10)
    """
    real, synthetic = composition(batch_size, extra)
    mine = max(0, min(real, len(dataset) - index * real))
    return mine + (synthetic if mine == real else round(synthetic * mine / real))


def epoch_order(dataset: Dataset, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch takes the real images: int64, N, on the CPU."""
    return torch.randperm(len(dataset), generator=generator(seed, "shuffle", epoch))


def epoch_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augmentation: Augmentation = Augmentation(),
    extra: ExtraImages | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch: (inputs in [0, 1], labels), on the device of the data.

    batch_size: images in a batch over all ranks. The last batch may be smaller.
    seed, epoch: they alone determine order and augmentation.
    extra: each batch ends with round(extra.fraction · batch_size) synthetic images, and a smaller
        last batch with fewer in proportion. Each synthetic image comes once before any comes again.
    rank, world_size: rank r of w gets the r-th of w consecutive parts of the real and of the extra
        images of each batch. All ranks together train on the batches of one process. Parts differ
        by at most one real and one extra image, and a part may be empty.

    Raises CurvactError for extra images without labels or of another shape, and for a bad rank.

    >>> from curvact.data import load
    >>> train = load("digits").train
    >>> x, y = next(epoch_batches(train, 48, seed=0, epoch=1, augmentation=Augmentation(crop=1)))
    >>> x.shape, x.dtype, y.shape
    (torch.Size([48, 1, 8, 8]), torch.float32, torch.Size([48]))
    """
    real, synthetic = composition(batch_size, extra)
    if not 0 <= rank < world_size:
        raise CurvactError(f"rank={rank} of world_size={world_size}: 0 <= rank < world_size")
    if extra is not None:
        extra.require_labels()
        if extra.shape != tuple(dataset.images.shape[1:]):
            raise CurvactError(
                f"{extra.path} holds images of shape {extra.shape}; "
                f"{dataset.name} has {tuple(dataset.images.shape[1:])}"
            )
    count = len(dataset)
    device = dataset.images.device
    height, width = dataset.images.shape[-2:]
    order = epoch_order(dataset, seed, epoch)
    steps = math.ceil(count / real)
    last = count - (steps - 1) * real if steps else 0
    extra_count = (steps - 1) * synthetic + round(synthetic * last / real) if steps else 0
    draws = draw(count + extra_count, augmentation, height, width, generator(seed, "augment", epoch))
    fill = torch.tensor(dataset.mean).to(device)

    def inputs(images: Tensor, index: Tensor, places: Tensor) -> Tensor:
        return _augmented(images, index, augmentation, draws[places], fill)

    for step in range(steps):
        where = _part(step * real, min((step + 1) * real, count), rank, world_size)
        index = order[where]
        if isinstance(dataset.images, Tensor):
            x = inputs(dataset.images, index, where)
        else:
            x = inputs(dataset.images[index], torch.arange(len(index)), where)
        y = dataset.labels[index.to(device)]
        if extra is not None:
            places = _part(step * synthetic, min((step + 1) * synthetic, extra_count), rank, world_size)
            more, labels = extra.take(extra.order(seed, (epoch - 1) * extra_count + places))
            x_extra = inputs(more.to(device), torch.arange(len(places)), count + places)
            x, y = torch.cat([x, x_extra]), torch.cat([y, labels.to(device)])
        yield x, y


def _part(start: int, stop: int, rank: int, world_size: int) -> Tensor:
    return torch.arange(start, stop).tensor_split(world_size)[rank]
