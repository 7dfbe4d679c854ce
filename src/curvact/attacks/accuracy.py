"""Clean and robust accuracy of any model under any attack."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvact.attacks.losses import classes
from curvact.attacks.pgd import Attack, Model
from curvact.attacks.threat import (
    SuspectModelWarning,
    check_images,
    check_labels,
    check_per_sample,
    suspect_logits,
    training_parts,
    wrong_shape,
)
from curvact.errors import CurvactError
from curvact.models.modes import mode


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a model on clean and on attacked images.

    clean, robust: fractions of the images classified correctly. An image is robust if it is
        classified correctly both clean and attacked.
    x_adv: the attacked images, N×C×H×W. clean_correct, robust_correct: one flag an image, bool, N.
    """

    clean: float
    robust: float
    x_adv: Tensor
    clean_correct: Tensor
    robust_correct: Tensor


def accuracy(
    model: Model,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    batch_size: int = 512,
    on_batch: Callable[[int, float], None] | None = None,
) -> Accuracy:
    """Accuracy on x and on attacked x, the model in eval mode (restored after).

    x: N×C×H×W in [0, 1]. y: N, int64. attack: `(model, x, y) -> x_adv`, such as
        `PGD(20).on(threat_model)`.
    on_batch: called after each batch with the number of images done and the robust accuracy so far
        (waits for the device).
    Logits with NaN are wrong answers. An attacked image with NaN or outside [0, 1] is no success of
    the attack.
    Raises CurvactError for no images, images that are not floating point in [0, 1], labels that are
    not N int64 below the number of classes, a batch_size below 1, or outputs that are not
    N×classes. Warns (`SuspectModelWarning`) if the first batch's outputs are probabilities or not
    finite, if a part stays in training mode, and of NaN and images outside [0, 1].

    >>> from curvact.attacks import PGD, ThreatModel
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x, y = torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64)
    >>> result = accuracy(model, x, y, PGD(5).on(ThreatModel("linf", 0.1)))
    >>> result.robust <= result.clean, result.robust_correct.shape
    (True, torch.Size([8]))
    """
    if len(x) == 0:
        raise CurvactError("accuracy got 0 images: at least 1")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise CurvactError(f"batch_size={batch_size!r} of accuracy: a whole number >= 1")
    check_per_sample("y", y, x)
    check_images(x)
    clean: list[Tensor] = []
    robust: list[Tensor] = []
    attacked: list[Tensor] = []
    nan: list[Tensor] = []
    outside: list[Tensor] = []
    with mode(model, training=False):
        for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            with torch.no_grad():
                logits = model(images)
            if not clean:
                _inspect(model, logits, len(images))
                check_labels(y, logits.shape[1])
            right = classes(logits) == labels
            x_adv = attack(model, images, labels)
            with torch.no_grad():
                flat = x_adv.flatten(1)
                image = ((flat >= 0) & (flat <= 1)).all(1)
                answers = model(x_adv)
                clean.append(right)
                robust.append(right & (~image | (classes(answers) == labels)))
                nan.append((logits.isnan().any(1) | (image & answers.isnan().any(1))).sum())
                outside.append((~image).sum())
            attacked.append(x_adv)
            if on_batch is not None:
                so_far = torch.cat(robust)
                on_batch(len(so_far), so_far.double().mean().item())
    for flagged, meaning in (
        (nan, "have logits with NaN, clean or attacked: these count as wrong"),
        (outside, "left [0, 1] or became NaN in the attack: these do not count as successes"),
    ):
        count = int(torch.stack(flagged).sum())
        if count:
            warnings.warn(f"{count} of {len(x)} images {meaning}", SuspectModelWarning, stacklevel=2)
    clean_correct, robust_correct = torch.cat(clean), torch.cat(robust)
    return Accuracy(
        clean_correct.double().mean().item(),
        robust_correct.double().mean().item(),
        torch.cat(attacked),
        clean_correct,
        robust_correct,
    )


def _inspect(model: Model, logits: Tensor, count: int) -> None:
    """The checks of `check_model`, on the logits of the first batch."""
    wrong = wrong_shape(logits, count)
    if wrong:
        raise CurvactError(wrong)
    for line in training_parts(model) + suspect_logits(logits):
        warnings.warn(line, SuspectModelWarning, stacklevel=3)
