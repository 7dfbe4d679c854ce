"""Downloads of named data sets, from their publishers or a mirror, with checksums."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tarfile
from pathlib import Path

from curvact import downloads
from curvact.data.catalog import Download, data_root, entry_of
from curvact.data.pictures import short
from curvact.errors import CurvactError


def fetch(name: str, root: str | os.PathLike[str] | None = None, *, mirror: str | None = None) -> Path:
    """Download a data set into `root/name` and return that folder.

    The data set appears whole or not at all. Nothing happens where an earlier call put it.
    root: as in `curvact.data.load`.
    mirror: the address of a server that has each file as MIRROR/NAME/FILE, such as
        MIRROR/cifar10/cifar-10-python.tar.gz. If None: the environment's CURVACT_MIRROR; if that is
        not set: the publisher's address. A mirror's files have to have the same checksums.

    Shows progress on standard error. Raises CurvactError for an unknown name, for a host that
    cannot be reached, for a wrong checksum, and for a folder that cannot be written.
    """
    entry = entry_of(name)
    folder = data_root(root) / name
    base = mirror or os.environ.get("CURVACT_MIRROR")
    base = downloads.check_address("mirror", base) if base else None
    if not entry.downloads or (folder / ".complete").exists():
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise CurvactError(
            f"{folder} exists and is not from `curvact data fetch`: use it as it is, or move it away"
        )
    work = folder.with_name(f".{name}.{secrets.token_hex(6)}.tmp")
    try:
        work.mkdir(parents=True)
        for download in entry.downloads:
            url = f"{base}/{name}/{download.file}" if base else download.url
            problem = _get(url, download, work)
            if problem:
                raise CurvactError(
                    f"{name}: cannot download {download.file}: {problem}; put {entry.files} into {folder} "
                    f"by hand, or give a mirror that has {name}/{download.file} (--mirror, CURVACT_MIRROR)"
                )
        (work / ".complete").touch()
        with contextlib.suppress(OSError):
            folder.rmdir()
        os.replace(work, folder)
    except OSError as error:
        if not (folder / ".complete").exists():  # else another process was faster
            raise CurvactError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _get(url: str, download: Download, work: Path) -> str | None:
    """Put one file, or what its archive holds, into `work`. Return the problem if there is one."""
    file = work / download.file
    problem = downloads.download(url, download.checksum, file)
    if problem is None and download.unpack:
        try:
            _unpack(file, work)
        except (tarfile.TarError, EOFError) as error:
            return f"{downloads.without_password(url)} cannot be unpacked: {short(error)}"
        file.unlink()
    return problem


def _unpack(file: Path, folder: Path) -> None:
    """Write the plain files of an archive. An absolute name is taken as relative.

    Raises TarError for a link, and for a name that leads out of the folder. tarfile's own filter is
    missing before Python 3.11.4.
    """
    inside = folder.resolve()
    with tarfile.open(file) as archive:
        for member in archive:
            if member.isdir():
                continue
            target = (inside / member.name.lstrip("/")).resolve()
            source = archive.extractfile(member) if member.isfile() else None
            if source is None or not target.is_relative_to(inside):
                raise tarfile.TarError(f"{member.name} is no plain file inside the archive's folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
