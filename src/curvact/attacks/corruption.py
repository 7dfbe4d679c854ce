"""Accuracy of a model on corrupted images, by corruption and severity."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvact.attacks.arguments import check_kind
from curvact.attacks.batch import Guarded, check_number
from curvact.attacks.losses import classes
from curvact.attacks.pgd import Model
from curvact.data import Dataset
from curvact.data.corruptions import (
    SEVERITIES,
    corrupt,
    corruption_named,
    stored_corruption,
    stored_corruptions,
    suitable,
)
from curvact.errors import CurvactError
from curvact.models.modes import mode

WHERE = "corruption_accuracy"


@dataclass(frozen=True)
class CorruptionAccuracy:
    """Accuracy of a model on corrupted images.

    clean: on the images as they are; None where they are not known, as in a folder.
    severities: those that were measured. by: the accuracy at each of them, by corruption.
    """

    clean: float | None
    severities: tuple[int, ...]
    by: Mapping[str, tuple[float, ...]]

    @property
    def mean(self) -> float:
        """The mean over all corruptions and severities: 1 − the mean corruption error, where that
        is not divided by the error of AlexNet, as usual on CIFAR-10-C.
        """
        values = [value for row in self.by.values() for value in row]
        return sum(values) / len(values)

    def mean_of(self, name: str) -> float:
        """The mean over the severities of one corruption."""
        return sum(self.by[name]) / len(self.by[name])


def corruption_accuracy(
    model: Model,
    data: Dataset | str | os.PathLike[str],
    *,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] | int = SEVERITIES,
    seed: int = 0,
    batch_size: int = 512,
    on_done: Callable[[str, int, float], None] | None = None,
) -> CorruptionAccuracy:
    """Accuracy on corrupted images, the model in eval mode (restored after). Nothing attacks.

    model: from N×C×H×W in [0, 1] to logits; it computes on its own device.
    data: a data set, which is corrupted batch by batch; or a folder such as CIFAR-10-C, with
        NAME.npy and labels.npy.
    corruptions: names in `curvact.data.corruptions.CORRUPTIONS`, or files of the folder. None: all
        that suit the images. One name, or one severity, may stand alone.
    seed: of the random numbers of the corruptions.
    on_done: called with each corruption, severity and accuracy.
    Logits with NaN are wrong answers. Raises CurvactError for unknown corruptions and severities, a
    batch_size below 1, and for a model that lacks an output for a label.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> found = corruption_accuracy(MiniResNet(channels=1, width=2), load("digits").test.first(20),
    ...     corruptions=["fog", "contrast"], severities=[1, 5])
    >>> list(found.by), len(found.by["fog"]), 0 <= found.mean <= 1
    (['fog', 'contrast'], 2, True)
    """
    check_number(batch_size, "batch_size", WHERE)
    if not isinstance(data, (str, os.PathLike)):
        check_kind(WHERE, "data", data, "Dataset")
    corruptions = [corruptions] if isinstance(corruptions, str) else corruptions
    severities = [severities] if isinstance(severities, int) else severities
    known = suitable(data.images.shape[1]) if isinstance(data, Dataset) else stored_corruptions(data)
    names = tuple(dict.fromkeys(known if corruptions is None else corruptions))
    for name in names:
        if isinstance(data, Dataset):
            corruption_named(name)
    if not names or not severities:
        raise CurvactError(f"{WHERE} got no corruption or no severity: at least one of each")

    with mode(model, training=False):
        clean = _accuracy(model, data, batch_size, data.inputs) if isinstance(data, Dataset) else None
        by: dict[str, tuple[float, ...]] = {}
        for name in names:
            row = []
            for severity in severities:
                if isinstance(data, Dataset):
                    row.append(_of(model, data, name, severity, seed, batch_size))
                else:
                    stored = stored_corruption(data, name, severity)
                    row.append(_accuracy(model, stored, batch_size, stored.inputs))
                if on_done is not None:
                    on_done(name, severity, row[-1])
            by[name] = tuple(row)
    return CorruptionAccuracy(clean, tuple(severities), by)


def _of(model: Model, data: Dataset, name: str, severity: int, seed: int, batch_size: int) -> float:
    def images(places: Tensor) -> Tensor:
        found = corrupt(data.images[places], name, severity, seed=seed, places=places)
        return found.float().div_(255)

    return _accuracy(model, data, batch_size, images)


def _accuracy(model: Model, data: Dataset, batch_size: int, images: Callable[[Tensor], Tensor]) -> float:
    """images: from places in the data set to what the model gets."""
    device = (
        next((p.device for p in model.parameters()), None) if isinstance(model, torch.nn.Module) else None
    )
    device = data.labels.device if device is None else device
    labels = data.labels.to(device)
    guarded = Guarded(model, WHERE, int(labels.max()))
    right = torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, len(data), batch_size):
        places = torch.arange(start, min(start + batch_size, len(data)))
        with torch.no_grad():
            logits = guarded(images(places).to(device))
        right += (classes(logits) == labels[start : start + len(places)]).sum()
    return int(right) / len(data)
