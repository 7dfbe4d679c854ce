"""A training step of ResNet-18 with each variant of Sparta, ReLU and SiLU: time and memory.

    python benchmarks/sparta.py [--width 16] [--batch 64] [--repeats 7] [--threads 1] [--device cpu]

A step is the forward and the backward pass of the cross-entropy of CIFAR-sized images. All networks
run in one process, in turn, so that their ratios to ReLU mean something. The time is CPU time (the
wall clock on a GPU), the best of the repeats. Memory is what the graph holds between the passes,
each storage once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.models import build

REFERENCE = "relu"
ACTIVATIONS = (
    REFERENCE,
    "silu",
    "sparta",
    "sparta(variant=agnostic)",
    "sparta(variant=full)",
)


def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(model(x), y).backward()
    model.zero_grad()


def seconds(model: nn.Module, x: Tensor, y: Tensor) -> float:
    clock = time.perf_counter if x.is_cuda else time.process_time
    start = clock()
    step(model, x, y)
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Memory that the graph holds between the passes, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = model(x)
    del out
    return sum(storages.values())


def measure(
    names: Sequence[str], layout: torch.memory_format, args: argparse.Namespace
) -> list[tuple[str, float, int]]:
    models = {
        name: build("resnet18", activation=name, width=args.width).to(args.device).to(memory_format=layout)
        for name in names
    }
    x = torch.rand(args.batch, 3, 32, 32, device=args.device).to(memory_format=layout)
    y = torch.randint(10, (args.batch,), device=args.device)
    best = dict.fromkeys(models, float("inf"))
    for repeat in range(args.repeats + 1):
        for name, model in models.items():
            took = seconds(model, x, y)
            if repeat:  # the first one warms up
                best[name] = min(best[name], took)
    return [(name, best[name], kept_bytes(model, x)) for name, model in models.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"ResNet-18, width {args.width}, batch {args.batch} of 32×32 images, {args.device}, {args.threads} thread(s), "
        f"torch {torch.__version__}; best of {args.repeats}"
    )
    columns = ("activation", "layout", "seconds a step", "÷ relu", "kept, MB", "÷ relu")
    rows: list[tuple[str, ...]] = []
    for label, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        found = measure(ACTIVATIONS, layout, args)
        _, time_of_relu, bytes_of_relu = found[0]
        rows += [
            (
                name,
                label,
                f"{t:.4f}",
                f"{t / time_of_relu:.2f}",
                f"{size / 1e6:.1f}",
                f"{size / bytes_of_relu:.2f}",
            )
            for name, t, size in found
        ]
    if args.markdown:
        print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    else:
        for row in (columns, *rows):
            print(f"{row[0]:26}{row[1]:8}" + "".join(f"{cell:>16}" for cell in row[2:]))


if __name__ == "__main__":
    main()
