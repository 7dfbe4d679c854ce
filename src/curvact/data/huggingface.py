"""Data sets of the Hugging Face hub, through its `datasets` library (extra `hub`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from curvact.data.layouts import Labelled
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


def _read(table: Any, where: str, image: str, label: str, size: int | None) -> Labelled:
    from PIL import Image

    pictures, labels = [], []
    shape: tuple[int, ...] | None = None
    for row in table:
        picture = row[image]
        if not isinstance(picture, Image.Image):
            picture = Image.fromarray(np.asarray(picture, np.uint8))
        if picture.mode not in ("L", "RGB"):
            picture = picture.convert("L" if picture.mode in ("1", "I", "F", "LA") else "RGB")
        if size is not None and picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise CurvactError(f"{where}: images of {pixels.shape} and of {shape}: give a size")
        pictures.append(pixels)
        labels.append(int(row[label]))
    if shape is None or len(shape) not in (2, 3) or shape[0] != shape[1]:
        raise CurvactError(f"{where}: images of shape {shape}: at least one, square; or give a size")
    stack = np.stack(pictures)
    images = stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images)), torch.tensor(labels)
