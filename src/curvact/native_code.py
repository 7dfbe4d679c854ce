"""C files, built by the system's C compiler when they are first used and called through ctypes.

Without a compiler, or with CURVACT_NATIVE=0 in the environment, callers use tensor operations. The
built library is in the folder CURVACT_CACHE, else in the user's cache folder. Its name has a hash
of the source, the flags, the compiler and the processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

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
    if not library.exists():
        build(compiler, source, macros, library)
    return library


def _compiler() -> list[str]:
    chosen = os.environ.get("CC")
    for command in [shlex.split(chosen)] if chosen else [["cc"], ["gcc"], ["clang"]]:
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
    """A folder of this user that can be written to, else a new temporary one."""
    chosen = os.environ.get("CURVACT_CACHE")
    if chosen:
        folder = Path(chosen)
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "curvact"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = folder.stat().st_uid
        if os.access(folder, os.W_OK | os.X_OK) and owner == os.getuid():
            return folder
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
                os.replace(temporary, library)
                return
    except (OSError, subprocess.SubprocessError):
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
