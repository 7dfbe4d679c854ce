"""Parquet files of pictures and labels, as the Hugging Face hub stores them (extra `parquet`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from curvact.data.checks import Labelled
from curvact.data.huggingface import TEST_SPLITS, from_tables
from curvact.data.reading import check_size, file_size, reading
from curvact.errors import CurvactError

ROWS = 256
"""Rows that are read at once."""


@dataclass(frozen=True)
class Table:
    """Files of one split, read row by row. features: by column; with `names`, those of classes."""

    files: tuple[Path, ...]
    features: Mapping[str, Any]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        import pyarrow.parquet as parquet

        for path in self.files:
            with reading(path, "Parquet file"):
                table = parquet.ParquetFile(path)
                groups = (table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups))
                check_size(path, sum(groups), file_size(path))
                for batch in table.iter_batches(ROWS):
                    yield from batch.to_pylist()


def parquet_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The Parquet files of a folder, or of its `data`, by split: the first word of their names.

    `train-00000-of-00002.parquet` and `train.parquet` belong to `train`. Names without such a word
    are one split, `train`.
    """
    splits: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        if path.name.startswith("."):
            continue
        word = path.stem.partition("-")[0].lower()
        splits.setdefault(word if word in ("train", *TEST_SPLITS) else "", []).append(path)
    if set(splits) == {""}:
        return {"train": tuple(splits[""])}
    return {split: tuple(files) for split, files in splits.items() if split}


def from_parquet(path: Path, size: int | None) -> tuple[Labelled, Labelled | None, tuple[str, ...]]:
    """Training images, test images and class names of a .parquet file, or of a folder of them.

    Raises CurvactError if pyarrow is missing, and for files that are damaged or have no pictures.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise CurvactError(f'{path} needs pyarrow: pip install "curvact[parquet]"') from None
    files = parquet_files(path) if path.is_dir() else {"train": (path,)}
    tables = {}
    for split, paths in files.items():
        columns: list[str] | None = None
        for file in paths:
            with reading(file, "Parquet file"):
                schema = parquet.read_schema(file)
                if columns is not None and schema.names != columns:
                    raise CurvactError(f"{file} has other columns than {paths[0]}: {', '.join(schema.names)}")
                columns = schema.names
                features = _features(schema)
        tables[split] = Table(paths, features)
    return from_tables(tables, str(path), size)


def _features(schema: Any) -> dict[str, Any]:
    """Columns, with the names of classes that the hub writes into the file."""
    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    about = stored.get("info", {}).get("features", {}) if isinstance(stored, dict) else {}
    return {
        name: SimpleNamespace(names=about.get(name, {}).get("names") if isinstance(about, dict) else None)
        for name in schema.names
    }
