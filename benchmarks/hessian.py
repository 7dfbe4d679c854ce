"""Time and memory for ‖diag H‖ to 2 %: ours against Hutchinson's estimate as PyHessian and
curvlinops make it.

    python benchmarks/hessian.py [--steps 300] [--repeats 3] [--truth 384] [--peer-probes 48]
    [--markdown]

One run, one thread, CPU seconds (other work on the machine does not count). A ResNet-18 of width 16
with a smooth activation is trained for some steps on CIFAR-10; the loss is that of 64 training
images, in eval mode. Every error is a true one: against a long run of probes of its own. Peers have
no norm; what their users take is ‖mean of v ⊙ Hv‖, whose square is too large by (noise of one
probe)/K. PyHessian holds the gradient's graph, curvlinops builds it anew for every product. Where
the packages are installed, their own products are timed and used; else the same operations are
written out here. How many probes they need for 2 % follows from the noise that was measured, and is
checked at the number that was run. Memory: growth of the peak resident size of a fresh process,
against that of a training step.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.analysis import Loss, diagonal_norms, diagonal_split
from curvact.data import load
from curvact.models import build
from curvact.random import generator

ROOT = Path(__file__).parents[1] / "data"
ACTIVATION = "rctaf(curvature=6, beta=1)"
BATCH = 64
AIM = 0.02
PIECE = 16
"""Images that go through the network together in ours: as fast as all at once, and half the
memory.
"""


def network() -> nn.Module:
    return build("resnet18", activation=ACTIVATION, width=16, generator=generator(0, "initialization"))


def trained(steps: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network after some steps of SGD, and 64 images that it was trained on."""
    data = load("cifar10", root=ROOT)
    model = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, max(steps, 1))
    order = torch.randperm(10_000, generator=generator(0, "order"))
    for step in range(steps):
        chosen = order[torch.arange(BATCH * step, BATCH * (step + 1)) % len(order)]
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.inputs(chosen)), data.train.labels[chosen]).backward()
        optimizer.step()
        rate.step()
    x, y = data.train.inputs(slice(0, BATCH)), data.train.labels[:BATCH]
    return model.eval(), x.contiguous(memory_format=torch.channels_last), y


def clocked(work: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


# ---- ours ----


def ours(
    model: nn.Module, x: Tensor, y: Tensor
) -> dict[str, Callable[[int, float, int], tuple[float, float, int]]]:
    """Method to (seed, relative error, most probes) → (norm, standard error, probes)."""

    def norms(method: str) -> Callable[[int, float, int], tuple[float, float, int]]:
        def run(seed: int, error: float, most: int) -> tuple[float, float, int]:
            found = diagonal_norms(
                Loss(model, x, y, batch_size=PIECE),
                relative_error=error,
                max_probes=most,
                method=method,  # type: ignore[arg-type]
                scaled=False,
                generator=generator(seed, "benchmark"),
            )
            root = math.sqrt(found.parameters)
            return found.rms.value * root, found.rms.standard_error * root, found.probes

        return run

    def split(seed: int, error: float, most: int) -> tuple[float, float, int]:
        found = diagonal_split(
            Loss(model, x, y, batch_size=PIECE),
            relative_error=error,
            max_probes=most,
            by_site=False,
            generator=generator(seed, "benchmark"),
        )
        return found.total.diagonal.value, found.total.diagonal.standard_error, found.probes

    return {"curvact diagonal_norms": norms("ggn"), "curvact diagonal_split": split}


# ---- the peers ----


def pyhessian_products(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Callable[[Tensor], Tensor], str]:
    """H v as PyHessian makes it: double backward, with the gradient's graph held."""
    params = list(model.parameters())
    sizes = [p.numel() for p in params]
    try:
        theirs = importlib.import_module("pyhessian.utils").hessian_vector_product
        source = "PyHessian"
    except ImportError:
        source = "as PyHessian"

        def theirs(gradients: list[Tensor], params: list[Tensor], v: list[Tensor]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(gradients, params, v, only_inputs=True, retain_graph=True)

    gradients = list(torch.autograd.grad(F.cross_entropy(model(x), y), params, create_graph=True))

    def product(v: Tensor) -> Tensor:
        parts = [part.view(p.shape) for part, p in zip(torch.split(v, sizes), params, strict=True)]
        return torch.cat([row.detach().reshape(-1) for row in theirs(gradients, params, parts)])

    return product, source


def curvlinops_products(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Callable[[Tensor], Tensor], str]:
    """H v as curvlinops makes it: forward, gradient and product for every vector."""
    params = list(model.parameters())
    sizes = [p.numel() for p in params]
    try:
        kind = importlib.import_module("curvlinops").HessianLinearOperator
    except ImportError:

        def product(v: Tensor) -> Tensor:
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), params, create_graph=True)
            parts = [part.view(p.shape) for part, p in zip(torch.split(v, sizes), params, strict=True)]
            rows = torch.autograd.grad(gradients, params, parts)
            return torch.cat([row.detach().reshape(-1) for row in rows])

        return product, "as curvlinops"
    operator = kind(model, nn.CrossEntropyLoss(), params, [(x, y)], check_deterministic=False)
    return lambda v: operator @ v, "curvlinops"


def naive(
    product: Callable[[Tensor], Tensor], size: int, probes: int, seed: int
) -> tuple[float, list[float], float]:
    """Seconds a probe, the naive norm after 1, 2, … probes, and the mean of ‖D‖²."""
    random = generator(seed, "peers")
    total, norms, squares = torch.zeros(size), [], 0.0
    start = time.process_time()
    spent = 0.0
    for k in range(1, probes + 1):
        v = torch.randint(2, (size,), generator=random).float() * 2 - 1
        sample = v * product(v)
        total += sample
        spent = time.process_time() - start
        squares += float(sample.double().square().sum())
        norms.append(float(total.double().norm()) / k)
        start = time.process_time() - spent
    return spent / probes, norms, squares / probes


# ---- memory ----


def peak(work: str, checkpoint: Path) -> int:
    """Bytes by which the peak resident size of a fresh process grows while it does the work."""
    command = [sys.executable, __file__, "--only", work, "--checkpoint", str(checkpoint)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(json.loads(out.splitlines()[-1])["bytes"])


def peak_resident() -> int:
    """Peak resident bytes of this program; `ru_maxrss` would be that of the process it was forked
    from, too.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found) * 1024


def only(work: str, checkpoint: Path) -> None:
    held = torch.load(checkpoint)
    model = network().to(memory_format=torch.channels_last)
    model.load_state_dict(held["model"])
    x, y = held["x"], held["y"]
    with torch.no_grad():
        model.eval()(x[:2])
    before = peak_resident()
    if work == "training step":
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    elif work == "PyHessian":
        product, _ = pyhessian_products(model.eval(), x, y)
        naive(product, sum(p.numel() for p in model.parameters()), 3, 0)
    elif work.endswith("all at once"):
        diagonal_norms(
            Loss(model, x, y),
            relative_error=1e-9,
            max_probes=32,
            scaled=False,
            generator=generator(0, "memory"),
        )
    else:
        ours(model.eval(), x, y)[work](0, 1e-9, 32)
    print(json.dumps({"bytes": peak_resident() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--repeats", type=int, default=3, help="of each of our estimates")
    parser.add_argument("--truth", type=int, default=384, help="probes of the long run")
    parser.add_argument("--peer-probes", type=int, default=48)
    parser.add_argument("--part", choices=["all", "memory"], default="all")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        only(options.only, options.checkpoint)
        return

    def row(*cells: object) -> None:
        text = [str(cell) for cell in cells]
        if options.markdown:
            print("| " + " | ".join(text) + " |", flush=True)
        else:
            print(
                "  ".join(
                    cell.ljust(width) for cell, width in zip(text, (30, 12, 12, 14, 14, 14), strict=False)
                ),
                flush=True,
            )

    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, one thread, CPU seconds")
    model, x, y = trained(options.steps)
    if options.part == "all":
        compare_time(model, x, y, options, row)
        print()
    compare_memory(model, x, y, row, markdown=options.markdown)


def compare_time(
    model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace, row: Callable[..., None]
) -> None:
    size = sum(p.numel() for p in model.parameters())
    loss = F.cross_entropy(model(x), y).item()
    gradient_time = min(
        clocked(lambda: torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))[0]
        for _ in range(3)
    )
    methods = ours(model, x, y)
    truth, truth_error, probes = methods["curvact diagonal_split"](99, 1e-9, options.truth)
    print(
        f"ResNet-18 width 16, {ACTIVATION}, {options.steps} steps, {size} parameters, {BATCH} images, loss {loss:.3f}"
    )
    print(
        f"gradient {gradient_time:.2f} s; ‖diag H‖ = {truth:.3f} ± {truth_error:.3f} from {probes} probes of a run of its own\n"
    )

    row("estimate of ‖diag H‖", "probes", "seconds", "true error", "its own error", "s a probe")
    if options.markdown:
        print("|---|---|---|---|---|---|")
    best = math.inf
    for name, method in methods.items():
        times, errors = [], []
        for seed in range(options.repeats):
            seconds, result = clocked(lambda method=method, seed=seed: method(seed, AIM, 2048))  # type: ignore[misc]
            value, error, count = result  # type: ignore[misc]
            times.append(seconds)
            errors.append(value / truth - 1)
            row(
                f"{name}, seed {seed}",
                count,
                f"{seconds:.0f}",
                f"{errors[-1]:+.1%}",
                f"{error / value:.1%}",
                f"{seconds / count:.2f}",
            )
        rms = math.sqrt(statistics.fmean(e**2 for e in errors))
        row(f"{name}, mean", "", f"{statistics.fmean(times):.0f}", f"{rms:.1%} rms", "", "")
        best = min(best, statistics.fmean(times))

    needed = []
    for make in (pyhessian_products, curvlinops_products):
        product, source = make(model, x, y)
        product(torch.zeros(size))
        seconds, norms, square = naive(product, size, options.peer_probes, 5)
        noise = square - truth**2
        row(
            f"{source}, naive norm",
            options.peer_probes,
            f"{seconds * options.peer_probes:.0f}",
            f"{norms[-1] / truth - 1:+.0%}",
            "none",
            f"{seconds:.2f}",
        )
        expected = math.sqrt(truth**2 + noise / options.peer_probes) / truth - 1
        row("  expected from its noise", options.peer_probes, "", f"{expected:+.0%}", "", "")
        count = noise / (truth**2 * ((1 + AIM) ** 2 - 1))
        needed.append((source, count * seconds))
        row("  for 2 %, from its noise", f"{count:.0f}", f"{count * seconds:.0f}", f"{AIM:+.0%}", "", "")
    print()
    for source, seconds in needed:
        print(f"{source}'s time for a true error of 2 % over ours: {seconds / best:.0f}")


def compare_memory(
    model: nn.Module, x: Tensor, y: Tensor, row: Callable[..., None], *, markdown: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        torch.save({"model": model.state_dict(), "x": x, "y": y}, checkpoint)
        step = peak("training step", checkpoint)
        row("peak memory over the model's", "MiB", "steps")
        if markdown:
            print("|---|---|---|")
        for work in ("training step", *ours(model, x, y), "curvact diagonal_norms, all at once", "PyHessian"):
            used = peak(work, checkpoint)
            row(work, f"{used / 2**20:.0f}", f"{used / step:.1f}")


if __name__ == "__main__":
    main()
