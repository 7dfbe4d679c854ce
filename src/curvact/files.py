"""Files that are whole or not there: one atomic write for every room. And lines as CSV."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError

CHECKSUM = "checksum"
"""The key of the checksum in a JSON file."""


def as_path(value: object, where: str) -> Path:
    """A path given as text or as a path. Raises CurvactError for anything else."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
        raise CurvactError(f"{where} got {' '.join(repr(value).split())[:80]}: it takes the path of a file")
    return Path(value)


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part.

    A temporary file in the same folder (its name starts with a dot and ends in `.tmp`) is written,
    synced and renamed; it is removed on any failure. Text is UTF-8, written as it is (no newline
    translation); what UTF-8 cannot hold (a lone surrogate) is written as its escape. The folder has
    to exist. Permissions follow the umask. A process killed outright may leave the temporary file
    behind, never a part of `path`.

    Raises CurvactError, in one line, when the disk is full or the file cannot be written.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.txt"
    >>> atomic_write(file, "κ = 4\\n")
    >>> file.read_text(encoding="utf-8"), os.listdir(file.parent)
    ('κ = 4\\n', ['a.txt'])
    """
    path = Path(path)
    content = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CurvactError(f"disk full while writing {path}") from error
        raise CurvactError(f"cannot write {path}: {error.strerror or error}") from error
    _sync_folder(path.parent)


def user_cache() -> Path:
    """The folder for what can be made or fetched again: $CURVACT_CACHE, else curvact in the user's cache
    folder. It may not exist."""
    chosen = os.environ.get("CURVACT_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return (Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "curvact").absolute()


def hash_of_file(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file, with the sha256 of everything else under the key "checksum".

    >>> content = with_checksum({"accuracy": 0.5})
    >>> has_other_checksum(content), has_other_checksum({**content, "accuracy": 0.75})
    (False, True)
    """
    as_read = json.loads(json.dumps(content))  # numbers as keys become text, which has another order
    return {**content, CHECKSUM: _checksum(as_read)}


def has_other_checksum(content: Mapping[str, Any]) -> bool:
    """Whether the content of a JSON file has a checksum that is not its own, so that it is damaged.

    False for content without a checksum, as earlier versions wrote it.
    """
    found = content.get(CHECKSUM, "")
    return bool(found != "" and found != _checksum(content))


def _checksum(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can sync a folder; the file is in place
    either way.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Lines of values as CSV. A float is the shortest text that reads back as the same number; None
    and NaN are empty.

    >>> print(csv_text([["a", "b"], [0.1, None], [True, "x, y"]]), end="")
    a,b
    0.1,
    true,"x, y"
    """
    return "".join(",".join(_quoted(cell_text(value)) for value in line) + "\n" for line in lines)


def read_csv(path: Path, head: Sequence[str]) -> list[list[str]]:
    """The lines of a CSV file below its head, which must be `head`; [] where there is no file.

    What `csv_text` wrote comes back as text. Raises CurvactError for another head.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        first, *lines = [*csv.reader(file)] or [[]]
    if first != list(head):
        raise CurvactError(f"{path}: expected a CSV file with the columns {', '.join(head)}")
    return lines


def cell_text(value: object) -> str:
    """A value as a cell of a CSV file has it, before it is quoted.

    >>> [cell_text(value) for value in (0.1, None, True, "x, y")]
    ['0.1', '', 'true', 'x, y']
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)


def _quoted(text: str) -> str:
    # csv.writer leaves a bare carriage return unquoted when lines end in "\n": no reader takes that
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text
