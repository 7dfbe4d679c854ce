"""From a data set to training batches: shuffled, cropped, flipped and cut out in batches on the data's device, seeded.

Images stay uint8 until a batch is handed out as float32 in [0, 1]; normalization is a layer of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvact.data import _native
from curvact.data.dataset import Dataset
from curvact.data.extra import ExtraImages
from curvact.errors import CurvactError
from curvact.random import generator


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image.

    crop: shift by up to so many pixels in each direction, with zeros (black) where the image ends: a random window of the
    zero-padded image.
    flip: mirror left to right with probability 1/2.
    cutout: side in pixels of one square, its centre anywhere in the image, painted in the data set's mean colour (arXiv
    1708.04552).
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop", "cutout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise CurvactError(f"{name}={value!r} of an augmentation: a whole number of pixels >= 0")


@dataclass(frozen=True)
class Draws:
    """The random part of augmenting N images, on the CPU. shift: N×2, down and right, in −crop … crop. flip: N, bool.
    centre: N×2.
    """

    shift: Tensor
    flip: Tensor
    centre: Tensor

    def __getitem__(self, index: Tensor) -> Draws:
        return Draws(self.shift[index], self.flip[index], self.centre[index])


def draw(count: int, augmentation: Augmentation, height: int, width: int, random: torch.Generator) -> Draws:
    """The random numbers for `count` images of that size.

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
    """The chosen images, first flipped, then shifted, then cut out, as float32 in [0, 1] on their device.

    images: uint8, N×C×H×W, any strides. index: int64, M, on the CPU. draws: for M images. fill: C, the colour of the cutout,
    in [0, 1]; 0 if not given. Raises CurvactError where these do not fit together.
    On the CPU a native kernel does all but the cutout in one pass (`curvact.native_code`); elsewhere, and without it, one
    indexing does.

    >>> one = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    >>> draws = Draws(torch.tensor([[0, 1]]), torch.tensor([True]), torch.tensor([[0, 0]]))
    >>> augment(one, torch.tensor([0]), Augmentation(crop=1, flip=True), draws)
    tensor([[[[0.0000, 0.2000],
              [0.0000, 1.0000]]]])
    """
    _check(images, index, draws)
    out = _native.gather(images, index, draws.shift, draws.flip)
    if out is None:
        out = _gather(images, index, draws)
    if augmentation.cutout:
        colour = out.new_zeros(images.shape[1]) if fill is None else fill
        out = _cut_out(out, draws.centre.to(out.device), augmentation.cutout, colour)
    return out


def _check(images: Tensor, index: Tensor, draws: Draws) -> None:
    """The native kernel reads raw memory: what it reads must be there."""
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise CurvactError(
            f"images to augment are {images.dtype} of shape {tuple(images.shape)}: uint8, N×C×H×W, none of C, H, W 0"
        )
    count = index.numel()
    needed = {
        "index": (index, torch.int64, (count,)),
        "draws.shift": (draws.shift, torch.int64, (count, 2)),
        "draws.flip": (draws.flip, torch.bool, (count,)),
        "draws.centre": (draws.centre, draws.centre.dtype, (count, 2)),
    }
    for name, (value, dtype, shape) in needed.items():
        if value.dtype != dtype or tuple(value.shape) != shape or value.device.type != "cpu":
            raise CurvactError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)} on {value.device}: {dtype} of shape {shape} on the CPU"
            )


def _gather(images: Tensor, index: Tensor, draws: Draws) -> Tensor:
    device = images.device
    if not (bool(draws.shift.any()) or bool(draws.flip.any())):
        return images[index.to(device)].float().div_(255)
    height, width = images.shape[-2:]
    shift, flip = draws.shift.to(device), draws.flip.to(device)
    rows = torch.arange(height, device=device) - shift[:, :1]
    columns = torch.arange(width, device=device) - shift[:, 1:]
    inside = _within(rows, height)[:, None, :, None] & _within(columns, width)[:, None, None, :]
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    chosen = images[
        index.to(device)[:, None, None, None],
        torch.arange(images.shape[1], device=device)[:, None, None],
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None, :],
    ]
    return torch.where(inside, chosen.float().div_(255), 0.0)


def _within(place: Tensor, length: int) -> Tensor:
    return (place >= 0) & (place < length)


def _cut_out(images: Tensor, centre: Tensor, side: int, fill: Tensor) -> Tensor:
    def inside(length: int, middle: Tensor) -> Tensor:
        place = torch.arange(length, device=images.device)
        low = middle[:, None] - side // 2
        return (place >= low) & (place < low + side)

    rows, columns = inside(images.shape[2], centre[:, 0]), inside(images.shape[3], centre[:, 1])
    square = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(square, fill.view(-1, 1, 1), images)


def batches_per_epoch(dataset: Dataset, batch_size: int, extra: ExtraImages | None = None) -> int:
    """How many batches make one pass over the data set, and so over no more extra images than go with it."""
    real, _ = composition(batch_size, extra)
    return math.ceil(len(dataset) / real)


def composition(batch_size: int, extra: ExtraImages | None) -> tuple[int, int]:
    """Real and extra images in a batch.

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
            f"extra_fraction={extra.fraction} of batches of {batch_size}: in (0, 1), with at least one image of each kind"
        )
    return batch_size - count, count


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
    """One pass over the data set in an order of its own: (inputs in [0, 1], labels) in batches on the data's device.

    batch_size: of the whole batch, over all ranks. Rank r of w gets the r-th of w consecutive parts of the real and of the
    extra images of every batch: all ranks together train on exactly the batches of one process. Parts differ by at most one
    real and one extra image, the earlier ranks having more. The last batch may be smaller, and where it has fewer images than
    there are ranks the last ranks' parts are empty: every rank makes the same number of steps.
    seed, epoch: determine order and augmentation; nothing else does.
    extra: each batch ends with round(extra.fraction·batch_size) synthetic images (fewer in a smaller last
    batch, in proportion), each of them once before any comes again.

    >>> from curvact.data import load
    >>> x, y = next(epoch_batches(load("digits").train, 48, seed=0, epoch=1, augmentation=Augmentation(crop=1)))
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
                f"{extra.path} holds images of shape {extra.shape}; {dataset.name} has {tuple(dataset.images.shape[1:])}"
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
        return augment(images, index, augmentation, draws[places], fill)

    for step in range(steps):
        where = _part(step * real, min((step + 1) * real, count), rank, world_size)
        x = inputs(dataset.images, order[where], where)
        y = dataset.labels[order[where].to(device)]
        if extra is not None:
            places = _part(step * synthetic, min((step + 1) * synthetic, extra_count), rank, world_size)
            more, labels = extra.take(extra.order(seed, (epoch - 1) * extra_count + places))
            x_extra = inputs(more.to(device), torch.arange(len(places)), count + places)
            x, y = torch.cat([x, x_extra]), torch.cat([y, labels.to(device)])
        yield x, y


def epoch_order(dataset: Dataset, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch takes the real images, int64, N, on the CPU."""
    return torch.randperm(len(dataset), generator=generator(seed, "shuffle", epoch))


def whole_batch(
    dataset: Dataset,
    batch_size: int,
    index: int,
    extra: ExtraImages | None = None,
) -> int:
    """How many images batch `index` of an epoch (from 0) has over all ranks.

    >>> from curvact.data import load
    >>> whole_batch(load("digits").train, 48, 0), whole_batch(load("digits").train, 48, 26)
    (48, 10)
    """
    real, synthetic = composition(batch_size, extra)
    mine = max(0, min(real, len(dataset) - index * real))
    return mine + (synthetic if mine == real else round(synthetic * mine / real))


def _part(start: int, stop: int, rank: int, world_size: int) -> Tensor:
    return torch.arange(start, stop).tensor_split(world_size)[rank]
