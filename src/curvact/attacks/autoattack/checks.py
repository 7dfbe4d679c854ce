"""Checks around a run of AutoAttack: its arguments before, and reasons to doubt its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from curvact.attacks.autoattack.ensemble import MALT
from curvact.attacks.autoattack.shard import Job, Unit, model_device
from curvact.attacks.batch import Batch, Guarded, checked, checked_module, differ, suspect_logits
from curvact.attacks.pgd import Model
from curvact.attacks.threat import ThreatModel
from curvact.devices import device_named
from curvact.errors import CurvactError


def checked_data(model: Model, x: Tensor, y: Tensor, threat_model: ThreatModel) -> Batch:
    """Images and labels, as AutoAttack takes them. CurvactError unless images, labels, radius and
    parameters are such that it can run.
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or len(x) == 0:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        remedy = ""
        if isinstance(x, Tensor) and x.dim() == 2:
            remedy = "; for vectors use pgd, or ensemble without square on x.view(N, 1, 1, D)"
        raise CurvactError(f"x of autoattack is {shape}: a tensor N×C×H×W of at least one image{remedy}")
    if x.is_floating_point() and x.dtype != torch.float32:
        raise CurvactError(f"x of autoattack is {x.dtype}: float32 in [0, 1] (x.float())")
    batch = checked(x, y, "autoattack")
    if threat_model.epsilon == 0:
        raise CurvactError("epsilon=0 of autoattack: nothing to search, robust accuracy is clean accuracy")
    if isinstance(model, nn.Module):
        checked_module(model, "autoattack")
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.dtype != torch.float32:
                raise CurvactError(
                    f"parameter '{name}' is {parameter.dtype}: autoattack confirms in float32, use model.float()"
                )
    return batch


def devices_of(model: Model, devices: Sequence[str | torch.device] | None) -> list[torch.device]:
    """The devices of a run; the model's own where None. CurvactError for one that does not exist."""
    if devices is None:
        return [model_device(model)]
    if isinstance(devices, str) or not devices:
        raise CurvactError(
            f"devices={devices!r} of autoattack: a list of at least one device, such as ['cuda:0', 'cuda:1']"
        )
    return [device_named(str(name), "devices of autoattack:") for name in devices]


def probe(
    model: Model, x: Tensor, highest: int, device: torch.device, randomized: bool
) -> tuple[Tensor, list[str]]:
    """Logits of the first 32 points, on the CPU, and a line for each reason to doubt them.

    highest: the highest label. CurvactError for outputs that are no float32 logits, or not finite,
    or for labels beyond their classes.
    """
    few = x[:32].to(device)
    with torch.no_grad():
        logits = Guarded(model, "autoattack", highest)(few)
        again = model(few)
    if logits.dtype != torch.float32:
        raise CurvactError(
            f"the model's logits are {logits.dtype}: autoattack confirms in float32, use model.float()"
        )
    if not bool(logits.isfinite().all()):
        raise CurvactError(f"{suspect_logits(logits)[0]}: no accuracy is defined on them")
    suspicions = suspect_logits(logits)
    changes = differ(logits, again)
    if randomized and not changes:
        suspicions.append(
            "version='rand' leaves out FAB-T and Square, and the model's outputs repeat: use version='standard'"
        )
    if changes and not randomized:
        suspicions.append(
            "the model's outputs change from call to call: use version='rand' for a randomized model"
        )
    return logits.cpu(), suspicions


def late_suspicions(job: Job, units: Sequence[Unit], accuracy_after: Mapping[str, float]) -> list[str]:
    """Reasons to doubt the result that only the attacks show: NaN, zero gradients, and a strong
    Square.
    """
    lines = []
    nan = sum(int((unit.y_adv < 0).sum()) for unit in units)
    if nan:
        lines.append(f"the logits of {nan} points, clean or attacked, hold NaN: these count as misclassified")
    zero = sum(unit.zero_gradients for unit in units)
    if zero:
        lines.append(f"{zero} runs of APGD started from a zero gradient (or NaN): gradients may be masked")
    if "square" in accuracy_after and job.keys.index("square") > 1:
        earlier = job.keys[: job.keys.index("square")]
        before = accuracy_after[earlier[-1]]
        # The reference warns from 0.2 % on; we want at least two images. Without targeted attacks
        # Square finds more on honest networks too.
        limit = 0.002 if any(key.endswith("-t") or key == MALT for key in earlier) else 0.05
        if before - accuracy_after["square"] > max(limit, 1.5 / len(job.x)):
            lines.append(
                f"Square took the robust accuracy from {before:.2%} to {accuracy_after['square']:.2%} after the attacks "
                "that use gradients: these may be masked, try an adaptive attack"
            )
    return lines
