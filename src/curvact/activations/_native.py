"""The CPU kernel of the activations: `_native.c`, built on first use by the system's C compiler and called through ctypes.

Without a compiler, or with CURVACT_NATIVE=0 in the environment, activations run as plain tensor operations. Which of the two it
is gets decided once a process. The library lies in the folder CURVACT_CACHE, or else in the user's cache folder, under a hash of
all that made it.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from curvact.activations._polynomials import c_macros

_SOURCE = Path(__file__).with_name("_native.c")
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
"""Tried in this order: not every compiler and processor knows each."""

_BUILD_SECONDS = 120
FAMILIES = {"rct": 0, "swish": 1, "squareplus": 2, "gelu": 3, "mish": 4, "power": 5}
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_SCALES = (1e-30, 1e30)
"""α beyond these, where 1/α or αx leaves float32, is left to plain tensor operations."""

Native = tuple[str, int]
"""A family of the kernel and its parameter: ("rct", β), ("power", n), or a name and 0."""


class _Unavailable(Exception):
    """Why there is no native kernel."""


@dataclass(frozen=True)
class _Library:
    run: Callable[..., int]
    parallel: int | None
    description: str


_lock = threading.Lock()
_library: _Library | None = None
_reason: str | None = None


def run(
    x: Tensor, grad: Tensor | None, native: Native, order: int, alpha: float, centered: bool
) -> Tensor | None:
    """D_order(x), order 0 or 1, times `grad` where given; None where the kernel cannot: the caller then uses tensor operations.

    x is a plain strided CPU tensor, grad one of its dtype.
    """
    library = _library or _load()
    dtype = _DTYPES.get(x.dtype)
    if library is None or dtype is None or order > 1 or not _SCALES[0] <= alpha <= _SCALES[1]:
        return None
    out = torch.empty_like(x)
    strides = out.stride()
    # Equal strides to a tensor that is dense by construction: then all three are walked alike, as flat memory.
    if x.stride() != strides:
        x = torch.empty_like(x).copy_(x)
    if grad is not None and grad.stride() != strides:
        grad = torch.empty_like(out).copy_(grad)
    family, parameter = native
    failed = library.run(
        FAMILIES[family],
        parameter,
        order,
        dtype,
        centered,
        x.data_ptr(),
        None if grad is None else grad.data_ptr(),
        out.data_ptr(),
        x.numel(),
        alpha,
        torch.get_num_threads(),
        library.parallel,
    )
    assert not failed, f"the native kernel does not know {native} at order {order}"
    return out


def describe() -> str:
    """`native (compiler, instruction set)`, or `plain (reason)`."""
    library = _library or _load()
    return f"plain ({_reason})" if library is None else f"native ({library.description})"


def _load() -> _Library | None:
    global _library, _reason
    with _lock:
        if _library is None and _reason is None:
            try:
                path = _compiled()
                try:
                    _library = _open(path)
                except OSError:  # a damaged file in the cache
                    path.unlink(missing_ok=True)
                    _library = _open(_compiled())
            except _Unavailable as error:
                _reason = str(error)
            except (OSError, AttributeError):
                _reason = "the built kernel could not be loaded"
        return _library


def _compiled() -> Path:
    """The built library, from the cache or built now."""
    if os.environ.get("CURVACT_NATIVE", "1") == "0":
        raise _Unavailable("CURVACT_NATIVE=0")
    compiler = _compiler()
    key = hashlib.sha256()
    for part in (
        _SOURCE.read_bytes(),
        repr((_FLAGS, _TUNED, c_macros(), compiler)).encode(),
        _version(compiler),
        _processor(),
    ):
        key.update(hashlib.sha256(part).digest())
    library = _cache() / f"native-{key.hexdigest()[:24]}.so"
    if not library.exists():
        _build(compiler, library)
    return library


def _compiler() -> list[str]:
    chosen = os.environ.get("CC")
    for command in [shlex.split(chosen)] if chosen else [["cc"], ["gcc"], ["clang"]]:
        if command and shutil.which(command[0]):
            return command
    raise _Unavailable(f"no C compiler {chosen}" if chosen else "no C compiler")


def _version(compiler: list[str]) -> bytes:
    try:
        return subprocess.run(
            [*compiler, "--version"], capture_output=True, timeout=_BUILD_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        raise _Unavailable(f"{compiler[0]} does not run") from None


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor().encode() + platform.machine().encode()
    changing = ("processor", "cpu MHz", "bogomips", "core id", "apicid", "initial apicid", "physical id")
    return "\n".join(line for line in lines if not line.startswith(changing)).encode()


def _cache() -> Path:
    """A folder of this user's own that can be written to; a new temporary one where there is no other."""
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


def _build(compiler: list[str], library: Path) -> None:
    """Compile to a name of this process's own, then rename: processes that build at once do not disturb each other."""
    handle, temporary = tempfile.mkstemp(prefix=f"{library.stem}-", suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        for tuned in _TUNED:
            command = [
                *compiler,
                *_FLAGS,
                *tuned,
                *(f"-D{macro}" for macro in c_macros()),
                "-o",
                temporary,
                str(_SOURCE),
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
    raise _Unavailable(f"{compiler[0]} could not build the kernel")


def _open(path: Path) -> _Library:
    loaded = ctypes.CDLL(str(path))
    function, text = loaded.curvact_run, loaded.curvact_describe
    number, pointer = ctypes.c_int, ctypes.c_void_p
    function.argtypes = [number] * 5 + [pointer] * 3 + [ctypes.c_int64, ctypes.c_double, number, pointer]
    text.restype = ctypes.c_char_p
    if not _sound(function):
        raise _Unavailable("the built kernel computes wrongly")
    return _Library(function, _parallel(), text().decode())


def _sound(function: Callable[..., int]) -> bool:
    """Whether softplus and its slope come out right: a guard against a compiler that breaks floating-point rules."""
    points = [-math.inf, -100.0, -3.0, -0.5, 0.0, 0.5, 3.0, 100.0, math.inf]
    for order in (0, 1):
        x, out = array("d", points), array("d", bytes(8 * len(points)))
        function(0, 0, order, 1, 0, x.buffer_info()[0], None, out.buffer_info()[0], len(x), 1.0, 1, None)
        for u, got in zip(points, out, strict=True):
            e = math.exp(-abs(u))
            want = max(u, 0.0) + math.log1p(e) if order == 0 else (e if u < 0 else 1.0) / (1 + e)
            if not math.isclose(got, want, rel_tol=1e-14, abs_tol=1e-300):
                return False
    return True


def _parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch itself uses: its threads serve both."""
    if sys.platform == "win32":
        return None
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
