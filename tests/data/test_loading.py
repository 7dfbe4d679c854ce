"""`load`: the root, sizes and limits; paths to folders, .npz and .npy; bad places in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from curvact.data import Splits, data_root, load
from curvact.errors import CurvactError
from fake_data import fake_arrays, pairs, write_fake


def sizes(splits: Splits) -> list[int]:
    return [len(s) for s in (splits.train, splits.validation, splits.test)]


def test_the_root_is_the_argument_then_the_environment_then_data(
    tmp_path: Path, fake_data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CURVACT_DATA", raising=False)
    assert data_root() == Path("data")
    monkeypatch.setenv("CURVACT_DATA", str(fake_data_root))
    assert data_root() == fake_data_root
    assert data_root(tmp_path) == tmp_path
    assert load("svhn").train.sha256 == load("svhn", root=fake_data_root).train.sha256


def test_a_second_call_reads_nothing(tmp_path: Path) -> None:
    folder = write_fake("svhn", tmp_path)
    first = load("svhn", root=tmp_path)
    for file in folder.iterdir():
        file.unlink()
    assert load("svhn", root=tmp_path).train.images.data_ptr() == first.train.images.data_ptr()


def test_limits_and_sizes(fake_data_root: Path) -> None:
    whole = load("cifar100", root=fake_data_root)
    part = load("cifar100", root=fake_data_root, train=8, validation=2, test=4)
    assert sizes(part) == [8, 2, 4]
    assert torch.equal(part.train.images, whole.train.images[:8])
    assert part.train.mean == whole.train.mean
    big = load("digits", size=16)
    assert big.train.images.shape == (1258, 1, 16, 16)
    assert torch.equal(big.train.labels, load("digits").train.labels)
    for bad in (0, -3, 2.5, True):
        with pytest.raises(CurvactError, match="size="):
            load("digits", size=bad)  # type: ignore[arg-type]
    with pytest.raises(CurvactError, match="test=0"):
        load("digits", test=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """15 pictures of each of two classes, of many sizes."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(15):
            pixels = random.integers(0, 256, (20 + number, 30 - number, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_a_folder_of_classes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    with pytest.raises(CurvactError, match="give a size"):
        load("./photos")
    splits = load("./photos", size=12)
    assert sizes(splits) == [21, 3, 6]
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.images.shape[1:] == (3, 12, 12)
    assert splits.train.name == "photos/train"
    assert load(str(photos), size=12).test.sha256 == splits.test.sha256
    # The same relative path elsewhere is another data set.
    (photos.parent / "empty").mkdir()
    monkeypatch.chdir(photos.parent / "empty")
    with pytest.raises(CurvactError, match="no data at"):
        load("./photos", size=12)


def test_a_folder_with_train_and_val(photos: Path) -> None:
    whole = photos.parent / "whole"
    whole.mkdir()
    photos.rename(whole / "train")
    for name in ("cat", "dog"):
        (whole / "val" / name).mkdir(parents=True)
    (whole / "train" / "dog" / "3.png").rename(whole / "val" / "dog" / "3.png")
    with pytest.raises(CurvactError, match=r"val/cat holds no images"):
        load(str(whole), size=8)
    (whole / "val" / "cat").rmdir()
    splits = load(str(whole), size=8)
    assert sizes(splits) == [26, 3, 1]
    assert splits.test.labels.tolist() == [1]
    (whole / "val" / "eel").mkdir()
    with pytest.raises(CurvactError, match="'eel'"):
        load(str(whole), size=9)


@pytest.mark.parametrize("keys", [("x_train", "y_train", "x_test", "y_test"), ("images", "labels")])
def test_an_npz(tmp_path: Path, keys: tuple[str, ...]) -> None:
    training, testing = fake_arrays("mnist", 40), fake_arrays("mnist", 10, part=1)
    arrays = dict(zip(keys, [training[0][:, 0], training[1], testing[0][:, 0], testing[1]], strict=False))
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    splits = load(str(path))
    assert sizes(splits) == ([36, 4, 10] if len(keys) == 4 else [28, 4, 8])
    assert splits.train.classes == tuple("0123456789")
    assert splits.train.images.shape[1:] == (1, 28, 28)
    assert load(str(path), size=14).test.images.shape[1:] == (1, 14, 14)


def test_test_images_of_another_size_or_number_of_channels(tmp_path: Path) -> None:
    path, labels = tmp_path / "x.npz", np.arange(20) % 2
    images = np.zeros((20, 8, 8, 3), np.uint8)
    np.savez(path, x_train=images, y_train=labels, x_test=images[:, :6], y_test=labels)
    with pytest.raises(CurvactError, match=r"training images of 8×8 pixels, test images of 6×8: give a size"):
        load(str(path))
    assert load(str(path), size=4).test.images.shape == (20, 3, 4, 4)
    np.savez(path, x_train=images, y_train=labels, x_test=images[..., 0], y_test=labels)
    with pytest.raises(CurvactError, match=r"training images of 3 channels, test images of 1"):
        load(str(path), size=5)


def test_a_pair_of_npy(tmp_path: Path) -> None:
    training = fake_arrays("cifar10", 20)
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / "train_images.npy", training[0])
    with pytest.raises(CurvactError, match=r"train_labels\.npy"):
        load(str(folder))
    np.save(folder / "train_labels.npy", training[1])
    splits = load(str(folder))
    assert sizes(splits) == [14, 2, 4]
    assert pairs(splits.train, splits.validation, splits.test) == pairs(training)
    np.save(folder / "train_labels.npy", np.where(training[1] == 4, 11, training[1]))
    with pytest.raises(CurvactError, match="no image of class 4") as caught:
        load(str(folder), size=8)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no data at"),
        ("x.csv", "x.csv"),
        ("empty", "0 class folders"),
        ("one", "1 class folders"),
        ("few", "at least 10"),
    ],
)
def test_bad_places(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    if name == "x.csv":
        path.write_text("1,2")
    elif name != "nothing":
        path.mkdir()
    for number in range({"one": 1, "few": 2}.get(name, 0)):
        (path / str(number)).mkdir()
        Image.new("RGB", (4, 4)).save(path / str(number) / "x.png")
    with pytest.raises(CurvactError, match=message) as caught:
        load(str(path))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_is_a_place_and_never_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = fake_arrays("mnist", 20)
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    monkeypatch.chdir(tmp_path)
    assert load(Path("digits.npz")).train.sha256 == load("./digits.npz").train.sha256
    with pytest.raises(CurvactError, match="no data at"):
        load(Path("digits"))
    for name, part in ((3, "named 3"), (None, "named None"), ("./" + "x" * 5000, "no data at")):
        with pytest.raises(CurvactError, match=part):
            load(name)  # type: ignore[arg-type]
