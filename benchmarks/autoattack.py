"""Time of AutoAttack: pyautoattack against `curvact.attacks.autoattack(mode="fast")` on one
network.

    python benchmarks/autoattack.py [--checkpoint model.safetensors] [--points 100] [--norm linf]
        [--activation "rctaf(curvature=6)"] [--epsilon 0.03137] [--batch-size 250] [--threads 1]
        [--workers 1] [--precision fp32] [--data data]

Both run in one process, on the first test images. Without a checkpoint a ResNet-18 of width 16 is
trained first, by PGD with 3 steps on CIFAR-10, and written to --save. The reference runs at
--batch-size (its own default) with --threads threads, fast mode in --workers processes that share
the same threads. CPU seconds count this process only.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from torch import nn

from curvact import Recipe, fit
from curvact.attacks import PGD, ThreatModel, autoattack
from curvact.data import Splits, load
from curvact.models import build
from curvact.models.checkpoint import load_checkpoint, save_checkpoint
from curvact.random import generator
from curvact.training import Watch

EPSILON = 8 / 255


def train(data: Splits, save: Path, *, activation: str, width: int, epochs: int) -> nn.Module:
    """PGD adversarial training with 3 steps, from the images given."""
    architecture = {
        "name": "resnet18",
        "activation": activation,
        "width": width,
        "channels": 3,
        "size": 32,
        "mean": list(data.train.mean),
        "std": list(data.train.std),
    }
    model = build(**architecture, generator=generator(0, "weights")).to(memory_format=torch.channels_last)
    recipe = Recipe(
        epochs=epochs,
        batch_size=128,
        learning_rate=0.1,
        attack=PGD(3, step=0.5),
        crop=4,
        flip=True,
    )
    fit(
        model,
        data,
        recipe,
        ThreatModel("linf", EPSILON),
        seed=0,
        watch=Watch(on_epoch=lambda epoch: print(epoch, flush=True)),
    )
    save_checkpoint(save, model, architecture, {"trained": "PGD-3, benchmarks/autoattack.py"})
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--save", type=Path, default=Path("runs/autoattack-benchmark.safetensors"))
    parser.add_argument("--activation", default="relu", help="of the network that is trained here")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=20_000, help="to train on")
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="data")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    data = load("cifar10", root=chosen.data)
    if chosen.checkpoint is None:
        chosen.save.parent.mkdir(parents=True, exist_ok=True)
        model = train(
            data.first(train=chosen.images, validation=200),
            chosen.save,
            activation=chosen.activation,
            width=chosen.width,
            epochs=chosen.epochs,
        )
    else:
        model = load_checkpoint(chosen.checkpoint)
    epsilon = chosen.epsilon or (EPSILON if chosen.norm == "linf" else 0.5)
    x, y = data.test.inputs(slice(0, chosen.points)), data.test.labels[: chosen.points]

    started, cpu = time.perf_counter(), time.process_time()
    fast = autoattack(
        model,
        x,
        y,
        ThreatModel(chosen.norm, epsilon),
        mode="fast",
        seed=chosen.seed,
        workers=chosen.workers,
        precision=chosen.precision,
        shard_size=max(1, -(-chosen.points // chosen.workers)) if chosen.workers > 1 else 250,
        on_progress=lambda progress: print(f"{progress.attack}: {progress}", flush=True),
    )
    ours, our_cpu = time.perf_counter() - started, time.process_time() - cpu

    started, cpu = time.perf_counter(), time.process_time()
    reference = AutoAttack(
        model,
        norm={"linf": "Linf", "l2": "L2"}[chosen.norm],
        eps=epsilon,
        seed=chosen.seed,
        version="standard",
    )
    x_adv, _ = reference.run_standard_evaluation(x, y, batch_size=chosen.batch_size)
    theirs, their_cpu = time.perf_counter() - started, time.process_time() - cpu
    with torch.no_grad():
        robust = float(((model(x_adv).argmax(1) == y) & (model(x).argmax(1) == y)).float().mean())

    print(
        f"\n{platform.processor() or platform.machine()}, torch {torch.__version__}, {chosen.threads} threads"
    )
    print(
        f"{chosen.norm} ε = {epsilon:.5g}, {chosen.points} CIFAR-10 test images, clean {fast.clean_accuracy:.2%}"
    )
    print("; ".join(fast.notes), "\n")
    print("| | seconds | ratio | CPU seconds | ratio | robust accuracy |\n|---|---|---|---|---|---|")
    print(
        f"| pyautoattack 0.2.0, batch {chosen.batch_size} | {theirs:.0f} | 1.00 | {their_cpu:.0f} | 1.00 | {robust:.2%} |"
    )
    name = (
        f"curvact, fast mode, {chosen.precision}, {chosen.workers} worker{'s' if chosen.workers > 1 else ''}"
    )
    own = f"{our_cpu:.0f} | {our_cpu / their_cpu:.2f}" if chosen.workers == 1 else "– | –"
    print(f"| {name} | {ours:.0f} | {ours / theirs:.2f} | {own} | {fast.robust_accuracy:.2%} |")
    print(
        "\nafter each attack: "
        + ", ".join(f"{key} {value:.2%}" for key, value in fast.accuracy_after.items())
    )


if __name__ == "__main__":
    main()
