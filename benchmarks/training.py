"""Adversarial-training throughput: `curvact.fit` against a plain loop and the same loop around
torchattacks' PGD, in one process.

    python benchmarks/training.py [--model resnet18] [--width 16] [--batch-size 128] [--steps 10]
        [--batches 3] [--repeats 3] [--threads 1] [--device cpu] [--precision 32-true] [--compile]
        [--peers FOLDER]

The plain loop is written as the reference repositories write it: the attack runs `loss.backward()`,
weight gradients and all, on a network in the default memory format, and RCT-AF, which has no
reference code, is its formula in tensor operations. torchattacks is installed for this alone:  pip
install --no-deps --target FOLDER torchattacks
Times are CPU seconds of the process where there is no GPU; the order of the loops alternates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

import curvact as cv
from curvact.data import Dataset, Splits
from curvact.lab.environment import environment
from curvact.training import Compute

EPSILON, STEP = 8 / 255, 2 / 255  # STEP is 0.25 ε


class PlainRCTAF(nn.Module):
    """RCT-AF, β = 1, as a user would write it."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(self.alpha * x)
        return (F.softplus(self.alpha * x) - s * (1 - s)) / self.alpha


def plain_attack(steps: int) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        delta = torch.zeros_like(x).uniform_(-EPSILON, EPSILON)
        delta.data = (x + delta).clamp(0, 1) - x
        delta.requires_grad = True
        for _ in range(steps):
            F.cross_entropy(model(x + delta), y).backward()
            grad = delta.grad.detach()
            delta.data = torch.clamp(delta.data + STEP * torch.sign(grad), -EPSILON, EPSILON)
            delta.data = torch.clamp(x + delta.data, 0, 1) - x
            delta.grad.zero_()
        return (x + delta).detach()

    return attack


def plain_loop(
    model: nn.Module, data: Dataset, batch: int, attack: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    order = torch.randperm(len(data))
    for start in range(0, len(data), batch):
        index = order[start : start + batch]
        x, y = data.images[index].float() / 255, data.labels[index]
        model.eval()
        x_adv = attack(model, x, y)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), y).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peers", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.peers:
        sys.path.insert(0, chosen.peers)
    try:
        import torchattacks
    except ImportError:
        torchattacks = None
        print("torchattacks is not installed: left out (see the first lines of this file)")

    device = torch.device(chosen.device)
    gpu = device.type == "cuda"
    fabric = Fabric(accelerator=device.type, devices=1, precision=chosen.precision)
    fabric.launch()
    count = chosen.batches * chosen.batch_size
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    train = Dataset("noise", images, labels, tuple("0123456789"), mean, std, "0").to(device)
    data = Splits(train, train.first(2), train.first(2))
    recipe = cv.Recipe(
        objective="pgd-at(batch_norm=eval)",
        epochs=1,
        batch_size=chosen.batch_size,
        learning_rate=0.01,
        attack=cv.PGD(chosen.steps, step=0.25),
        validation=cv.PGD(0),
    )

    def network(activation: object) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        return cv.models.build(
            chosen.model, width=chosen.width, activation=activation, mean=mean, std=std, generator=generator
        ).to(device)

    rctaf = "rctaf(curvature=6, beta=1)"
    cases = {"ReLU": ("relu", nn.ReLU), "RCT-AF κ=6 β=1": (rctaf, lambda: PlainRCTAF(16.0))}
    for name, (ours, theirs) in cases.items():
        laid_out = network(ours).to(memory_format=torch.channels_last)
        loops: dict[str, Callable[[], object]] = {}
        plain = network(theirs)
        loops["plain loop"] = lambda plain=plain: plain_loop(
            plain, train, chosen.batch_size, plain_attack(chosen.steps)
        )
        if theirs is not nn.ReLU:
            fused = network(ours)
            loops["plain loop, our activation"] = lambda fused=fused: plain_loop(
                fused, train, chosen.batch_size, plain_attack(chosen.steps)
            )
        if torchattacks is not None:
            attacked = network(theirs)
            peer = torchattacks.PGD(attacked, eps=EPSILON, alpha=STEP, steps=chosen.steps)
            loops["loop around torchattacks' PGD"] = lambda attacked=attacked, peer=peer: plain_loop(
                attacked, train, chosen.batch_size, lambda _, x, y: peer(x, y)
            )
        loops["curvact.fit"] = lambda laid_out=laid_out: cv.fit(
            laid_out,
            data,
            recipe,
            cv.ThreatModel("linf", EPSILON),
            seed=0,
            compute=Compute(fabric, compiled=chosen.compile),
        )
        times: dict[str, list[float]] = {key: [] for key in loops}
        for repeat in range(chosen.repeats + 1):
            for key in loops if repeat % 2 else reversed(loops):
                started = time.perf_counter() if gpu else time.process_time()
                loops[key]()
                if gpu:
                    torch.cuda.synchronize()
                seconds = (time.perf_counter() if gpu else time.process_time()) - started
                if repeat:
                    times[key].append(seconds)
        base = statistics.median(times["plain loop"])
        print(
            f"\n{name}, {chosen.model} width {chosen.width}, batch {chosen.batch_size}, PGD-{chosen.steps}:"
        )
        print("| loop | images a second | times the plain loop |\n|---|---|---|")
        for key, seconds in times.items():
            middle = statistics.median(seconds)
            print(f"| {key} | {count / middle:.1f} | {base / middle:.2f} |")
    about = environment()
    where = torch.cuda.get_device_name(device) if gpu else f"{about['processor']}, CPU seconds"
    print(
        f"\n{where}; torch {about['torch']}, {chosen.threads} thread(s), {chosen.precision}, commit {about['commit']}"
    )


if __name__ == "__main__":
    main()
