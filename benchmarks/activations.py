"""Time and memory of a forward and backward pass of every family, against ReLU, GELU and a naive
RCT-AF.

    python benchmarks/activations.py [--size 1048576] [--threads 1] [--repeats 25] [--markdown]

Every activation runs in one process, one after the other, so that the ratios to torch's GELU in the
same mode mean something. `auto` is the default outside torch.compile (the native kernel, with a C
compiler), `plain` is tensor operations, `compiled` is torch.compile of forward and backward. A
median far above the best shows other work on the machine. The naive RCT-AF is plain tensor
operations that autograd differentiates.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.activations import activation, kernel_info, set_fusion

OURS = [
    "rctaf(curvature=6, beta=0)",
    "rctaf(curvature=6, beta=1)",
    "rctaf(curvature=6, beta=2)",
    "rctaf(curvature=6, beta=3)",
    "rcraf(curvature=6)",
    "softplus(curvature=6)",
    "swish(curvature=6)",
    "squareplus(curvature=6)",
    "powergate(curvature=6, n=3)",
    "gelu",
    "mish",
    "silu",
    "elu",
    "relu",
]
REFERENCE = "torch gelu"


@dataclass(frozen=True)
class Row:
    """One activation in one mode: seconds for forward + backward, and bytes kept for the backward
    pass.
    """

    name: str
    mode: str
    best: float
    median: float
    saved: int


def naive_rctaf(x: Tensor) -> Tensor:
    """RCT-AF at κ = 6, β = 1 as one would write it, differentiated by autograd."""
    alpha = 16.0
    s = torch.sigmoid(alpha * x)
    return F.relu(x) + (torch.log1p(torch.exp(-alpha * x.abs())) - s * (1 - s)) / alpha


def timed(act: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, repeats: int) -> tuple[float, float]:
    """Best and median seconds of a forward and a backward pass."""
    seconds = []
    for i in range(repeats + 3):
        start = time.perf_counter()
        torch.autograd.backward(act(x), grad, inputs=[x])
        if x.is_cuda:
            torch.cuda.synchronize()
        if i >= 3:
            seconds.append(time.perf_counter() - start)
        x.grad = None
    return min(seconds), statistics.median(seconds)


def saved_bytes(act: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Memory that the graph holds between the passes, each storage once."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        act(x)
    return sum(storages.values())


def measure(dtype: torch.dtype, size: int, repeats: int, device: str) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator).to(device, dtype).requires_grad_()
    grad = torch.randn(size, generator=generator).to(device, dtype)
    theirs: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        (REFERENCE, F.gelu),
        ("torch relu", F.relu),
        ("naive rctaf, beta=1", naive_rctaf),
    ]
    rows = []
    for name, act in [*theirs, *((name, activation(name)) for name in OURS)]:
        own = name in OURS
        for mode in ("auto", "plain", "compiled") if own else ("auto", "compiled"):
            set_fusion("plain" if mode == "plain" else "auto")
            torch._dynamo.reset()
            run = torch.compile(act, fullgraph=True) if mode == "compiled" else act
            best, median = timed(run, x, grad, repeats)
            rows.append(Row(name, mode, best, median, saved_bytes(run, x)))
        print(".", end="", flush=True)
    set_fusion("auto")
    print()
    return rows


def table(rows: list[Row], size: int, itemsize: int, markdown: bool) -> str:
    """A line an activation: for each mode its time and the ratio to GELU, compiled or not as the
    mode is.
    """
    found = {(r.name, r.mode): r for r in rows}
    bar, edge = (" | ", "|") if markdown else ("  ", "")
    modes = ("auto", "plain", "compiled")
    heads = [
        f"{'activation':28}",
        *(f"{m + ' us (median)':>19}{bar}{'x GELU':>6}" for m in modes),
        f"{'saved, tensors':>16}",
    ]
    lines = [edge + bar.join(heads) + edge]
    if markdown:
        lines.append("|" + "|".join(["---", *["---:"] * 7]) + "|")
    for name in dict.fromkeys(r.name for r in rows):
        cells = [f"{name:28}"]
        for mode in modes:
            row = found.get((name, mode))
            if row is None:
                cells.append(f"{'':>19}{bar}{'':>6}")
                continue
            against = found[REFERENCE, "compiled" if mode == "compiled" else "auto"]
            time_text = f"{row.best * 1e6:.0f} ({row.median * 1e6:.0f})"
            cells.append(f"{time_text:>19}{bar}{row.best / against.best:>6.2f}")
        saved = [found[name, m].saved / (size * itemsize) for m in ("auto", "compiled")]
        cells.append(f"{f'{saved[0]:.2f}, {saved[1]:.2f}':>16}")
        lines.append(edge + bar.join(cells) + edge)
    return "\n".join(lines)


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=1 << 20, help="elements of the tensor (default: 1048576)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=25, help="timed passes of each (default: 25)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--markdown", action="store_true", help="print markdown tables")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="torch")

    where = processor() if arguments.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"{where}; torch {torch.__version__}; {arguments.threads} threads; {arguments.size} elements; {kernel_info()}"
    )
    print(
        "forward + backward in microseconds, best (median); saved for backward in tensors of the input's size, auto and compiled"
    )
    for dtype in (torch.float32, torch.bfloat16):
        rows = measure(dtype, arguments.size, arguments.repeats, arguments.device)
        print(f"\n{str(dtype).removeprefix('torch.')}\n")
        print(table(rows, arguments.size, dtype.itemsize, arguments.markdown))


if __name__ == "__main__":
    main()
