"""Synthetic images beside the real ones: memory-mapped, so that millions of them cost no memory, and labelled by a model if
need be.
"""

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
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor, nn

from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.random import generator

IMAGE_KEYS = ("image", "images")
LABEL_KEYS = ("label", "labels")
SAMPLE = 1024
"""Rows that the hash of a file reads."""


@dataclass(frozen=True)
class ExtraImages:
    """Images on disk, mapped into memory.

    path: the file. images: uint8, N×H×W×C or N×C×H×W as in the file. labels: int64, N, or None. channels_first: how the
    images lie. sha256: of shape, labels and 1,024 evenly spaced images: reading millions would take minutes.
    fraction: the part of each training batch that these images make up.
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

    def require_labels(self) -> None:
        """CurvactError unless there are labels to train on."""
        if self.labels is None:
            raise CurvactError(
                f"{self.path} has no labels: make some with curvact.data.pseudo_label(model, extra, 'labels.npy') "
                "and pass them to open_extra"
            )

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen images, uint8 N×C×H×W, and their labels. Reads in the order of the file."""
        self.require_labels()
        assert self.labels is not None
        return self.read(index), self.labels[index]

    def read(self, index: Tensor) -> Tensor:
        """The chosen images alone, uint8 N×C×H×W."""
        ordered, back = index.sort()
        rows = torch.from_numpy(np.asarray(self.images[ordered.numpy()]))
        images = rows if self.channels_first else rows.permute(0, 3, 1, 2)
        return images[back.argsort()].contiguous()

    def order(self, seed: int, position: Tensor) -> Tensor:
        """The image at each position of an endless seeded sequence: every image once, then every image again in another order.

        A keyed permutation (Feistel network with cycle walking) is computed for the positions asked, so that no list of
        millions is made.

        position: int64, ≥ 0.
        """
        count = len(self)
        passes = position // count
        out = torch.empty_like(position)
        for number in torch.unique(passes).tolist():
            mine = passes == number
            keys = torch.randint(0, 2**31, (ROUNDS,), generator=generator(seed, "extra", number)).tolist()
            out[mine] = permute(position[mine] % count, count, keys)
        return out


ROUNDS = 6


def permute(position: Tensor, count: int, keys: list[int]) -> Tensor:
    """A permutation of 0 … count − 1, evaluated at the positions (int64) alone.

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
    """Open synthetic images: an .npz with `image` and, if there are labels, `label` (as DDPM and EDM sets come), or an .npy
    of images.

    A stored .npz is mapped where it lies. A compressed one is unpacked once, in pieces, into an .npy beside it, named by its
    checksum: another file under the same name is unpacked again.
    classes: labels must lie in 0 … classes − 1. shape: channels, height and width that the images must have.
    labels: an .npy of labels that stands in for those of the file.
    fraction: the part of each training batch that these images make up, in (0, 1).
    Raises CurvactError naming the file for anything missing, truncated, of another shape or type, or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise CurvactError(f"no file of extra images {path}: an .npz with 'image' and 'label', or an .npy")
    given: NDArray[np.generic] | None
    if path.suffix == ".npz":
        images, given = _open_npz(path)
    elif path.suffix == ".npy":
        images, given = _map_npy(path), None
    else:
        raise CurvactError(f"{path}: extra images come as .npz or .npy")
    channels_first = _layout(path, images, shape)
    _advise(images, "MADV_RANDOM")
    source = path
    if labels is not None:
        source = Path(labels)
        if not source.is_file():
            raise CurvactError(f"no file of labels {source}")
        given = _map_npy(source)
    checked = None if given is None else _check_labels(source, given, len(images), classes)
    return ExtraImages(path, images, checked, channels_first, _hash(images, checked), fraction)


def pseudo_label(
    model: nn.Module, extra: ExtraImages, path: str | os.PathLike[str], *, batch_size: int = 512
) -> Path:
    """Label every image with the class that the model finds likeliest, and write the labels as .npy, whole or not at all.

    model: maps N×C×H×W in [0, 1] to logits; it works on its own device, in eval mode (restored after). Shows progress on
    standard error. Raises CurvactError, before any work, where the folder of `path` does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise CurvactError(f"labels cannot be written to {path}: a file in a folder that exists")
    from rich.console import Console
    from rich.progress import track

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was = {module: module.training for module in model.modules()}
    model.eval()
    _advise(extra.images, "MADV_SEQUENTIAL")
    found = []
    try:
        with torch.no_grad():
            starts = range(0, len(extra), batch_size)
            for start in track(starts, "labelling", console=Console(stderr=True), transient=True):
                index = torch.arange(start, min(start + batch_size, len(extra)))
                found.append(model(extra.read(index).to(device).float().div_(255)).argmax(1).cpu())
    finally:
        for module, training in was.items():
            module.training = training
        _advise(extra.images, "MADV_RANDOM")
    buffer = io.BytesIO()
    np.save(buffer, torch.cat(found).numpy())
    atomic_write(path, buffer.getvalue())
    return path


def _open_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.generic] | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
            image = next((members[key] for key in IMAGE_KEYS if key in members), None)
            label = next((members[key] for key in LABEL_KEYS if key in members), None)
            if image is None:
                raise CurvactError(f"{path} has no 'image'; it holds {', '.join(members) or 'nothing'}")
            labels = None
            if label is not None:
                with archive.open(label) as file:
                    labels = npy.read_array(file, allow_pickle=False)
            if image.compress_type == zipfile.ZIP_STORED:
                return _map_member(path, image), labels
            return _map_npy(_unpacked(path, archive, image)), labels
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        RuntimeError,
        struct.error,
        OSError,
    ) as error:
        if isinstance(error, CurvactError):
            raise
        raise CurvactError(f"{path} is truncated or no .npz: {' '.join(str(error).split())}") from None


def _map_member(path: Path, member: zipfile.ZipInfo) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise CurvactError(
                f"{path} is truncated or damaged: no entry where '{member.filename}' should be"
            )
        name, more = struct.unpack("<HH", header[26:30])
        file.seek(member.header_offset + 30 + name + more)
        return _map_array(path, file, file.tell() + member.file_size)


def _map_npy(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        return _map_array(path, file)


def _map_array(path: Path, file: IO[bytes], stop: int | None = None) -> NDArray[np.uint8]:
    """The array whose header comes next, and which ends at `stop` at the latest, or at the end of the file."""
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError, EOFError) as error:
        raise CurvactError(f"{path} holds no numpy array: {' '.join(str(error).split())}") from None
    if dtype.hasobject or fortran:
        raise CurvactError(f"{path}: arrays of Python objects or in Fortran order are not read")
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
    """Tell the system how the map will be read, where it can be told: else each image of a random batch brings its neighbours,
    up to megabytes of them, from the disk.
    """
    mapped = getattr(images, "_mmap", None)
    if mapped is not None and hasattr(mmap, how):
        mapped.madvise(getattr(mmap, how))


def _unpacked(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Path:
    target = path.with_name(f"{path.name}.{member.CRC:08x}.npy")
    if target.is_file() and target.stat().st_size == member.file_size:
        return target
    free = shutil.disk_usage(path.parent).free
    if free < member.file_size:
        raise CurvactError(
            f"{path} is compressed and needs {member.file_size:,} bytes to unpack; {free:,} are free in {path.parent}"
        )
    from rich.console import Console
    from rich.progress import wrap_file

    console = Console(stderr=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with (
            cast(BinaryIO, archive.open(member)) as packed,
            wrap_file(
                packed,
                member.file_size,
                description=f"unpacking {path.name}",
                console=console,
                transient=True,
            ) as source,
            temporary.open("wb") as out,
        ):
            shutil.copyfileobj(source, out, 2**20)
        os.replace(temporary, target)
    except OSError as error:
        raise CurvactError(
            f"{path} cannot be unpacked into {path.parent}: {error.strerror or error}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _layout(path: Path, images: NDArray[np.uint8], shape: tuple[int, int, int]) -> bool:
    channels, height, width = shape
    wanted = {(height, width, channels): False, (channels, height, width): True}
    if images.dtype != np.uint8 or tuple(images.shape[1:]) not in wanted:
        raise CurvactError(
            f"{path} holds {images.dtype} images of {tuple(images.shape[1:])}: "
            f"uint8 of {(height, width, channels)} or {shape} are needed"
        )
    return wanted[tuple(images.shape[1:])]


def _check_labels(path: Path, labels: NDArray[np.generic], count: int, classes: int) -> Tensor:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise CurvactError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}: one whole number an image"
        )
    if len(labels) != count:
        raise CurvactError(f"{path}: {len(labels):,} labels for {count:,} images")
    values = torch.from_numpy(labels.astype(np.int64))
    low, high = (int(v) for v in torch.aminmax(values))
    if low < 0 or high >= classes:
        raise CurvactError(f"{path}: labels from {low} to {high}: must lie in 0 … {classes - 1}")
    return values


def _hash(images: NDArray[np.uint8], labels: Tensor | None) -> str:
    digest = hashlib.sha256(repr(images.shape).encode())
    rows = np.unique(np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(np.int64))
    digest.update(np.ascontiguousarray(images[rows]).data)
    if labels is not None:
        digest.update(labels.numpy().data)
    return digest.hexdigest()
