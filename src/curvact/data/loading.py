"""`load`: from a name or a path to training, validation and test images."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from curvact.data import layouts
from curvact.data.catalog import data_root, entry_of
from curvact.data.checks import Labelled, check_labels, numbered_classes
from curvact.data.dataset import Splits, check_count, cut
from curvact.data.parquet import from_parquet, parquet_files
from curvact.data.pictures import short
from curvact.data.reading import check_size, file_size
from curvact.errors import CurvactError

Found = tuple[Labelled, Labelled | None, tuple[str, ...]]
"""Training images, test images if there are any, and the names of the classes."""


SIZE = 4096
"""The largest side in pixels that images are scaled to."""


class OtherDataWarning(UserWarning):
    """The files are well-formed, but they are not the published files of this name."""


def names_a_place(name: str) -> bool:
    """Whether a data set's name is a path or a name on the Hugging Face hub.

    >>> names_a_place("./photos"), names_a_place("hf:mnist"), names_a_place("mnist")
    (True, True, False)
    """
    return name.startswith((".", "~", "hf:")) or "/" in name or os.sep in name


def load(
    name: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    size: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
) -> Splits:
    """The three splits of a data set.

    name: a name in `DATASETS`; or a path (a `Path`, or a text with a `/`); or `hf:owner/name` or
        `hf:owner/name:config@revision` of the Hugging Face hub (extra `hub`). A path is that of a
        folder with one folder a class, of a folder with `train` and `test` (or `val`) folders, of
        an .npz, of a folder of .npy files, or of .parquet files (extra `parquet`).
    root: the folder of the named data sets. If None: the environment's CURVACT_DATA, else `data`.
    size: scale the images to size×size pixels.
    train, validation, test: each is the most images that the split of its name has.

    An official test set is kept, and validation is a tenth of the training images. Without one, a
    fifth of the images is for testing and a tenth for validation. The permutation is fixed.
    Warns with OtherDataWarning if the files of a name are not the published ones. Raises
    CurvactError for an unknown name, and for a file that is missing, truncated or wrong.

    >>> splits = load("digits")
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1258, 180, 359)
    """
    if isinstance(name, os.PathLike):
        name = str(Path(name).expanduser().absolute())
    if not isinstance(name, str):
        raise CurvactError(f"a data set named {name!r}: a name, a path, or hf:owner/name")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= SIZE):
        raise CurvactError(f"size={size!r} of {name}: a whole number of pixels in 1 … {SIZE}")
    for label, count in (("train", train), ("validation", validation), ("test", test)):
        check_count(f"{label}={count!r} images of {name}", count)
    if names_a_place(name):
        place = name if name.startswith("hf:") else str(Path(name).expanduser().absolute())
        whole = _load_place(place, size)
    else:
        whole = _load_named(name, data_root(root).expanduser().absolute(), size)
    return whole.first(train=train, validation=validation, test=test)


@lru_cache(maxsize=2)
def _load_named(name: str, root: Path, size: int | None) -> Splits:
    entry, folder = entry_of(name), root / name
    if entry.downloads and not folder.exists():
        raise CurvactError(
            f"{name} is not in {root}: run `curvact data fetch {name}`, or put {entry.files} into {folder}"
        )
    found = entry.read(folder, size or entry.default_size)
    if found is None:
        raise CurvactError(
            f"{folder} holds no {entry.files}: run `curvact data fetch {name}`, or put them there"
        )
    training, testing = found
    for images, labels in (training, testing or training):
        check_labels(folder, labels, len(entry.classes))
        if entry.default_size is None and tuple(images.shape[1:]) != entry.shape:
            raise CurvactError(
                f"{folder}: images of shape {tuple(images.shape[1:])}; {name} has {entry.shape}"
            )
    splits = _splits(name, training, testing, entry.classes, None)
    if entry.hashes is not None and (splits.train.sha256, splits.test.sha256) != entry.hashes:
        warnings.warn(
            f"the files in {folder} are not the usual {name}: train {splits.train.sha256[:12]} and test "
            f"{splits.test.sha256[:12]} instead of {entry.hashes[0][:12]} and {entry.hashes[1][:12]}",
            OtherDataWarning,
            stacklevel=3,
        )
    if size is None or entry.default_size is not None:
        return splits
    return _splits(name, training, testing, entry.classes, size)


@lru_cache(maxsize=2)
def _load_place(name: str, size: int | None) -> Splits:
    path = Path(name)
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise CurvactError(f"no data at {path}: {short(error)}") from None
    if name.startswith("hf:"):
        from curvact.data.huggingface import from_hub

        found = from_hub(name.removeprefix("hf:"), size)
    elif not there:
        raise CurvactError(
            f"no data at {path}: class folders of images, an .npz, a .parquet, or a folder of .npy files"
        )
    elif path.suffix == ".parquet" or (path.is_dir() and parquet_files(path)):
        found = from_parquet(path, size)
    elif not path.is_dir() and path.suffix != ".npz":
        file_size(path)
        raise CurvactError(f"{path}: a file of data is an .npz or a .parquet with images and labels")
    elif not path.is_dir() or any(not p.name.startswith(".") for p in path.glob("*.npy")):
        found = _read_arrays(path)
    else:
        found = _read_folder(path, size)
    shown = path.name.encode("utf-8", "backslashreplace").decode()
    return _splits(name if name.startswith("hf:") else shown, *found, size)


def _read_arrays(path: Path) -> Found:
    """The arrays of an .npz, or {train,test}_{images,labels}.npy in a folder."""
    testing = None
    if path.is_dir():
        training = layouts.npy(path / "train_images.npy", path / "train_labels.npy")
        if (path / "test_images.npy").exists():
            testing = layouts.npy(path / "test_images.npy", path / "test_labels.npy")
    else:
        images = ("x_train", "train_images", "images", "image", "x", "data")
        labels = ("y_train", "train_labels", "labels", "label", "y", "targets")
        training = layouts.npz(path, images, labels)
        if {"x_test", "test_images"} & layouts.npz_keys(path):
            testing = layouts.npz(path, ("x_test", "test_images"), ("y_test", "test_labels"))
    others = [] if testing is None else [testing[1]]
    return training, testing, numbered_classes(path, training[1], *others)


def _read_folder(folder: Path, size: int | None) -> Found:
    """One folder a class, or a folder `train` of them and one of test images."""
    train = folder / "train" if (folder / "train").is_dir() else folder
    classes = layouts.folder_classes(train)
    if len(classes) < 2:
        raise CurvactError(f"{train} has {len(classes)} class folders: at least 2, each with its images")
    training = layouts.image_folder(train, classes, size)
    tests = [folder / name for name in ("test", "val", "valid", "validation") if (folder / name).is_dir()]
    if train == folder or not tests:
        return training, None, classes
    testing = layouts.image_folder(tests[0], classes, size)
    return (*layouts.same_channels(training, testing), classes)


def _splits(
    name: str,
    training: Labelled,
    testing: Labelled | None,
    classes: tuple[str, ...],
    size: int | None,
) -> Splits:
    def sized(images: Tensor) -> Tensor:
        if size is None:
            return images
        check_size(name, len(images) * images.shape[1] * size**2 * images.element_size())
        return layouts.resize(images, size)

    images, labels = training
    if len(images) < 10:
        raise CurvactError(f"{name} has {len(images)} training images: at least 10 are needed for a split")
    if testing is None:
        return cut(name, (sized(images), labels), classes, validation=0.1, test=0.2)
    shape, other = images.shape[1:], testing[0].shape[1:]
    if shape[0] != other[0]:
        raise CurvactError(f"{name} has training images of {shape[0]} channels, test images of {other[0]}")
    if size is None and shape != other:
        (height, width), (tall, wide) = shape[1:], other[1:]
        raise CurvactError(
            f"{name} has training images of {height}×{width} pixels, test images of {tall}×{wide}: give a size"
        )
    tests = sized(testing[0]), testing[1]
    return cut(name, (sized(images), labels), classes, validation=0.1, test=tests)
