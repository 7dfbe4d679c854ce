"""Readers of images on disk: one function a layout, from a path to (uint8 N×C×H×W, int64 N).

Each raises CurvactError, with the name of the file, for a file that is missing, truncated or wrong.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import math
import os
import pickle
import secrets
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvact.data import pictures
from curvact.data.checks import CLASSES, Array, Labelled, labelled, whole_images
from curvact.data.matlab import read_mat
from curvact.data.pictures import short
from curvact.data.reading import (
    Bounded,
    check_size,
    file_size,
    npz_members,
    read_member,
    read_npy,
    reading,
    whole_file,
)
from curvact.errors import CurvactError
from curvact.progress import track

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def cifar_batch(
    path: Path, *, label_key: str = "labels", classes: int = 10, data: bytes | None = None
) -> Labelled:
    """One Python batch of CIFAR-10 (`labels`) or CIFAR-100 (`fine_labels`).

    The file is a pickle, and a pickle can run code. This unpickler admits arrays only.
    data: the bytes of the file, if it lies inside an archive.
    """
    content = _plain_pickle(path, whole_file(path) if data is None else data)
    if not isinstance(content, dict):
        raise CurvactError(f"{path} is no CIFAR batch: it holds a {type(content).__name__}")
    entries = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in content.items()}
    missing = [key for key in ("data", label_key) if key not in entries]
    if missing:
        raise CurvactError(f"{path} is no CIFAR batch: it has no '{missing[0]}'")
    pixels, targets = entries["data"], entries[label_key]
    if not isinstance(pixels, np.ndarray):
        raise CurvactError(f"{path} is no CIFAR batch: its data are a {type(pixels).__name__}")
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise CurvactError(f"{path}: images are {pixels.dtype} of shape {pixels.shape}, not uint8 of N×3072")
    if isinstance(targets, list):
        if not all(type(label) is int and abs(label) < CLASSES for label in targets):
            raise CurvactError(f"{path}: labels are no list of whole numbers below {CLASSES:,}")
        targets = np.array(targets, np.int64)
    if not isinstance(targets, np.ndarray):
        raise CurvactError(f"{path} is no CIFAR batch: its labels are a {type(targets).__name__}")
    return labelled(path, pixels.reshape(-1, 3, 32, 32), targets, classes=classes)


def cifar(place: Path, files: Sequence[str], label_key: str, classes: int = 10) -> Labelled:
    """Python batches one after the other, from a folder or from the .tar.gz of their publisher."""
    packed: dict[str, bytes] = {}
    if not place.is_dir():
        size = file_size(place)
        with reading(place, "archive") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = Bounded(gzip.GzipFile(fileobj=file) if zipped else file, place, size)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name not in files or not member.isfile():
                        continue
                    check_size(place, member.size, size)
                    content = archive.extractfile(member)
                    packed[name] = b"" if content is None else content.read()
                    if len(packed) == len(files):
                        break
        for wanted in files:
            if wanted not in packed:
                raise CurvactError(f"{place} holds no {wanted}")
    parts = [
        cifar_batch(place / file, label_key=label_key, classes=classes, data=packed.get(file))
        for file in files
    ]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def idx(images: Path, labels: Path, classes: int | None = None) -> Labelled:
    """A pair of IDX files, plain or gzipped, as MNIST and Fashion-MNIST have them."""
    return labelled(images, _idx_array(images, 3), _idx_array(labels, 1), label_path=labels, classes=classes)


def svhn(path: Path) -> Labelled:
    """SVHN's cropped digits in a .mat file: X is H×W×C×N, and the label 10 means the digit 0."""
    content = read_mat(path, ("X", "y"))
    missing = [key for key in ("X", "y") if key not in content]
    if missing:
        raise CurvactError(f"{path} is not SVHN's: it has no '{missing[0]}'")
    pixels, labels = content["X"], content["y"].reshape(-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise CurvactError(f"{path}: X is {pixels.dtype} of shape {pixels.shape}, not uint8 of H×W×C×N")
    if labels.size and (labels.min() < 1 or labels.max() > 10):
        raise CurvactError(f"{path}: labels from {labels.min()} to {labels.max()}: must lie in 1 … 10")
    return labelled(path, pixels.transpose(3, 0, 1, 2), labels % 10)


def npz(path: Path, images: Sequence[str], labels: Sequence[str]) -> Labelled:
    """Two arrays of an .npz, each under the first of the given keys that the file has."""
    arrays = []
    with reading(path, ".npz") as file, zipfile.ZipFile(file) as archive:
        members = npz_members(archive)
        for keys in (images, labels):
            key = next((key for key in keys if key in members), None)
            if key is None:
                held = ", ".join(members) or "nothing"
                raise CurvactError(f"{path} has none of {', '.join(keys)}; it holds {held}")
            arrays.append(read_member(path, archive, members[key]))
    return labelled(path, arrays[0], arrays[1])


def npz_keys(path: Path) -> set[str]:
    """The names of the arrays of an .npz."""
    with reading(path, ".npz") as file, zipfile.ZipFile(file) as archive:
        return set(npz_members(archive))


def npy(images: Path, labels: Path, classes: int | None = None) -> Labelled:
    """A pair of .npy files."""
    return labelled(images, _npy_array(images), _npy_array(labels), label_path=labels, classes=classes)


def folder_classes(folder: Path) -> tuple[str, ...]:
    """The names of the class folders of an image folder, sorted."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise CurvactError(
                f"{folder} has a class folder whose name is no UTF-8: {os.fsencode(name)!r}"
            ) from None
    return tuple(names)


def image_folder(folder: Path, classes: Sequence[str], size: int | None) -> Labelled:
    """All images of class folders, sorted by path: grey if every one is grey, else RGB.

    They are decoded once: a cache beside the folder keeps the result until a file changes.
    size: the shorter side is scaled to so many pixels, and the centre is cut out. None: all images
    must have one height and one width.
    """
    unknown = [name for name in folder_classes(folder) if name not in classes]
    if unknown:
        raise CurvactError(f"{folder} has a class '{unknown[0]}' that the training images do not have")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = sorted(
            p
            for p in (folder / name).rglob("*")
            if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
        )
        files += [(path, label) for path in found]
        if not found and (folder / name).is_dir():
            raise CurvactError(f"{folder / name} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    if not files:
        raise CurvactError(f"{folder} holds no images in class folders")
    key = hashlib.sha256(f"2 {size}".encode())
    for path, _ in files:
        status = path.stat()
        key.update(os.fsencode(path.relative_to(folder)))
        key.update(f" {status.st_size} {status.st_mtime_ns}\n".encode())
    cache = folder.parent / f".{folder.name}-{size}-{key.hexdigest()[:16]}.npy"
    if cache.is_file():
        array = _npy_array(cache)
    else:
        array = _decoded([path for path, _ in files], size)
        _keep(cache, array)
    images = torch.from_numpy(array)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return whole_images(folder, images), torch.tensor([label for _, label in files])


def same_channels(training: Labelled, testing: Labelled | None) -> tuple[Labelled, Labelled | None]:
    """Both in three channels, where one is grey and the other is not."""
    if testing is None or testing[0].shape[1] == training[0].shape[1]:
        return training, testing
    first, second = (
        (images.expand(-1, 3, -1, -1).contiguous(), labels) for images, labels in (training, testing)
    )
    return first, second


def resize(images: Tensor, size: int, chunk: int = 1024) -> Tensor:
    """Images whose shorter side is scaled to `size` pixels, bilinear with antialiasing, and whose
    centre, size×size, is cut out. The type stays.

    >>> resize(torch.full((1, 1, 8, 12), 7, dtype=torch.uint8), 4).flatten().unique()
    tensor([7], dtype=torch.uint8)
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    height, width = (max(size, round(side * scale)) for side in (height, width))
    top, left = (height - size) // 2, (width - size) // 2
    parts = []
    for part in images.split(chunk):  # type: ignore[no-untyped-call]
        scaled = torch.nn.functional.interpolate(
            part.float(), (height, width), mode="bilinear", align_corners=False, antialias=True
        )[..., top : top + size, left : left + size]
        parts.append(
            scaled.clamp(0, 1) if images.is_floating_point() else scaled.round().clamp(0, 255).to(torch.uint8)
        )
    return torch.cat(parts)


class _ArraysOnly(pickle._Unpickler):
    """Admits arrays only.

    The unpickler in C allocates whatever index of its memo a damaged file names, up to 64 GB. This
    one in Python does not.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return np.empty(0).__reduce_ex__(5)[0]
        allowed: dict[tuple[str, str], Any] = {
            ("_codecs", "encode"): _encoded,
            ("numpy", "ndarray"): "numpy.ndarray",
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, and data files need arrays only")
        return allowed[module, name]


def _empty_array(kind: object, shape: object, code: object) -> Array:
    """What numpy's `_reconstruct` makes of its usual arguments; others could ask for any memory."""
    return np.empty(0, np.uint8)


def _encoded(text: str, encoding: str) -> bytes:
    """The bytes that Python 2's strings became; no other codec is needed."""
    return text.encode("latin-1")


def _plain_pickle(path: Path, data: bytes) -> Any:
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CurvactError(f"{path} is truncated or no CIFAR batch: {short(error)}") from None


def _idx_array(path: Path, dimensions: int) -> Array:
    size = file_size(path)
    with reading(path, "gzip or IDX file") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: Any = gzip.GzipFile(fileobj=file) if zipped else file
        header = 4 + 4 * dimensions
        data = stream.read(header)
        if len(data) < header or data[:2] != b"\0\0" or data[2] != 8 or data[3] != dimensions:
            raise CurvactError(
                f"{path} is no IDX file of bytes in {dimensions} dimension{'s' * (dimensions > 1)}"
            )
        shape = struct.unpack(f">{dimensions}I", data[4:])
        needed = math.prod(shape)
        if not zipped and header + needed != size:
            raise CurvactError(
                f"{path} is truncated or too long: {shape} needs {needed:,} bytes, not {size - header:,}"
            )
        check_size(path, needed, size if zipped else None)
        content = stream.read(needed + 1)
        if len(content) != needed:
            given = f"{len(content):,}" if len(content) < needed else "more"
            raise CurvactError(
                f"{path} is truncated or too long: {shape} needs {needed:,} bytes, not {given}"
            )
        return np.frombuffer(content, np.uint8).reshape(shape)


def _npy_array(path: Path) -> Array:
    with reading(path, ".npy") as file:
        return read_npy(file, file_size(path), path)


def _decoded(files: Sequence[Path], size: int | None) -> Array:
    """All pictures, N×H×W if every one is grey, else N×H×W×3."""
    grey, shape = True, (size or 0, size or 0)
    for path in files:
        with pictures.opened(path) as image:
            grey = grey and pictures.is_grey(image)
            width, height = image.size
        if size is None and path is files[0]:
            shape = (height, width)
        elif size is None and shape != (height, width):
            raise CurvactError(
                f"{path} has {height}×{width} pixels, {files[0]} has {shape[0]}×{shape[1]}: give a size"
            )
    whole = (len(files), *shape, *([] if grey else [3]))
    check_size(files[0].parent.parent, math.prod(whole))
    out: Array = np.empty(whole, np.uint8)
    for number, path in enumerate(track(files, "decoding images")):
        out[number] = _picture(path, size, grey=grey)
    return out


def _picture(path: Path, size: int | None, *, grey: bool) -> Array:
    with pictures.opened(path) as opened:
        image = pictures.plain(opened, grey=grey)
        return np.asarray(image if size is None else pictures.fitted(image, size))


def _keep(cache: Path, array: Array) -> None:
    """Write the cache in place of the old one, if possible. Without it, reading is only slower."""
    temporary = cache.with_name(f"{cache.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, array)
        os.replace(temporary, cache)
        for old in cache.parent.glob(f"{glob.escape(cache.name[:-20])}{'?' * 16}.npy"):
            if old != cache:
                old.unlink()
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
