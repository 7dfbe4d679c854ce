"""`load`: every name, every layout of it, paths, sizes and limits; the split never moves; what is missing is said."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from curvact.data import DATASETS, OtherDataWarning, Splits, data_root, load
from curvact.data.catalog import CIFAR100, IMAGENETTE
from curvact.data.dataset import content_hash
from curvact.errors import CurvactError
from fake_data import cifar_batch, fake_arrays, idx, tar_gz, write_fake, write_svhn

ARRAYS = [name for name in DATASETS if name not in ("digits", "imagenette")]
quiet = pytest.mark.filterwarnings("ignore::curvact.data.OtherDataWarning")


def everything(splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    parts = splits.train, splits.validation
    return torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts])


def pairs(images: Any, labels: Any) -> list[tuple[bytes, int]]:
    return sorted((np.asarray(i).tobytes(), int(t)) for i, t in zip(images, labels, strict=True))


def hashes(splits: Splits) -> list[str]:
    return [splits.train.sha256, splits.validation.sha256, splits.test.sha256]


@pytest.mark.parametrize("name", ARRAYS)
def test_named_data_sets_come_back_as_they_were_written(name: str, fake_data_root: Path) -> None:
    splits = load(name, root=fake_data_root)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [27, 3, 15]
    assert pairs(*everything(splits)) == pairs(*fake_arrays(name, 30))
    # The official test set keeps its order.
    images, labels = fake_arrays(name, 15, part=1)
    assert np.array_equal(splits.test.images, images)
    assert np.array_equal(splits.test.labels, labels)
    assert splits.train.classes == DATASETS[name].classes
    assert splits.test.sha256 == content_hash(splits.test.images, splits.test.labels)


def test_imagenette(fake_data_root: Path) -> None:
    splits = load("imagenette", root=fake_data_root)
    assert splits.train.images.shape == (27, 3, 224, 224)
    assert splits.train.classes == tuple(IMAGENETTE.values())
    assert everything(splits)[1].bincount().tolist() == [3] * 10
    small = load("imagenette", root=fake_data_root, size=32)
    assert small.test.images.shape == (15, 3, 32, 32)
    assert torch.equal(small.test.labels, splits.test.labels)


@quiet
def test_all_layouts_of_cifar_have_one_hash(tmp_path: Path) -> None:
    training, testing = fake_arrays("cifar10", 20), fake_arrays("cifar10", 10, part=1)
    files = {
        f"data_batch_{i}": cifar_batch(*(a[4 * i - 4 : 4 * i] for a in training), b"labels")
        for i in range(1, 6)
    }
    files["test_batch"] = cifar_batch(*testing, b"labels")
    roots = [tmp_path / kind for kind in ("inner", "flat", "archive", "npy", "npy-first")]
    for root in roots:
        (root / "cifar10" / "cifar-10-batches-py").mkdir(parents=True)
    for file, data in files.items():
        (roots[0] / "cifar10" / "cifar-10-batches-py" / file).write_bytes(data)
        (roots[1] / "cifar10" / file).write_bytes(data)
    archive = tar_gz({f"cifar-10-batches-py/{file}": data for file, data in files.items()})
    (roots[2] / "cifar10" / "cifar-10-python.tar.gz").write_bytes(archive)
    for root, axes in ((roots[3], (0, 2, 3, 1)), (roots[4], (0, 1, 2, 3))):
        for part, (images, labels) in (("train", training), ("test", testing)):
            np.save(root / "cifar10" / f"{part}_images.npy", images.transpose(axes))
            np.save(root / "cifar10" / f"{part}_labels.npy", labels.astype(np.uint8))
    for root in roots[2:]:
        (root / "cifar10" / "cifar-10-batches-py").rmdir()
    found = [hashes(load("cifar10", root=root)) for root in roots]
    assert all(one == found[0] for one in found)


@quiet
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_both_names_of_idx_files(tmp_path: Path, fake_data_root: Path, dot: str, packed: str) -> None:
    import gzip

    wanted = hashes(load("mnist", root=fake_data_root))
    (tmp_path / "mnist").mkdir()
    for prefix, (images, labels) in (
        ("train", fake_arrays("mnist", 30)),
        ("t10k", fake_arrays("mnist", 15, part=1)),
    ):
        for kind, rank, data in (("images", 3, idx(images[:, 0])), ("labels", 1, idx(labels))):
            file = tmp_path / "mnist" / f"{prefix}-{kind}{dot}idx{rank}-ubyte{packed}"
            file.write_bytes(gzip.compress(data) if packed else data)
    assert hashes(load("mnist", root=tmp_path)) == wanted


def test_the_root_is_the_argument_then_the_environment_then_data(
    tmp_path: Path, fake_data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CURVACT_DATA", raising=False)
    assert data_root() == Path("data")
    monkeypatch.setenv("CURVACT_DATA", str(fake_data_root))
    assert data_root() == fake_data_root
    assert data_root(tmp_path) == tmp_path
    assert hashes(load("svhn")) == hashes(load("svhn", root=fake_data_root))


def test_a_second_call_reads_nothing(tmp_path: Path) -> None:
    folder = write_fake("svhn", tmp_path)
    first = load("svhn", root=tmp_path)
    for file in folder.iterdir():
        file.unlink()
    assert load("svhn", root=tmp_path).train.images.data_ptr() == first.train.images.data_ptr()


def test_limits_and_sizes(fake_data_root: Path) -> None:
    whole = load("cifar100", root=fake_data_root)
    part = load("cifar100", root=fake_data_root, train=8, validation=2, test=4)
    assert [len(s) for s in (part.train, part.validation, part.test)] == [8, 2, 4]
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


def test_files_of_another_origin_are_used_with_a_warning(tmp_path: Path) -> None:
    folder = write_fake("mnist", tmp_path)
    with pytest.warns(OtherDataWarning, match="not the usual mnist") as caught:
        load("mnist", root=tmp_path)
    assert str(folder) in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", [*ARRAYS, "imagenette"])
def test_what_is_missing_is_said_with_its_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(CurvactError) as caught:
        load(name, root=tmp_path)
    assert f"curvact data fetch {name}" in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    (tmp_path / name).mkdir()
    with pytest.raises(CurvactError) as caught:
        load(name, root=tmp_path)
    assert f"curvact data fetch {name}" in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_out_of_range_name_the_file(tmp_path: Path) -> None:
    images, labels = fake_arrays("mnist", 30)
    folder = write_fake("mnist", tmp_path)
    import gzip

    bad = folder / "train-labels-idx1-ubyte.gz"
    bad.write_bytes(gzip.compress(idx(np.where(labels == 3, 10, labels))))
    with pytest.raises(CurvactError, match="labels from 0 to 10") as caught:
        load("mnist", root=tmp_path)
    assert str(bad) in str(caught.value)
    (folder.parent / "cifar100" / "cifar-100-python").mkdir(parents=True)
    images, labels = fake_arrays("cifar100", 30)
    for file in ("train", "test"):
        path = folder.parent / "cifar100" / "cifar-100-python" / file
        path.write_bytes(cifar_batch(images, labels - (file == "test"), b"fine_labels"))
    with pytest.raises(CurvactError, match="labels from -1") as caught:
        load("cifar100", root=tmp_path)
    assert str(path) in str(caught.value)


def test_a_missing_batch_and_another_shape_are_named(tmp_path: Path) -> None:
    folder = write_fake("cifar10", tmp_path)
    missing = folder / "cifar-10-batches-py" / "data_batch_3"
    missing.unlink()
    with pytest.raises(CurvactError) as caught:
        load("cifar10", root=tmp_path)
    assert str(missing) in str(caught.value)
    images, labels = fake_arrays("svhn", 20)
    folder = write_fake("svhn", tmp_path)
    write_svhn(folder / "test_32x32.mat", images[:, :, :28, :28], labels)
    with pytest.raises(CurvactError, match=r"\(3, 28, 28\)") as caught:
        load("svhn", root=tmp_path)
    assert str(folder) in str(caught.value)


def test_an_incomplete_imagenette_is_refused(tmp_path: Path) -> None:
    folder = write_fake("imagenette", tmp_path) / "imagenette2-160"
    for file in (folder / "train" / "n03888257").iterdir():
        file.unlink()
    with pytest.raises(CurvactError, match="n03888257"):
        load("imagenette", root=tmp_path, size=16)
    (folder / "train" / "n03888257").rmdir()
    with pytest.raises(CurvactError, match="n03888257"):
        load("imagenette", root=tmp_path, size=16)


def test_unknown_names() -> None:
    with pytest.raises(CurvactError, match="unknown data set 'cifar-10'; did you mean 'cifar10'"):
        load("cifar-10")
    assert "mnist" in DATASETS
    assert next(iter(DATASETS)) == "digits"
    assert len(set(CIFAR100)) == 100
    assert list(CIFAR100) == sorted(CIFAR100)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """15 pictures of each of two classes, of many sizes."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(15):
            shape = (20 + number, 30 - number, 3)
            Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    return tmp_path / "photos"


def test_a_folder_of_classes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    with pytest.raises(CurvactError, match="give a size"):
        load("./photos")
    splits = load("./photos", size=12)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [21, 3, 6]
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.images.shape[1:] == (3, 12, 12)
    assert splits.train.name == "photos/train"
    assert hashes(load(str(photos), size=12)) == hashes(splits)
    # The same name elsewhere is another data set.
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
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [26, 3, 1]
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
    sizes = [len(s) for s in (splits.train, splits.validation, splits.test)]
    assert sizes == ([36, 4, 10] if len(keys) == 4 else [28, 4, 8])
    assert splits.train.classes == tuple("0123456789")
    assert splits.train.images.shape[1:] == (1, 28, 28)
    assert load(str(path), size=14).test.images.shape[1:] == (1, 14, 14)


def test_a_pair_of_npy(tmp_path: Path) -> None:
    training = fake_arrays("cifar10", 20)
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / "train_images.npy", training[0])
    with pytest.raises(CurvactError, match=r"train_labels\.npy"):
        load(str(folder))
    np.save(folder / "train_labels.npy", training[1])
    splits = load(str(folder))
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [14, 2, 4]
    assert pairs(
        torch.cat([splits.train.images, splits.validation.images, splits.test.images]),
        torch.cat([splits.train.labels, splits.validation.labels, splits.test.labels]),
    ) == pairs(*training)
    np.save(folder / "train_labels.npy", np.where(training[1] == 4, 11, training[1]))
    with pytest.raises(CurvactError, match="no image of class 4") as caught:
        load(str(folder), size=8)
    assert str(folder) in str(caught.value)


def test_bad_places(tmp_path: Path) -> None:
    for content, message in (
        ("nothing", "no data at"),
        ("x.csv", "x.csv"),
        ("empty", "0 class folders"),
        ("one", "1 class folders"),
        ("few", "at least 10"),
    ):
        path = tmp_path / content
        if content == "x.csv":
            path.write_text("1,2")
        elif content != "nothing":
            path.mkdir()
        if content == "one":
            (path / "cat").mkdir()
        if content == "few":
            for name in ("cat", "dog"):
                (path / name).mkdir()
                Image.new("RGB", (4, 4)).save(path / name / "x.png")
        with pytest.raises(CurvactError, match=message) as caught:
            load(str(path))
        assert content in str(caught.value)
        assert "\n" not in str(caught.value)


def real(name: str, root: Path) -> Splits:
    if not (root / name).is_dir():
        pytest.skip(f"no real {name} in {root}: curvact data fetch {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherDataWarning)
        return load(name, root=root)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        # The numbers that papers normalize by, of all training images; ours are of nine tenths of them.
        ("mnist", (0.1307,), (0.3081,)),
        ("fashion-mnist", (0.2860,), (0.3530,)),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ],
)
def test_the_real_ones_are_verified_and_whole(
    name: str, mean: tuple[float, ...], std: tuple[float, ...], real_data_root: Path
) -> None:
    splits = real(name, real_data_root)
    entry = DATASETS[name]
    assert len(splits.train) + len(splits.validation) == entry.train
    assert len(splits.test) == entry.test
    assert splits.train.mean == pytest.approx(mean, abs=1e-3)
    assert splits.train.std == pytest.approx(std, abs=1e-3)
    assert splits.test.labels.bincount(minlength=10).min() >= 892
    if name != "mnist":
        assert splits.test.labels.bincount().tolist() == [1000] * 10


@pytest.mark.slow
def test_real_cifar10_as_python_batches_has_the_same_hash(tmp_path: Path, real_data_root: Path) -> None:
    splits = real("cifar10", real_data_root)
    source = real_data_root / "cifar10"
    if not (source / "train_images.npy").exists():
        pytest.skip(f"{source} is not in the .npy layout")
    inner = tmp_path / "cifar10" / "cifar-10-batches-py"
    inner.mkdir(parents=True)

    def write(file: str, images: Any, labels: Any) -> None:
        flat = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
        (inner / file).write_bytes(pickle.dumps({b"data": flat, b"labels": labels.tolist()}, protocol=2))

    images, labels = (np.load(source / f"train_{kind}.npy") for kind in ("images", "labels"))
    for number in range(5):
        part = slice(10000 * number, 10000 * (number + 1))
        write(f"data_batch_{number + 1}", images[part], labels[part])
    write("test_batch", *(np.load(source / f"test_{kind}.npy") for kind in ("images", "labels")))
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherDataWarning)
        again = load("cifar10", root=tmp_path)
    assert hashes(again) == hashes(splits)
