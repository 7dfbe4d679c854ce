"""The input pipeline at its edges: strides, unfitting draws, uneven ranks, the whole epoch by hand, the global state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvact.data import _native
from curvact.data.dataset import Dataset
from curvact.data.pipeline import Augmentation, Draws, augment, batches_per_epoch, draw, epoch_batches
from curvact.errors import CurvactError
from curvact.random import generator

KERNELS = ["native", "plain"]


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


def _choose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "plain":
        monkeypatch.setattr(_native, "gather", lambda *_: None)
    elif _native._kernel() is None:
        pytest.skip("no C compiler")


@pytest.fixture(params=KERNELS)
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    _choose(request.param, monkeypatch)


@pytest.mark.parametrize("name", KERNELS)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    crop=st.integers(0, 12),
    cutout=st.integers(0, 9),
    flip=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25)
def test_any_strides_equal_one_image_at_a_time(
    name: str, shape: tuple[int, int, int], crop: int, cutout: int, flip: bool, layout: str, seed: int
) -> None:
    """Exactly: no tolerance, the same float32 division."""
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
    with pytest.MonkeyPatch.context() as patch:
        _choose(name, patch)
        got = augment(strided, index, augmentation, draws, fill)
    expected = np.stack([_reference(images[j], augmentation, draws, i, fill) for i, j in enumerate(index)])
    np.testing.assert_array_equal(got.numpy(), expected)


def test_images_wider_than_a_block_of_the_kernel(either: None) -> None:
    images, augmentation = _images(2, 1, 2, 5000), Augmentation(crop=2, flip=True)
    draws = Draws(torch.tensor([[1, -2], [-1, 2]]), torch.tensor([True, False]), torch.zeros(2, 2).long())
    got = augment(images, torch.tensor([1, 0]), augmentation, draws)
    for i, j in enumerate([1, 0]):
        expected = _reference(images[j], augmentation, draws, i, torch.zeros(1))
        np.testing.assert_array_equal(got[i].numpy(), expected)


def test_the_draws_decide_whatever_the_settings_say(either: None) -> None:
    images, index = _images(3), torch.arange(3)
    draws = Draws(torch.tensor([[1, 0]] * 3), torch.tensor([True, False, True]), torch.zeros(3, 2).long())
    expected = np.stack([_reference(images[i], Augmentation(1), draws, i, torch.zeros(3)) for i in range(3)])
    np.testing.assert_array_equal(augment(images, index, Augmentation(), draws).numpy(), expected)


def test_augment_refuses_what_does_not_fit_together() -> None:
    """The kernel reads raw memory: a wrong type or length would read beyond the end."""
    images, index, augmentation = _images(4), torch.arange(4), Augmentation(crop=2, flip=True)
    draws = draw(4, augmentation, 9, 7, generator(0, "test"))
    for bad in (
        (images, index.int(), draws),
        (images, index[:2], draws),
        (images, index.view(2, 2), draws),
        (images, index, draws[index[:1]]),
        (images, index, Draws(draws.shift.int(), draws.flip, draws.centre)),
        (images, index, Draws(draws.shift, draws.flip.long(), draws.centre)),
        (images, index, Draws(draws.shift, draws.flip, draws.centre[:3])),
        (images.float(), index, draws),
        (images[0], index, draws),
        (images[..., :0], index, draws),
    ):
        with pytest.raises(CurvactError) as error:
            augment(bad[0], bad[1], augmentation, bad[2])
        assert "\n" not in str(error.value)


def test_an_augmented_epoch_equals_one_image_at_a_time(either: None) -> None:
    """Order and draws are indexed by the place in the epoch, and the cutout has the data set's mean colour."""
    data, augmentation = _dataset(50), Augmentation(crop=3, flip=True, cutout=4)
    order = torch.randperm(50, generator=generator(1, "shuffle", 4))
    draws = draw(50, augmentation, 9, 7, generator(1, "augment", 4))
    fill = torch.tensor(data.mean)
    got = list(epoch_batches(data, 8, seed=1, epoch=4, augmentation=augmentation))
    assert torch.equal(torch.cat([y for _, y in got]), data.labels[order])
    expected = np.stack(
        [_reference(data.images[j], augmentation, draws, i, fill) for i, j in enumerate(order)]
    )
    np.testing.assert_array_equal(torch.cat([x for x, _ in got]).numpy(), expected)


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
    assert torch.equal(data.images, _images(64)), "the data themselves are untouched"


@given(
    count=st.integers(1, 90), size=st.integers(1, 33), world_size=st.integers(1, 6), seed=st.integers(0, 99)
)
@settings(max_examples=25)
def test_uneven_ranks_together_have_the_batches_of_one_process(
    count: int, size: int, world_size: int, seed: int
) -> None:
    """In order and bitwise, also where a batch has fewer images than there are ranks."""
    data = _dataset(count, channels=1, height=4, width=4)
    augmentation = Augmentation(crop=2, flip=True, cutout=1)

    def of(rank: int, world: int) -> list[tuple[Tensor, Tensor]]:
        return list(
            epoch_batches(
                data, size, seed=seed, epoch=1, augmentation=augmentation, rank=rank, world_size=world
            )
        )

    alone, parts = of(0, 1), [of(rank, world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {len(alone)} == {batches_per_epoch(data, size)}
    for step, (x, y) in enumerate(alone):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), y)
        sizes = [len(part[step][1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_batches_of_the_cpu() -> None:
    data, augmentation = _dataset(50), Augmentation(crop=3, flip=True, cutout=4)
    here = epoch_batches(data, 8, seed=0, epoch=1, augmentation=augmentation)
    there = epoch_batches(data.to("cuda"), 8, seed=0, epoch=1, augmentation=augmentation)
    for (x, y), (x_gpu, y_gpu) in zip(here, there, strict=True):
        assert x_gpu.is_cuda
        assert torch.equal(x_gpu.cpu(), x)
        assert torch.equal(y_gpu.cpu(), y)
