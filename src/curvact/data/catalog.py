"""The named data sets: one entry each, with its files, its reader, its addresses and its hashes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from curvact.data import layouts
from curvact.data.checks import Labelled
from curvact.errors import CurvactError, nearest

Read = Callable[[Path, int | None], tuple[Labelled, Labelled | None] | None]
"""From a folder and a size to training and test images. None: the files are not in the folder."""


@dataclass(frozen=True)
class Download:
    """A file of a publisher. checksum: `sha256:…`, or `md5:…` if the publisher gives no other."""

    url: str
    checksum: str
    unpack: bool = False

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Entry:
    """A named data set.

    shape: channels, height, width. classes: the name of each class.
    train, test: numbers of images. `train` counts the images of training and validation.
    files: the files that the reader looks for, in words. read: the reader.
    source: authors, in words. downloads: the publisher's files; none for a built-in data set.
    hashes: sha256 of the training and the test split of the published files, if known.
    default_size: images are scaled to it if no size is given.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: int
    test: int
    files: str
    read: Read
    source: str
    downloads: tuple[Download, ...] = ()
    hashes: tuple[str, str] | None = None
    default_size: int | None = None


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of named data sets: `root`, else the environment's CURVACT_DATA, else `data`."""
    return Path(root if root is not None else os.environ.get("CURVACT_DATA") or "data")


def entry_of(name: str) -> Entry:
    """The entry of a named data set. Raises CurvactError for an unknown name."""
    if name not in DATASETS:
        raise CurvactError(
            f"unknown data set '{name}'{nearest(name, DATASETS)}; known are {', '.join(DATASETS)}, "
            f"or a path such as ./{name}"
        )
    return DATASETS[name]


def class_map(classes: Sequence[str], outputs: Sequence[str]) -> tuple[int, ...]:
    """The output of a model for each class of a data set, found by name.

    classes: the names of the data's classes, such as `dataset.classes`.
    outputs: the names of the model's outputs in order, such as the values of `config.id2label` of
        transformers. Synonyms after a comma count: "tench, Tinca tinca". Upper and lower case,
        `_` and blanks are alike.
    Raises CurvactError for a class that no output, or more than one, has the name of.

    >>> class_map(["golf ball", "tench"], ["tench, Tinca tinca", "goldfish", "golf_ball"])
    (2, 0)
    """
    for label, given in (("classes", classes), ("outputs", outputs)):
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise CurvactError(
                f"{label} of class_map are a {type(given).__name__}: a list of names is needed"
            )
    places: dict[str, set[int]] = {}
    for number, text in enumerate(outputs):
        for name in {_plain_name(part) for part in (text, *text.split(","))}:
            places.setdefault(name, set()).add(number)
    found: list[int] = []
    for name in classes:
        at = places.get(_plain_name(name), set())
        if len(at) != 1:
            held = "none" if not at else f"the outputs {', '.join(map(str, sorted(at)))}"
            near = nearest(_plain_name(name), places)
            raise CurvactError(
                f"the class '{name}' must be the name of one of the {len(outputs)} outputs: {held} have it"
                f"{near if not at else ''}"
            )
        found.extend(at)
    return tuple(found)


def _plain_name(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _read_digits(folder: Path, size: int | None) -> tuple[Labelled, None]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    return (images, torch.from_numpy(bunch.target.astype(np.int64))), None


def _read_idx(folder: Path, size: int | None) -> tuple[Labelled, Labelled] | None:
    parts = []
    for prefix in ("train", "t10k"):
        images, labels = (
            _first(
                folder, *(f"{prefix}-{kind}{dot}idx{rank}-ubyte{gz}" for dot in "-." for gz in ("", ".gz"))
            )
            for kind, rank in (("images", 3), ("labels", 1))
        )
        if images is None or labels is None:
            return None
        parts.append(layouts.idx(images, labels, classes=10))
    return parts[0], parts[1]


def _read_cifar(
    folder: Path,
    size: int | None,
    *,
    inner: str,
    archive: str,
    train: Sequence[str],
    test: Sequence[str],
    key: str,
    classes: int,
) -> tuple[Labelled, Labelled] | None:
    if (folder / "train_images.npy").exists():
        arrays = [
            layouts.npy(folder / f"{part}_images.npy", folder / f"{part}_labels.npy", classes)
            for part in ("train", "test")
        ]
        return arrays[0], arrays[1]
    place = next((p for p in (folder / inner, folder) if (p / test[0]).exists()), folder / archive)
    if not place.exists():
        return None
    return layouts.cifar(place, train, key, classes), layouts.cifar(place, test, key, classes)


def _read_svhn(folder: Path, size: int | None) -> tuple[Labelled, Labelled] | None:
    train, test = (folder / f"{part}_32x32.mat" for part in ("train", "test"))
    if not train.is_file() or not test.is_file():
        return None
    return layouts.svhn(train), layouts.svhn(test)


def _read_imagenette(folder: Path, size: int | None) -> tuple[Labelled, Labelled] | None:
    inner = _first(folder, "imagenette2", "imagenette2-320", "imagenette2-160") or folder
    if not (inner / "train").is_dir() or not (inner / "val").is_dir():
        return None
    ids = tuple(IMAGENETTE)
    for part in ("train", "val"):
        missing = set(ids) - set(layouts.folder_classes(inner / part))
        if missing:
            raise CurvactError(f"{inner / part} is incomplete: it has no {min(missing)}")
    train, test = (layouts.image_folder(inner / part, ids, size) for part in ("train", "val"))
    return train, test


def _idx_files(base: str, *md5: str) -> tuple[Download, ...]:
    files = [
        f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]
    return tuple(Download(f"{base}/{file}", f"md5:{sum}") for file, sum in zip(files, md5, strict=True))


DIGITS = tuple("0123456789")
FASHION = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
CIFAR10, CIFAR100 = tuple(_CIFAR10.split()), tuple(_CIFAR100.split())
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
IMAGENETTE_OUTPUTS = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""The place of each class of ImageNette among the 1,000 classes of ImageNet, sorted by WordNet id.

`curvact.models.select_outputs` takes them.
"""
IDX_FILES = "the four {train,t10k}-{images-idx3,labels-idx1}-ubyte files, plain or .gz"

DATASETS: dict[str, Entry] = {
    "digits": Entry(
        shape=(1, 8, 8),
        classes=DIGITS,
        train=1438,
        test=359,
        files="nothing",
        read=_read_digits,
        source="scikit-learn (UCI optdigits)",
        hashes=(
            "87f109382103e2fd57acdc9858a6dd5f6b9f7a1b3833e6ae2303bddd19450cf4",
            "ed82e9beb98817f9ed43077de7ae7c836b51508bc4455e3b1618b0caf20d9f46",
        ),
    ),
    "mnist": Entry(
        shape=(1, 28, 28),
        classes=DIGITS,
        train=60000,
        test=10000,
        files=IDX_FILES,
        read=_read_idx,
        source="LeCun, Cortes, Burges 1998",
        downloads=_idx_files(
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        hashes=(
            "18aa5a3dd170cee2332fb5896448d3d58ce6bfe06ad7477edbd37466c3933b8b",
            "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891",
        ),
    ),
    "fashion-mnist": Entry(
        shape=(1, 28, 28),
        classes=FASHION,
        train=60000,
        test=10000,
        files=IDX_FILES,
        read=_read_idx,
        source="Xiao, Rasul, Vollgraf 2017",
        downloads=_idx_files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        hashes=(
            "2c525e4ff63cf3e3b99d4e4e2124c4424162a1dbaebe98e411b7895775eeb0f7",
            "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e",
        ),
    ),
    "cifar10": Entry(
        shape=(3, 32, 32),
        classes=CIFAR10,
        train=50000,
        test=10000,
        files="cifar-10-python.tar.gz, its cifar-10-batches-py, or {train,test}_{images,labels}.npy",
        read=partial(
            _read_cifar,
            inner="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            train=[f"data_batch_{i}" for i in range(1, 6)],
            test=["test_batch"],
            key="labels",
            classes=10,
        ),
        source="Krizhevsky 2009",
        downloads=(
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                unpack=True,
            ),
        ),
        hashes=(
            "9a0a2f75f186106bb9241982dc80e4c21d8bdb8113c6d3f5e9a25aa659695d64",
            "2c33b053d1cd726af8d86e174a96dd89d7000ba1412add026d68142375b89d51",
        ),
    ),
    "cifar100": Entry(
        shape=(3, 32, 32),
        classes=CIFAR100,
        train=50000,
        test=10000,
        files="cifar-100-python.tar.gz, its cifar-100-python, or {train,test}_{images,labels}.npy",
        read=partial(
            _read_cifar,
            inner="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            train=["train"],
            test=["test"],
            key="fine_labels",
            classes=100,
        ),
        source="Krizhevsky 2009",
        downloads=(
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
                unpack=True,
            ),
        ),
    ),
    "svhn": Entry(
        shape=(3, 32, 32),
        classes=DIGITS,
        train=73257,
        test=26032,
        files="train_32x32.mat and test_32x32.mat",
        read=_read_svhn,
        source="Netzer et al. 2011",
        downloads=(
            Download(
                "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
                "sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            ),
            Download(
                "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
                "sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
            ),
        ),
    ),
    "imagenette": Entry(
        shape=(3, 224, 224),
        classes=tuple(IMAGENETTE.values()),
        train=9469,
        test=3925,
        files="the folder imagenette2, imagenette2-320 or imagenette2-160",
        read=_read_imagenette,
        source="fastai, from ImageNet",
        downloads=(
            Download(
                "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
                "md5:3df6f0d01a2c9592104656642f5e78a3",
                unpack=True,
            ),
        ),
        default_size=224,
    ),
}
