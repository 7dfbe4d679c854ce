"""Synthetic images: mapped and not read, in exact shares, in order; one line for each bad file."""

from __future__ import annotations

import io
import itertools
import math
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from curvact.data.dataset import Dataset
from curvact.data.extra import ExtraImages, open_extra, permute, pseudo_label
from curvact.data.pipeline import (
    Augmentation,
    augment,
    batches_per_epoch,
    composition,
    draw,
    epoch_batches,
    whole_batch,
)
from curvact.errors import CurvactError
from curvact.progress import Progress
from curvact.random import generator
from fake_data import memory_limit

SHAPE = (3, 6, 5)
CLASSES = 10


def _pixels(count: int, seed: int = 0, smooth: bool = False) -> NDArray[np.uint8]:
    """N×H×W×C; the first two bytes of an image are its number."""
    channels, height, width = SHAPE
    shape = (count, height, width, channels)
    if smooth:
        pixels = (np.arange(np.prod(shape)) // 50 % 256).astype(np.uint8).reshape(shape)
    else:
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(count) >> 8, np.arange(count) & 255
    return pixels


def _labels(count: int) -> NDArray[np.int64]:
    return np.arange(count) * 7 % CLASSES


def _numbers(images: Tensor) -> Tensor:
    """Which image each is, from its first two bytes."""
    return images[:, 0, 0, 0].long() * 256 + images[:, 1, 0, 0].long()


def _open(path: Path, **settings: object) -> ExtraImages:
    return open_extra(path, **{"classes": CLASSES, "shape": SHAPE, **settings})  # type: ignore[arg-type]


@pytest.fixture
def stored(tmp_path: Path) -> ExtraImages:
    np.savez(tmp_path / "extra.npz", image=_pixels(300), label=_labels(300))
    return _open(tmp_path / "extra.npz")


def _real(count: int) -> Dataset:
    """Real images. Their labels start at 100; those of extra images are below 10."""
    images = torch.from_numpy(_pixels(count, seed=9)).permute(0, 3, 1, 2).contiguous()
    half = (0.5, 0.25, 0.75)
    return Dataset("t/train", images, 100 + torch.arange(count), ("a",) * 9999, half, half, "")


def _stored(path: Path) -> None:
    np.savez(path, label=_labels(40), image=_pixels(40))


def _compressed(path: Path) -> None:
    np.savez_compressed(path, image=_pixels(40), label=_labels(40))


def _zip64(path: Path) -> None:
    """The local header is longer than the central one, as in archives beyond 4 GiB."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("image", _pixels(40)), ("label", _labels(40))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)


def _planar(path: Path) -> None:
    np.savez(path, image=_pixels(40).transpose(0, 3, 1, 2).copy(), label=_labels(40))


def _plural(path: Path) -> None:
    np.savez(path, images=_pixels(40), labels=_labels(40).astype(np.uint8))


@pytest.mark.parametrize("write", [_stored, _compressed, _zip64, _planar, _plural])
def test_layouts_of_an_npz(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "a.npz"
    write(path)
    extra = _open(path)
    assert isinstance(extra.images, np.memmap)
    assert len(extra) == 40
    assert extra.shape == SHAPE
    images, labels = extra.take(torch.tensor([39, 0, 7, 7, 21]))
    expected = torch.from_numpy(_pixels(40)).permute(0, 3, 1, 2)
    assert torch.equal(images, expected[[39, 0, 7, 7, 21]])
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    assert torch.equal(labels, torch.from_numpy(_labels(40))[[39, 0, 7, 7, 21]])
    assert labels.dtype == torch.int64
    assert extra.take(torch.arange(0))[0].shape == (0, *SHAPE)
    if write is not _compressed:
        assert [p.name for p in tmp_path.iterdir()] == ["a.npz"], "mapped where it lies"


def test_a_pair_of_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", _pixels(12))
    np.save(tmp_path / "y.npy", _labels(12).astype(np.int32))
    assert _open(tmp_path / "x.npy").labels is None
    extra = _open(tmp_path / "x.npy", labels=tmp_path / "y.npy")
    assert torch.equal(extra.take(torch.arange(12))[1], torch.from_numpy(_labels(12)))


def test_given_labels_stand_in_for_those_of_the_file(tmp_path: Path) -> None:
    _stored(path := tmp_path / "a.npz")
    np.save(tmp_path / "y.npy", (_labels(40) + 1) % CLASSES)
    extra = _open(path, labels=tmp_path / "y.npy")
    assert extra.labels is not None
    np.testing.assert_array_equal(extra.labels.numpy(), (_labels(40) + 1) % CLASSES)


def test_a_compressed_npz_is_unpacked_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _compressed(path := tmp_path / "a.npz")
    first = _open(path)
    assert Path(str(first.images.filename)).parent == tmp_path  # type: ignore[attr-defined]
    (unpacked,) = [p for p in tmp_path.iterdir() if p != path]
    at = unpacked.stat().st_mtime_ns
    assert _open(path).sha256 == first.sha256
    assert unpacked.stat().st_mtime_ns == at
    np.testing.assert_array_equal(np.load(unpacked), _pixels(40))
    assert capfd.readouterr().out == "", "progress goes to standard error"


def test_another_file_under_the_same_name_is_unpacked_again(tmp_path: Path) -> None:
    """Images made anew have the same shape and size: the old ones must not be trained on."""
    _compressed(path := tmp_path / "a.npz")
    old = _open(path)
    np.savez_compressed(path, image=_pixels(40, seed=1), label=_labels(40))
    new = _open(path)
    np.testing.assert_array_equal(new.images, _pixels(40, seed=1))
    assert new.sha256 != old.sha256


def test_a_full_disk_and_a_broken_write_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compressed(path := tmp_path / "a.npz")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", fails)
        with pytest.raises(CurvactError, match=r"a\.npz cannot be unpacked into .*: No space left on device"):
            _open(path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(
            CurvactError, match=r"a\.npz is compressed and needs 3,728 bytes to unpack; 1,000 are free"
        ):
            _open(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert len(_open(path)) == 40


def _member(folder: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return folder / "bad.npz"


def _npz(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "bad.npz", **arrays)  # type: ignore[arg-type]
    return folder / "bad.npz"


def _header(count: int) -> bytes:
    buffer = io.BytesIO()
    shape = (count, SHAPE[1], SHAPE[2], SHAPE[0])
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _cut(folder: Path, keep: float, compress: bool = False) -> Path:
    save = np.savez_compressed if compress else np.savez
    save(folder / "bad.npz", image=_pixels(40), label=_labels(40))
    content = (folder / "bad.npz").read_bytes()
    (folder / "bad.npz").write_bytes(content[: int(keep * len(content))])
    return folder / "bad.npz"


def _short_npy(folder: Path) -> Path:
    np.save(folder / "bad.npy", _pixels(40))
    content = (folder / "bad.npy").read_bytes()
    (folder / "bad.npy").write_bytes(content[:-1])
    return folder / "bad.npy"


def _text(folder: Path, name: str) -> Path:
    (folder / name).write_text("no array at all")
    return folder / name


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda f: f / "bad.npz", "no file of extra images"),
    "folder": (lambda f: f, "no file of extra images"),
    "suffix": (lambda f: _text(f, "bad.tar"), "come as .npz or .npy"),
    "no zip": (lambda f: _text(f, "bad.npz"), "truncated or no .npz"),
    "no npy": (lambda f: _text(f, "bad.npy"), "holds no numpy array"),
    "empty file": (lambda f: (f / "bad.npz").touch() or f / "bad.npz", "truncated or no .npz"),
    "no image": (lambda f: _npz(f, picture=_pixels(3)), "no 'image'; it holds picture"),
    "nothing": (lambda f: _npz(f), "it holds nothing"),
    "float": (lambda f: _npz(f, image=_pixels(3) / 255), "holds float64 images"),
    "signed": (lambda f: _npz(f, image=_pixels(3).astype(np.int8)), "holds int8 images"),
    "shape": (lambda f: _npz(f, image=_pixels(3)[:, 1:]), r"of \(5, 5, 3\)"),
    "one image": (lambda f: _npz(f, image=_pixels(3)[0]), r"of \(5, 3\)"),
    "scalar": (lambda f: _npz(f, image=np.uint8(1)), r"images of \(\)"),
    "no images": (lambda f: _npz(f, image=_pixels(0)), "is empty"),
    "fortran": (lambda f: _npz(f, image=np.asfortranarray(_pixels(3))), "Fortran order"),
    "objects": (lambda f: _npz(f, image=np.array([None, 1], dtype=object)), "holds object"),
    "object labels": (
        lambda f: _npz(f, image=_pixels(2), label=np.array([None, 1], dtype=object)),
        "holds object",
    ),
    "range": (
        lambda f: _npz(f, image=_pixels(3), label=np.array([0, 10, 1])),
        "labels from 0 to 10; they must lie in 0 … 9",
    ),
    "negative": (lambda f: _npz(f, image=_pixels(2), label=np.array([-1, 3])), "labels from -1 to 3"),
    "count": (lambda f: _npz(f, image=_pixels(3), label=_labels(4)), "4 labels for 3 images"),
    "one-hot": (
        lambda f: _npz(f, image=_pixels(3), label=np.eye(3, dtype=np.int64)),
        "one whole number an image",
    ),
    "float labels": (lambda f: _npz(f, image=_pixels(3), label=np.zeros(3)), "labels are float64"),
    "no header": (lambda f: _member(f, image=b"hello" * 100), "holds no numpy array"),
    "header only": (lambda f: _member(f, image=_header(40)), "is truncated"),
    "runs into the next member": (
        lambda f: _member(f, image=_header(40) + bytes(900), other=bytes(9000)),
        "is truncated",
    ),
    "endless": (lambda f: _member(f, image=_header(2**62) + bytes(900)), "is truncated"),
    "cut in the middle": (lambda f: _cut(f, 0.5), "truncated or no .npz"),
    "cut at the end": (lambda f: _cut(f, 0.995), "truncated or no .npz"),
    "cut npy": (_short_npy, r"npy is truncated: \(40, 6, 5, 3\) uint8 needs 3,600 bytes"),
    "cut compressed": (lambda f: _cut(f, 0.9, True), "truncated or no .npz"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_line_with_their_name(tmp_path: Path, name: str) -> None:
    write, message = BAD[name]
    path = write(tmp_path)
    with pytest.raises(CurvactError, match=message) as error:
        _open(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_label_files(tmp_path: Path) -> None:
    _stored(path := tmp_path / "a.npz")
    with pytest.raises(CurvactError, match=r"no file of labels .*none\.npy"):
        _open(path, labels=tmp_path / "none.npy")
    with pytest.raises(CurvactError, match=r"y\.npy holds no numpy array"):
        _open(path, labels=_text(tmp_path, "y.npy"))
    np.save(tmp_path / "y.npy", _labels(39))
    with pytest.raises(CurvactError, match=r"y\.npy: 39 labels for 40 images"):
        _open(path, labels=tmp_path / "y.npy")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("damage") / "a.npz"
    np.savez_compressed(path, image=_pixels(40, smooth=True))
    return path.read_bytes()


@given(place=st.floats(0, 1, exclude_max=True), noise=st.binary(min_size=1, max_size=8))
@settings(max_examples=25)
def test_damage_anywhere_is_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, compressed: bytes, place: float, noise: bytes
) -> None:
    """A CurvactError or the same pixels: a compressed archive has a checksum."""
    folder = tmp_path_factory.mktemp("damaged")
    start = int(place * len(compressed))
    damaged = (compressed[:start] + noise + compressed[start + len(noise) :])[: len(compressed)]
    (folder / "a.npz").write_bytes(damaged)
    try:
        extra = _open(folder / "a.npz")
    except CurvactError as error:
        said = str(error)
    else:
        said = "a.npz"
        np.testing.assert_array_equal(extra.images, _pixels(40, smooth=True))
    assert "a.npz" in said
    assert not list(folder.glob(".*")), "no temporary file is left"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts otherwise elsewhere")
def test_three_gigabytes_are_not_read_into_memory(tmp_path: Path) -> None:
    """With 200 MB to allocate, batches come from a 3 GB file, and a copy of the file fails."""
    path, shape = tmp_path / "large.npy", (1_000_000, 32, 32, 3)
    sparse = np.lib.format.open_memmap(path, "w+", np.uint8, shape)  # type: ignore[no-untyped-call]
    sparse[-1, -1, -1, -1] = 77
    del sparse
    if path.stat().st_blocks * 512 > 10**9:
        pytest.skip("this file system has no sparse files")
    np.save(tmp_path / "labels.npy", np.zeros(1_000_000, np.uint8))
    images = torch.zeros(2000, 3, 32, 32, dtype=torch.uint8)
    half = (0.5,) * 3
    data = Dataset("t", images, torch.zeros(2000, dtype=torch.int64), ("a",), half, half, "")
    options = {"seed": 0, "epoch": 1, "augmentation": Augmentation(4, True, 8)}
    list(epoch_batches(data, 500, **options))  # type: ignore[arg-type]
    with memory_limit(200):
        extra = open_extra(path, classes=10, shape=(3, 32, 32), labels=tmp_path / "labels.npy")
        assert len(extra) == 1_000_000
        batches = list(itertools.islice(epoch_batches(data, 200, extra=extra, **options), 5))  # type: ignore[arg-type]
        assert [x.shape for x, _ in batches] == [(200, 3, 32, 32)] * 5
        last = extra.read(torch.tensor([999_999]))
        assert int(last.flatten()[-1]) == int(last.sum()) == 77
        with pytest.raises(MemoryError):
            np.array(extra.images)
    path.unlink()


def _advice(path: Path) -> set[str]:
    """Linux's advice flags of a mapped file: rr for reads at random, sr for reads in sequence."""
    flags: set[str] = set()
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("VmFlags:"):
            flags |= {"rr", "sr"} & set(line.split())
    return flags


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_the_system_is_advised_how_the_file_is_read(tmp_path: Path) -> None:
    """At random for training, in sequence for labelling."""
    np.savez(tmp_path / "bare.npz", image=_pixels(50))
    extra, model, during = _open(tmp_path / "bare.npz"), _Brightest(), []
    assert _advice(tmp_path / "bare.npz") == {"rr"}
    model.register_forward_pre_hook(lambda *_: during.append(_advice(tmp_path / "bare.npz")))
    pseudo_label(model, extra, tmp_path / "labels.npy", batch_size=25)
    assert during == [{"sr"}, {"sr"}]
    assert _advice(tmp_path / "bare.npz") == {"rr"}


def test_the_hash_is_of_a_sample(tmp_path: Path) -> None:
    """The hash reads shape, labels and 1,024 evenly spaced images, with the first and the last."""
    pixels = np.repeat(_pixels(1000), 5, 0)
    path = tmp_path / "x.npy"

    def hashed(change: int | None = None, labels: NDArray[np.int64] | None = None) -> str:
        changed = pixels.copy()
        if change is not None:
            changed[change, 3, 3, 1] ^= 1
        np.save(path, changed)
        if labels is None:
            return _open(path).sha256
        np.save(tmp_path / "y.npy", labels)
        return _open(path, labels=tmp_path / "y.npy").sha256

    same = hashed()
    assert hashed() == same
    assert hashed(change=0) != same
    assert hashed(change=4999) != same
    assert sum(hashed(change=row) != same for row in range(2000, 2050)) == pytest.approx(
        50 * 1024 / 5000, abs=2
    )
    assert hashed(labels=np.zeros(5000, np.int64)) != same
    assert hashed(labels=np.zeros(5000, np.int64)) != hashed(labels=np.ones(5000, np.int64))


@given(count=st.integers(1, 3000), keys=st.lists(st.integers(0, 2**31 - 1), min_size=6, max_size=6))
@settings(max_examples=25)
def test_permute_is_a_permutation(count: int, keys: list[int]) -> None:
    out = permute(torch.arange(count), count, keys)
    assert torch.equal(out.sort().values, torch.arange(count))
    if count > 3:
        assert torch.equal(permute(torch.tensor([3, 0]), count, keys), out[[3, 0]])


def test_permute_at_the_edges_of_millions() -> None:
    """No repeats among these positions, and all in range."""
    count = 6_000_000
    where = torch.cat([torch.arange(20_000), torch.arange(count - 20_000, count)])
    out = permute(where, count, [1, 2, 3, 2**31 - 1, 5, 6])
    assert len(out.unique()) == len(where)
    assert 0 <= int(out.min()) <= int(out.max()) < count


def test_the_order_looks_random(stored: ExtraImages) -> None:
    """Over 2,000 seeds each image comes first equally often (χ², 6 sd), and none comes twice."""
    drawn = [torch.randint(0, 2**31, (6,), generator=generator(seed, "extra", 0)) for seed in range(2000)]
    keys = list(torch.stack(drawn, 1))  # `permute` takes one key for each position too
    first, second = (permute(torch.full((2000,), i), 300, keys) for i in (0, 1))  # type: ignore[arg-type]
    for seed in (0, 1999):
        assert stored.order(seed, torch.arange(2)).tolist() == [int(first[seed]), int(second[seed])]
    expected = 2000 / 300
    chi2 = float(((torch.bincount(first, minlength=300) - expected) ** 2 / expected).sum())
    assert abs(chi2 - 299) < 6 * (2 * 299) ** 0.5
    steps = (second - first) % 300
    assert int(torch.bincount(steps, minlength=300).max()) < expected + 6 * expected**0.5
    assert int((steps == 0).sum()) == 0


def test_every_image_once_before_any_again(stored: ExtraImages) -> None:
    order = stored.order(0, torch.arange(900)).view(3, 300)
    for i in range(3):
        assert torch.equal(order[i].sort().values, torch.arange(300))
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order[1], order[2])
    assert not torch.equal(order[0], stored.order(1, torch.arange(300)))
    pieces = torch.cat([stored.order(0, torch.arange(a, a + 37)) for a in range(0, 888, 37)])
    assert torch.equal(pieces, order.flatten()[:888]), "however it is cut up"


def test_composition(stored: ExtraImages) -> None:
    for size, fraction, expected in (
        (512, 0.5, (256, 256)),
        (10, 0.3, (7, 3)),
        (10, 0.7, (3, 7)),
        (2, 0.5, (1, 1)),
        (100, 0.994, (1, 99)),
    ):
        assert composition(size, replace(stored, fraction=fraction)) == expected
        assert composition(size, None) == (size, 0)
    for size, fraction in ((10, 0.0), (10, 1.0), (10, -0.5), (10, 2.0), (10, 0.04), (1, 0.5), (10, math.nan)):
        with pytest.raises(
            CurvactError, match=rf"extra_fraction={fraction} of batches of {size}: in \(0, 1\)"
        ):
            composition(size, replace(stored, fraction=fraction))


@given(
    count=st.integers(1, 60),
    size=st.integers(2, 30),
    fraction=st.sampled_from([0.2, 0.5, 0.7]),
    world_size=st.integers(1, 4),
)
@settings(max_examples=25)
def test_batches_have_their_fraction_and_ranks_their_part(
    mixed: ExtraImages, count: int, size: int, fraction: float, world_size: int
) -> None:
    synthetic = round(size * fraction)
    if not 0 < synthetic < size:
        return
    data, mixed = _real(count), replace(mixed, fraction=fraction)

    def of(rank: int, world_size: int) -> list[tuple[Tensor, Tensor]]:
        return list(
            epoch_batches(
                data,
                size,
                seed=5,
                epoch=2,
                augmentation=Augmentation(crop=2, flip=True),
                extra=mixed,
                rank=rank,
                world_size=world_size,
            )
        )

    alone, parts = of(0, 1), [of(rank, world_size) for rank in range(world_size)]
    real = size - synthetic
    assert len(alone) == batches_per_epoch(data, size, mixed) == -(-count // real)
    seen = torch.cat([y[y >= 100] for _, y in alone])
    assert torch.equal(seen.sort().values, data.labels), "one pass over the real images"
    for step, (x, y) in enumerate(alone):
        assert whole_batch(data, size, step, mixed) == len(y)
        is_real = y >= 100
        if step < len(alone) - 1:
            assert (int(is_real.sum()), int((~is_real).sum())) == (real, synthetic)
        else:
            assert int((~is_real).sum()) == round(synthetic * int(is_real.sum()) / real)
        assert torch.equal(y, torch.cat([y[is_real], y[~is_real]])), "the real ones come first"
        for kind in (True, False):
            chosen = [part[step][1] >= 100 if kind else part[step][1] < 100 for part in parts]
            together = torch.cat([part[step][0][c] for part, c in zip(parts, chosen, strict=True)])
            assert torch.equal(together, x[is_real if kind else ~is_real])
            labels = torch.cat([part[step][1][c] for part, c in zip(parts, chosen, strict=True)])
            assert torch.equal(labels, y[is_real if kind else ~is_real])
            sizes = [int(c.sum()) for c in chosen]
            assert max(sizes) - min(sizes) <= 1


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ExtraImages:
    path = tmp_path_factory.mktemp("mixed") / "extra.npz"
    np.savez(path, image=_pixels(300), label=_labels(300))
    return _open(path)


def test_over_epochs_every_extra_image_comes_once_with_its_own_label(stored: ExtraImages) -> None:
    """100 real images at one half: 100 extra images an epoch, three epochs for all 300."""
    numbers, labels = [], []
    for epoch in (1, 2, 3):
        for x, y in epoch_batches(_real(100), 20, seed=0, epoch=epoch, extra=stored):
            numbers.append(_numbers((x[10:] * 255).round()))
            labels.append(y[10:])
    assert torch.equal(torch.cat(numbers).sort().values, torch.arange(300))
    assert torch.equal(torch.cat(labels), torch.from_numpy(_labels(300))[torch.cat(numbers)])
    fourth = epoch_batches(_real(100), 20, seed=0, epoch=4, extra=stored)
    again = torch.cat([_numbers((x[10:] * 255).round()) for x, _ in fourth])
    assert len(again.unique()) == 100
    assert not torch.equal(again, torch.cat(numbers)[:100])


def test_extra_images_change_neither_the_order_nor_the_augmentation_seed_of_the_real_ones(
    stored: ExtraImages,
) -> None:
    with_extra = epoch_batches(_real(100), 20, seed=0, epoch=1, extra=stored)
    without = epoch_batches(_real(100), 10, seed=0, epoch=1)
    for (x, y), (x_real, y_real) in zip(with_extra, without, strict=True):
        assert torch.equal(x[:10], x_real)
        assert torch.equal(y[:10], y_real)


def test_extra_images_are_augmented_as_the_real_ones(stored: ExtraImages) -> None:
    """The draws of an epoch: first those of the 50 real images, then those of the 50 extra ones."""
    augmentation, data = Augmentation(crop=2, flip=True, cutout=3), _real(50)
    draws = draw(100, augmentation, *SHAPE[1:], generator(0, "augment", 1))
    assert draws.flip[50:].any()
    fill = torch.tensor(data.mean)
    chosen = stored.order(0, torch.arange(50))
    expected = augment(
        stored.read(chosen), torch.arange(50), augmentation, draws[torch.arange(50, 100)], fill
    )
    got = [
        x[5:] for x, _ in epoch_batches(data, 10, seed=0, epoch=1, augmentation=augmentation, extra=stored)
    ]
    assert torch.equal(torch.cat(got), expected)


def test_what_training_refuses(tmp_path: Path, stored: ExtraImages) -> None:
    np.savez(tmp_path / "bare.npz", image=_pixels(30))
    bare = _open(tmp_path / "bare.npz")
    for use in (
        bare.require_labels,
        lambda: bare.take(torch.arange(2)),
        lambda: next(epoch_batches(_real(10), 4, seed=0, epoch=1, extra=bare)),
    ):
        with pytest.raises(CurvactError, match=r"bare\.npz has no labels: .*pseudo_label") as error:
            use()
        assert "\n" not in str(error.value)
    other = _real(10)
    other = Dataset("t/train", other.images[:, :, 1:], other.labels, other.classes, other.mean, other.std, "")
    with pytest.raises(
        CurvactError, match=r"extra\.npz holds images of shape \(3, 6, 5\); t/train has \(3, 5, 5\)"
    ):
        next(epoch_batches(other, 4, seed=0, epoch=1, extra=stored))


class _Brightest(nn.Module):
    """The class is a linear function of the pixels; it notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.Dropout()
        self.weight = nn.Parameter(torch.randn(90, CLASSES, generator=generator(0, "weights")))
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((len(x), torch.is_grad_enabled(), self.training))
        assert 0 <= float(x.min()) <= float(x.max()) <= 1
        return self.frozen(self.norm(x)).flatten(1) @ self.weight


def test_pseudo_labels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "bare.npz", image=_pixels(70))
    bare, model = _open(tmp_path / "bare.npz"), _Brightest()
    model.train()
    model.frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = pseudo_label(model, bare, tmp_path / "labels.npy", batch_size=32)
    assert path == tmp_path / "labels.npy"
    assert model.calls == [(32, False, False), (32, False, False), (6, False, False)]
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pixels = _pixels(70).transpose(0, 3, 1, 2).reshape(70, -1).astype(np.float64) / 255
    expected = (pixels @ model.weight.detach().double().numpy()).argmax(1)
    np.testing.assert_array_equal(np.load(path), expected)
    assert np.load(path).dtype == np.int64
    extra = _open(tmp_path / "bare.npz", labels=path)
    batch = next(epoch_batches(_real(10), 4, seed=0, epoch=1, extra=extra))
    assert len(batch[1]) == 4
    assert extra.sha256 != bare.sha256
    assert capfd.readouterr().out == ""


def test_pseudo_labels_that_cannot_be_written_cost_no_work(tmp_path: Path, stored: ExtraImages) -> None:
    model = _Brightest()
    for path in (tmp_path / "none" / "labels.npy", tmp_path):
        with pytest.raises(CurvactError, match="labels cannot be written to"):
            pseudo_label(model, stored, path)
    assert model.calls == []


def test_a_model_that_fails_leaves_no_labels_and_its_mode(tmp_path: Path, stored: ExtraImages) -> None:
    model, calls = _Brightest(), itertools.count()

    def fail(*_: object) -> None:
        if next(calls) == 1:
            raise RuntimeError("out of memory")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        pseudo_label(model, stored, tmp_path / "labels.npy", batch_size=100)
    assert model.training
    assert not [p for p in tmp_path.iterdir() if "labels" in p.name]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"fraction": True}, "fraction=True"),
        ({"fraction": "0.5"}, "fraction='0.5'"),
        ({"classes": 0}, "classes=0"),
        ({"classes": 2.5}, "classes=2.5"),
        ({"shape": (6, 5)}, "three in the shape"),
    ],
)
def test_bad_arguments(tmp_path: Path, change: Any, part: str) -> None:
    arguments: dict[str, Any] = {"classes": 2, "shape": (3, 6, 5), **change}
    with pytest.raises(CurvactError, match=re.escape(part)):
        open_extra(tmp_path / "x.npz", **arguments)
