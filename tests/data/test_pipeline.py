"""The input pipeline against a loop over images in numpy, its distribution, and its independence of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvact import native_code
from curvact.data import (
    Augmentation,
    Dataset,
    augment,
    batches,
    batches_per_epoch,
    epoch_batches,
    load,
    open_extra,
)
from curvact.data import _native as kernel
from curvact.data.extra import ExtraImages
from curvact.data.pipeline import Draws, draw
from curvact.errors import CurvactError
from curvact.random import generator


def _by_hand(image: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    """Pad with zeros, cut a window out: nothing shared with the code under test."""
    margin = max(abs(down), abs(right))
    wide = np.pad(image[:, :, ::-1] if flip else image, ((0, 0), (margin, margin), (margin, margin)))
    top, left = margin - down, margin - right
    return wide[:, top : top + image.shape[1], left : left + image.shape[2]]


def _images(count: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8))


@pytest.fixture(params=["native", "plain"])
def _both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(kernel, "gather", lambda *_: None)
    elif kernel._kernel() is None:
        pytest.skip("no C compiler")


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 5, 7), (1, 1, 1), (3, 70, 70)])
def test_every_pixel_is_where_numpy_puts_it(shape: tuple[int, int, int]) -> None:
    augmentation = Augmentation(crop=min(4, *shape[1:]), flip=True)
    images = _images(20, shape)
    index = torch.randint(0, 20, (60,), generator=generator(0, "test"))
    draws = draw(60, augmentation, *shape[1:], generator(1, "test"))
    got = augment(images, index, augmentation, draws)
    assert got.dtype == torch.float32
    for i, out in enumerate(got):
        down, right = draws.shift[i].tolist()
        want = _by_hand(images[index[i]].numpy(), down, right, bool(draws.flip[i]))
        assert np.array_equal(out.numpy(), want.astype(np.float32) / np.float32(255)), (i, down, right)


@settings(max_examples=25)
@given(
    st.integers(0, 12),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(0, 99),
)
def test_native_and_plain_agree_bitwise(
    count: int, height: int, width: int, channels: int, crop: int, seed: int
) -> None:
    crop = min(crop, height, width)
    augmentation = Augmentation(crop=crop, flip=True)
    images = _images(5, (channels, height, width), seed)
    index = torch.randint(0, 5, (count,), generator=generator(seed, "index"))
    draws = draw(count, augmentation, height, width, generator(seed, "draws"))
    strided = images.to(
        memory_format=torch.channels_last
    )  # the kernel wants contiguous images: this takes the plain way
    assert torch.equal(
        augment(images, index, augmentation, draws),
        augment(strided.clone(memory_format=torch.preserve_format), index, augmentation, draws),
    )


def test_the_kernel_refuses_an_index_beyond_the_images() -> None:
    if kernel._kernel() is None:
        pytest.skip("no C compiler")
    nothing = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
    for index in (-1, 3):
        with pytest.raises(IndexError, match="beyond the 3 images"):
            kernel.gather(_images(3, (1, 4, 4)), torch.tensor([index]), *nothing)


def test_without_a_compiler_plain_code_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CURVACT_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "/bin/false")
    kernel._kernel.cache_clear()
    try:
        assert kernel._kernel() is None
        x, _ = next(
            epoch_batches(load("digits").train, 4, seed=0, epoch=1, augmentation=Augmentation(crop=1))
        )
        assert x.shape == (4, 1, 8, 8)
    finally:
        monkeypatch.undo()
        kernel._kernel.cache_clear()
    monkeypatch.setenv("CC", "nowhere")
    with pytest.raises(native_code.Unavailable, match="no C compiler nowhere"):
        native_code.compiled(kernel._SOURCE)


def test_shifts_and_flips_are_uniform() -> None:
    """Each of the 81 shifts is expected 1,000 times ± 31.4 (binomial): 5 standard deviations allowed, a chance of 5e-5 in all."""
    draws = draw(81_000, Augmentation(crop=4, flip=True), 32, 32, generator(3, "test"))
    counts = torch.bincount((draws.shift[:, 0] + 4) * 9 + draws.shift[:, 1] + 4, minlength=81)
    assert len(counts) == 81
    assert int((counts - 1000).abs().max()) < 5 * 31.4
    assert abs(int(draws.flip.sum()) - 40_500) < 5 * 142.3
    assert not draw(99, Augmentation(), 32, 32, generator(0, "x")).flip.any()


def test_cutout_paints_one_square_in_the_given_colour() -> None:
    images = torch.full((200, 3, 16, 16), 255, dtype=torch.uint8)
    augmentation = Augmentation(cutout=5)
    draws = draw(200, augmentation, 16, 16, generator(0, "test"))
    fill = torch.tensor([0.1, 0.2, 0.3])
    got = augment(images, torch.arange(200), augmentation, draws, fill)
    for i in range(200):
        want = np.ones((3, 16, 16), np.float32)
        y, x = draws.centre[i].tolist()
        want[:, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = fill.numpy()[:, None, None]
        assert np.array_equal(got[i].numpy(), want)
    assert set(draws.centre.flatten().tolist()) == set(range(16))


def test_without_augmentation_it_is_the_plain_order() -> None:
    train = load("digits").train
    plain = list(batches(train, 48, generator(5, "shuffle", 2)))
    got = list(epoch_batches(train, 48, seed=5, epoch=2))
    assert len(plain) == len(got) == batches_per_epoch(train, 48)
    for (x, y), (a, b) in zip(plain, got, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


def _extra(tmp_path: Path, count: int, fraction: float = 0.5) -> ExtraImages:
    path = tmp_path / "extra.npz"
    images = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 1), np.uint8)
    np.savez(path, image=images, label=np.arange(count) % 10)
    return open_extra(path, classes=10, shape=(1, 8, 8), fraction=fraction)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("mixed", [False, True])
def test_all_ranks_together_are_one_process(tmp_path: Path, world_size: int, mixed: bool) -> None:
    train = load("digits").train.first(101)
    options = {"seed": 0, "epoch": 3, "augmentation": Augmentation(crop=2, flip=True, cutout=3)}
    if mixed:
        options |= {"extra": _extra(tmp_path, 37, 0.4)}
    whole = list(epoch_batches(train, 20, **options))  # type: ignore[arg-type]
    parts = [
        list(epoch_batches(train, 20, rank=rank, world_size=world_size, **options))  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    for step, (x, y) in enumerate(whole):
        together = torch.cat([part[step][0] for part in parts])
        labels = torch.cat([part[step][1] for part in parts])
        assert len(together) == len(x)
        if not mixed:
            assert torch.equal(together, x)
            assert torch.equal(labels, y)
        # With extra images each rank has its share of both kinds: the same images, in another order.
        key = [bytes(image.numpy().tobytes()) + bytes([int(c)]) for image, c in zip(x, y, strict=True)]
        other = [bytes(i.numpy().tobytes()) + bytes([int(c)]) for i, c in zip(together, labels, strict=True)]
        assert sorted(key) == sorted(other)


def test_seeds_and_epochs_differ_and_repeat() -> None:
    train = load("digits").train.first(64)

    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(epoch_batches(train, 64, seed=seed, epoch=epoch, augmentation=Augmentation(crop=2)))[0]

    assert torch.equal(first(0, 1), first(0, 1))
    assert not torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))


def test_extra_images_fill_their_share_of_each_batch(tmp_path: Path) -> None:
    train = replace(load("digits").train.first(50), labels=torch.zeros(50, dtype=torch.int64))
    extra = _extra(tmp_path, 30, 0.25)
    seen: list[int] = []
    for epoch in (1, 2):
        sizes = []
        for _, y in epoch_batches(train, 20, seed=0, epoch=epoch, extra=extra):
            sizes.append(len(y))
        assert sizes == [20, 20, 20, 7], (
            "15 real and 5 extra images; the last 5 real ones bring round(5·5/15) = 2"
        )
    assert batches_per_epoch(train, 20, extra) == 4
    for position in range(2 * 17):
        seen += extra.order(0, torch.tensor([position])).tolist()
    assert sorted(seen[:30]) == list(range(30)), "each of them once before any comes again"


def test_an_empty_data_set_has_no_batches() -> None:
    train = load("digits").train
    empty = Dataset(train.name, train.images[:0], train.labels[:0], train.classes, train.mean, train.std, "")
    assert list(epoch_batches(empty, 8, seed=0, epoch=1, augmentation=Augmentation(crop=1))) == []
    draws = Draws(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.bool), torch.zeros(0, 2))
    assert augment(train.images, torch.zeros(0, dtype=torch.int64), Augmentation(flip=True), draws).shape == (
        0,
        1,
        8,
        8,
    )


def test_bad_input_is_one_line(tmp_path: Path) -> None:
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
    for fraction in (0.0, 1.0, 0.01, float("nan")):
        with pytest.raises(CurvactError, match="extra_fraction="):
            batches_per_epoch(train, 4, _extra(tmp_path, 10, fraction))
