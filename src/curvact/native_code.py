"""C files, built by the system's C compiler when they are first used and called through ctypes.

Without a compiler, or with CURVACT_NATIVE=0 in the environment, callers use tensor operations. The
built library is in the folder CURVACT_CACHE, else in the user's cache folder. Its name has a hash
of the source, the flags, the compiler and the processor; a file beside it has its own hash. Only
this user may be able to write to the folder and the files: a library runs code when it is loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from curvact.errors import CurvactError
from curvact.files import atomic_write, hash_of_file, user_cache

_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
)
_TUNED = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
"""Flags in the order of trial: some compilers and processors do not know the first ones."""

_BUILD_SECONDS = 120


class NativeCodeWarning(UserWarning):
    """The chosen cache of native code is not used."""


class Unavailable(Exception):
    """The reason why there is no native code."""


def compiled(source: Path, macros: Sequence[str] = ()) -> Path:
    """The library built from a C file, now or earlier. Raises Unavailable with the reason."""
    if os.environ.get("CURVACT_NATIVE", "1") == "0":
        raise Unavailable("CURVACT_NATIVE=0")
    compiler = _compiler()
    key = hashlib.sha256()
    for part in (
        source.read_bytes(),
        repr((_FLAGS, _TUNED, macros, compiler)).encode(),
        _version(compiler),
        _processor(),
    ):
        key.update(hashlib.sha256(part).digest())
    library = _cache() / f"{source.stem.strip('_')}-{key.hexdigest()[:24]}.so"
    if not _intact(library):
        build(compiler, source, macros, library)
    return library


def _path_of_hash(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _intact(library: Path) -> bool:
    """Whether a library and its hash are there, of this user, and belong together."""
    beside = _path_of_hash(library)
    try:
        if not all(_is_own(file.lstat(), stat.S_ISREG) for file in (library, beside)):
            return False
        return hash_of_file(library) == beside.read_text().strip()
    except (OSError, ValueError):
        return False


def _is_own(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Whether it is a file (or folder) of this user that nobody else can write to."""
    others = stat.S_IWGRP | stat.S_IWOTH
    return kind(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & others


def _compiler() -> list[str]:
    chosen = os.environ.get("CC")
    try:
        own = [shlex.split(chosen)] if chosen else []
    except ValueError as error:
        raise Unavailable(f"CC={chosen!r} is no command: {error}") from None
    for command in own or [["cc"], ["gcc"], ["clang"]]:
        if command and shutil.which(command[0]):
            return command
    raise Unavailable(f"no C compiler {chosen}" if chosen else "no C compiler")


def _version(compiler: list[str]) -> bytes:
    try:
        return subprocess.run(
            [*compiler, "--version"], capture_output=True, timeout=_BUILD_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        raise Unavailable(f"{compiler[0]} does not run") from None


def _processor() -> bytes:
    """The properties of the processor that -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor().encode() + platform.machine().encode()
    changing = ("processor", "cpu MHz", "bogomips", "core id", "apicid", "initial apicid", "physical id")
    return "\n".join(line for line in lines if not line.startswith(changing)).encode()


def _cache() -> Path:
    """A folder that this user can write to and nobody else, else a new temporary one."""
    chosen = os.environ.get("CURVACT_CACHE")
    try:
        folder = user_cache()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_own(folder.stat(), stat.S_ISDIR):
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
        elif chosen:
            warnings.warn(
                f"CURVACT_CACHE={chosen} is a folder that others own or can write to: native code is built in a "
                "temporary folder; chmod go-w makes it usable",
                NativeCodeWarning,
                stacklevel=2,
            )
    except (OSError, RuntimeError, AttributeError):
        pass
    return Path(_scratch().name)


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Removed at the end of the process."""
    return tempfile.TemporaryDirectory(prefix="curvact-")


def build(compiler: list[str], source: Path, macros: Sequence[str], library: Path) -> None:
    """Compile to a temporary name, then rename: several processes can build at the same time."""
    handle, temporary = tempfile.mkstemp(prefix=f"{library.stem}-", suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        for tuned in _TUNED:
            command = [
                *compiler,
                *_FLAGS,
                *tuned,
                *(f"-D{macro}" for macro in macros),
                "-o",
                temporary,
                str(source),
                "-lm",
            ]
            done = subprocess.run(command, capture_output=True, timeout=_BUILD_SECONDS, check=False)
            if done.returncode == 0 and os.path.getsize(temporary) > 0:
                os.chmod(temporary, 0o700)
                digest = hash_of_file(Path(temporary))
                os.replace(temporary, library)
                atomic_write(_path_of_hash(library), digest + "\n")
                os.chmod(_path_of_hash(library), 0o600)
                return
    except (OSError, subprocess.SubprocessError, CurvactError):
        pass
    finally:
        Path(temporary).unlink(missing_ok=True)
    raise Unavailable(f"{compiler[0]} could not build the kernel")


def parallel() -> int | None:
    """The address of GOMP_parallel in torch's OpenMP runtime, so that both use the same threads."""
    if sys.platform == "win32":
        return None
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
