"""The input pipeline against one image at a time in numpy; its distribution; ranks; bad input."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvact.data import Augmentation, Dataset, augment, batches_per_epoch, epoch_batches, load, whole_batch
from curvact.data.pipeline import Draws, draw
from curvact.errors import CurvactError
from curvact.random import generator


def _images(count: int, channels: int = 3, height: int = 9, width: int = 7, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (count, channels, height, width), dtype=np.uint8))


def _dataset(count: int, **shape: int) -> Dataset:
    images = _images(count, **shape)
    mean = tuple(0.1 + 0.2 * c for c in range(images.shape[1]))
    return Dataset("t/train", images, torch.arange(count) % 10, tuple("abcdefghij"), mean, mean, "")


def _reference(image: Tensor, augmentation: Augmentation, draws: Draws, i: int, fill: Tensor) -> np.ndarray:
    """One image: flip, pad with zeros, cut the window out, divide, paint the square."""
    pixels, crop, side = image.numpy(), augmentation.crop, augmentation.cutout
    _, height, width = pixels.shape
    if draws.flip[i]:
        pixels = pixels[:, :, ::-1]
    padded = np.pad(pixels, ((0, 0), (crop, crop), (crop, crop)))
    top, left = crop - int(draws.shift[i, 0]), crop - int(draws.shift[i, 1])
    out = padded[:, top : top + height, left : left + width].astype(np.float32) / np.float32(255)
    if side:
        top, left = (int(c) - side // 2 for c in draws.centre[i])
        square = out[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
        square[:] = fill.numpy()[:, None, None]
    return out


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    crop=st.integers(0, 12),
    cutout=st.integers(0, 9),
    flip=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40)
def test_augment_equals_one_image_at_a_time(
    shape: tuple[int, int, int], crop: int, cutout: int, flip: bool, layout: str, seed: int
) -> None:
    """Exactly, for all strides: no tolerance, the same float32 division."""
    random = generator(seed, "test")
    augmentation = Augmentation(crop=min(crop, *shape[1:]), flip=flip, cutout=cutout)
    images = _images(12, *shape, seed)
    strided = {
        "contiguous": lambda: images,
        "channels_last": lambda: images.to(memory_format=torch.channels_last),
        "sliced": lambda: torch.stack([images, images ^ 255], 1)[:, 0],
        "transposed": lambda: images.transpose(2, 3).contiguous().transpose(2, 3),
    }[layout]()
    index = torch.randint(0, 12, (20,), generator=random)
    draws = draw(20, augmentation, *shape[1:], random)
    fill = torch.rand(shape[0], generator=random)
    got = augment(strided, index, augmentation, draws, fill)
    assert got.dtype == torch.float32
    expected = np.stack([_reference(images[j], augmentation, draws, i, fill) for i, j in enumerate(index)])
    np.testing.assert_array_equal(got.numpy(), expected)


def test_the_draws_decide_and_not_the_settings() -> None:
    images, index = _images(3), torch.arange(3)
    draws = Draws(torch.tensor([[1, 0]] * 3), torch.tensor([True, False, True]), torch.zeros(3, 2).long())
    expected = np.stack([_reference(images[i], Augmentation(1), draws, i, torch.zeros(3)) for i in range(3)])
    np.testing.assert_array_equal(augment(images, index, Augmentation(), draws).numpy(), expected)


def test_an_augmented_epoch_equals_one_image_at_a_time() -> None:
    """Draws belong to the place in the epoch; the cutout has the mean colour of the data set."""
    data, augmentation = _dataset(50), Augmentation(crop=3, flip=True, cutout=4)
    order = torch.randperm(50, generator=generator(1, "shuffle", 4))
    draws = draw(50, augmentation, 9, 7, generator(1, "augment", 4))
    fill = torch.tensor(data.mean)
    got = list(epoch_batches(data, 8, seed=1, epoch=4, augmentation=augmentation))
    assert torch.equal(torch.cat([y for _, y in got]), data.labels[order])
    assert [len(y) for _, y in got] == [whole_batch(data, 8, step) for step in range(7)]
    expected = [_reference(data.images[j], augmentation, draws, i, fill) for i, j in enumerate(order)]
    np.testing.assert_array_equal(torch.cat([x for x, _ in got]).numpy(), np.stack(expected))


def test_the_batches_of_a_seed_never_change() -> None:
    """A fixed hash: a configured run trains on the same batches in every version."""
    train, augmentation = load("digits").train, Augmentation(crop=2, flip=True, cutout=3)
    digest = hashlib.sha256()
    for x, y in epoch_batches(train, 100, seed=3, epoch=2, augmentation=augmentation):
        digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    assert digest.hexdigest().startswith("5235ea2e11cac0c9")


def test_shifts_and_flips_are_uniform() -> None:
    """Each of 81 shifts comes 1,000 ± 31.4 times (binomial). Beyond five deviations: 5e-5 in all."""
    draws = draw(81_000, Augmentation(crop=4, flip=True), 32, 32, generator(3, "test"))
    counts = torch.bincount((draws.shift[:, 0] + 4) * 9 + draws.shift[:, 1] + 4, minlength=81)
    assert len(counts) == 81
    assert int((counts - 1000).abs().max()) < 5 * 31.4
    assert abs(int(draws.flip.sum()) - 40_500) < 5 * 142.3
    assert not draw(99, Augmentation(), 32, 32, generator(0, "x")).flip.any()
    centre = draw(500, Augmentation(cutout=5), 16, 9, generator(0, "x")).centre
    assert [set(c.tolist()) for c in centre.T] == [set(range(16)), set(range(9))]


def test_without_augmentation_an_epoch_is_a_shuffled_pass() -> None:
    train = load("digits").train
    order = torch.randperm(len(train), generator=generator(5, "shuffle", 2))
    got = list(epoch_batches(train, 48, seed=5, epoch=2))
    assert len(got) == batches_per_epoch(train, 48) == 27
    assert torch.equal(torch.cat([x for x, _ in got]), train.inputs(order))
    assert torch.equal(torch.cat([y for _, y in got]), train.labels[order])


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    data, augmentation = _dataset(64), Augmentation(crop=2, flip=True)

    def whole() -> Tensor:
        return torch.cat([x for x, _ in epoch_batches(data, 10, seed=0, epoch=1, augmentation=augmentation)])

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = whole()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(whole(), first)
    assert torch.equal(data.images, _images(64)), "the images of the data set do not change"


@given(
    count=st.integers(1, 90), size=st.integers(1, 33), world_size=st.integers(1, 6), seed=st.integers(0, 99)
)
@settings(max_examples=20)
def test_uneven_ranks_together_have_the_batches_of_one_process(
    count: int, size: int, world_size: int, seed: int
) -> None:
    """In order and bitwise, also where a batch has fewer images than there are ranks."""
    data = _dataset(count, channels=1, height=4, width=4)
    augmentation = Augmentation(crop=2, flip=True, cutout=1)

    def of(rank: int, world: int) -> list[tuple[Tensor, Tensor]]:
        options: dict[str, Any] = {"augmentation": augmentation, "rank": rank, "world_size": world}
        return list(epoch_batches(data, size, seed=seed, epoch=1, **options))

    alone, parts = of(0, 1), [of(rank, world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {len(alone)} == {batches_per_epoch(data, size)}
    for step, (x, y) in enumerate(alone):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), y)
        sizes = [len(part[step][1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_an_empty_data_set_has_no_batches() -> None:
    train = load("digits").train
    empty = replace(train, images=train.images[:0], labels=train.labels[:0])
    assert list(epoch_batches(empty, 8, seed=0, epoch=1, augmentation=Augmentation(crop=1))) == []
    draws = Draws(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.bool), torch.zeros(0, 2))
    none = augment(train.images, torch.zeros(0, dtype=torch.int64), Augmentation(flip=True), draws)
    assert none.shape == (0, 1, 8, 8)


def test_augment_refuses_other_images_and_other_numbers_of_draws() -> None:
    images, index, augmentation = _images(4), torch.arange(4), Augmentation(crop=2, flip=True)
    draws = draw(4, augmentation, 9, 7, generator(0, "test"))
    for bad in (
        (images, index[:2], draws),
        (images, index.view(2, 2), draws),
        (images, index, draws[index[:1]]),
        (images, index, replace(draws, flip=draws.flip[:1])),
        (images, index, replace(draws, centre=draws.centre[:3])),
        (images.float(), index, draws),
        (images[0], index, draws),
        (images[..., :0], index, draws),
    ):
        with pytest.raises(CurvactError, match=r"^[^\n]*$"):
            augment(bad[0], bad[1], augmentation, bad[2])


def test_bad_input_is_one_line() -> None:
    train = load("digits").train
    for arguments, message in (
        ({"crop": -1}, r"crop=-1 of an augmentation: a whole number of pixels >= 0"),
        ({"cutout": 1.5}, r"cutout=1.5"),
        ({"crop": True}, r"crop=True"),
    ):
        with pytest.raises(CurvactError, match=message):
            Augmentation(**arguments)  # type: ignore[arg-type]
    with pytest.raises(CurvactError, match="crop=9 is larger than the images, which are 8×8"):
        next(epoch_batches(train, 4, seed=0, epoch=1, augmentation=Augmentation(crop=9)))
    with pytest.raises(CurvactError, match="rank=2 of world_size=2"):
        next(epoch_batches(train, 4, seed=0, epoch=1, rank=2, world_size=2))
    with pytest.raises(CurvactError, match="batch_size=0"):
        batches_per_epoch(train, 0)


@pytest.mark.gpu
def test_a_gpu_gives_the_batches_of_the_cpu() -> None:
    data, augmentation = _dataset(50), Augmentation(crop=3, flip=True, cutout=4)
    here = epoch_batches(data, 8, seed=0, epoch=1, augmentation=augmentation)
    there = epoch_batches(data.to("cuda"), 8, seed=0, epoch=1, augmentation=augmentation)
    for (x, y), (x_gpu, y_gpu) in zip(here, there, strict=True):
        assert x_gpu.is_cuda
        assert torch.equal(x_gpu.cpu(), x)
        assert torch.equal(y_gpu.cpu(), y)


def test_batches_are_made_on_the_device_of_the_data() -> None:
    """On the meta device a tensor on another device, or a wait for values, is an error."""
    data = _dataset(20).to("meta")
    for x, y in epoch_batches(data, 8, seed=0, epoch=1, augmentation=Augmentation(2, True, 3)):
        assert x.device.type == y.device.type == "meta"


def test_a_flip_is_yes_or_no() -> None:
    for flip in (1, "no", None):
        with pytest.raises(CurvactError, match="flip="):
            Augmentation(flip=flip)  # type: ignore[arg-type]
