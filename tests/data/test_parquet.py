"""Parquet files: pictures in bytes, with and without class names; splits by name; damage."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curvact.data import load
from curvact.data.parquet import parquet_files
from curvact.errors import CurvactError
from fake_data import fake_arrays, pairs

IMAGES, LABELS = fake_arrays("cifar10", 30)
NAMES = tuple("abcdefghij")


def test_splits_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        (tmp_path / "data" / f"{name}.parquet").touch()
    found = parquet_files(tmp_path)
    assert {split: len(files) for split, files in found.items()} == {"train": 2, "test": 1}
    one = tmp_path / "one"
    one.mkdir()
    for name in ("part-0", "part-1"):
        (one / f"{name}.parquet").touch()
    assert {split: len(files) for split, files in parquet_files(one).items()} == {"train": 2}


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(CurvactError, match=r'needs pyarrow: pip install "curvact\[parquet\]"'):
        load(str(tmp_path / "x.parquet"))


def write(path: Path, images: Any, labels: Any, names: Any = NAMES) -> Path:
    """As the hub writes: a picture is a struct of bytes and path."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for image in images:
        packed = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(packed, "PNG")
        rows.append({"bytes": packed.getvalue(), "path": None})
    table = pyarrow.table({"img": rows, "label": np.asarray(labels)})
    if names:
        about = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
    return path


def test_one_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", IMAGES, LABELS)
    splits = load(str(path))
    assert pairs(splits.train, splits.validation, splits.test) == pairs((IMAGES, LABELS))
    assert splits.train.classes == NAMES
    unnamed = load(str(write(tmp_path / "y.parquet", IMAGES, LABELS, None)))
    assert unnamed.train.classes == tuple("0123456789")
    assert unnamed.train.sha256 == splits.train.sha256
    assert load(str(path), size=16).test.images.shape[1:] == (3, 16, 16)


def test_a_folder_of_splits(tmp_path: Path) -> None:
    for number, part in enumerate((slice(0, 12), slice(12, 20))):
        write(tmp_path / "data" / f"train-{number}.parquet", IMAGES[part], LABELS[part])
    write(tmp_path / "data" / "test-0.parquet", IMAGES[20:], LABELS[20:])
    splits = load(str(tmp_path))
    assert pairs(splits.train, splits.validation) == pairs((IMAGES[:20], LABELS[:20]))
    assert pairs(splits.test) == pairs((IMAGES[20:], LABELS[20:]))


def test_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", IMAGES, LABELS)
    whole = path.read_bytes()
    for data in (b"", whole[:100], whole[:-20], whole[:2000] + b"x" * 500 + whole[2500:]):
        path.write_bytes(data)
        with pytest.raises(CurvactError) as caught:
            load(str(path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path = write(tmp_path / "y.parquet", IMAGES, LABELS + 9)
    with pytest.raises(CurvactError, match=r"y\.parquet: labels from 9 to 18; they must lie in 0 … 9"):
        load(str(path))
