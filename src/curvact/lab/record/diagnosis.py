"""Why a model may be wrong on clean images: another reading of its inputs or outputs that fits far
better. [ours]

A wrong normalization, another range or order of the channels, classes in another order, or running
statistics that do not fit leave a number that looks like an accuracy. Each is tried on a few hundred
images. It is a finding where it gains at least GAIN, and a sign test over the images that change
agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from curvact.attacks.losses import classes
from curvact.data import Dataset
from curvact.errors import CurvactError
from curvact.models.layers import Normalize
from curvact.models.modes import mode

IMAGES = 300
BATCH = 100
GAIN = 0.1
"""Of the clean accuracy, below which another reading is no finding."""
SURE = 1e-4
"""The p-value of the sign test up to which it is one. About ten readings are tried."""
FEWEST = 20
"""Images from which an accuracy is compared with guessing."""

Constants = tuple[tuple[float, ...], tuple[float, ...]]

KNOWN: Mapping[str, Constants] = MappingProxyType(
    {
        "0.5 and 0.5": ((0.5,), (0.5,)),
        "ImageNet's constants": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CIFAR-10's constants": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    }
)


@dataclass(frozen=True, eq=False)
class Reading:
    """One way to read the images. words: what it is, and what to do. read: images (N×C×H×W) to what
    the model gets."""

    words: str
    read: Callable[[Tensor], Tensor]


def diagnose(model: nn.Module, data: Dataset) -> list[str]:
    """Findings about the clean accuracy of a model, a line each; [] where nothing is in doubt.

    The first IMAGES images are classified as they are and in each other reading. Weights, buffers,
    modes and random numbers stay as they are. A model that cannot take the images has no findings:
    the attack says why.

    >>> from curvact.data import load
    >>> class Always0(nn.Module):
    ...     def forward(self, x):
    ...         return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10).float()
    >>> diagnose(Always0(), load("digits").test.first(100))
    ['guessing: clean accuracy is 14.0 % of 100 images, which guessing among 10 classes may give too (10.0 %, with p = 0.12)']
    """
    data = data.first(IMAGES)
    y, number = data.labels, len(data.classes)
    devices = [y.device] if y.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), mode(model, training=False), torch.no_grad():
        logits = _logits(model, data)
        if logits is None or logits.shape[1] <= int(y.max()):
            return []
        given = classes(logits) == y
        if logits.shape[1] == number and _mean(given) > 1 - GAIN:
            return []  # no other reading can gain as much
        found = _too_many_outputs(logits, data)
        if logits.shape[1] == number:
            found += _another_order(logits, y, number)
        if not found:
            found = _another_reading(model, y, given, data)
    right, count = int(given.sum()), len(data)
    if not found and count >= FEWEST and _chance(right, count, number) > 0.01:
        found = [
            (
                f"guessing: clean accuracy is {_percent(right / count)} of {count} images, which guessing among "
                f"{number} classes may give too ({_percent(1 / number)}, with p = {_chance(right, count, number):.2g})"
            )
        ]
    return found


def _logits(model: nn.Module, data: Dataset, read: Callable[[Tensor], Tensor] | None = None) -> Tensor | None:
    """N×outputs, or None where the model does not take these images. A few images at a time."""
    parts = []
    try:
        for start in range(0, len(data), BATCH):
            x = data.inputs(slice(start, start + BATCH))
            parts.append(model(x if read is None else read(x)))
        logits = torch.cat(parts)
    except (CurvactError, RuntimeError, ValueError, TypeError, IndexError):
        return None
    return logits if logits.dim() == 2 and len(logits) == len(data) else None


def _too_many_outputs(logits: Tensor, data: Dataset) -> list[str]:
    outputs, number = logits.shape[1], len(data.classes)
    if outputs <= number:
        return []
    beyond = int((classes(logits) >= number).sum())
    return [
        (
            f"outputs: the model has {outputs:,} outputs, the data {number} classes, and {beyond} of {len(logits)} "
            "images are put into outputs without a class: select the outputs of the classes (--outputs, "
            "curvact.models.select_outputs)"
        )
    ]


def _another_order(logits: Tensor, y: Tensor, number: int) -> list[str]:
    """A permutation of the classes, fitted on every second image and judged on the others."""
    from scipy.optimize import linear_sum_assignment

    answers = classes(logits).cpu()
    labels = y.cpu()
    counts = np.zeros((number, number))
    known = answers[::2] >= 0
    np.add.at(counts, (labels[::2][known].numpy(), answers[::2][known].numpy()), 1)
    _, outputs = linear_sum_assignment(counts, maximize=True)
    wanted = torch.as_tensor(outputs)[labels[1::2]]
    before, after = answers[1::2] == labels[1::2], answers[1::2] == wanted
    if not _clearly_better(after, before):
        return []
    moved = [f"{k} is output {o}" for k, o in enumerate(outputs.tolist()) if k != o]
    shown = ", ".join(moved[:4]) + (", …" if len(moved) > 4 else "")
    return [
        (
            f"order of the classes: clean accuracy is {_percent(_mean(before))}, and {_percent(_mean(after))} with the "
            f"outputs in another order (class {shown}), on {len(after)} images that did not choose it: reorder the "
            "outputs (--outputs, curvact.models.select_outputs)"
        )
    ]


def _another_reading(model: nn.Module, y: Tensor, given: Tensor, data: Dataset) -> list[str]:
    """The reading that fits best, where it clearly does; those that fit as well are named with it."""
    fits: list[tuple[str, Tensor]] = []
    for reading in _readings(model, data):
        logits = _logits(model, data, reading.read)
        if logits is not None:
            fits.append((reading.words, classes(logits) == y))
    batch = _batch_statistics(model, data)
    if batch is not None:
        fits.append(("batch norm: with the statistics of the batch, the running ones do not fit", batch))
    fits = [fit for fit in fits if _clearly_better(fit[1], given)]
    if not fits:
        return []
    best = max(_mean(right) for _, right in fits)
    near = [(words, right) for words, right in fits if _mean(right) >= best - 0.02]
    words, right = near[0]
    others = "".join(f"; {other.partition(': ')[2]} fits alike" for other, _ in near[1:2])
    kind, _, what = words.partition(": ")
    return [
        (
            f"{kind}: clean accuracy is {_percent(_mean(given))} as given, and {_percent(_mean(right))} {what}, on "
            f"{len(data)} images{others}"
        )
    ]


def _readings(model: nn.Module, data: Dataset) -> Iterator[Reading]:
    """Every other reading, the plain ones first. What the model normalizes itself is undone."""
    own = next((part for part in model.modules() if isinstance(part, Normalize)), None)
    channels = data.images.shape[1] if own is None else len(own.mean)

    def through(read: Callable[[Tensor], Tensor], *, reverse: bool) -> Callable[[Tensor], Tensor]:
        """What the model has to get so that it sees this after its own normalization."""

        def inputs(x: Tensor) -> Tensor:
            x = x.expand(-1, channels, -1, -1)
            seen = read(x.flip(1) if reverse else x)
            return seen if own is None else seen * own.std + own.mean

        return inputs

    def normalized(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
        def read(x: Tensor) -> Tensor:
            m, s = (x.new_tensor(part).view(-1, 1, 1) for part in (mean, std))
            return (x - m) / s

        return read

    constants = {**KNOWN, f"the constants of {data.name}": (data.mean, data.std)}
    for reverse in (False, True) if channels == 3 else (False,):
        order = " and the channels in the order BGR" if reverse else ""
        if reverse:
            yield Reading("channels: with the channels in the order BGR", lambda x: x.flip(1))
        if own is not None:
            plain = through(lambda x: x, reverse=reverse)
            yield Reading(f"normalization: without a normalization{order}", plain)
        for name, (mean, std) in constants.items():
            if len(mean) in (1, channels):
                numbers = f"mean {_few(mean)}, std {_few(std)}"
                yield Reading(
                    f"normalization: with {name} ({numbers}; logits_of takes mean and std){order}",
                    through(normalized(mean, std), reverse=reverse),
                )
        yield Reading(f"range: with images from 0 to 255{order}", through(lambda x: 255 * x, reverse=reverse))


def _batch_statistics(model: nn.Module, data: Dataset) -> Tensor | None:
    """Which images are right with the statistics of their batch in every batch norm; None without
    one. The running statistics come back."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers or len(data) < 2:
        return None
    kept = [{name: value.clone() for name, value in layer.named_buffers(recurse=False)} for layer in layers]
    for layer in layers:
        layer.train()  # the caller's `mode` restores it
    try:
        logits = _logits(model, data)
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            layer.eval()
            for name, value in buffers.items():
                getattr(layer, name).copy_(value)
    return None if logits is None else classes(logits) == data.labels


def _clearly_better(after: Tensor, before: Tensor) -> bool:
    from scipy.stats import binom

    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    sure = float(binom.sf(won - 1, won + lost, 0.5)) <= SURE
    return sure and won - lost >= GAIN * len(after)


def _chance(right: int, count: int, number: int) -> float:
    """How likely guessing among so many classes is right so often, or more often."""
    from scipy.stats import binom

    return float(binom.sf(right - 1, count, 1 / number))


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _few(numbers: Sequence[float]) -> str:
    return " ".join(f"{n:.4g}" for n in numbers)
