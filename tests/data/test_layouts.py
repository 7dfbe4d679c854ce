"""Each layout gives back the images that were written; each bad file is one line with its name."""

from __future__ import annotations

import errno
import gzip
import os
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from curvact.data import layouts, pictures
from curvact.errors import CurvactError
from fake_data import cifar_batch, fake_arrays, idx, memory_limit, tar_gz, write_svhn

IMAGES, LABELS = fake_arrays("cifar10", 7)


def refused(path: Path, run: Callable[[], Any], *parts: str) -> None:
    """One line, which names the file and says each of the parts."""
    with pytest.raises(CurvactError) as caught:
        run()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def same(found: layouts.Labelled, images: Any = IMAGES, labels: Any = LABELS) -> None:
    assert found[0].dtype == torch.uint8
    assert found[1].dtype == torch.int64
    assert found[0].is_contiguous()
    assert np.array_equal(found[0].numpy(), images)
    assert np.array_equal(found[1].numpy(), labels)


def test_cifar_batches_in_a_folder_and_in_the_archive(tmp_path: Path) -> None:
    files = {
        "a": cifar_batch(IMAGES[:4], LABELS[:4], b"labels"),
        "b": cifar_batch(IMAGES[4:], LABELS[4:], b"labels"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    same(layouts.cifar(tmp_path, ["a", "b"], "labels"))
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(tar_gz({f"inner/{name}": data for name, data in files.items()}))
    same(layouts.cifar(archive, ["a", "b"], "labels"))
    refused(archive, lambda: layouts.cifar(archive, ["a", "c"], "labels"), "no c")
    refused(tmp_path / "c", lambda: layouts.cifar(tmp_path, ["a", "c"], "labels"), "no ")
    whole = archive.read_bytes()
    for size in (0, 10, len(whole) // 2):
        archive.write_bytes(whole[:size])
        refused(archive, lambda: layouts.cifar(archive, ["a", "b"], "labels"))


def test_cifar_batch_as_python_2_and_as_python_3_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    for protocol in (0, 2, 3, 4, 5):
        content = {"data": IMAGES.reshape(7, -1), "labels": LABELS.tolist(), "filenames": ["ü"] * 7}
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        same(layouts.cifar_batch(path))
    # Python 2's pickles name numpy.core, not numpy._core.
    data = cifar_batch(IMAGES, LABELS, b"labels").replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(data)
    same(layouts.cifar_batch(path))


class Evil:
    """Unpickled as usual, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "pwned"
    path = tmp_path / "data_batch_1"
    content = {b"data": IMAGES.reshape(7, -1), b"labels": Evil(marker)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    refused(path, lambda: layouts.cifar_batch(path), "it wants", "mkdir")
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(tR.",
        b"cos\nsystem\n(S'x'\ntR.",
    ],
)
def test_only_arrays_are_admitted(tmp_path: Path, call: bytes) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(call)
    refused(path, lambda: layouts.cifar_batch(path), "it wants")


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts otherwise elsewhere")
def test_a_damaged_batch_does_not_allocate_gigabytes(tmp_path: Path) -> None:
    """LONG_BINPUT names the index 2³⁰ of the memo: 17 GB in the unpickler of C."""
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x3f.")
    with memory_limit(200):
        refused(path, lambda: layouts.cifar_batch(path), "it has no 'data'")


@settings(max_examples=25)
@given(st.data())
def test_a_damaged_batch_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(cifar_batch(IMAGES[:1], LABELS[:1], b"labels"))
    at = data.draw(st.one_of(st.integers(0, 200), st.integers(len(whole) - 120, len(whole) - 1)))
    whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("x") / "batch"
    path.write_bytes(whole[: data.draw(st.sampled_from([len(whole), at]))])
    try:
        images, labels = layouts.cifar_batch(path)
    except CurvactError as error:
        message = str(error)
    else:
        message = str(path)
        assert images.shape[1:] == (3, 32, 32)
        assert len(images) == len(labels)
    assert str(path) in message


def test_cifar_batches_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "batch"

    def holds(content: Any, *parts: str) -> None:
        path.write_bytes(pickle.dumps(content, protocol=2))
        refused(path, lambda: layouts.cifar_batch(path), *parts)

    flat = IMAGES.reshape(7, -1)
    holds([1, 2], "list")
    holds({b"data": flat}, "no 'labels'")
    holds({b"data": flat, b"fine_labels": [0] * 7}, "no 'labels'")
    holds({b"data": flat[:, :100], b"labels": [0] * 7}, "(7, 100)")
    holds({b"data": flat.astype(np.float32), b"labels": [0] * 7}, "float32")
    holds({b"data": flat, b"labels": [0] * 6}, "6 labels for 7 images")
    holds({b"data": flat, b"labels": ["cat"] * 7}, "labels")
    holds({b"data": flat, b"labels": [[0], [1, 2]]}, "labels")
    holds({b"data": flat[:0], b"labels": []})


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    images, labels = fake_arrays("mnist", 5)
    a, b = tmp_path / "images", tmp_path / "labels"
    pack: Callable[[bytes], bytes] = gzip.compress if packed else bytes
    a.write_bytes(pack(idx(images[:, 0])))
    b.write_bytes(pack(idx(labels)))
    same(layouts.idx(a, b), images, labels)
    whole = a.read_bytes()
    for size in (0, 3, 10, len(whole) // 2, len(whole) - 1):
        a.write_bytes(whole[:size])
        refused(a, lambda: layouts.idx(a, b))
    a.write_bytes(pack(idx(images[:, 0]) + b"x"))
    refused(a, lambda: layouts.idx(a, b), "too long")
    a.write_bytes(pack(idx(labels)))
    refused(a, lambda: layouts.idx(a, b), "3 dimensions")
    a.write_bytes(pack(idx(images[:4, 0])))
    refused(b, lambda: layouts.idx(a, b), "5 labels for 4 images", str(a))
    refused(tmp_path / "none", lambda: layouts.idx(tmp_path / "none", b))


def test_an_idx_header_larger_than_any_file(tmp_path: Path) -> None:
    a, b = tmp_path / "images", tmp_path / "labels"
    a.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
    b.write_bytes(idx(LABELS))
    refused(a, lambda: layouts.idx(a, b), "needs")


def test_svhn(tmp_path: Path) -> None:
    images, labels = fake_arrays("svhn", 10)
    path = tmp_path / "train_32x32.mat"
    write_svhn(path, images, labels)
    assert 0 in labels
    same(layouts.svhn(path), images, labels)
    whole = path.read_bytes()
    for size in (0, 50, 130, len(whole) // 2):
        path.write_bytes(whole[:size])
        refused(path, lambda: layouts.svhn(path))
    x, y = images.transpose(2, 3, 1, 0), np.ones((10, 1), np.uint8)
    for content, part in (
        ({"X": x}, "no 'y'"),
        ({"X": x, "y": y * 0}, "1 … 10"),
        ({"X": x, "y": y * 11}, "1 … 10"),
        ({"X": x, "y": y[:3]}, "3 labels for 10 images"),
        ({"X": x / 255, "y": y}, "float64"),
        ({"X": x[..., 0], "y": y}, "H×W×C×N"),
    ):
        savemat(path, content)
        refused(path, lambda: layouts.svhn(path), part)


@pytest.mark.parametrize("channels_last", [False, True])
def test_npz_and_npy(tmp_path: Path, channels_last: bool) -> None:
    stored = IMAGES.transpose(0, 2, 3, 1) if channels_last else IMAGES
    path = tmp_path / "x.npz"
    keys = ("images", "image"), ("labels", "label")
    for names in (("image", "label"), ("images", "labels")):
        np.savez(path, **dict(zip(names, (stored, LABELS), strict=True)))
        same(layouts.npz(path, *keys))
    # Labels as a column, as Keras and MedMNIST have them.
    np.savez_compressed(path, images=stored, labels=LABELS[:, None].astype(np.uint8))
    same(layouts.npz(path, *keys))
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        refused(path, lambda: layouts.npz(path, *keys))
    np.savez(path, pictures=stored)
    refused(path, lambda: layouts.npz(path, *keys), "images, image", "pictures")
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(a, np.asfortranarray(stored))
    np.save(b, LABELS.astype(np.uint8))
    same(layouts.npy(a, b))
    refused(tmp_path / "c.npy", lambda: layouts.npy(a, tmp_path / "c.npy"))
    np.save(b, np.array([Evil(tmp_path / "pwned")] * 7, dtype=object), allow_pickle=True)
    refused(b, lambda: layouts.npy(a, b))
    assert not (tmp_path / "pwned").exists()


def picture(path: Path, array: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of lossless 6×6 images: colour, grey, with alpha, and in a subfolder."""
    pixels = IMAGES[:, :, :6, :6].transpose(0, 2, 3, 1)
    place = tmp_path / "photos"
    picture(place / "cat" / "b.png", pixels[0])
    picture(place / "cat" / "a.bmp", pixels[1])
    picture(place / "dog" / "x" / "c.PNG", pixels[2][..., 0])
    picture(place / "dog" / "d.png", np.dstack([pixels[3], np.full((6, 6), 7, np.uint8)]))
    (place / "dog" / "notes.txt").write_text("no image")
    (place / ".git").mkdir()
    return place


def test_image_folder(folder: Path) -> None:
    pixels = IMAGES[:, :, :6, :6]
    assert layouts.folder_classes(folder) == ("cat", "dog")
    grey = np.repeat(pixels[2][:1], 3, 0)
    found = layouts.image_folder(folder, ("cat", "dog"), None)
    same(found, np.stack([pixels[1], pixels[0], pixels[3], grey]), [0, 0, 1, 1])


def test_images_are_decoded_once_and_again_after_any_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    real = layouts._picture
    monkeypatch.setattr(
        layouts, "_picture", lambda path, *a, **k: (decoded.append(path.name), real(path, *a, **k))[1]
    )

    def read(size: int | None = None) -> tuple[layouts.Labelled, int]:
        decoded.clear()
        return layouts.image_folder(folder, ("cat", "dog"), size), len(decoded)

    first, count = read()
    assert count == 4
    again, count = read()
    assert count == 0
    same(again, first[0].numpy(), first[1].numpy())
    assert read(3)[1] == 4
    assert read(3)[1] == 0
    assert read()[1] == 0
    changed = folder / "cat" / "b.png"
    os.utime(changed, ns=(1, 1))
    assert read()[1] == 4
    changed.rename(folder / "dog" / "b.png")
    (_, labels), count = read()
    assert (count, labels.tolist()) == (4, [0, 1, 1, 1])
    (folder / "cat" / "._a.bmp").write_bytes(b"resource fork")
    assert len(read()[0][0]) == 4
    # One cache a size, nothing half-written, and no cache is a class of its own.
    assert len(list(folder.parent.glob(".photos-*"))) == 2
    assert layouts.folder_classes(folder) == ("cat", "dog")


def test_a_damaged_cache_is_named(folder: Path) -> None:
    layouts.image_folder(folder, ("cat", "dog"), None)
    (cache,) = folder.parent.glob(".photos-*.npy")
    cache.write_bytes(cache.read_bytes()[:-5])
    refused(cache, lambda: layouts.image_folder(folder, ("cat", "dog"), None))


def test_where_no_cache_can_be_written_the_images_are_still_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    for module, name in ((layouts.os, "replace"), (layouts.np, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            assert len(layouts.image_folder(folder, ("cat", "dog"), None)[0]) == 4
        assert not list(folder.parent.glob(".photos-*"))


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "webp", "tif"])
def test_truncated_images_are_named(folder: Path, ending: str) -> None:
    path = picture(folder / "dog" / f"z.{ending}", IMAGES[0, :, :6, :6].transpose(1, 2, 0))
    whole = path.read_bytes()
    # GIF and WebP lose nothing that pillow misses when only the trailer is gone.
    for size in (0, 5, len(whole) // 2):
        path.write_bytes(whole[:size])
        refused(path, lambda: layouts.image_folder(folder, ("cat", "dog"), None))
    assert not list(folder.parent.glob(".photos-*"))


def test_bad_folders(folder: Path) -> None:
    def read() -> layouts.Labelled:
        return layouts.image_folder(folder, ("cat", "dog"), None)

    (folder / "eel").mkdir()
    refused(folder, read, "'eel'")
    refused(folder / "eel", lambda: layouts.image_folder(folder, ("cat", "dog", "eel"), None), "no images")
    (folder / "eel").rmdir()
    odd = picture(folder / "dog" / "odd.png", IMAGES[0, :, :6, :5].transpose(1, 2, 0))
    refused(odd, read, "6×5", "give a size")


@pytest.mark.parametrize(
    ("mode", "ending", "part"),
    [
        ("I;16", "png", "more than 8 bits"),
        ("I;16", "tif", "more than 8 bits"),
        ("I", "tif", "more than 8 bits"),
        ("F", "tif", "more than 8 bits"),
    ],
)
def test_pictures_of_more_than_8_bits_are_refused(folder: Path, mode: str, ending: str, part: str) -> None:
    path = folder / "dog" / f"deep.{ending}"
    Image.new(mode, (6, 6), 4095).save(path)
    refused(path, lambda: layouts.image_folder(folder, ("cat", "dog"), None), part)


def test_colour_of_16_bits_is_refused(folder: Path) -> None:
    """Pillow would keep the high byte of each channel and say nothing."""
    rows = b"".join(b"\0" + bytes(6 * 3 * 2) for _ in range(6))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 6, 6, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in (*chunks, (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + name + content
        data += struct.pack(">I", zlib.crc32(name + content))
    path = folder / "dog" / "deep.png"
    path.write_bytes(data)
    with Image.open(path) as image:
        assert image.mode == "RGB"
    refused(path, lambda: layouts.image_folder(folder, ("cat", "dog"), None), "more than 8 bits", ";16")


def test_each_mode_of_8_bits_keeps_its_colours(tmp_path: Path) -> None:
    """The picture is a ramp. In a palette, and as CMYK, its values are the same as in RGB."""
    ramp = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    colour = np.dstack([ramp, ramp[::-1], ramp.T])
    alpha = np.full((8, 8), 9, np.uint8)
    cases = {
        "RGB": (Image.fromarray(colour), colour),
        "RGBA": (Image.fromarray(np.dstack([colour, alpha])), colour),
        "P": (Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE), colour),
        "CMYK": (Image.merge("CMYK", [Image.fromarray(255 - c) for c in (*colour.T, alpha * 0 + 255)]), None),
        "L": (Image.fromarray(ramp), ramp),
        "LA": (Image.merge("LA", [Image.fromarray(ramp), Image.fromarray(alpha)]), ramp),
        "1": (Image.fromarray(ramp > 100), (ramp > 100) * 255),
    }
    for number, (mode, (image, wanted)) in enumerate(cases.items()):
        assert image.mode == mode
        place = tmp_path / str(number) / "a"
        place.mkdir(parents=True)
        image.save(place / ("x.tif" if mode == "CMYK" else "x.png"))
        if wanted is None:
            wanted = np.asarray(image)[..., :3].astype(int)
            wanted = 255 - wanted
        found = layouts.image_folder(tmp_path / str(number), ("a",), None)[0][0].numpy()
        assert np.array_equal(found, wanted[None] if wanted.ndim == 2 else wanted.transpose(2, 0, 1)), mode


def test_a_grey_folder_has_one_channel_and_images_need_not_be_square(tmp_path: Path) -> None:
    pixels = IMAGES[:2, 0, :6, :9]
    for number in range(2):
        picture(tmp_path / "a" / f"{number}.png", pixels[number])
    found, _ = layouts.image_folder(tmp_path, ("a",), None)
    assert np.array_equal(found.numpy(), pixels[:, None])
    assert layouts.image_folder(tmp_path, ("a",), 4)[0].shape == (2, 1, 4, 4)
    picture(tmp_path / "a" / "2.png", np.dstack([pixels[0]] * 3))
    found, _ = layouts.image_folder(tmp_path, ("a",), None)
    assert np.array_equal(found[:2].numpy(), np.repeat(pixels[:, None], 3, 1))


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(folder / "dog" / "huge.png", np.zeros((50, 60), np.uint8))
    monkeypatch.setattr(pictures, "PIXELS", 2999)
    refused(path, lambda: layouts.image_folder(folder, ("cat", "dog"), 6), "60×50", "2,999")


def test_resize_of_a_rectangle_is_that_of_its_centre() -> None:
    images = torch.from_numpy(IMAGES)[:, :, :, 8:24]
    assert torch.equal(layouts.resize(images, 16), images[:, :, 8:24])
    assert layouts.resize(images, 8).shape == (7, 3, 8, 8)


def test_scaling_of_pictures_keeps_the_aspect_and_cuts_out_the_centre(tmp_path: Path) -> None:
    """Four stripes of 8 pixels: the centre of the wide picture is the middle two."""
    row = np.repeat(np.array([0, 80, 160, 240], np.uint8), 8)
    wide = np.tile(row, (16, 1))
    for array in (wide, wide.T):
        path = picture(tmp_path / "a" / "x.png", array)
        images, _ = layouts.image_folder(tmp_path, ("a",), 8)
        cut = images[0, 0] if array is wide else images[0, 0].T
        assert images.shape == (1, 1, 8, 8)
        # The columns next to an edge between stripes are mixed by the filter; the others are exact.
        assert cut[:, [1, 2]].unique().tolist() == [80]
        assert cut[:, [5, 6]].unique().tolist() == [160]
        path.unlink()


def test_resize_is_antialiased() -> None:
    """A checkerboard of pixels becomes its mean. Without antialiasing, size 4 picks single pixels."""
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 200
    images = board.to(torch.uint8).expand(2, 3, 16, 16).contiguous()
    for size in (8, 4):
        small = layouts.resize(images, size)
        assert small.dtype == torch.uint8
        assert small.shape == (2, 3, size, size)
        assert int((small[..., 1:-1, 1:-1].int() - 100).abs().max()) <= 1
    assert layouts.resize(images, 16) is images


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 255))
def test_resize_keeps_constants_and_range(source: int, size: int, value: int) -> None:
    flat = torch.full((1, 1, source, source), value, dtype=torch.uint8)
    assert layouts.resize(flat, size).unique().tolist() == [value]
    noise = torch.from_numpy(np.random.default_rng(value).integers(0, 256, (3, 1, source, source), np.uint8))
    out = layouts.resize(noise, size)
    assert int(out.min()) >= int(noise.min())
    assert int(out.max()) <= int(noise.max())
    # Pillow has its own antialiased bilinear filter. Rounding differs: at most two levels.
    for mine, image in zip(out, noise, strict=True):
        theirs = np.asarray(Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(mine[0].numpy().astype(int) - theirs.astype(int)).max() <= 2


def test_errors_of_libraries_become_one_line() -> None:
    assert pictures.short(ValueError("a\n b" + 300 * "c")) == "a b" + 197 * "c"
    assert pictures.short(EOFError()) == "EOFError"
