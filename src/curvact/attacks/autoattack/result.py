"""The outcome of a run of AutoAttack, and how far a run is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.attacks.autoattack.ensemble import Mode
from curvact.attacks.autoattack.shard import CLEAN, Job, Unit
from curvact.attacks.pgd import Model
from curvact.attacks.threat import ThreatModel, distance


@dataclass(frozen=True)
class Progress:
    """How far a run is. shards_done, points_done: those that all attacks are through with.

    attack: the one that ended last. robust_accuracy: of the points seen so far; it falls as attacks
        go on.
    seconds_left: an estimate from the work left (NaN before the first attack has ended).
    """

    attack: str
    shards_done: int
    shards: int
    points_done: int
    points: int
    robust_accuracy: float
    seconds: float
    seconds_left: float

    def __str__(self) -> str:
        left = "?" if math.isnan(self.seconds_left) else f"{self.seconds_left:.0f} s"
        return (
            f"{self.points_done}/{self.points} points, robust accuracy so far {self.robust_accuracy:.2%}, "
            f"{left} left"
        )


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """The outcome of AutoAttack, or of some of its attacks.

    name: "AutoAttack" (or "AutoAttack (plus)", "AutoAttack (rand)") for a whole version, else the
        attacks that ran.
    clean_accuracy, robust_accuracy: fractions of all points.
    broken_by: for each point the attack that broke it, "clean" if the clean image is misclassified,
        None if it is robust.
    x_adv: N×C×H×W; x itself where no attack succeeded. y_adv: the classes that the model predicts
        at x_adv (−1: its logits hold NaN, which counts as wrong), N.
    loss: cross-entropy of the model at x_adv, N. perturbation: ‖x_adv − x‖ in the norm of the
        threat model, N.
    accuracy_after: "clean" and each attack → robust accuracy after it.
    forward_evaluations, gradient_evaluations: images sent through the model without and with a
        gradient, over all sessions.
    seconds: of this call. units_resumed: shards × attacks read from the folder; seconds_resumed:
        how long these took.
    notes: remarks on the run. suspicions: reasons to doubt the result; each was also a warning.
        versions: of packages.
    config: all settings that determine the result.
    """

    name: str
    clean_accuracy: float
    robust_accuracy: float
    broken_by: tuple[str | None, ...]
    x_adv: Tensor
    y_adv: Tensor
    loss: Tensor
    perturbation: Tensor
    accuracy_after: Mapping[str, float]
    threat_model: ThreatModel
    mode: Mode
    seed: int
    forward_evaluations: int
    gradient_evaluations: int
    seconds: float
    seconds_resumed: float = 0.0
    units_resumed: int = 0
    notes: tuple[str, ...] = ()
    suspicions: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def robust(self) -> Tensor:
        """Which points no attack broke. Bool, N."""
        return torch.tensor([by is None for by in self.broken_by])

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.threat_model}: clean {self.clean_accuracy:.2%}, robust {self.robust_accuracy:.2%} "
            f"({len(self.broken_by)} points)"
        )

    def as_dict(self) -> dict[str, Any]:
        """All but the images, ready for JSON."""
        plain = {
            key: getattr(self, key)
            for key in self.__dataclass_fields__
            if key not in ("x_adv", "threat_model")
        }
        tensors = {key: value.tolist() for key, value in plain.items() if isinstance(value, Tensor)}
        return {**plain, **tensors, "threat_model": asdict(self.threat_model)}


def outcome_of(job: Job, units: Sequence[Unit], model: Model, device: torch.device) -> dict[str, Any]:
    """The fields of the result that follow from the units, image by image."""
    broken_by: list[str | None] = [None] * len(job.x)
    x_adv, y_adv = job.x.clone(), job.y.clone()
    for unit in units:
        start = job.slice(unit.shard).start
        index = unit.index + start
        for point in index.tolist():
            broken_by[point] = unit.key
        if unit.key == CLEAN:
            y_adv[job.slice(unit.shard)] = unit.y_adv.to(y_adv)
        else:
            x_adv[index.to(x_adv.device)] = unit.x_adv.to(x_adv)
            y_adv[index.to(y_adv.device)] = unit.y_adv.to(y_adv)
    total = len(job.x)
    fallen = 0
    accuracy_after = {}
    for key in job.keys:
        fallen += sum(by == key for by in broken_by)
        accuracy_after[key] = (total - fallen) / total
    losses = []
    with torch.no_grad():
        for images, labels in zip(torch.split(x_adv, 256), torch.split(job.y, 256), strict=True):
            loss = F.cross_entropy(model(images.to(device)), labels.to(device), reduction="none")
            losses.append(loss.to(job.x.device))
    return {
        "clean_accuracy": accuracy_after[CLEAN],
        "robust_accuracy": accuracy_after[job.keys[-1]],
        "broken_by": tuple(broken_by),
        "x_adv": x_adv,
        "y_adv": y_adv,
        "loss": torch.cat(losses),
        "perturbation": distance(x_adv.double(), job.x.double(), job.threat_model.norm).to(x_adv),
        "accuracy_after": accuracy_after,
        "forward_evaluations": sum(unit.forward for unit in units),
        "gradient_evaluations": sum(unit.gradient for unit in units),
    }


def progress_of(job: Job, done: Mapping[int, list[Unit]], fresh: Sequence[Unit], seconds: float) -> Progress:
    """How far a run is. done: the units of each shard; fresh: those of this session, in `seconds`."""
    size = {shard: len(job.x[job.slice(shard)]) for shard in done}
    seen = [shard for shard, units in done.items() if units]
    left = {shard: size[shard] - sum(len(unit.index) for unit in done[shard]) for shard in seen}
    through = [shard for shard in seen if len(done[shard]) == len(job.keys)]
    # The work left: the attacks to come on the points that stand. Shards not begun are taken to go
    # like the others.
    cost = {step.key: step.cost for step in job.steps}
    given: dict[str, list[float]] = {key: [] for key in cost}
    for shard in seen:
        for key in job.keys[1:]:
            known = [unit.standing for unit in done[shard] if unit.key == key]
            given[key].append((known[0] if known else left[shard]) / size[shard])
    to_come = 0.0
    for shard in done:
        for key in job.keys[max(len(done[shard]), 1) :]:
            share = sum(given[key]) / max(len(given[key]), 1)
            to_come += cost[key] * (left[shard] if shard in left else share * size[shard])
    worked = sum(cost.get(unit.key, 0.0) * unit.standing for unit in fresh)
    return Progress(
        attack=fresh[-1].key,
        shards_done=len(through),
        shards=job.shards,
        points_done=sum(size[shard] for shard in through),
        points=len(job.x),
        robust_accuracy=sum(left.values()) / sum(size[shard] for shard in seen),
        seconds=seconds,
        seconds_left=seconds * to_come / worked if worked else math.nan,
    )
