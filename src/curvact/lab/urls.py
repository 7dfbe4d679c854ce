"""URLs of fsspec, such as s3://bucket/sweep, and the files behind them: read, written and created whole."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError, first_line, short

PACKAGES = {"s3": "s3", "s3a": "s3"}
"""The extra of curvact that a protocol needs."""

OBJECT_STORES = frozenset(
    ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos", "memory")
)
"""Protocols whose files appear whole, and that have no folders. In others a file is renamed into place."""

_URL = re.compile(r"([a-z][a-z0-9+.-]+):(/+)(?=[^/])(.*)", re.DOTALL)
_OF_NOTHING = re.compile(r"(s3|s3a|gs|gcs|az|abfs|abfss|memory|file|local):/*")


def url_of(place: str | os.PathLike[str]) -> str | None:
    """The URL that a text or a path means, without a slash at its end; None for a path of this machine.

    A path that was made from a URL has lost a slash, and is understood too. CurvactError for a URL of
    nothing, such as "s3://".

    >>> url_of("s3://bucket/sweep/"), url_of(Path("s3://bucket/sweep")), url_of("runs/digits")
    ('s3://bucket/sweep', 's3://bucket/sweep', None)
    >>> url_of(Path("file:///tmp/sweep"))
    'file:///tmp/sweep'
    """
    match = _URL.fullmatch(os.fspath(place))
    if match is None:
        if _OF_NOTHING.fullmatch(os.fspath(place)):
            raise CurvactError(f"{place} names no folder: a URL is such as s3://bucket/sweep")
        return None
    protocol, rest = match[1], match[3].rstrip("/")
    return f"{protocol}://{'/' if protocol in ('file', 'local') else ''}{rest}"


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL of fsspec.

    >>> is_url("memory://sweep"), is_url("C:/sweep"), is_url("hf:cifar10")
    (True, False, False)
    """
    return url_of(place) is not None


def refuse_url(place: Path, option: str) -> None:
    """CurvactError where an option that takes a path of this machine got a URL."""
    if is_url(place):
        raise CurvactError(
            f"{option} {url_of(place)}: it takes a path of this machine; "
            "URLs are for train, sweep, search and what reads their runs"
        )


# ---- fsspec ----


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. CurvactError where the protocol or its package is
    not known."""
    import fsspec

    protocol = url.partition("://")[0]
    settings: dict[str, Any] = {"use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        settings["config_kwargs"] = {
            "connect_timeout": 5,
            "read_timeout": 60,
            "retries": {"max_attempts": 2, "mode": "standard"},
        }
    try:
        found, path = fsspec.core.url_to_fs(url, **settings)
    except ImportError as error:
        extra = PACKAGES.get(protocol)
        how = f"pip install 'curvact[{extra}]'" if extra else first_line(error)
        raise CurvactError(f"{url} needs a package that is not installed: {how}") from None
    except ValueError as error:
        if protocol in fsspec.available_protocols():
            raise CurvactError(f"{url}: {_one_line(error)}") from None
        raise CurvactError(
            f"{url}: the protocol {protocol} is not known; known are s3, gs, file, memory and others of fsspec"
        ) from None
    return found, str(path)


def path_in(url: str, *names: str) -> str:
    """The path of a file in its file system."""
    top = file_system(url)[1]
    return "/".join(part for part in (top.rstrip("/"), *names) if part)


@contextmanager
def in_one_line(place: str, *, writing: bool = False) -> Iterator[None]:
    """Any error of a file system inside as one line. A missing file stays a FileNotFoundError where it
    is read, and an existing one a FileExistsError."""
    verb = "write" if writing else "read"
    try:
        yield
    except (CurvactError, FileExistsError):
        raise
    except FileNotFoundError as error:
        if not writing and "bucket" not in str(error).lower():
            raise
        raise CurvactError(f"cannot {verb} {place}: {_one_line(error)}") from None
    except Exception as error:
        why = _one_line(error)
        if type(error).__name__ == "NoCredentialsError":
            why += "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise CurvactError(f"cannot {verb} {place}: {why}") from None


def _one_line(error: BaseException) -> str:
    return short(" ".join(first_line(error).split()))


def read_all(url: str, paths: Sequence[str]) -> list[bytes | None]:
    """The content of small files, None for those that are not there."""
    if not paths:
        return []
    found, _ = file_system(url)
    with in_one_line(url):
        contents = found.cat(list(dict.fromkeys(paths)), on_error="return")
    by_path = {path.lstrip("/"): content for path, content in contents.items()}
    result: list[bytes | None] = []
    for path in paths:
        content = by_path.get(path.lstrip("/"))
        if isinstance(content, BaseException):
            with in_one_line(f"{url.partition('://')[0]}://{path}"), suppress(FileNotFoundError):
                raise content
            content = None
        result.append(content)
    return result


def _is_object_store(url: str) -> bool:
    return url.partition("://")[0] in OBJECT_STORES


def upload(url: str, source: Path, path: str) -> None:
    """Upload a file: it appears whole."""
    found, _ = file_system(url)
    _whole(url, path, lambda to: found.put_file(str(source), to))


def write(url: str, path: str, content: bytes) -> None:
    """Write a small file: it appears whole."""
    found, _ = file_system(url)
    _whole(url, path, lambda to: found.pipe_file(to, content))


def _whole(url: str, path: str, make: Callable[[str], object]) -> None:
    """Write to `path` so that a reader sees the old file or the whole new one."""
    if _is_object_store(url):
        make(path)
        return
    found, _ = file_system(url)
    folder = path.rpartition("/")[0]
    found.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{secrets.token_hex(6)}.tmp"
    try:
        make(temporary)
        found.mv(temporary, path)
    except BaseException:
        with suppress(Exception):
            found.rm_file(temporary)
        raise


def create(url: str, path: str, content: bytes) -> None:
    """Write a file that is not there yet. FileExistsError where it is."""
    found, _ = file_system(url)
    if url.partition("://")[0] in ("file", "local"):
        found.makedirs(path.rpartition("/")[0], exist_ok=True)
        with found.open(path, "xb") as stream:
            stream.write(content)
        return
    if not _is_object_store(url):
        found.makedirs(path.rpartition("/")[0], exist_ok=True)
    try:
        found.pipe_file(path, content, mode="create")
    except (TypeError, NotImplementedError):
        if found.exists(path):
            raise FileExistsError(path) from None
        found.pipe_file(path, content)


def remove(url: str, path: str) -> None:
    """Remove a file, if it is there."""
    found, _ = file_system(url)
    with suppress(FileNotFoundError):
        found.rm_file(path)
