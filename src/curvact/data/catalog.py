"""The data sets that have a name, and `load`: from a name or a path to training, validation and test images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curvact.data import layouts
from curvact.data.dataset import Splits, split
from curvact.errors import CurvactError, nearest

Read = Callable[[Path, int | None], tuple[layouts.Labelled, layouts.Labelled | None, tuple[str, ...]]]


class OtherDataWarning(UserWarning):
    """The files are well-formed, but not those that this name's published numbers are about."""


@dataclass(frozen=True)
class Entry:
    """A data set with a name.

    shape: channels, height, width. train, test: how many images it comes with (train and validation together). files: what
    is looked for, for messages. read: folder (and size) → training images, test images, class names. hashes: of the training
    and the test split of the real data. default_size: images are scaled to it if no size is given. source, licence: one line
    each.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: int
    test: int
    files: str
    read: Read
    source: str
    hashes: tuple[str, str] | None = None
    default_size: int | None = None


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets lie: `root`, else the environment's CURVACT_DATA, else the folder `data` here."""
    return Path(root if root is not None else os.environ.get("CURVACT_DATA") or "data")


def names_a_place(name: str) -> bool:
    """Whether a data set's name is a path (it has a separator or begins with a dot) or a Hugging Face one (`hf:owner/name`).

    >>> names_a_place("./photos"), names_a_place("hf:mnist"), names_a_place("mnist")
    (True, True, False)
    """
    return name.startswith((".", "~", "hf:")) or "/" in name or os.sep in name


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    size: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
) -> Splits:
    """The three splits of a data set.

    name: one of `DATASETS`; a path to class folders, a folder with `train` and `test` (or `val`) of them, an .npz, or a
    folder of .npy files; or `hf:owner/name` of the Hugging Face hub (extra `hub`).
    root: where named data sets lie; if not given, the environment's CURVACT_DATA, else the folder `data`.
    size: scale the images to size×size pixels. train, validation, test: at most so many images of each.

    Validation is a tenth of the training images by a fixed permutation, where there is an official test set; else a tenth,
    and a fifth for testing. A name's well-formed but unknown files give an OtherDataWarning.
    Raises CurvactError for an unknown name, and naming the file for whatever is missing, truncated or wrong.

    >>> splits = load("digits")
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1258, 180, 359)
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise CurvactError(f"size={size!r} of {name}: a whole number of pixels >= 1")
    if names_a_place(name):
        place = name if name.startswith("hf:") else str(Path(name).expanduser().absolute())
        whole = _load_place(place, size)
    elif name in DATASETS:
        whole = _load_named(name, data_root(root).expanduser().absolute(), size)
    else:
        raise CurvactError(
            f"unknown data set '{name}'{nearest(name, DATASETS)}; known are {', '.join(DATASETS)}, or a path such as ./{name}"
        )
    return whole.first(train=train, validation=validation, test=test)


@lru_cache(maxsize=2)
def _load_named(name: str, root: Path, size: int | None) -> Splits:
    entry = DATASETS[name]
    folder = root / name
    if name != "digits" and not folder.exists():
        raise CurvactError(
            f"{name} is not in {root}: run `curvact data fetch {name}`, or put {entry.files} into {folder}"
        )
    training, testing, classes = entry.read(folder, size or entry.default_size)
    for images, labels in (training, testing or training):
        layouts.check_labels(folder, labels, len(classes))
        if entry.default_size is None and tuple(images.shape[1:]) != entry.shape:
            raise CurvactError(
                f"{folder}: images of shape {tuple(images.shape[1:])}; {name} has {entry.shape}"
            )
    splits = _splits(name, training, testing, classes, None)
    if entry.hashes is not None and (splits.train.sha256, splits.test.sha256) != entry.hashes:
        warnings.warn(
            f"the files in {folder} are not the usual {name}: train {splits.train.sha256[:12]} and test "
            f"{splits.test.sha256[:12]} instead of {entry.hashes[0][:12]} and {entry.hashes[1][:12]}",
            OtherDataWarning,
            stacklevel=3,
        )
    if size is None or entry.default_size is not None:
        return splits
    return _splits(name, training, testing, classes, size)


@lru_cache(maxsize=2)
def _load_place(name: str, size: int | None) -> Splits:
    if name.startswith("hf:"):
        from curvact.data.huggingface import from_hub

        training, testing, classes = from_hub(name.removeprefix("hf:"), size)
        return _splits(name, training, testing, classes, size)
    path = Path(name)
    if not path.exists():
        raise CurvactError(f"no data at {path}: class folders of images, an .npz, or a folder of .npy files")
    if path.is_file() and path.suffix != ".npz":
        raise CurvactError(f"{path}: a file of data is an .npz with images and labels")
    if path.is_dir() and not any(not p.name.startswith(".") for p in path.glob("*.npy")):
        training, testing, classes = read_folder(path, size)
    else:
        training, testing, classes = read_arrays(path, size)
        counts = training[1].bincount(minlength=len(classes))
        if not bool(counts.all()):
            raise CurvactError(
                f"{path} has no image of class {int(counts.argmin())}, but of class {len(classes) - 1}"
            )
    return _splits(path.name, training, testing, classes, size)


def _splits(
    name: str,
    training: layouts.Labelled,
    testing: layouts.Labelled | None,
    classes: tuple[str, ...],
    size: int | None,
) -> Splits:
    def sized(images: Tensor) -> Tensor:
        return images if size is None else layouts.resize(images, size)

    images, labels = training
    if len(images) < 10:
        raise CurvactError(
            f"{name} has {len(images)} training images: at least 10, to set some aside for validation"
        )
    if testing is not None and testing[0].shape[1] != images.shape[1]:
        raise CurvactError(
            f"{name} has training images of {images.shape[1]} channels, test images of {testing[0].shape[1]}"
        )
    test = 0.2 if testing is None else (sized(testing[0]), testing[1])
    if testing is not None and size is None and testing[0].shape != (len(testing[0]), *images.shape[1:]):
        raise CurvactError(
            f"{name} has training images of {images.shape[-1]} pixels, test images of {testing[0].shape[-1]}: give a size"
        )
    return split(name, sized(images), labels, classes, validation=0.1, test=test)


def read_folder(
    folder: Path, size: int | None
) -> tuple[layouts.Labelled, layouts.Labelled | None, tuple[str, ...]]:
    """Class folders, or `train` and `test` (or `val`, `valid`, `validation`) of them; class names from the folders' names."""
    train = folder / "train"
    if not train.is_dir():
        classes = _folder_classes(folder)
        return layouts.image_folder(folder, classes, size), None, classes
    classes = _folder_classes(train)
    test = next((folder / n for n in ("test", "val", "valid", "validation") if (folder / n).is_dir()), None)
    training = layouts.image_folder(train, classes, size)
    testing = None if test is None else layouts.image_folder(test, classes, size)
    if testing is not None and testing[0].shape[1:] != training[0].shape[1:]:
        raise CurvactError(f"{test}: images of another size than in {train}: give a size")
    return training, testing, classes


def read_arrays(
    path: Path, size: int | None
) -> tuple[layouts.Labelled, layouts.Labelled | None, tuple[str, ...]]:
    """An .npz (x_train, y_train, x_test, y_test, or image(s) and label(s)), or a folder of {train,test}_{images,labels}.npy."""
    if path.is_dir():
        training = layouts.npy(path / "train_images.npy", path / "train_labels.npy")
        has_test = (path / "test_images.npy").exists()
        testing = layouts.npy(path / "test_images.npy", path / "test_labels.npy") if has_test else None
    else:
        keys = ("x_train", "train_images", "images", "image", "x", "data")
        labels = ("y_train", "train_labels", "labels", "label", "y", "targets")
        training = layouts.npz(path, keys, labels)
        with np.load(path, allow_pickle=False) as archive:
            has_test = bool({"x_test", "test_images"} & set(archive.files))
        testing = (
            layouts.npz(path, ("x_test", "test_images"), ("y_test", "test_labels")) if has_test else None
        )
    count = max(int(part[1].max()) for part in (training, testing or training)) + 1
    for _, given in (training, testing or training):
        layouts.check_labels(path, given, count)
    return training, testing, tuple(map(str, range(count)))


def _folder_classes(folder: Path) -> tuple[str, ...]:
    classes = layouts.folder_classes(folder)
    if len(classes) < 2:
        raise CurvactError(f"{folder} has {len(classes)} class folders: at least 2, each with its images")
    return classes


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _needed(folder: Path, name: str, entry_files: str) -> CurvactError:
    return CurvactError(
        f"{folder} holds no {entry_files}: run `curvact data fetch {name}`, or put them there"
    )


def _read_idx(name: str) -> Read:
    def read(folder: Path, size: int | None) -> tuple[layouts.Labelled, layouts.Labelled, tuple[str, ...]]:
        parts = []
        for prefix in ("train", "t10k"):
            found = [
                _first(
                    folder,
                    *(f"{prefix}-{kind}{dot}idx{rank}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")),
                )
                for kind, rank in (("images", 3), ("labels", 1))
            ]
            if found[0] is None or found[1] is None:
                raise _needed(folder, name, DATASETS[name].files)
            parts.append(layouts.idx(found[0], found[1]))
            layouts.check_labels(found[1], parts[-1][1], 10)
        return parts[0], parts[1], DATASETS[name].classes

    return read


def _read_cifar(name: str, train: Sequence[str], test: Sequence[str], inner: str, key: str) -> Read:
    def read(folder: Path, size: int | None) -> tuple[layouts.Labelled, layouts.Labelled, tuple[str, ...]]:
        if (folder / "train_images.npy").exists():
            training, testing, _ = read_arrays(folder, size)
            if testing is None:
                raise CurvactError(f"{folder} has train_images.npy but no test_images.npy")
            for part, (_, labels) in (("train", training), ("test", testing)):
                layouts.check_labels(folder / f"{part}_labels.npy", labels, len(DATASETS[name].classes))
            return training, testing, DATASETS[name].classes
        batches = next((p for p in (folder / inner, folder) if (p / test[0]).exists()), None)
        place = batches or _first(
            folder, f"{inner.replace('batches-py', 'python')}.tar.gz", f"{name}-python.tar.gz"
        )
        place = place or _first(folder, "cifar-10-python.tar.gz", "cifar-100-python.tar.gz")
        if place is None:
            raise _needed(folder, name, DATASETS[name].files)
        classes = DATASETS[name].classes
        training, testing = (layouts.cifar(place, files, key, len(classes)) for files in (train, test))
        return training, testing, classes

    return read


def _read_svhn(folder: Path, size: int | None) -> tuple[layouts.Labelled, layouts.Labelled, tuple[str, ...]]:
    files = [folder / f"{part}_32x32.mat" for part in ("train", "test")]
    if not all(file.is_file() for file in files):
        raise _needed(folder, "svhn", DATASETS["svhn"].files)
    training, testing = (layouts.svhn(file) for file in files)
    return training, testing, DATASETS["svhn"].classes


def _read_imagenette(
    folder: Path, size: int | None
) -> tuple[layouts.Labelled, layouts.Labelled, tuple[str, ...]]:
    inner = _first(folder, "imagenette2", "imagenette2-320", "imagenette2-160")
    inner = inner or (folder if (folder / "train").is_dir() else None)
    if inner is None or not (inner / "train").is_dir() or not (inner / "val").is_dir():
        raise _needed(folder, "imagenette", DATASETS["imagenette"].files)
    ids = tuple(IMAGENETTE)
    for part in ("train", "val"):
        missing = set(ids) - set(layouts.folder_classes(inner / part))
        if missing:
            raise CurvactError(f"{inner / part} is incomplete: it has no {min(missing)}")
    parts = [layouts.image_folder(inner / part, ids, size) for part in ("train", "val")]
    return parts[0], parts[1], DATASETS["imagenette"].classes


def _read_digits(folder: Path, size: int | None) -> tuple[layouts.Labelled, None, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    return (images, torch.from_numpy(bunch.target.astype(np.int64))), None, tuple("0123456789")


IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = (
    "apple",
    "aquarium_fish",
    "baby",
    "bear",
    "beaver",
    "bed",
    "bee",
    "beetle",
    "bicycle",
    "bottle",
    "bowl",
    "boy",
    "bridge",
    "bus",
    "butterfly",
    "camel",
    "can",
    "castle",
    "caterpillar",
    "cattle",
    "chair",
    "chimpanzee",
    "clock",
    "cloud",
    "cockroach",
    "couch",
    "crab",
    "crocodile",
    "cup",
    "dinosaur",
    "dolphin",
    "elephant",
    "flatfish",
    "forest",
    "fox",
    "girl",
    "hamster",
    "house",
    "kangaroo",
    "keyboard",
    "lamp",
    "lawn_mower",
    "leopard",
    "lion",
    "lizard",
    "lobster",
    "man",
    "maple_tree",
    "motorcycle",
    "mountain",
    "mouse",
    "mushroom",
    "oak_tree",
    "orange",
    "orchid",
    "otter",
    "palm_tree",
    "pear",
    "pickup_truck",
    "pine_tree",
    "plain",
    "plate",
    "poppy",
    "porcupine",
    "possum",
    "rabbit",
    "raccoon",
    "ray",
    "road",
    "rocket",
    "rose",
    "sea",
    "seal",
    "shark",
    "shrew",
    "skunk",
    "skyscraper",
    "snail",
    "snake",
    "spider",
    "squirrel",
    "streetcar",
    "sunflower",
    "sweet_pepper",
    "table",
    "tank",
    "telephone",
    "television",
    "tiger",
    "tractor",
    "train",
    "trout",
    "tulip",
    "turtle",
    "wardrobe",
    "whale",
    "willow_tree",
    "wolf",
    "woman",
    "worm",
)
FASHION = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

DATASETS: dict[str, Entry] = {
    "digits": Entry(
        (1, 8, 8),
        tuple("0123456789"),
        1438,
        359,
        "nothing",
        _read_digits,
        "scikit-learn (UCI optdigits)",
        hashes=(
            "87f109382103e2fd57acdc9858a6dd5f6b9f7a1b3833e6ae2303bddd19450cf4",
            "ed82e9beb98817f9ed43077de7ae7c836b51508bc4455e3b1618b0caf20d9f46",
        ),
    ),
    "mnist": Entry(
        (1, 28, 28),
        tuple("0123456789"),
        60000,
        10000,
        "the four {train,t10k}-{images-idx3,labels-idx1}-ubyte files, plain or .gz",
        _read_idx("mnist"),
        "LeCun, Cortes, Burges 1998",
        hashes=(
            "18aa5a3dd170cee2332fb5896448d3d58ce6bfe06ad7477edbd37466c3933b8b",
            "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891",
        ),
    ),
    "fashion-mnist": Entry(
        (1, 28, 28),
        FASHION,
        60000,
        10000,
        "the four {train,t10k}-{images-idx3,labels-idx1}-ubyte files, plain or .gz",
        _read_idx("fashion-mnist"),
        "Xiao, Rasul, Vollgraf 2017",
        hashes=(
            "2c525e4ff63cf3e3b99d4e4e2124c4424162a1dbaebe98e411b7895775eeb0f7",
            "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e",
        ),
    ),
    "cifar10": Entry(
        (3, 32, 32),
        CIFAR10,
        50000,
        10000,
        "cifar-10-python.tar.gz, its cifar-10-batches-py, or {train,test}_{images,labels}.npy",
        _read_cifar(
            "cifar10",
            [f"data_batch_{i}" for i in range(1, 6)],
            ["test_batch"],
            "cifar-10-batches-py",
            "labels",
        ),
        "Krizhevsky 2009",
        hashes=(
            "9a0a2f75f186106bb9241982dc80e4c21d8bdb8113c6d3f5e9a25aa659695d64",
            "2c33b053d1cd726af8d86e174a96dd89d7000ba1412add026d68142375b89d51",
        ),
    ),
    "cifar100": Entry(
        (3, 32, 32),
        CIFAR100,
        50000,
        10000,
        "cifar-100-python.tar.gz, its cifar-100-python, or {train,test}_{images,labels}.npy",
        _read_cifar("cifar100", ["train"], ["test"], "cifar-100-python", "fine_labels"),
        "Krizhevsky 2009",
    ),
    "svhn": Entry(
        (3, 32, 32),
        tuple("0123456789"),
        73257,
        26032,
        "train_32x32.mat and test_32x32.mat",
        _read_svhn,
        "Netzer et al. 2011",
    ),
    "imagenette": Entry(
        (3, 224, 224),
        tuple(IMAGENETTE.values()),
        9469,
        3925,
        "the folder imagenette2, imagenette2-320 or imagenette2-160",
        _read_imagenette,
        "fastai, from ImageNet",
        default_size=224,
    ),
}
