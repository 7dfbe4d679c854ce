"""Devices by name: where a computation runs is decided here, and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from curvact.errors import CurvactError, short

DEVICE_NAMES = "auto, cpu, cuda and cuda:N"

_NAME = re.compile(r"auto|(cpu|cuda)(:[0-9]{1,4})?")


def check_device_name(text: str, label: str = "device") -> str:
    """The text itself. CurvactError unless it is the name of a device, there or not.

    label: the place, for messages.

    >>> check_device_name("cuda:1")
    'cuda:1'
    """
    if text == "mps":
        raise CurvactError(f"{label} mps: it lacks float64, which curvact needs; allowed are {DEVICE_NAMES}")
    if not _NAME.fullmatch(text):
        raise CurvactError(f"{label} {short(text)}: allowed are {DEVICE_NAMES}")
    return text


def device_named(text: str, label: str = "device") -> torch.device:
    """The device of that name, which must be there.

    "auto" is the first CUDA device, and the CPU where torch sees none. "cpu:N" is the CPU under another
    name, to try a placement on several devices. MPS is refused: it lacks float64.
    Raises CurvactError for another text, and for a device that torch does not see.

    >>> device_named("cpu")
    device(type='cpu')
    """
    kind, _, number = check_device_name(text, label).partition(":")
    count = torch.cuda.device_count()
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    if int(number or 0) >= count:
        raise CurvactError(f"{label} {text}: torch sees {count} CUDA devices here")
    return torch.device("cuda", int(number or 0))


def device_names(text: str, label: str = "device") -> tuple[str, ...]:
    """The names between commas, each of a device that is there. "auto": every CUDA device, else the CPU.

    >>> device_names("cpu:0, cpu:1")
    ('cpu:0', 'cpu:1')
    """
    if text == "auto":
        return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count())) or ("cpu",)
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        device_named(name, label)
        if len(names) > 1 and name == "auto":
            raise CurvactError(f"{label} {short(text)}: auto stands alone")
        if names.count(name) > 1:
            raise CurvactError(f"{label} {short(text)}: {name} is there twice")
    return names


WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """torch's deterministic algorithms inside; what was chosen before comes back after.

    cuDNN chooses its algorithms without trials, and cuBLAS gets a workspace, where the environment
    has none, by which its sums repeat. wanted: False changes nothing.
    Raises CurvactError for an operation that has no deterministic algorithm on its device.

    >>> with deterministic():
    ...     torch.are_deterministic_algorithms_enabled()
    True
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    flags, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(WORKSPACE)
    try:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        operation = str(error).partition(" does not")[0]
        raise CurvactError(
            f"hardware.deterministic=true: {operation} has no deterministic algorithm on this device"
        ) from None
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
