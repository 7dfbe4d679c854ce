"""Training images a second (CIFAR-10, crop 4 and flip) on the CPU, against torch's DataLoader.

    python benchmarks/input_pipeline.py [--seconds 2] [--repeats 3] [--threads 1 2]
                                        [--batch-sizes 128 512]

All pipelines run in this process, in turn, `repeats` times, each for about `seconds`. The best and
the median rate are printed.
The peers are the usual training scripts: the `__getitem__` of a Dataset sends one image through
RandomCrop(32, padding=4), RandomHorizontalFlip and ToTensor. torchvision's wheel breaks a CPU
torch.
So these transforms are written out below as in torchvision: once on PIL images, once on uint8
tensors. Like torchvision they draw from torch's global generator. Workers persist between epochs,
and their start is not timed. Each worker has one thread; --threads sets the threads of the process
that takes the batches. The images are CIFAR-10 from the folder CURVACT_DATA (or ./data), else
random images of its shape.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from curvact.data.dataset import Dataset
from curvact.data.pipeline import Augmentation, epoch_batches

CROP = 4
Batches = Iterator[tuple[Tensor, Tensor]]


def cifar10() -> tuple[NDArray[np.uint8], str]:
    """50,000×32×32×3 uint8, and where they are from."""
    path = Path(os.environ.get("CURVACT_DATA") or "data") / "cifar10" / "train_images.npy"
    if not path.is_file():
        images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
        return images, f"random images of CIFAR-10's shape ({path} is not there)"
    images = np.load(path)
    if images.shape[1:] == (3, 32, 32):
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return images, f"CIFAR-10, {len(images):,} images from {path}"


def _chance() -> Tensor:
    return torch.rand(1)


class PilImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """torchvision's CIFAR10 with RandomCrop(32, padding=4), RandomHorizontalFlip and ToTensor."""

    def __init__(self, images: NDArray[np.uint8], labels: Tensor) -> None:
        self.images, self.labels = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.images[i]), border=CROP, fill=0)
        top = int(torch.randint(0, 2 * CROP + 1, size=(1,)).item())
        left = int(torch.randint(0, 2 * CROP + 1, size=(1,)).item())
        image = image.crop((left, top, left + 32, top + 32))
        if _chance() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image, np.uint8, copy=True)).permute(2, 0, 1).contiguous()
        return tensor.to(torch.float32).div(255), self.labels[i]


class TensorImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The same on uint8 tensors, C×H×W, in memory: no decoding, no PIL."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = F.pad(self.images[i], (CROP,) * 4)
        top = int(torch.randint(0, 2 * CROP + 1, size=(1,)).item())
        left = int(torch.randint(0, 2 * CROP + 1, size=(1,)).item())
        image = image[:, top : top + 32, left : left + 32]
        if _chance() < 0.5:
            image = image.flip(-1)
        return image.to(torch.float32).div(255), self.labels[i]


def loader(
    dataset: torch.utils.data.Dataset[tuple[Tensor, int]], size: int, workers: int
) -> Callable[[int], Batches]:
    """Epochs of a DataLoader, shuffled."""
    made = DataLoader(
        dataset, batch_size=size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda epoch: iter(made)


def ours(data: Dataset, size: int) -> Callable[[int], Batches]:
    augmentation = Augmentation(crop=CROP, flip=True)
    return lambda epoch: epoch_batches(data, size, seed=0, epoch=epoch, augmentation=augmentation)


def rate(epochs: Callable[[int], Batches], seconds: float) -> float:
    """Images a second over chained epochs, after 5 batches. The start of an epoch is timed."""
    batches = itertools.chain.from_iterable(epochs(epoch) for epoch in itertools.count(1))
    for _ in range(5):
        next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += len(next(batches)[1])
    return images / (time.perf_counter() - start)


def _same_distribution(data: Dataset, peer: torch.utils.data.Dataset[tuple[Tensor, int]]) -> None:
    """Both have the same mean brightness, in the corners too, within five standard errors."""
    mine = torch.cat([x for x, _ in itertools.islice(ours(data, 512)(1), 8)])
    theirs = torch.stack([peer[i][0] for i in range(0, len(data), max(1, len(data) // 4096))])
    assert mine.shape[1:] == theirs.shape[1:]
    assert mine.dtype == theirs.dtype
    for region in (slice(None), slice(0, 2)):
        a, b = (x[:, :, region, region].mean((1, 2, 3)) for x in (mine, theirs))
        error = (a.var() / len(a) + b.var() / len(b)).sqrt()
        assert abs(float(a.mean() - b.mean())) < 5 * float(error), "the peers have another distribution"


def main() -> None:
    parser = argparse.ArgumentParser(description="Input pipeline against torch's DataLoader.")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    chosen = parser.parse_args()
    pixels, source = cifar10()
    labels = torch.arange(len(pixels)) % 10
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    half = (0.5,) * 3
    data = Dataset("cifar10/train", images, labels, tuple("0123456789"), half, half, "")
    peers = {"PIL transforms": PilImages(pixels, labels), "tensor transforms": TensorImages(images, labels)}
    for peer in peers.values():
        _same_distribution(data, peer)
    print(source)
    print(
        f"{_processor()}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"load average at the start {load:.1f}; {chosen.repeats} runs of {chosen.seconds:g} s each\n")
    print("| threads | batch | pipeline | images/s, best | median | ours / this, best | median |")
    print("|---|---|---|---|---|---|---|")
    for threads, size in itertools.product(chosen.threads, chosen.batch_sizes):
        torch.set_num_threads(threads)
        runners = {"curvact": ours(data, size)}
        for name, peer in peers.items():
            for workers in (0, 2):
                runners[f"DataLoader, {name}, {workers} workers"] = loader(peer, size, workers)
        rates: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(chosen.repeats):
            for name, runner in runners.items():
                rates[name].append(rate(runner, chosen.seconds))
        best = {name: max(values) for name, values in rates.items()}
        median = {name: statistics.median(values) for name, values in rates.items()}
        for name in runners:
            ratios = (
                f"{best['curvact'] / best[name]:.1f}× | {median['curvact'] / median[name]:.1f}×"
                if name != "curvact"
                else "1 | 1"
            )
            print(
                f"| {threads} | {size} | {name} | {best[name]:,.0f} | {median[name]:,.0f} | {ratios} |",
                flush=True,
            )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
