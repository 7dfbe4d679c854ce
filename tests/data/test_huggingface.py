"""Tables of the Hugging Face hub: a stand-in, and those of the library where it is installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from curvact.data import load
from curvact.data.huggingface import from_hub, from_tables
from curvact.errors import CurvactError
from fake_data import fake_arrays

IMAGES, LABELS = fake_arrays("cifar10", 12)
NAMES = ("aye", "bee", *"cdefghij")


class Table:
    """The part of `datasets.Dataset` in use: rows, and features with or without class names."""

    def __init__(
        self, pictures: Any, labels: Any, *, image: str = "img", label: str = "label", names: Any = NAMES
    ) -> None:
        self.rows = [{image: p, label: t} for p, t in zip(pictures, labels, strict=True)]
        self.features = {
            image: SimpleNamespace(),
            label: SimpleNamespace(names=names) if names else SimpleNamespace(),
        }

    def __iter__(self) -> Any:
        return iter(self.rows)


def pictures(images: Any = IMAGES) -> list[Image.Image]:
    return [Image.fromarray(image.transpose(1, 2, 0)) for image in images]


@pytest.mark.parametrize("form", ["pil", "channels last", "channels first", "lists"])
def test_pictures_and_arrays(form: str) -> None:
    rows: Any = {
        "pil": pictures(),
        "channels last": list(IMAGES.transpose(0, 2, 3, 1)),
        "channels first": list(IMAGES.astype(np.int64)),
        "lists": IMAGES.tolist(),
    }[form]
    (images, labels), test, names = from_tables({"train": Table(rows, LABELS.tolist())}, "hf:a/b", None)
    assert np.array_equal(images, IMAGES)
    assert labels.tolist() == LABELS.tolist()
    assert (images.dtype, labels.dtype, test, names) == (torch.uint8, torch.int64, None, NAMES)


def test_splits_columns_and_names() -> None:
    grey = [Image.fromarray(image[0]) for image in IMAGES]
    tables = {
        "train": Table(grey, LABELS, image="image", label="fine_label", names=None),
        "validation": Table(grey[:3], [2, 1, 0], image="image", label="fine_label", names=None),
    }
    (images, _), test, names = from_tables(tables, "hf:a/b", None)
    assert np.array_equal(images, IMAGES[:, :1])
    assert test is not None
    assert test[1].tolist() == [2, 1, 0]
    assert names == tuple(map(str, range(max(LABELS) + 1)))
    tables["test"] = Table(grey[:2], [1, 1], image="image", label="fine_label", names=None)
    chosen = from_tables(tables, "hf:a/b", None)[1]
    assert chosen is not None
    assert len(chosen[0]) == 2


def test_grey_among_colour_and_other_modes() -> None:
    rows = pictures()
    rows[0] = rows[0].convert("L")
    rows[1] = rows[1].convert("RGBA")
    rows[2] = rows[2].convert("P")
    images = from_tables({"train": Table(rows, LABELS)}, "hf:a/b", None)[0][0]
    assert images.shape == (12, 3, 32, 32)
    assert torch.equal(images[0, 0], images[0, 2])
    assert np.array_equal(images[1], IMAGES[1])
    # Grey training images, colour test images: three channels for both.
    grey = Table([r.convert("L") for r in rows], LABELS)
    train, test, _ = from_tables({"train": grey, "test": Table(rows, LABELS)}, "hf:a/b", None)
    assert test is not None
    assert train[0].shape[1] == test[0].shape[1] == 3


def test_sizes() -> None:
    rows = pictures()
    rows[3] = rows[3].resize((40, 64))
    with pytest.raises(
        CurvactError, match=r"hf:a/b/train: images of 2 sizes, such as 32×32 and 40×64: give a size"
    ):
        from_tables({"train": Table(rows, LABELS)}, "hf:a/b", None)
    images = from_tables({"train": Table(rows, LABELS)}, "hf:a/b", 16)[0][0]
    assert images.shape == (12, 3, 16, 16)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (list(IMAGES / 255), LABELS, "row 0: float64"),
        (list(IMAGES.astype(np.int16) * 9), LABELS, "row 0: int16"),
        ([*pictures()[:11], None], LABELS, "row 11: object"),
        ([Image.new("I;16", (8, 8))] * 12, LABELS, "I;16"),
        ([np.zeros((3, 4, 5, 6), np.uint8)] * 12, LABELS, "no picture"),
        (pictures(), ["cat"] * 12, "'label' holds str"),
        (pictures(), [None] * 12, "'label' holds NoneType"),
        (pictures(), [-1] * 12, "labels from -1 to -1; they must lie in 0 … 9"),
        (pictures(), [10] * 12, "labels from 10 to 10; they must lie in 0 … 9"),
        ([], [], "no rows"),
    ],
)
def test_what_is_refused(rows: Any, labels: Any, message: str) -> None:
    with pytest.raises(CurvactError) as caught:
        from_tables({"train": Table(rows, labels)}, "hf:a/b", None)
    assert message in str(caught.value)
    assert str(caught.value).startswith("hf:a/b")
    assert "\n" not in str(caught.value)


def test_missing_splits_columns_and_damaged_rows() -> None:
    table = Table(pictures(), LABELS)
    with pytest.raises(CurvactError, match="no split 'train'; it has test"):
        from_tables({"test": table}, "hf:a/b", None)
    with pytest.raises(CurvactError, match=r"none of the columns image, img.*; it has photo, label"):
        from_tables({"train": Table(pictures(), LABELS, image="photo")}, "hf:a/b", None)
    with pytest.raises(CurvactError, match=r"none of the columns label.*; it has img, kind"):
        from_tables({"train": Table(pictures(), LABELS, label="kind")}, "hf:a/b", None)

    class Damaged(Table):
        def __iter__(self) -> Any:
            yield self.rows[0]
            raise OSError("image file is\ntruncated")

    with pytest.raises(CurvactError, match="row 1 cannot be read: image file is truncated"):
        from_tables({"train": Damaged(pictures(), LABELS)}, "hf:a/b", None)


def test_rows_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvact.data.reading.machine_memory", lambda: 2 * 5 * 3072)
    with pytest.raises(CurvactError, match=r"^hf:a/b/train needs 36,864 bytes of memory"):
        from_tables({"train": Table(pictures(), LABELS)}, "hf:a/b", None)


def test_load_goes_through_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    def load_dataset(name: str, config: str | None, *, revision: str | None) -> dict[str, Table]:
        asked.append((name, config, revision))
        if name != "owner/name":
            raise ConnectionError("no\nnetwork")
        return {"train": Table(pictures(), LABELS), "test": Table(pictures()[:4], LABELS[:4])}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    splits = load("hf:owner/name", size=8)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [11, 1, 4]
    assert splits.train.images.shape[1:] == (3, 8, 8)
    assert splits.train.classes == NAMES
    with pytest.raises(CurvactError, match=r"^hf:other/name cannot be loaded: no network$"):
        load("hf:other/name")
    load("hf:owner/name:small@v1", size=8)
    assert asked == [("owner/name", None, None), ("other/name", None, None), ("owner/name", "small", "v1")]
    for bad in ("hf:", "hf:a/b:", "hf:a/b@"):
        with pytest.raises(CurvactError, match="write hf:OWNER/NAME"):
            load(bad)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        CurvactError, match=r'hf:a/b needs the Hugging Face library: pip install "curvact\[hub\]"'
    ):
        from_hub("a/b", None)


def test_the_real_library() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    table = datasets.Dataset.from_dict({"img": pictures(), "label": LABELS.tolist()}, features=features)
    (images, labels), _, names = from_tables(datasets.DatasetDict({"train": table}), "hf:a/b", None)
    assert np.array_equal(images, IMAGES)
    assert labels.tolist() == LABELS.tolist()
    assert names == NAMES
