"""The named data sets: each layout, the hashes of the real ones, missing and bad files."""

from __future__ import annotations

import gzip
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curvact.data import DATASETS, OtherDataWarning, Splits, load
from curvact.data.catalog import CIFAR100, IMAGENETTE
from curvact.data.dataset import content_hash
from curvact.errors import CurvactError
from fake_data import cifar_batch, fake_arrays, idx, pairs, tar_gz, write_fake, write_svhn

ARRAYS = [name for name in DATASETS if name not in ("digits", "imagenette")]
quiet = pytest.mark.filterwarnings("ignore::curvact.data.OtherDataWarning")


def hashes(splits: Splits) -> list[str]:
    return [splits.train.sha256, splits.validation.sha256, splits.test.sha256]


@pytest.mark.parametrize("name", ARRAYS)
def test_named_data_sets_come_back_as_they_were_written(name: str, fake_data_root: Path) -> None:
    splits = load(name, root=fake_data_root)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [27, 3, 15]
    assert pairs(splits.train, splits.validation) == pairs(fake_arrays(name, 30))
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
    assert torch.cat([splits.train.labels, splits.validation.labels]).bincount().tolist() == [3] * 10
    small = load("imagenette", root=fake_data_root, size=32)
    assert small.test.images.shape == (15, 3, 32, 32)
    assert torch.equal(small.test.labels, splits.test.labels)


@quiet
def test_all_layouts_of_cifar_have_one_hash(tmp_path: Path) -> None:
    training, testing = fake_arrays("cifar10", 20), fake_arrays("cifar10", 10, part=1)
    batches = [cifar_batch(*(a[4 * i : 4 * i + 4] for a in training), b"labels") for i in range(5)]
    files = {f"data_batch_{i}": data for i, data in enumerate(batches, 1)}
    files["test_batch"] = cifar_batch(*testing, b"labels")
    folders = {kind: tmp_path / kind / "cifar10" for kind in ("inner", "flat", "archive", "npy", "npy-first")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (folders["inner"] / "cifar-10-batches-py").mkdir()
    for file, data in files.items():
        (folders["inner"] / "cifar-10-batches-py" / file).write_bytes(data)
        (folders["flat"] / file).write_bytes(data)
    archive = tar_gz({f"cifar-10-batches-py/{file}": data for file, data in reversed(files.items())})
    (folders["archive"] / "cifar-10-python.tar.gz").write_bytes(archive)
    for kind, axes in (("npy", (0, 2, 3, 1)), ("npy-first", (0, 1, 2, 3))):
        for part, (images, labels) in (("train", training), ("test", testing)):
            np.save(folders[kind] / f"{part}_images.npy", images.transpose(axes))
            np.save(folders[kind] / f"{part}_labels.npy", labels.astype(np.uint8))
    found = [hashes(load("cifar10", root=folder.parent)) for folder in folders.values()]
    assert all(one == found[0] for one in found)


@quiet
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_both_names_of_idx_files(tmp_path: Path, fake_data_root: Path, dot: str, packed: str) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    parts = ("train", fake_arrays("mnist", 30)), ("t10k", fake_arrays("mnist", 15, part=1))
    for prefix, (images, labels) in parts:
        for kind, data in ((f"images{dot}idx3", idx(images[:, 0])), (f"labels{dot}idx1", idx(labels))):
            content = gzip.compress(data) if packed else data
            (folder / f"{prefix}-{kind}-ubyte{packed}").write_bytes(content)
    assert hashes(load("mnist", root=tmp_path)) == hashes(load("mnist", root=fake_data_root))


def test_other_files_are_used_with_a_warning(tmp_path: Path) -> None:
    folder = write_fake("mnist", tmp_path)
    with pytest.warns(OtherDataWarning, match="not the usual mnist") as caught:
        load("mnist", root=tmp_path)
    assert str(folder) in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", [*ARRAYS, "imagenette"])
def test_missing_files_are_one_line_with_their_place(tmp_path: Path, name: str) -> None:
    for _ in range(2):  # without the folder, then with an empty one
        with pytest.raises(CurvactError) as caught:
            load(name, root=tmp_path)
        for part in (f"curvact data fetch {name}", str(tmp_path / name), DATASETS[name].files):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
        (tmp_path / name).mkdir(exist_ok=True)


def test_labels_out_of_range_name_the_file(tmp_path: Path) -> None:
    bad = write_fake("mnist", tmp_path) / "train-labels-idx1-ubyte.gz"
    _, labels = fake_arrays("mnist", 30)
    bad.write_bytes(gzip.compress(idx(np.where(labels == 3, 10, labels))))
    with pytest.raises(CurvactError, match="labels from 0 to 10") as caught:
        load("mnist", root=tmp_path)
    assert str(bad) in str(caught.value)
    folder = tmp_path / "cifar100" / "cifar-100-python"
    folder.mkdir(parents=True)
    images, labels = fake_arrays("cifar100", 30)
    for file in ("train", "test"):
        (folder / file).write_bytes(cifar_batch(images, labels - (file == "test"), b"fine_labels"))
    with pytest.raises(CurvactError, match="labels from -1") as caught:
        load("cifar100", root=tmp_path)
    assert str(folder / "test") in str(caught.value)


def test_missing_batches_other_shapes_and_missing_classes_are_named(tmp_path: Path) -> None:
    missing = write_fake("cifar10", tmp_path) / "cifar-10-batches-py" / "data_batch_3"
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
    pictures = write_fake("imagenette", tmp_path) / "imagenette2-160" / "train" / "n03888257"
    for file in pictures.iterdir():
        file.unlink()
    with pytest.raises(CurvactError, match="n03888257"):
        load("imagenette", root=tmp_path, size=16)
    pictures.rmdir()
    with pytest.raises(CurvactError, match="n03888257"):
        load("imagenette", root=tmp_path, size=16)


def test_names() -> None:
    with pytest.raises(CurvactError, match="unknown data set 'cifar-10'; did you mean 'cifar10'"):
        load("cifar-10")
    assert next(iter(DATASETS)) == "digits"
    assert len(set(CIFAR100)) == 100
    assert list(CIFAR100) == sorted(CIFAR100)


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
        # The usual numbers are of all training images; ours are of nine tenths of them.
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
    assert hashes(real("cifar10", tmp_path)) == hashes(splits)
