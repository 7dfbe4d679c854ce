"""Files of strangers: damaged, hostile, or no files at all. One line each, soon, in little memory."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import shutil
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from curvact.data import layouts, load, loading, open_extra, reading
from curvact.data.matlab import read_mat
from curvact.errors import CurvactError
from fake_data import fake_arrays, idx, memory_limit, tar_gz, write_fake

IMAGES, LABELS = fake_arrays("mnist", 30)


def refused(run: Callable[[], Any], *parts: str) -> None:
    """One line, within two seconds of computing."""
    started = time.process_time()
    with pytest.raises(CurvactError) as caught:
        run()
    assert time.process_time() - started < 2
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def raw_npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


# ---- labels and sizes ----


def test_a_label_of_a_billion_makes_no_names(tmp_path: Path) -> None:
    labels = LABELS.astype(np.int64)
    labels[4] = 10**9
    path = npz(tmp_path / "x.npz", images=IMAGES, labels=labels)
    with memory_limit(300):
        refused(lambda: load(str(path)), str(path), "1000000000", "100,000 classes")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 28, 28), }\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (30, 28, 27), }\n",
        "{'descr': '|O', 'fortran_order': False, 'shape': (30,), }\n",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,), }\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (30, 28",
        "((((((((((" * 300,
        "'unfinished",
        "",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_headers_of_npy(tmp_path: Path, header: str, packed: bool) -> None:
    data = raw_npy(header, IMAGES.tobytes())
    with memory_limit(300):
        if packed:
            path = tmp_path / "x.npz"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("images.npy", data)
                archive.writestr("labels.npy", data)
            refused(lambda: load(str(path)), str(path))
        else:
            path = tmp_path / "train_images.npy"
            path.write_bytes(data)
            np.save(tmp_path / "train_labels.npy", LABELS)
            refused(lambda: load(str(tmp_path)), str(path))
        refused(lambda: open_extra(path, classes=10, shape=(1, 28, 28)), str(path))


def test_an_npy_with_more_than_its_header_says_is_refused(tmp_path: Path) -> None:
    """A flipped bit in the shape must not quietly leave images out."""
    np.save(tmp_path / "train_images.npy", IMAGES)
    np.save(tmp_path / "train_labels.npy", LABELS)
    path = tmp_path / "train_images.npy"
    path.write_bytes(path.read_bytes().replace(b"(30, 1, 28, 28)", b"(10, 1, 28, 28)"))
    refused(lambda: load(str(tmp_path)), "too long", "(10, 1, 28, 28)")


@pytest.mark.parametrize("packed", [False, True])
def test_idx_of_more_than_any_file(tmp_path: Path, packed: bool) -> None:
    images = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31)
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(images) if packed else images)
    (tmp_path / "labels").write_bytes(idx(LABELS))
    with memory_limit(200):
        refused(lambda: layouts.idx(path, tmp_path / "labels"), str(path))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"train": 1.5}, "train=1.5"),
        ({"test": True}, "test=True"),
        ({"validation": 0}, "validation=0"),
        ({"size": 10**6}, "size=1000000 of digits: a whole number of pixels in 1 … 4096"),
        ({"size": 2.0}, "size=2.0"),
    ],
)
def test_numbers_of_load(arguments: Any, part: str) -> None:
    refused(lambda: load("digits", **arguments), part)


def test_images_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(load("digits", size=8).test) == 359
    monkeypatch.setattr(reading, "machine_memory", lambda: 10**6)
    refused(lambda: load("digits", size=29), "digits needs", "this machine has 1,000,000")


# ---- archives ----


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros pack a thousandfold. The limit is lowered, so that a small bomb shows it."""
    monkeypatch.setattr(reading, "SMALL", 2**20)
    zeros = np.zeros((3000, 28, 28), np.uint8)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=zeros, labels=np.arange(3000) % 2)
    refused(lambda: load(str(path)), str(path), "more than 100 times")
    refused(lambda: open_extra(path, classes=2, shape=(1, 28, 28)), "more than 100 times")
    (tmp_path / "images").write_bytes(gzip.compress(idx(zeros)))
    (tmp_path / "labels").write_bytes(idx(np.zeros(3000)))
    refused(lambda: layouts.idx(tmp_path / "images", tmp_path / "labels"), "more than 100 times")
    archive = tmp_path / "c.tar.gz"
    archive.write_bytes(tar_gz({"other": bytes(2**22), "a": b""}))
    refused(lambda: layouts.cifar(archive, ["a"], "labels"), "more than 100 times")
    matlab = tmp_path / "train_32x32.mat"
    savemat(matlab, {"X": np.zeros((32, 32, 3, 500), np.uint8), "y": np.ones((500, 1))}, do_compression=True)
    refused(lambda: layouts.svhn(matlab), "more than 100 times")


def test_encrypted_and_odd_members(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    for at, value in ((8, 1), (10, 99), (10, 9)):  # the flag of encryption; unknown compressions
        data = bytearray(whole)
        data[start + at] = value
        path.write_bytes(data)
        refused(lambda: load(str(path)), str(path))
        refused(lambda: open_extra(path, classes=10, shape=(1, 28, 28)), str(path))


def test_a_flipped_bit_of_mapped_images_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapping reads no checksum; a large file is checked once, and again when it changes."""
    path = npz(tmp_path / "x.npz", image=IMAGES, label=LABELS)

    def opened() -> Any:
        return open_extra(path, classes=10, shape=(1, 28, 28))

    whole = path.read_bytes()
    at = whole.index(IMAGES.tobytes()[:64]) + 5000
    damaged = bytearray(whole)
    damaged[at] ^= 4
    for small in (reading.SMALL, 10):
        monkeypatch.setattr(reading, "SMALL", small)
        path.write_bytes(whole)
        assert len(opened()) == 30
        assert len(opened()) == 30
        path.write_bytes(damaged)
        os.utime(path, ns=(1, 1))
        refused(opened, str(path), "another checksum")
    assert (tmp_path / ".x.npz.checked").is_file()


# ---- pickles and .mat ----


def test_cifar_batches_with_odd_content(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    flat = fake_arrays("cifar10", 7)[0].reshape(7, -1)
    shared: list[Any] = [0] * 10
    for _ in range(9):
        shared = [shared] * 10  # ten billion numbers, in a hundred references
    for content, part in (
        ({b"\xff\xfe": 1, b"data": flat, b"labels": [0] * 7}, None),
        ({b"\xff\xfe": 1}, "no 'data'"),
        ({b"data": shared, b"labels": [0]}, "its data are a list"),
        ({b"data": flat, b"labels": shared}, "labels"),
        ({b"data": flat, b"labels": [10**400] * 7}, "labels"),
        ({b"data": flat, b"labels": [[1], [2, 3]]}, "labels"),
        ({b"data": flat, b"labels": {1: 2}}, "its labels are a dict"),
        ({b"data": flat.astype(object), b"labels": [0] * 7}, "object"),
    ):
        path.write_bytes(pickle.dumps(content, protocol=2))
        if part is None:
            assert layouts.cifar_batch(path)[0].shape == (7, 3, 32, 32)
        else:
            refused(lambda: layouts.cifar_batch(path), str(path), part)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts otherwise elsewhere")
def test_a_pickle_that_asks_for_an_array_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        call = b"c" + module + b"\n_reconstruct\n(cnumpy\nndarray\n(I3000000000\ntS'b'\ntR."
        path.write_bytes(call)
        with memory_limit(200):
            refused(lambda: layouts.cifar_batch(path), str(path))
    path.write_bytes(b"cnumpy\nndarray\n(I3000000000\ntR.")
    refused(lambda: layouts.cifar_batch(path), str(path))


@pytest.mark.parametrize("packed", [False, True])
def test_mat_is_what_scipy_writes(tmp_path: Path, packed: bool) -> None:
    values = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "A": values.integers(0, 256, (3, 4, 2, 5), np.uint8),
        "B": values.random((4, 1)),
        "C": np.arange(6, dtype=np.int16).reshape(2, 3),
        "D": np.array([[7]], np.uint8),
        "E": values.random((2, 2)).astype(np.float32),
    }
    path = tmp_path / "x.mat"
    savemat(path, {**arrays, "text": "abc", "cell": np.array([1, "a"], object)}, do_compression=packed)
    found = read_mat(path, tuple(arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    for name in ("text", "cell"):
        refused(lambda name=name: read_mat(path, (name,)), str(path), f"'{name}' is no array of real numbers")
    path.write_bytes(path.read_bytes().replace(b"IM", b"ZZ", 1))
    refused(lambda: read_mat(path, ("A",)), "version 5")


def test_a_mat_of_terabytes(tmp_path: Path) -> None:
    body = struct.pack("<2I", 14, 2**32 - 8) + bytes(64)
    path = tmp_path / "x.mat"
    header = bytes(124) + b"\x00\x01IM"
    for element in (body, struct.pack("<2I", 15, len(zlib.compress(body))) + zlib.compress(body)):
        path.write_bytes(header + element)
        with memory_limit(200):
            refused(lambda: read_mat(path, ("X",)), str(path))


# ---- no files, and odd names ----


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    refused(lambda: load(str(tmp_path / "x.npz")), "no regular file")
    refused(lambda: open_extra(tmp_path / "x.npz", classes=2, shape=(1, 8, 8)), "no regular file")
    os.mkfifo(tmp_path / "train_images.npy")
    refused(lambda: load(str(tmp_path)), "no regular file")
    (tmp_path / "cifar10").mkdir()
    os.mkfifo(tmp_path / "cifar10" / "cifar-10-python.tar.gz")
    refused(lambda: load("cifar10", root=tmp_path), "no regular file")
    (tmp_path / "mnist").mkdir()
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            os.mkfifo(tmp_path / "mnist" / f"{part}-{kind}-ubyte")
    refused(lambda: load("mnist", root=tmp_path), "no regular file")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes here")
def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    for name in ("cat", "dog"):
        for number in range(8):
            path = tmp_path / odd / name / f"{number}{odd}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(IMAGES[number, 0]).save(path)
    splits = load(str(tmp_path / odd))
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.name.encode() == b"caf\\udce9/train"
    (tmp_path / odd / odd).mkdir()
    refused(lambda: load(str(tmp_path / odd), size=8), "no UTF-8", "caf\\xe9")


# ---- any damage ----


def _mutated(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.15:
        return data[: draw.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        near, end = draw.random(), len(changed)
        at = draw.randrange(end) if near < 0.3 else draw.randrange(min(end, 200))
        at = end - 1 - at if near > 0.65 else at
        if draw.random() < 0.5:
            changed[at] ^= 1 << draw.randrange(8)
        else:
            changed[at : at + 4] = bytes([draw.choice([0, 0xFF, 0x7F])] * 4)
    return bytes(changed)


NAMED = ("mnist", "cifar10", "cifar100", "svhn")
PLACES = (*NAMED, "a.npz", "b.npz", "pair", "photos", "extra.npz", "extra.npy")


@pytest.fixture(scope="module")
def layouts_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layouts")
    for name in ("mnist", "cifar100", "svhn"):
        write_fake(name, root)
    write_fake("cifar10", root, count=15)
    np.savez(root / "a.npz", images=IMAGES, labels=LABELS)
    np.savez_compressed(root / "b.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    (root / "pair").mkdir()
    np.save(root / "pair" / "train_images.npy", IMAGES)
    np.save(root / "pair" / "train_labels.npy", LABELS)
    for name in "ab":
        for number, ending in enumerate(("png", "jpg", "bmp", "gif", "webp", "tif")):
            path = root / "photos" / name / f"{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(IMAGES[number, 0]).save(path)
    np.savez(root / "extra.npz", image=IMAGES, label=LABELS)
    np.save(root / "extra.npy", IMAGES)
    return root


def _problem(place: Path, root: Path) -> str:
    """Why the data at a place cannot be loaded, or an empty text."""
    try:
        if place.name.startswith("extra"):
            open_extra(place, classes=10, shape=(1, 28, 28))
        elif place.name in NAMED:
            load(place.name, root=root)
        else:
            load(str(place), size=8)
    except CurvactError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::curvact.data.OtherDataWarning")
@pytest.mark.parametrize("name", PLACES)
def test_any_damage_is_one_line(layouts_on_disk: Path, tmp_path: Path, name: str) -> None:
    draw = random.Random(name)
    good, place = layouts_on_disk / name, tmp_path / name
    refusals = 0
    for _ in range(25):
        if place.is_dir():
            shutil.rmtree(place)
        shutil.copytree(good, place) if good.is_dir() else shutil.copy(good, place)
        files = sorted(p for p in (place.rglob("*") if place.is_dir() else [place]) if p.is_file())
        file = draw.choice(files)
        file.write_bytes(_mutated(file.read_bytes(), draw))
        loading._load_named.cache_clear()
        loading._load_place.cache_clear()
        started = time.process_time()
        message = _problem(place, tmp_path)
        assert "\n" not in message
        assert not message or name in message
        refusals += bool(message)
        assert time.process_time() - started < 2
    assert refusals >= 5


def test_the_damage_is_reported_for_what_it_is() -> None:
    """`_mutated` changes something, and the same draws make the same damage."""
    data = bytes(range(256)) * 4
    some = [_mutated(data, random.Random(k)) for k in range(20)]
    assert some == [_mutated(data, random.Random(k)) for k in range(20)]
    assert sum(damaged != data for damaged in some) >= 15
