"""Arrays of numbers in MATLAB's .mat files of version 5, the format of SVHN.

scipy reads more, and takes the memory that a damaged file asks for.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np

from curvact.data.checks import Array
from curvact.data.reading import check_size, reading, whole_file
from curvact.errors import CurvactError

MATRIX, COMPRESSED = 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of stored data."""

KINDS = ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]
CLASSES = dict(enumerate(KINDS, 6))
"""Types of arrays. The data of an array may be stored in a smaller type."""


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    """The arrays of these names that a .mat file has.

    Raises CurvactError for a file that is damaged or of another version, and for an array of these
    names that is no array of real numbers.
    """
    data = whole_file(path)
    with reading(path, ".mat file of version 5"):
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
        if order is None or struct.unpack(f"{order}H", data[124:126])[0] != 0x0100:
            raise ValueError("its header is another one")
        found = {}
        at = 128
        while at < len(data):
            kind, content, after = _element(data, at, order)
            if kind == COMPRESSED:
                content = _unpacked(path, content, order)
                kind, content, _ = _element(content, 0, order)
            at = after
            if kind == MATRIX:
                name, array = _matrix(path, content, order, names)
                if array is not None:
                    found[name] = array
        return found


def _element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Type and content of the element at a place, and the place of the next one."""
    kind, size = struct.unpack_from(f"{order}2I", data, at)
    if kind >> 16:  # up to four bytes lie in the tag itself
        size, kind = kind >> 16, kind & 0xFFFF
        if size > 4:
            raise ValueError("an element of wrong size")
        return kind, data[at + 4 : at + 4 + size], at + 8
    start, end = at + 8, at + 8 + size
    if end > len(data):
        raise ValueError(f"{size:,} bytes are needed at {start:,}, {len(data) - start:,} are there")
    return kind, data[start:end], end if kind == COMPRESSED else end + -size % 8


def _unpacked(path: Path, content: bytes, order: str) -> bytes:
    stream = zlib.decompressobj()
    tag = stream.decompress(content, 8)
    if len(tag) < 8:
        raise ValueError("a compressed element without content")
    size = struct.unpack(f"{order}2I", tag)[1]
    check_size(path, size, len(content))
    rest = stream.decompress(stream.unconsumed_tail, size + 1)
    if len(rest) != size or not stream.eof:
        raise ValueError("a compressed element of wrong size or checksum")
    return tag + rest


def _matrix(path: Path, data: bytes, order: str, names: tuple[str, ...]) -> tuple[str, Array | None]:
    _, flags, at = _element(data, 0, order)
    _, lengths, at = _element(data, at, order)
    _, letters, at = _element(data, at, order)
    name = letters.decode("latin-1")
    if name not in names:
        return name, None
    (word,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(lengths) // 4}i", lengths[: len(lengths) // 4 * 4])
    if word & 0xFF not in CLASSES or word & 0x0800 or any(length < 0 for length in shape):
        raise CurvactError(f"{path}: '{name}' is no array of real numbers")
    kind, content, _ = _element(data, at, order)
    if kind not in TYPES:
        raise ValueError(f"'{name}' is stored as type {kind}")
    values = np.frombuffer(content, order + TYPES[kind])
    if len(values) != math.prod(shape):
        raise ValueError(f"'{name}' has {len(values):,} values for the shape {shape}")
    return name, values.astype(CLASSES[word & 0xFF], copy=False).reshape(shape, order="F")
