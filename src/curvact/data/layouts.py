"""Images as they lie on disk: one function a layout, path in, (uint8 N×C×H×W, int64 N) out; bad files are refused by name."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import os
import pickle
import secrets
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curvact.errors import CurvactError

Labelled = tuple[Tensor, Tensor]
Array = NDArray[Any]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def cifar_batch(
    path: Path, *, label_key: str = "labels", classes: int = 10, data: bytes | None = None
) -> Labelled:
    """One python batch of CIFAR-10 (`labels`) or CIFAR-100 (`fine_labels`, 100 classes).

    The file is a pickle: it is read by an unpickler that knows arrays, and refuses everything else.
    data: the bytes of the file where it lies inside an archive.
    """
    content = _plain_pickle(path, _bytes(path) if data is None else data)
    if not isinstance(content, dict):
        raise CurvactError(f"{path} is no CIFAR batch: it holds a {type(content).__name__}")
    entries = {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
    missing = [key for key in ("data", label_key) if key not in entries]
    if missing:
        raise CurvactError(f"{path} is no CIFAR batch: it has no '{missing[0]}'")
    pixels = np.asarray(entries["data"])
    if pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise CurvactError(f"{path}: images of shape {pixels.shape}, not N×3072")
    try:
        targets = np.asarray(entries[label_key])
    except ValueError:
        raise CurvactError(f"{path}: labels are no list of whole numbers") from None
    images, labels = labelled(path, pixels.reshape(-1, 3, 32, 32), targets)
    check_labels(path, labels, classes)
    return images, labels


def cifar(folder: Path, files: Sequence[str], label_key: str, classes: int = 10) -> Labelled:
    """Several python batches, one after the other: in a folder, or inside the .tar.gz that they are published in."""
    if folder.is_dir():
        parts = [cifar_batch(folder / file, label_key=label_key, classes=classes) for file in files]
    else:
        try:
            with tarfile.open(folder) as archive:
                members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
                parts = []
                for file in files:
                    stream = archive.extractfile(members[file]) if file in members else None
                    if stream is None:
                        raise CurvactError(f"{folder} holds no {file}")
                    data = stream.read()
                    parts.append(cifar_batch(folder / file, label_key=label_key, classes=classes, data=data))
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise CurvactError(f"{folder} is truncated or no archive: {_short(error)}") from None
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def idx(images: Path, labels: Path) -> Labelled:
    """IDX files, plain or gzipped: MNIST and Fashion-MNIST."""
    return labelled(images, _idx_array(images, 3), _idx_array(labels, 1), label_path=labels)


def svhn(path: Path) -> Labelled:
    """SVHN's cropped digits in .mat: X is H×W×C×N, the label 10 means the digit 0."""
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise CurvactError(f"{path} is truncated or no .mat file: {_short(error)}") from None
    missing = [key for key in ("X", "y") if key not in content]
    if missing:
        raise CurvactError(f"{path} is not SVHN's: it has no '{missing[0]}'")
    pixels, labels = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
    if pixels.ndim != 4:
        raise CurvactError(f"{path}: X has shape {pixels.shape}, not H×W×C×N")
    if labels.size and (labels.min() < 1 or labels.max() > 10):
        raise CurvactError(f"{path}: labels from {labels.min()} to {labels.max()}: must lie in 1 … 10")
    return labelled(path, pixels.transpose(3, 0, 1, 2), labels % 10)


def npz(path: Path, images: Sequence[str], labels: Sequence[str]) -> Labelled:
    """Two arrays of an .npz, each under the first of the given keys that it has."""
    arrays = []
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for keys in (images, labels):
                key = next((key for key in keys if key in archive.files), None)
                if key is None:
                    raise CurvactError(
                        f"{path} has none of {', '.join(keys)}; it holds {', '.join(archive.files) or 'nothing'}"
                    )
                arrays.append(archive[key])
    except CurvactError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise CurvactError(f"{path} is truncated or no .npz: {_short(error)}") from None
    return labelled(path, *arrays)


def npy(images: Path, labels: Path) -> Labelled:
    """A pair of .npy files."""
    return labelled(images, _npy_array(images), _npy_array(labels), label_path=labels)


def folder_classes(folder: Path) -> tuple[str, ...]:
    """The class folders of an image folder, sorted."""
    return tuple(
        sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    )


def image_folder(folder: Path, classes: Sequence[str], size: int | None) -> Labelled:
    """All images of class folders, sorted by path, in RGB; decoded once, and kept in a cache beside the folder.

    size: each image is scaled so that its shorter side has so many pixels, and its centre is cut out; None: all images must
    have one size.
    """
    unknown = [name for name in folder_classes(folder) if name not in classes]
    if unknown:
        raise CurvactError(f"{folder} has a class '{unknown[0]}' that the training images have not")
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
    labels = torch.tensor([label for _, label in files])
    key = hashlib.sha256(f"1 {size}".encode())
    for path, _ in files:
        status = path.stat()
        key.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    cache = folder.parent / f".{folder.name}-{size}-{key.hexdigest()[:16]}.npy"
    if cache.is_file():
        array = _npy_array(cache)
    else:
        array = _decoded([path for path, _ in files], size)
        _keep(cache, array)
    return labelled(folder, array, labels.numpy())


def resize(images: Tensor, size: int, chunk: int = 1024) -> Tensor:
    """Square images of another size, bilinear with antialiasing, uint8 again.

    >>> resize(torch.full((1, 1, 8, 8), 7, dtype=torch.uint8), 4).flatten().unique()
    tensor([7], dtype=torch.uint8)
    """
    if images.shape[-2:] == (size, size):
        return images
    parts = [
        torch.nn.functional.interpolate(
            part.float(), (size, size), mode="bilinear", align_corners=False, antialias=True
        )
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for part in images.split(chunk)  # type: ignore[no-untyped-call]
    ]
    return torch.cat(parts)


def labelled(
    path: Path | str, images: Array, labels: Array, *, label_path: Path | str | None = None
) -> Labelled:
    """Checked tensors: uint8 images with 1 or 3 channels (wherever their axis is), and as many whole numbers (N or N×1)."""
    label_path = label_path or path
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.dtype != np.uint8:
        bad = " with NaN" if images.dtype.kind == "f" and bool(np.isnan(images).any()) else ""
        raise CurvactError(f"{path}: images are {images.dtype}{bad}; uint8 in 0 … 255 is needed")
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise CurvactError(f"{path}: images of shape {images.shape}; N×H×W, N×H×W×C or N×C×H×W is needed")
    if images.shape[1] not in (1, 3):
        if images.shape[3] not in (1, 3):
            raise CurvactError(f"{path}: images of shape {images.shape} have neither 1 nor 3 channels")
        images = images.transpose(0, 3, 1, 2)
    if images.shape[2] != images.shape[3]:
        raise CurvactError(f"{path}: images of {images.shape[2]}×{images.shape[3]} pixels are not square")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise CurvactError(
            f"{label_path}: labels are {labels.dtype} of shape {labels.shape}; one whole number an image"
        )
    if len(images) != len(labels):
        raise CurvactError(f"{label_path}: {len(labels):,} labels for {len(images):,} images in {path}")
    if len(images) == 0:
        raise CurvactError(f"{path} holds no images")
    pixels = np.require(images, requirements=["C", "W", "O"])
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def check_labels(path: Path, labels: Tensor, classes: int) -> None:
    """CurvactError unless every label lies in 0 … classes − 1."""
    low, high = (int(v) for v in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise CurvactError(f"{path}: labels from {low} to {high}; they must lie in 0 … {classes - 1}")


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("_codecs", "encode"): __import__("_codecs").encode,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return getattr(np.empty(0), "__reduce__")()[0]  # noqa: B009
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return np.empty(0).__reduce_ex__(5)[0]
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which a data file has no need of")
        return allowed[module, name]


def _plain_pickle(path: Path, data: bytes) -> Any:
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CurvactError(f"{path} is truncated or no CIFAR batch: {_short(error)}") from None


def _idx_array(path: Path, dimensions: int) -> Array:
    raw = _bytes(path)
    try:
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CurvactError(f"{path} is truncated or not gzip: {_short(error)}") from None
    header = 4 + 4 * dimensions
    if len(data) < header or data[:2] != b"\0\0" or data[2] != 8 or data[3] != dimensions:
        raise CurvactError(
            f"{path} is no IDX file of bytes in {dimensions} dimension{'s' * (dimensions > 1)}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != int(np.prod(shape, dtype=np.int64)):
        raise CurvactError(
            f"{path} is truncated or too long: {shape} needs "
            f"{np.prod(shape, dtype=np.int64):,} bytes, {len(data) - header:,} are there"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CurvactError(f"there is no {path}") from None
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror}") from None


def _npy_array(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            array: Array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise CurvactError(f"there is no {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise CurvactError(f"{path} is truncated or no .npy: {_short(error)}") from None
    return array


def _decoded(files: Sequence[Path], size: int | None) -> Array:
    from rich.console import Console
    from rich.progress import track

    out: Array | None = None
    console = Console(stderr=True)
    for number, path in enumerate(track(files, "decoding images", console=console, transient=True)):
        picture = _picture(path, size)
        if out is None:
            out = np.empty((len(files), *picture.shape), np.uint8)
        if picture.shape != out.shape[1:]:
            raise CurvactError(
                f"{path} has {picture.shape[0]}×{picture.shape[1]} pixels, {files[0]} has "
                f"{out.shape[1]}×{out.shape[2]}: give a size"
            )
        out[number] = picture
    assert out is not None
    return out


def _picture(path: Path, size: int | None) -> Array:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                image = opened.convert("RGB")
    except Exception as error:  # pillow raises many kinds for a damaged file
        raise CurvactError(f"{path} is truncated or no image: {_short(error)}") from None
    return np.asarray(image if size is None else fitted(image, size))


def fitted(image: Any, size: int) -> Any:
    """A PIL image scaled so that its shorter side has `size` pixels, and its centre cut out."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return image


def _keep(cache: Path, array: Array) -> None:
    """Write the cache where that is possible (reading the images again is only slow) in place of one that is out of date."""
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


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
