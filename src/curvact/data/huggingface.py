"""Data sets of the Hugging Face hub, through its `datasets` library (extra `hub`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from curvact.data.layouts import Array, Labelled, fitted, labelled
from curvact.errors import CurvactError

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
TEST_SPLITS = ("test", "validation", "valid", "val")


def from_hub(name: str, size: int | None) -> tuple[Labelled, Labelled | None, tuple[str, ...]]:
    """Training and test images and class names of `owner/name`.

    Raises CurvactError where library, data set or network are missing.
    """
    try:
        import datasets
    except ImportError:
        raise CurvactError(f'hf:{name} needs the Hugging Face library: pip install "curvact[hub]"') from None
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the library raises many kinds
        raise CurvactError(f"hf:{name} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    return from_tables(found, name, size)


def from_tables(
    tables: Any, name: str, size: int | None
) -> tuple[Labelled, Labelled | None, tuple[str, ...]]:
    """The same from a mapping of splits to tables whose rows hold a picture (PIL image or array) and a label."""
    if "train" not in tables:
        raise CurvactError(f"hf:{name} has no split 'train'; it has {', '.join(tables)}")
    columns = list(tables["train"].features)
    image = _column(name, columns, IMAGE_COLUMNS)
    label = _column(name, columns, LABEL_COLUMNS)
    training = _read(tables["train"], f"hf:{name}/train", image, label, size)
    split = next((s for s in TEST_SPLITS if s in tables), None)
    testing = None if split is None else _read(tables[split], f"hf:{name}/{split}", image, label, size)
    if testing is not None and testing[0].shape[1] != training[0].shape[1]:
        training, testing = ((images.expand(-1, 3, -1, -1), labels) for images, labels in (training, testing))
    names = getattr(tables["train"].features[label], "names", None)
    if names is None:
        count = max(int(part[1].max()) for part in (training, testing or training)) + 1
        names = [str(number) for number in range(count)]
    for _, labels in (training, testing or training):
        if int(labels.min()) < 0 or int(labels.max()) >= len(names):
            raise CurvactError(
                f"hf:{name}: labels from {int(labels.min())} to {int(labels.max())} for {len(names)} classes"
            )
    return training, testing, tuple(names)


def _column(name: str, columns: list[str], wanted: tuple[str, ...]) -> str:
    for column in wanted:
        if column in columns:
            return column
    raise CurvactError(f"hf:{name} has none of the columns {', '.join(wanted)}; it has {', '.join(columns)}")


PLAIN = {"1": "L", "L": "L", "LA": "L"}
"""Modes of grey pictures, and what they become; every other one becomes RGB."""


def _read(table: Any, where: str, image: str, label: str, size: int | None) -> Labelled:
    pictures: list[Any] = []
    labels = []
    try:
        for row in table:
            pictures.append(_picture(row[image], f"{where}, row {len(pictures)}", size))
            labels.append(row[label])
    except CurvactError:
        raise
    except Exception as error:  # a damaged picture raises nearly anything, when its row is read
        raise CurvactError(
            f"{where}, row {len(pictures)} cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None
    if not pictures:
        raise CurvactError(f"{where} has no rows")
    if any(picture.mode == "RGB" for picture in pictures):
        pictures = [picture.convert("RGB") for picture in pictures]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise CurvactError(f"{where}: images of {len(sizes)} sizes, such as {_sizes(sizes)}: give a size")
    kinds = {type(value) for value in labels}
    if not all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        raise CurvactError(
            f"{where}: '{label}' holds {', '.join(sorted(kind.__name__ for kind in kinds))}; one whole number an image is needed"
        )
    return labelled(where, np.stack([np.asarray(picture) for picture in pictures]), np.asarray(labels))


def _picture(value: Any, where: str, size: int | None) -> Any:
    from PIL import Image

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
    mode = PLAIN.get(value.mode, "RGB")
    if value.mode[0] in "IF":
        raise CurvactError(f"{where}: pictures of more than 8 bits a channel ({value.mode}) are not read")
    value = value if value.mode == mode else value.convert(mode)
    return value if size is None else fitted(value, size)


def _sizes(sizes: set[tuple[int, int]]) -> str:
    return " and ".join(f"{width}×{height}" for width, height in sorted(sizes)[:2])
