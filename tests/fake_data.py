"""Small data sets in exactly the formats that the real ones come in: `write_fake(name, root)`."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from curvact.data.catalog import DATASETS, IMAGENETTE

Array = NDArray[Any]


def fake_arrays(name: str, count: int, *, part: int = 0) -> tuple[Array, Array]:
    """Random images, uint8 N×C×H×W, and labels of all classes in turn, fixed by the arguments."""
    entry = DATASETS[name]
    random = np.random.default_rng([count, part, *name.encode()])
    images = random.integers(0, 256, (count, *entry.shape), np.uint8)
    return images, (np.arange(count) * 7 + part) % len(entry.classes)


def write_fake(name: str, root: Path, count: int = 30) -> Path:
    """Write `count` training and half as many test images into root/name, as the publisher packs
    them.
    """
    folder = root / name
    folder.mkdir(parents=True)
    parts = fake_arrays(name, count), fake_arrays(name, (count + 1) // 2, part=1)
    if name in ("mnist", "fashion-mnist"):
        for prefix, (images, labels) in zip(("train", "t10k"), parts, strict=True):
            (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[:, 0]), mtime=0))
            (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels), mtime=0))
    elif name == "cifar10":
        (images, labels), test = parts
        inner = folder / "cifar-10-batches-py"
        inner.mkdir()
        for number, piece in enumerate(np.array_split(np.arange(count), 5), 1):
            (inner / f"data_batch_{number}").write_bytes(cifar_batch(images[piece], labels[piece], b"labels"))
        (inner / "test_batch").write_bytes(cifar_batch(*test, b"labels"))
    elif name == "cifar100":
        files = {
            f"cifar-100-python/{file}": cifar_batch(*part, b"fine_labels")
            for file, part in zip(("train", "test"), parts, strict=True)
        }
        (folder / "cifar-100-python.tar.gz").write_bytes(tar_gz(files))
    elif name == "svhn":
        for file, (images, labels) in zip(("train", "test"), parts, strict=True):
            write_svhn(folder / f"{file}_32x32.mat", images, labels)
    elif name == "imagenette":
        for file, (images, labels) in zip(("train", "val"), parts, strict=True):
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                wordnet_id = list(IMAGENETTE)[label]
                path = folder / "imagenette2-160" / file / wordnet_id / f"{wordnet_id}_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                # Either side is the shorter one, as in the real set.
                size = (160, 160 + number) if number % 2 else (160 + number, 160)
                Image.fromarray(image.transpose(1, 2, 0)).resize(size).save(path)
    elif name != "digits":
        raise ValueError(f"no fake {name}")
    return folder


def idx(array: Array) -> bytes:
    """An IDX file of unsigned bytes: magic 0 0 8 rank, big-endian sizes, data."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def cifar_batch(images: Array, labels: Array, key: bytes) -> bytes:
    """A Python batch. Keys are bytes, as Python 2 wrote them; N×3072 by channel, row, column."""
    content = {
        b"batch_label": b"a batch",
        b"data": images.reshape(len(images), -1),
        key: [int(label) for label in labels],
        b"filenames": [b"x.png"] * len(images),
    }
    return pickle.dumps(content, protocol=2)


def tar_gz(files: dict[str, bytes]) -> bytes:
    """A .tar.gz of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_svhn(path: Path, images: Array, labels: Array) -> None:
    """SVHN's .mat: X is H×W×C×N; the digit 0 has the label 10."""
    digits = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": digits}, do_compression=True)


def pairs(*parts: Any) -> list[tuple[bytes, int]]:
    """The images of data sets, or of (images, labels), each with its label, in one fixed order."""
    found = []
    for part in parts:
        images, labels = part if isinstance(part, tuple) else (part.images, part.labels)
        found += [(np.asarray(i).tobytes(), int(t)) for i, t in zip(images, labels, strict=True)]
    return sorted(found)


@contextlib.contextmanager
def memory_limit(megabytes: int) -> Iterator[None]:
    """This process can allocate so many MB more (Linux). Beyond that: MemoryError."""
    import resource

    status = Path("/proc/self/status").read_text()
    limit = int(status.split("VmData:")[1].split()[0]) * 1024 + megabytes * 2**20
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
