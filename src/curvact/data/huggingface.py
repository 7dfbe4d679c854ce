"""Data sets of the Hugging Face hub, through its `datasets` library (extra `hub`)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from curvact.data import pictures
from curvact.data.arrays import IMAGE_KEYS, LABEL_KEYS
from curvact.data.checks import (
    Array,
    Labelled,
    check_labels,
    labelled,
    names_of,
    numbered_classes,
)
from curvact.data.layouts import same_channels
from curvact.data.pictures import short
from curvact.data.reading import check_size
from curvact.errors import CurvactError

TEST_SPLITS = ("test", "validation", "valid", "val")


def from_hub(name: str, size: int | None) -> tuple[Labelled, Labelled | None, tuple[str, ...]]:
    """Training images, test images and class names of `owner/name`, `owner/name:config@revision`.

    Raises CurvactError if the library, the data set or the network is missing.
    """
    try:
        import datasets
    except ImportError:
        raise CurvactError(f'hf:{name} needs the Hugging Face library: pip install "curvact[hub]"') from None
    place, config, revision = hub_place(name)
    try:
        found = datasets.load_dataset(place, config, revision=revision)
    except Exception as error:  # the library raises many kinds
        raise CurvactError(f"hf:{name} cannot be loaded: {short(error)}") from None
    return from_tables(found, f"hf:{name}", size)


def hub_place(name: str) -> tuple[str, str | None, str | None]:
    """Data set, config and revision of a name such as "owner/name:config@revision".

    >>> hub_place("zalando/mnist:fashion@v1.0"), hub_place("mnist")
    (('zalando/mnist', 'fashion', 'v1.0'), ('mnist', None, None))
    """
    rest, at, revision = name.partition("@")
    place, colon, config = rest.partition(":")
    if not place or (at and not revision) or (colon and not config):
        raise CurvactError(
            f"hf:{name}: write hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or hf:OWNER/NAME:CONFIG@REVISION"
        )
    return place, config or None, revision or None


def from_tables(
    tables: Any, where: str, size: int | None
) -> tuple[Labelled, Labelled | None, tuple[str, ...]]:
    """Training images, test images and class names of a mapping from splits to tables.

    Each row of a table has a picture (a PIL image, an array, or the bytes of a file) and a label.
    where: for messages, such as "hf:owner/name".
    """
    if "train" not in tables:
        raise CurvactError(f"{where} has no split 'train'; it has {', '.join(tables)}")
    columns = list(tables["train"].features)
    image = _column(where, columns, IMAGE_KEYS)
    label = _column(where, columns, LABEL_KEYS)
    training = _read(tables["train"], f"{where}/train", image, label, size)
    split = next((s for s in TEST_SPLITS if s in tables), None)
    testing = None if split is None else _read(tables[split], f"{where}/{split}", image, label, size)
    training, testing = same_channels(training, testing)
    names = getattr(tables["train"].features[label], "names", None)
    others = [] if testing is None else [testing[1]]
    if names is None:
        return training, testing, numbered_classes(where, training[1], *others)
    for labels in (training[1], *others):
        check_labels(where, labels, len(names))
    return training, testing, names_of(list(names), where)


def _column(where: str, columns: list[str], wanted: tuple[str, ...]) -> str:
    for column in wanted:
        if column in columns:
            return column
    raise CurvactError(f"{where} has none of the columns {', '.join(wanted)}; it has {', '.join(columns)}")


def _read(table: Any, where: str, image: str, label: str, size: int | None) -> Labelled:
    found: list[Any] = []
    labels = []
    taken = 0
    try:
        for row in table:
            found.append(_picture(row[image], f"{where}, row {len(found)}", size))
            labels.append(row[label])
            width, height = found[-1].size
            taken += width * height * len(found[-1].getbands())
            check_size(where, 2 * taken)  # the pictures, and then the array of them
    except CurvactError:
        raise
    except Exception as error:  # a damaged picture raises nearly anything, when its row is read
        raise CurvactError(f"{where}, row {len(found)} cannot be read: {short(error)}") from None
    if not found:
        raise CurvactError(f"{where} has no rows")
    if any(picture.mode == "RGB" for picture in found):
        found = [picture.convert("RGB") for picture in found]
    sizes = sorted({picture.size for picture in found})
    if len(sizes) > 1:
        some = " and ".join(f"{width}×{height}" for width, height in sizes[:2])
        raise CurvactError(f"{where}: images of {len(sizes)} sizes, such as {some}: give a size")
    kinds = {type(value) for value in labels}
    if not all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        held = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise CurvactError(f"{where}: '{label}' holds {held}; one whole number an image is needed")
    return labelled(where, np.stack([np.asarray(picture) for picture in found]), np.asarray(labels))


def _picture(value: Any, where: str, size: int | None) -> Any:
    from PIL import Image

    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]
    if isinstance(value, bytes):
        value = Image.open(io.BytesIO(value))
    if not isinstance(value, Image.Image):
        array: Array = np.asarray(value)
        if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
            array = array.astype(np.uint8)
        if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
            array = array.transpose(1, 2, 0)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise CurvactError(f"{where}: {array.dtype} of shape {array.shape} is no picture in 0 … 255")
        value = Image.fromarray(array)
    pictures.check(value, where)
    value = pictures.plain(value, grey=pictures.is_grey(value))
    return value if size is None else pictures.fitted(value, size)
