"""Reading files of strangers: sizes are checked against a limit before memory is taken.

A few damaged bytes can claim terabytes, and a few megabytes can unpack to gigabytes.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from curvact.data.checks import Array
from curvact.data.pictures import short
from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.progress import Progress

EXPANSION = 100
"""Compressed data may become so many times as large as their file, or `SMALL` bytes."""

SMALL = 2**27


def machine_memory() -> int:
    """The memory of this machine in bytes; 64 GiB where the system does not say it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**36


def check_size(where: Path | str, needed: int, packed: int | None = None) -> None:
    """CurvactError where so many bytes do not fit into memory.

    packed: the size of the compressed file that they come from, which must not be tiny beside it.
    """
    if needed > machine_memory():
        raise CurvactError(f"{where} needs {needed:,} bytes of memory; this machine has {machine_memory():,}")
    if packed is not None:
        check_expansion(where, needed, packed)


def check_expansion(where: Path | str, needed: int, packed: int) -> None:
    """CurvactError where so few bytes would become so many."""
    if needed > max(SMALL, EXPANSION * packed):
        raise CurvactError(
            f"{where} would unpack {packed:,} bytes to {needed:,}: more than {EXPANSION} times as many are refused"
        )


def file_size(path: Path) -> int:
    """The size of a regular file. CurvactError for what is missing, and for pipes and devices."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise CurvactError(f"there is no {path}") from None
    except (OSError, ValueError) as error:
        raise CurvactError(f"cannot read {path}: {short(error)}") from None
    if not stat.S_ISREG(status.st_mode):
        raise CurvactError(f"{path} is no regular file")
    return status.st_size


@contextmanager
def reading(path: Path, what: str) -> Iterator[IO[bytes]]:
    """A regular file, open for reading. Whatever goes wrong inside is one line.

    what: what the file should be, such as ".npy".
    """
    file_size(path)
    try:
        with path.open("rb") as file:
            yield file
    except CurvactError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise CurvactError(f"{path} is truncated or no {what}: {short(error)}") from None


def whole_file(path: Path) -> bytes:
    """The bytes of a regular file."""
    check_size(path, file_size(path))
    try:
        return path.read_bytes()
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror}") from None


class Bounded:
    """A stream of unpacked bytes that ends with an error after as many as `check_size` allows."""

    def __init__(self, stream: Any, where: Path, packed: int) -> None:
        self.stream, self.where, self.packed, self.done = stream, where, packed, 0

    def read(self, size: int) -> bytes:
        """At most so many bytes."""
        found: bytes = self.stream.read(min(size, SMALL))
        self.done += len(found)
        check_size(self.where, self.done, self.packed)
        return found


def npy_header(file: IO[bytes], where: Path | str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of the array that begins here. CurvactError unless it is of
    numbers.
    """
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except Exception as error:  # numpy evaluates the header, which raises many kinds
        raise CurvactError(f"{where} holds no numpy array: {short(error)}") from None
    if dtype.kind not in "buif" or any(length < 0 for length in shape):
        raise CurvactError(f"{where} holds {dtype} of shape {shape}: an array of numbers is needed")
    return shape, fortran, dtype


def read_npy(file: IO[bytes], size: int, where: Path | str, packed: int | None = None) -> Array:
    """The array of an .npy, which fills exactly `size` bytes, header and all."""
    shape, fortran, dtype = npy_header(file, where)
    needed = math.prod(shape) * dtype.itemsize
    given = size - file.tell()
    if needed != given:
        raise CurvactError(
            f"{where} is truncated or too long: {dtype} of shape {shape} needs {needed:,} bytes, not {given:,}"
        )
    check_size(where, needed, packed)
    array: Array = np.empty(math.prod(shape), dtype)
    view = memoryview(array.view(np.uint8).data)
    done = 0
    while done < needed:
        count = file.readinto(view[done : done + 2**24])  # type: ignore[attr-defined]
        if not count:
            raise CurvactError(f"{where} is truncated: {needed:,} bytes are needed, {done:,} are there")
        done += count
    if file.read(1):  # the end of a member of an archive checks its checksum
        raise CurvactError(f"{where} is too long: {needed:,} bytes are needed")
    return array.reshape(shape, order="F" if fortran else "C")


def npz_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an .npz by name."""
    locked = next((member.filename for member in archive.infolist() if member.flag_bits & 1), None)
    if locked is not None:
        raise CurvactError(f"{archive.filename}: '{locked}' is encrypted, which is not read")
    return {member.filename.removesuffix(".npy"): member for member in archive.infolist()}


def read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """An array of an .npz, which is checked by its checksum."""
    packed = file_size(path)
    check_size(path, member.file_size, packed)
    with archive.open(member) as file:
        return read_npy(file, member.file_size, f"{path}: '{member.filename}'", packed)


def check_stored(path: Path, file: IO[bytes], start: int, member: zipfile.ZipInfo) -> None:
    """The checksum of an uncompressed array of an .npz, which mapping does not look at.

    A large file is read for it once. A small file beside it remembers its size and time.
    """
    status = path.stat()
    mark = f"{status.st_size} {status.st_mtime_ns} {member.CRC:08x}\n"
    beside = path.with_name(f".{path.name}.checked")
    large = member.file_size > SMALL
    if large and beside.is_file() and beside.read_bytes()[:200] == mark.encode():
        return
    file.seek(start)
    left, sum_ = member.file_size, 0
    progress = Progress(f"checking {path.name}", left)
    try:
        while left and (block := file.read(min(left, 2**22))):
            left, sum_ = left - len(block), zlib.crc32(block, sum_)
            progress.update(len(block))
    finally:
        progress.close()
    if left or sum_ != member.CRC:
        raise CurvactError(f"{path} is damaged: '{member.filename}' has another checksum than it should have")
    if large:
        with contextlib.suppress(OSError, CurvactError):
            atomic_write(beside, mark)
