"""What a result depends on beside its spec: code, libraries and machine."""

from __future__ import annotations

import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from curvact._version import __version__
from curvact.activations import kernel_info
from curvact.lab.imports import code_run, load_plugins


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """What a result depends on beside its spec: code, libraries and machine.

    device: where the result is computed; "device" and "gpu" name it. Without it "gpu" is the first
    CUDA device. What a machine without CUDA lacks is "none".
    "imports" (your own files that were run: name, sha256, and commit of their checkout) and
    "plugins" are there only where they are in use.

    >>> sorted(environment())
    ['commit', 'cuda', 'cudnn', 'curvact', 'deterministic', 'devices', 'driver', 'gpu', 'kernels', 'machine',
    'platform', 'processor', 'python', 'tf32', 'threads', 'torch']
    """
    imports = [
        {"file": code.path.name, "sha256": code.sha256, "commit": _commit_of(code.path.parent)}
        for code in code_run().values()
    ]
    plugins = load_plugins()
    return {
        **_of_this_process(),
        **_of_devices(device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **({"device": str(device)} if device is not None else {}),
        **({"imports": imports} if imports else {}),
        **({"plugins": plugins} if plugins else {}),
    }


@cache
def _of_this_process() -> dict[str, Any]:
    return {
        "curvact": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "kernels": kernel_info(),
    }


def _of_devices(device: torch.device | None) -> dict[str, Any]:
    """The GPU and what drives it. devices: how many CUDA devices torch sees."""
    none = dict.fromkeys(("gpu", "cuda", "cudnn", "driver", "tf32"), "none")
    count = torch.cuda.device_count()
    if not count:
        return {**none, "devices": 0}
    if device is not None and device.type != "cuda":
        return {**none, "devices": count}
    backends = torch.backends
    on = {
        "matmul": torch.get_float32_matmul_precision() != "highest",
        "cudnn": backends.cudnn.allow_tf32,
    }
    return {
        "gpu": torch.cuda.get_device_name(0 if device is None else device),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "driver": _driver(),
        "tf32": ", ".join(name for name, used in on.items() if used) or "off",
        "devices": count,
    }


def _driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of NVIDIA's driver: torch does not say it, the kernel does."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", file.read_text())
    except OSError:
        return "unknown"
    return found.group() if found else "unknown"


def _commit() -> str:
    """The commit of the checkout that this code lies in, with -dirty; "unknown" for an installed
    package.
    """
    root = Path(__file__).resolve().parents[3]
    return _commit_of(root) if (root / ".git").exists() else "unknown"


def _commit_of(folder: Path) -> str:
    """The commit of the checkout that holds a folder, with -dirty; "unknown" where there is none."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor()
