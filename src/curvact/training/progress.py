"""What a training reports while it runs: steps, epochs, and the error that ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn


class Diverged(RuntimeError):
    """The loss ended training. The message names the loss, the step, the rate and the batch."""


@dataclass(frozen=True)
class Epoch:
    """One epoch: means over its training batches, and accuracies on the validation split after it.

    loss, train_accuracy: on the images that the objective trained on, attacked or clean.
    learning_rate: of the last step.
    gradient_evaluations: forward-backward passes of a batch since the start of training. Attacks
        count, validation does not. Of the recalibrations of batch norm only the last one counts,
        because the final model needs no other.
    parameters: values of learnable activations, and their κ where it is finite.
    note: why training ended early, else empty.
    seconds: wall-clock time of the epoch, with validation.
    """

    epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float
    validation_robust_accuracy: float
    learning_rate: float
    gradient_evaluations: int
    parameters: dict[str, float] = field(default_factory=dict)
    note: str = ""
    seconds: float = field(default=0.0, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Every field as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """The place of a training: `step` of `total`, in `epoch`, with the loss of the last batch."""

    step: int
    total: int
    epoch: int
    loss: float
    gradient_evaluations: int


def _ignore(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Watch:
    """Functions that `fit` calls.

    on_step: with the place, every few steps.
    on_epoch: with each finished epoch, after its state is saved.
    on_evaluated: as `on_evaluated(model, epoch, best)`, while the model holds the weights that were
        evaluated (the average, if the recipe has one). best: whether validation robust accuracy is
        the highest so far. Of several processes, only the first calls it. It is not called for an
        epoch that overfitted catastrophically, whose weights are not kept.
    """

    on_step: Callable[[Step], None] = _ignore
    on_epoch: Callable[[Epoch], None] = _ignore
    on_evaluated: Callable[[nn.Module, Epoch, bool], None] = _ignore


SILENT = Watch()
