"""What this machine and installation have, and what is slow on them."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from curvact.activations import activation
from curvact.data import DATASETS, data_root
from curvact.lab.environment import environment


@dataclass(frozen=True)
class Health:
    """What `examine` found.

    facts: what there is, by name. extras: name of an extra → the packages of it that are missing.
    rates: what was measured. findings: what is missing or slow, each with a remedy.
    """

    facts: dict[str, str]
    extras: dict[str, tuple[str, ...]]
    rates: dict[str, str]
    findings: tuple[str, ...]


def examine(root: Path | None = None, seconds: float = 0.5) -> Health:
    """Look at the installation, the devices and the data sets, and measure three rates.

    root: the folder of the data sets. seconds: of each measurement.
    """
    found = environment()
    place = data_root(root)
    here = [name for name in DATASETS if name == "digits" or (place / name).is_dir()]
    count = torch.cuda.device_count()
    cores = os.cpu_count() or 1
    facts = {
        "curvact": f"{found['curvact']} (commit {found['commit']})",
        "Python, torch": f"{found['python']}, {found['torch']}",
        "processor": f"{found['processor']}, {found['threads']} threads used by torch",
        "GPUs": f"{count}, {found['gpu']}, CUDA {found['cuda']}, TF32 {found['tf32']}" if count else "none",
        "activation kernels": str(found["kernels"]),
        "torch.compile": _compiler() or "no C++ compiler",
        "data sets": f"{', '.join(here)} (others are looked for in {place.absolute()})",
        "free disk here": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB",
    }
    gelu, kernel = _activation_rate("gelu", seconds), _activation_rate("rctaf(curvature=6)", seconds)
    convolution = _convolution_rate(seconds)
    rates = {
        "rctaf against torch's gelu": f"{kernel / gelu:.1f} times the time, forward and backward, on the CPU",
        "convolution": f"{convolution / 1e9:.0f} GFLOP/s on the CPU",
        "adversarial training": f"about {_CIFAR_STEP / convolution:.0f} s for a batch of 128 on the CPU "
        "(ResNet-18, 32×32 images, PGD-10)",
    }
    return Health(
        facts, _missing_extras(), rates, tuple(_findings(facts, count, cores, int(found["threads"])))
    )


_CIFAR_STEP = 128 * 0.557e9 * 2 * (10 * 2 + 3)
"""FLOPs of that step: 0.557 G multiply-adds an image; ten attack steps of two passes, one of three."""


def _findings(facts: dict[str, str], gpus: int, cores: int, threads: int) -> list[str]:
    found = []
    if facts["activation kernels"].startswith("plain"):
        found.append(
            f"activation kernels are {facts['activation kernels']}: they are slower on the CPU; "
            "a C compiler such as gcc makes native ones"
        )
    if not _compiler():
        found.append("there is no C++ compiler: hardware.compile=true fails; install g++ or clang++")
    if threads < cores:
        found.append(
            f"torch uses {threads} of {cores} cores: OMP_NUM_THREADS or a container limits it; "
            "the workers of a sweep use one each anyway"
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores + 0.5:
        found.append(f"the load is {load:.1f} on {cores} cores: other programs slow this one, and its rates")
    if not gpus and not str(torch.version.cuda or torch.version.hip or ""):
        found.append(
            "this torch is built for the CPU alone: a GPU needs another build, see https://pytorch.org/get-started"
        )
    elif not gpus:
        found.append("torch is built for GPUs and sees none: look at the driver and at CUDA_VISIBLE_DEVICES")
    return found


def _compiler() -> str:
    named = os.environ.get("CXX", "")
    return next((name for name in (named, "g++", "clang++", "c++") if name and shutil.which(name)), "")


def _missing_extras() -> dict[str, tuple[str, ...]]:
    try:
        wanted = metadata.requires("curvact") or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, tuple[str, ...]] = {}
    for line in wanted:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        if extra is None or name is None or extra[1] == "test":
            continue
        missing = () if _is_installed(name[0]) else (name[0],)
        extras[extra[1]] = extras.get(extra[1], ()) + missing
    return extras


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return find_spec(package.replace("-", "_")) is not None
    return True


def _activation_rate(name: str, seconds: float) -> float:
    """Seconds of one forward and one backward pass through a million values."""
    module = torch.nn.GELU() if name == "gelu" else activation(name)
    x = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ones = torch.ones_like(x)

    def once() -> None:
        torch.autograd.grad(module(x), x, ones)

    return _seconds_of(once, seconds)


def _convolution_rate(seconds: float) -> float:
    """FLOPs a second of a 3×3 convolution, 128 channels, on 32 images of 16×16."""
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False).requires_grad_(False)
    x = torch.zeros(32, 128, 16, 16)
    with torch.no_grad():
        return 2 * 128 * 128 * 9 * 32 * 256 / _seconds_of(lambda: layer(x), seconds)


def _seconds_of(work: Callable[[], object], seconds: float) -> float:
    """The least time of a call, over calls that take `seconds` together."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - start)
    return best
