"""Clean and robust accuracy of any model under any attack."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvact.attacks.arguments import door, takes_threat_model
from curvact.attacks.batch import (
    ROUNDING,
    Guarded,
    SuspectModelWarning,
    alike,
    check_number,
    checked,
    warn_of,
)
from curvact.attacks.losses import classes
from curvact.attacks.pgd import Attack, Model
from curvact.attacks.registry import NamedAttack, named_attack
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError
from curvact.models.modes import mode
from curvact.names import shortened


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

    def __str__(self) -> str:
        return f"clean {self.clean:.1%}, robust {self.robust:.1%} of {len(self.clean_correct)} images"


@door
def accuracy(
    model: Model,
    x: Tensor,
    y: Tensor,
    attack: Attack | NamedAttack | str,
    threat_model: ThreatModel | None = None,
    *,
    batch_size: int = 512,
    on_batch: Callable[[int, float], None] | None = None,
) -> Accuracy:
    """Accuracy on x and on attacked x, the model in eval mode (restored after).

    x: N×C×H×W in [0, 1]. y: N, whole numbers.
    attack: `(model, x, y) -> x_adv`, such as `PGD(20).on(threat_model)`. With a threat model, also
        an attack `(model, x, y, threat_model) -> x_adv` such as `PGD(20)`, or its name, "pgd-20".
    threat_model: that attacked images must lie in. None: they must lie in [0, 1].
    on_batch: called after each batch with the number of images done and the robust accuracy so far
        (waits for the device).
    Logits with NaN are wrong answers.
    Raises CurvactError for no images, images that are not floating point in [0, 1], labels that are
    no classes of the model, a batch_size below 1, or outputs that are not N×classes. Likewise for
    an attack that returns other than one image for each, of the same dtype and on the same device,
    or one that is NaN, out of [0, 1], or out of the threat model. `ThreatModel.excess` states the
    room for rounding. The attack gets a copy of the images.
    Warns (`SuspectModelWarning`) if the first batch's outputs are probabilities or not finite, if a
    part stays in training mode, and of logits with NaN.

    >>> from curvact.attacks import PGD, ThreatModel
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x, y = torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64)
    >>> result = accuracy(model, x, y, "pgd-5", ThreatModel("linf", 0.1))
    >>> result.robust <= result.clean, result.robust_correct.shape
    (True, torch.Size([8]))
    """
    where = "accuracy"
    check_number(batch_size, "batch_size", where)
    x, y, highest = checked(x, y, where, threat_model=threat_model)
    if len(x) == 0:
        raise CurvactError("accuracy got 0 images: at least 1")
    run = _attack(attack, threat_model)
    guarded = Guarded(model, where, highest)
    clean: list[Tensor] = []
    robust: list[Tensor] = []
    attacked: list[Tensor] = []
    nan: list[Tensor] = []
    distances: list[Tensor] = []
    with mode(model, training=False):
        for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            with torch.no_grad():
                logits = guarded(images)
            if not clean:
                warn_of(model, logits, where)
            right = classes(logits) == labels
            x_adv = alike(run(model, images.clone(), labels), images, where)
            with torch.no_grad(), mode(model, training=False):
                distances.append(_outside(x_adv, images, threat_model))
                if len(distances) == 1:
                    _check_distances(distances, threat_model)
                answers = model(x_adv)
                clean.append(right)
                robust.append(right & (classes(answers) == labels))
                nan.append((logits.isnan().any(1) | answers.isnan().any(1)).sum())
            attacked.append(x_adv)
            if on_batch is not None:
                so_far = torch.cat(robust)
                on_batch(len(so_far), so_far.double().mean().item())
    _check_distances(distances, threat_model)
    count = int(torch.stack(nan).sum())
    if count:
        warnings.warn(
            f"{count} of {len(x)} images have logits with NaN, clean or attacked: these count as wrong",
            SuspectModelWarning,
            stacklevel=3,
        )
    clean_correct, robust_correct = torch.cat(clean), torch.cat(robust)
    return Accuracy(
        clean_correct.double().mean().item(),
        robust_correct.double().mean().item(),
        torch.cat(attacked),
        clean_correct,
        robust_correct,
    )


def _attack(attack: Any, threat_model: ThreatModel | None) -> Attack:
    """The attack as a function of model, images and labels."""
    if isinstance(attack, str):
        attack = named_attack(attack)
    if not callable(attack) or isinstance(attack, type):
        raise CurvactError(
            f"attack={shortened(attack)} of accuracy: a function (model, x, y) -> x_adv, or a name"
        )
    if not takes_threat_model(attack):
        ready: Attack = attack
        return ready
    if threat_model is None:
        raise CurvactError(
            f"the attack {attack} of accuracy needs a threat model: accuracy(model, x, y, attack, threat_model)"
        )
    return lambda model, x, y: attack(model, x, y, threat_model)


def _outside(x_adv: Tensor, x: Tensor, threat_model: ThreatModel | None) -> Tensor:
    """How far beyond ball and box each image is, N; NaN where it is no image."""
    flat = x_adv.flatten(1).double()
    room = max(ROUNDING, torch.finfo(x.dtype).eps)
    box = torch.maximum(flat.amax(1) - 1, -flat.amin(1)) - room
    return box if threat_model is None else torch.maximum(box, threat_model.excess(x_adv, x))


def _check_distances(distances: list[Tensor], threat_model: ThreatModel | None) -> None:
    """Waits for the device."""
    beyond = torch.cat(distances)
    bad = (~(beyond <= 0)).nonzero().squeeze(1).tolist()
    if not bad:
        return
    place = "[0, 1]" if threat_model is None else f"{threat_model} in [0, 1]"
    what = "is NaN" if math.isnan(beyond[bad[0]]) else f"lies {float(beyond[bad[0]]):.3g} outside of {place}"
    raise CurvactError(
        f"the attack of accuracy left the allowed images at {len(bad)} of {len(beyond)}: image {bad[0]} {what}; "
        "project onto them (ThreatModel.project)"
    )
