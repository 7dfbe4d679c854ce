"""Synthetic images beside the real ones: memory-mapped, so that millions of them need no memory."""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
import secrets
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curvact.data.checks import Array, check_labels, whole_labels, without_column
from curvact.data.images import read_rows
from curvact.data.reading import (
    check_expansion,
    check_stored,
    file_size,
    npy_header,
    npz_members,
    read_member,
    reading,
)
from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.progress import Progress, track
from curvact.random import generator

SAMPLE = 1024
"""The number of images that the hash of a file reads."""

ROUNDS = 6
"""Rounds of the Feistel network that permutes the images."""


@dataclass(frozen=True)
class ExtraImages:
    """Synthetic images on disk, mapped into memory, and their share of a training batch.

    path: the file. images: uint8, N×H×W×C or N×C×H×W as in the file. labels: int64, N, or None.
    channels_first: whether the images are N×C×H×W.
    sha256: of the shape, the labels and 1,024 evenly spaced images. To read millions takes minutes.
    fraction: the part of each training batch that these images make up, in (0, 1).
    """

    path: Path
    images: NDArray[np.uint8]
    labels: Tensor | None
    channels_first: bool
    sha256: str
    fraction: float = 0.5

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        sizes = self.images.shape[1:]
        return sizes if self.channels_first else (sizes[-1], *sizes[:-1])

    def require_labels(self) -> Tensor:
        """The labels. Raises CurvactError if there are none."""
        if self.labels is None:
            raise CurvactError(
                f"{self.path} has no labels: make some with curvact.data.pseudo_label(model, extra, "
                "'labels.npy') and pass them to open_extra"
            )
        return self.labels

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen images, uint8 N×C×H×W, and their labels."""
        labels = self.require_labels()
        return self.read(index), labels[index]

    def read(self, index: Tensor) -> Tensor:
        """The chosen images, uint8 N×C×H×W. They are read in the order of the file."""
        rows = torch.from_numpy(read_rows(self.images, index))
        return (rows if self.channels_first else rows.permute(0, 3, 1, 2)).contiguous()

    def order(self, seed: int, position: Tensor) -> Tensor:
        """The image at each position (int64, >= 0) of an endless sequence that the seed determines.

        Each image comes once, then each once more in another order. `permute` computes the images
        at these positions alone, so that no list of millions is made.
        """
        count = len(self)
        passes = position // count
        out = torch.empty_like(position)
        for number in torch.unique(passes).tolist():
            mine = passes == number
            keys = torch.randint(0, 2**31, (ROUNDS,), generator=generator(seed, "extra", number)).tolist()
            out[mine] = permute(position[mine] % count, count, keys)
        return out


def permute(position: Tensor, count: int, keys: list[int]) -> Tensor:
    """A permutation of 0 … count − 1, evaluated at these positions (int64).

    It is a Feistel network over the next power of 4, applied again while the value is >= count
    (cycle walking).

    >>> sorted(permute(torch.arange(10), 10, [3, 1, 4, 1, 5, 9]).tolist()) == list(range(10))
    True
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1

    def once(value: Tensor) -> Tensor:
        left, right = value >> half, value & mask
        for key in keys:
            mixed = ((right + key) * 0x9E3779B1) & 0xFFFFFFFF
            mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA6B) & 0xFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 13)) & mask)
        return (left << half) | right

    value = once(position)
    while True:
        outside = value >= count
        if not bool(outside.any()):
            return value
        value = torch.where(outside, once(value), value)


def open_extra(
    path: str | os.PathLike[str],
    *,
    classes: int,
    shape: tuple[int, int, int],
    labels: str | os.PathLike[str] | None = None,
    fraction: float = 0.5,
) -> ExtraImages:
    """Open synthetic images: an .npz as DDPM and EDM sets have it, or an .npy of images.

    path: an .npz with `image` and, if there are labels, `label`; or an .npy. An uncompressed .npz
        is mapped where it is. A compressed one is unpacked once into an .npy beside it.
    classes: labels must lie in 0 … classes − 1.
    shape: channels, height and width that the images must have.
    labels: an .npy of labels, used instead of those of the file.
    fraction: the part of each training batch that these images make up, in (0, 1).

    Raises CurvactError, with the name of the file, for a file that is missing, truncated, of
    another shape or type, or with labels out of range.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise CurvactError(f"fraction={fraction!r} of open_extra: a number in (0, 1)")
    sizes = (classes, *shape)
    if len(sizes) != 4 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in sizes):
        raise CurvactError(
            f"classes={classes!r}, shape={shape!r} of open_extra: whole numbers >= 1, three in the shape"
        )
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise CurvactError(f"no file of extra images {path}: an .npz with 'image' and 'label', or an .npy")
    file_size(path)
    given: Array | None
    if path.suffix == ".npz":
        images, given = _open_npz(path)
    elif path.suffix == ".npy":
        images, given = map_npy(path), None
    else:
        raise CurvactError(f"{path}: extra images come as .npz or .npy")
    channels_first = _channels_first(path, images, shape)
    _advise(images, "MADV_RANDOM")
    source = path
    if labels is not None:
        source = Path(labels)
        if source.is_dir() or not source.exists():
            raise CurvactError(f"no file of labels {source}")
        file_size(source)
        given = map_npy(source)
    checked = None
    if given is not None:
        checked = whole_labels(source, without_column(given), len(images), path)
        check_labels(source, checked, classes)
    return ExtraImages(path, images, checked, channels_first, _hash(images, checked), fraction)


def pseudo_label(
    model: nn.Module, extra: ExtraImages, path: str | os.PathLike[str], *, batch_size: int = 512
) -> Path:
    """Label each image with the class that a model finds most likely. Write the labels as .npy.

    model: from N×C×H×W in [0, 1] to logits. It runs on its own device, in eval mode.
    Shows progress on standard error. Raises CurvactError, before any work, if `path` is not a file
    in an existing folder.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise CurvactError(f"batch_size={batch_size!r} of pseudo_label: a whole number >= 1")
    if not isinstance(extra, ExtraImages):
        raise CurvactError(f"pseudo_label got a {type(extra).__name__}: ExtraImages, which open_extra gives")
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise CurvactError(f"labels cannot be written to {path}: a file in a folder that exists")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # `models.modes` would do this, but no arrow leads from data to models.
    before = {module: module.training for module in model.modules()}
    model.eval()
    _advise(extra.images, "MADV_SEQUENTIAL")
    found = []
    try:
        with torch.no_grad():
            for start in track(range(0, len(extra), batch_size), "labelling"):
                index = torch.arange(start, min(start + batch_size, len(extra)))
                found.append(model(extra.read(index).to(device).float().div_(255)).argmax(1).cpu())
    finally:
        for module, training in before.items():
            module.training = training
        _advise(extra.images, "MADV_RANDOM")
    buffer = io.BytesIO()
    np.save(buffer, torch.cat(found).numpy())
    atomic_write(path, buffer.getvalue())
    return path


def _open_npz(path: Path) -> tuple[NDArray[np.uint8], Array | None]:
    with reading(path, ".npz") as file, zipfile.ZipFile(file) as archive:
        members = npz_members(archive)
        image = members.get("image") or members.get("images")
        label = members.get("label") or members.get("labels")
        if image is None:
            raise CurvactError(f"{path} has no 'image'; it holds {', '.join(members) or 'nothing'}")
        labels = None if label is None else read_member(path, archive, label)
        if image.compress_type == zipfile.ZIP_STORED:
            return _map_member(path, image), labels
        check_expansion(path, image.file_size, file_size(path))
        return map_npy(_unpacked(path, archive, image)), labels


def _map_member(path: Path, member: zipfile.ZipInfo) -> NDArray[np.uint8]:
    """An uncompressed array inside a zip archive, mapped where it is."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise CurvactError(f"{path} is truncated or damaged: '{member.filename}' is not at its place")
        name, more = struct.unpack("<HH", header[26:30])
        start = member.header_offset + 30 + name + more
        check_stored(path, file, start, member)
        file.seek(start)
        return _map_array(path, file, start + member.file_size)


def map_npy(path: Path) -> NDArray[np.uint8]:
    """The array of an .npy, mapped into memory. CurvactError where it is damaged."""
    file_size(path)
    with path.open("rb") as file:
        return _map_array(path, file)


def _map_array(path: Path, file: IO[bytes], stop: int | None = None) -> NDArray[np.uint8]:
    """The array that begins here and ends before `stop`, or before the end of the file."""
    shape, fortran, dtype = npy_header(file, path)
    if fortran:
        raise CurvactError(f"{path}: arrays in Fortran order are not read")
    needed = math.prod(shape) * dtype.itemsize
    size = path.stat().st_size
    if file.tell() + needed > min(size, size if stop is None else stop):
        raise CurvactError(
            f"{path} is truncated: {shape} {dtype} needs {needed:,} bytes more than its header"
        )
    if needed == 0:
        raise CurvactError(f"{path} is empty: shape {shape}")
    return np.memmap(path, dtype, "r", file.tell(), shape)


def _advise(images: NDArray[np.uint8], how: str) -> None:
    """Advise the kernel of the order of reads.

    By default a read at random brings megabytes of the neighbouring images from the disk.
    """
    mapped = getattr(images, "_mmap", None)
    if mapped is not None and hasattr(mmap, how):
        mapped.madvise(getattr(mmap, how))


def _unpacked(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Path:
    """A compressed array as an .npy beside the archive. Its name has the checksum of the array."""
    target = path.with_name(f"{path.name}.{member.CRC:08x}.npy")
    if target.is_file() and target.stat().st_size == member.file_size:
        return target
    free = shutil.disk_usage(path.parent).free
    if free < member.file_size:
        raise CurvactError(
            f"{path} is compressed and needs {member.file_size:,} bytes to unpack; "
            f"{free:,} are free in {path.parent}"
        )
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    progress = Progress(f"unpacking {path.name}", member.file_size)
    try:
        with archive.open(member) as packed, temporary.open("wb") as out:
            while block := packed.read(2**20):
                out.write(block)
                progress.update(len(block))
        os.replace(temporary, target)
    except OSError as error:
        raise CurvactError(
            f"{path} cannot be unpacked into {path.parent}: {error.strerror or error}"
        ) from None
    finally:
        progress.close()
        temporary.unlink(missing_ok=True)
    return target


def _channels_first(path: Path, images: NDArray[np.uint8], shape: tuple[int, int, int]) -> bool:
    channels, height, width = shape
    wanted = {(height, width, channels): False, (channels, height, width): True}
    if images.dtype != np.uint8 or tuple(images.shape[1:]) not in wanted:
        raise CurvactError(
            f"{path} holds {images.dtype} images of {tuple(images.shape[1:])}: "
            f"uint8 of {(height, width, channels)} or {shape} are needed"
        )
    return wanted[tuple(images.shape[1:])]


def _hash(images: NDArray[np.uint8], labels: Tensor | None) -> str:
    digest = hashlib.sha256(repr(images.shape).encode())
    rows = np.unique(np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(np.int64))
    digest.update(np.ascontiguousarray(images[rows]).data)
    if labels is not None:
        digest.update(labels.numpy().data)
    return digest.hexdigest()
