"""Evaluate a model under a named attack and put what came out on record."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from curvact.attacks import (
    ATTACKS,
    CLEAN,
    AutoAttackSettings,
    Finding,
    Mode,
    Model,
    Progress,
    SuspectModelWarning,
    ThreatModel,
    Version,
    accuracy,
    autoattack,
    ensemble,
    fgsm,
    masking_report,
    pgd,
)
from curvact.attacks.autoattack.ensemble import ensemble_name
from curvact.attacks.threat import connected, cuts_graph
from curvact.data import Dataset
from curvact.errors import CurvactError, nearest
from curvact.lab.environment import environment
from curvact.lab.record.record import (
    DataEntry,
    EvaluationRecord,
    ModelEntry,
    ThreatEntry,
    flags,
    model_hash,
    question,
)
from curvact.models.checkpoint import load_checkpoint, read_sidecar
from curvact.models.interchange import model_from_robustbench
from curvact.random import generator

Masking = Literal["none", "quick", "full"]


class Depth(NamedTuple):
    """Of the checklist for gradient masking: the first so many images classified correctly, and the settings of
    `curvact.masking_report`.
    """

    images: int
    steps: int
    queries: int


DEPTHS: dict[str, Depth] = {"quick": Depth(64, 10, 50), "full": Depth(128, 20, 200)}
"""A rate of 5 %, allowed to an honest model, raises an alarm with probability 0.9 from 23 % of the images on (quick) or from 16 %
(full): `curvact.attacks.masking.detected`.
"""


AUTOATTACK: dict[str, Version] = {
    "autoattack": "standard",
    "autoattack-plus": "plus",
    "autoattack-rand": "rand",
}


@dataclass(frozen=True)
class _Outcome:
    attack: str
    settings: dict[str, Any]
    clean_correct: list[bool]
    broken_by: list[str]
    findings: list[str]
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    accuracy_after: dict[str, float] = field(default_factory=dict)
    x_adv: Tensor | None = None

    @property
    def robust_correct(self) -> list[bool]:
        return [not by for by in self.broken_by]


def evaluate_model(
    model: nn.Module,
    dataset: Dataset,
    threat_model: ThreatModel,
    *,
    attack: str = "autoattack",
    seed: int = 0,
    batch_size: int = 250,
    restarts: int = 1,
    mode: Mode = "plain",
    workers: int = 1,
    folder: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_check: Callable[[Finding], None] | None = None,
    name: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    masking: Masking = "quick",
) -> EvaluationRecord:
    """Attack every image of a data set and record the outcome image by image.

    model: any module from N×C×H×W in [0, 1] to logits; works on the device of its parameters, in eval mode (restored after).
    attack: "autoattack", "autoattack-plus" or "autoattack-rand", the whole ensemble; some of its attacks, such as
    "apgd-ce+square"; "fgsm"; or "pgd-STEPS" (random start, step ε/4 [ours]). seed: of the attack. restarts: of PGD.
    mode, workers, folder: of `curvact.autoattack`: "plain" or "fast", processes, where to resume from.
    on_progress: called with the images done, the robust accuracy so far (NaN before the first batch) and the time left.
    name, architecture: for the record; by default the class's name, and nothing.
    masking: run the checklist for gradient masking, as deep as `DEPTHS` says; its alarms are findings of the record. A PGD of 10
        steps or more that is evaluated takes the place of the checklist's own.
    on_check: called with each finding of the checklist as it is made, alarm or not.
    Raises CurvactError for an unknown attack or depth, numbers below 1, or images that the model cannot take.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> test = load("digits").test.first(20)
    >>> record = evaluate_model(MiniResNet(channels=1, width=2), test, ThreatModel("linf", 0.1), attack="pgd-2", masking="none")
    >>> record.attack, record.ensemble, record.data.count, record.settings["steps"]
    ('pgd-2', False, 20, 2)
    """
    if masking not in get_args(Masking):
        allowed = get_args(Masking)
        raise CurvactError(
            f"masking={masking!r}{nearest(masking, allowed)}; allowed are {', '.join(allowed)}"
        )
    for label, value in (("batch_size", batch_size), ("restarts", restarts), ("workers", workers)):
        if not isinstance(value, int) or value < 1:
            raise CurvactError(f"{label}={value!r} of evaluate_model: a whole number >= 1")
    started = time.perf_counter()
    folder = None if folder is None else Path(folder)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = dataset.to(device)
    parts = attack_parts(attack)
    if parts is None:
        outcome = _quick(model, images, threat_model, attack, seed, batch_size, restarts, on_progress)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SuspectModelWarning)  # the verdict holds them
            options: AutoAttackSettings = {
                "seed": seed,
                "mode": mode,
                "batch_size": batch_size,
                "shard_size": batch_size,
                "folder": folder,
                "workers": workers,
                "on_progress": on_progress,
            }
            x, y = images.inputs(), images.labels
            if attack in AUTOATTACK:
                verdict = autoattack(model, x, y, threat_model, version=AUTOATTACK[attack], **options)
            else:
                verdict = ensemble(model, x, y, threat_model, attacks=parts, **options)
        outcome = _Outcome(
            verdict.name,
            {"mode": mode},
            [by != CLEAN for by in verdict.broken_by],
            [by or "" for by in verdict.broken_by],
            list(verdict.suspicions),
            notes=list(verdict.notes),
            versions=dict(verdict.versions),
            earlier_seconds=verdict.seconds_resumed,
            accuracy_after=dict(verdict.accuracy_after),
        )
    findings = list(outcome.findings)
    if masking != "none" and not any(outcome.clean_correct):
        findings.append("gradient masking was not checked: no image is classified correctly")
    elif masking != "none":
        findings += _masking(model, images, threat_model, outcome, DEPTHS[masking], seed, on_check)
    count = len(dataset)
    return EvaluationRecord(
        attack=outcome.attack,
        ensemble=attack in AUTOATTACK,
        settings=outcome.settings,
        seed=seed,
        batch_size=batch_size,
        threat_model=ThreatEntry(norm=threat_model.norm, epsilon=threat_model.epsilon),
        model=model_entry(model, name, architecture),
        data=DataEntry(name=dataset.name, sha256=dataset.sha256, count=count),
        clean_accuracy=sum(outcome.clean_correct) / count,
        robust_accuracy=sum(outcome.robust_correct) / count,
        clean_correct=flags(outcome.clean_correct),
        robust_correct=flags(outcome.robust_correct),
        broken_by=outcome.broken_by,
        accuracy_after=outcome.accuracy_after,
        masking=masking,
        findings=findings,
        notes=outcome.notes,
        versions=outcome.versions,
        seconds=round(time.perf_counter() - started + outcome.earlier_seconds, 3),
        environment=environment(),
    )


def _masking(
    model: nn.Module,
    images: Dataset,
    threat_model: ThreatModel,
    outcome: _Outcome,
    depth: Depth,
    seed: int,
    on_check: Callable[[Finding], None] | None,
) -> list[str]:
    """The alarms of the checklist. An evaluation is never lost to it: that it could not run is a finding too."""
    index = torch.tensor(outcome.clean_correct, device=images.images.device).nonzero().squeeze(1)
    index = index[: depth.images]
    try:
        report = masking_report(
            model,
            images.inputs(index),
            images.labels[index],
            threat_model,
            seed=seed,
            steps=depth.steps,
            queries=depth.queries,
            attacked=None if outcome.x_adv is None else outcome.x_adv[index],
            on_check=on_check,
        )
    except CurvactError as error:
        return [f"gradient masking was not checked: {error}"]
    return [f"{f.name}: {f.sentence}" for f in report.alarms]


def _quick(
    model: nn.Module,
    images: Dataset,
    threat_model: ThreatModel,
    attack: str,
    seed: int,
    batch_size: int,
    restarts: int,
    on_progress: Callable[[Progress], None] | None,
) -> _Outcome:
    settings = attack_settings(attack, threat_model, restarts)
    random = generator(seed, f"evaluation/{attack}", device=images.images.device)
    clock = _Clock(attack, len(images), batch_size, settings.get("steps", 1) * restarts, on_progress)

    blind: bool | None = None

    def run(model: Model, x: Tensor, y: Tensor) -> Tensor:
        nonlocal blind
        if blind is None:
            blind = cuts_graph(model, x[:1])
        searched = connected(model) if blind else model
        if not settings:
            return fgsm(searched, x, y, threat_model)
        return pgd(
            searched,
            x,
            y,
            threat_model,
            steps=settings["steps"],
            step=0.25,
            restarts=settings["restarts"],
            generator=random,
            on_step=clock.step,
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SuspectModelWarning)
        result = accuracy(
            model, images.inputs(), images.labels, run, batch_size=batch_size, on_batch=clock.batch
        )
    findings = [str(w.message) for w in caught if issubclass(w.category, SuspectModelWarning)]
    if blind:
        findings.append(
            f"the outputs do not depend on the inputs by a differentiable way: {attack} sees nothing"
        )
    clean, robust = result.clean_correct.tolist(), result.robust_correct.tolist()
    broken_by = ["" if r else attack if c else CLEAN for c, r in zip(clean, robust, strict=True)]
    x_adv = result.x_adv if settings.get("steps", 0) >= 10 else None
    versions = {name: package_version(name) for name in ("curvact", "torch")}
    return _Outcome(attack, settings, clean, broken_by, findings, versions=versions, x_adv=x_adv)


class _Clock:
    """Turns the steps and batches of an attack into `Progress`. steps: that a batch takes at most."""

    def __init__(
        self,
        attack: str,
        images: int,
        batch_size: int,
        steps: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.attack, self.images, self.batch_size, self.steps = attack, images, batch_size, steps
        self.on_progress = on_progress
        self.started = time.perf_counter()
        self.done, self.robust, self.steps_done = 0, math.nan, 0

    def step(self, step: int, x_adv: Tensor, loss: Tensor) -> None:
        self.steps_done += 1
        self._tell()

    def batch(self, done: int, robust: float) -> None:
        self.done, self.robust, self.steps_done = done, robust, 0
        self._tell()

    def _tell(self) -> None:
        if self.on_progress is None:
            return
        seconds = time.perf_counter() - self.started
        inside = min(self.batch_size, self.images - self.done) * min(self.steps_done / self.steps, 1)
        part = (self.done + inside) / self.images
        self.on_progress(
            Progress(
                attack=self.attack,
                shards_done=math.ceil(self.done / self.batch_size),
                shards=math.ceil(self.images / self.batch_size),
                points_done=self.done,
                points=self.images,
                robust_accuracy=self.robust,
                seconds=seconds,
                seconds_left=seconds * (1 - part) / part if part else math.nan,
            )
        )


def attack_parts(attack: str) -> list[str] | None:
    """The attacks of AutoAttack that a name such as "apgd-ce+square" asks for; None for another kind of name.

    >>> attack_parts("apgd-ce+square"), attack_parts("pgd-20")
    (['apgd-ce', 'square'], None)
    """
    parts = attack.split("+")
    return parts if attack in AUTOATTACK or parts[0] in ATTACKS else None


def attack_settings(attack: str, threat_model: ThreatModel, restarts: int = 1) -> dict[str, Any]:
    """Steps, step size and restarts that a name such as "pgd-20" stands for; nothing for "fgsm".

    >>> attack_settings("pgd-20", ThreatModel("linf", 0.2))
    {'steps': 20, 'step_size': 0.05, 'restarts': 1}
    """
    if attack == "fgsm":
        return {}
    kind, _, steps = attack.partition("-")
    if kind != "pgd" or not steps.isdigit() or int(steps) < 1:
        raise CurvactError(
            f"unknown attack '{attack}'; allowed are {', '.join(AUTOATTACK)}, parts of it such as apgd-ce+square, fgsm, and "
            "pgd-STEPS such as pgd-20"
        )
    return {"steps": int(steps), "step_size": threat_model.epsilon / 4, "restarts": restarts}


def asked_of(
    model: nn.Module,
    dataset: Dataset,
    threat_model: ThreatModel,
    *,
    attack: str,
    seed: int,
    batch_size: int,
    restarts: int,
    mode: Mode,
    architecture: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What the record of such an evaluation will say that was asked (`EvaluationRecord.asked`), before it is run.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> test, threat, model = load("digits").test.first(5), ThreatModel("linf", 0.1), MiniResNet(channels=1, width=2)
    >>> settings = {"attack": "pgd-2", "seed": 0, "batch_size": 5, "restarts": 1, "mode": "plain", "architecture": None}
    >>> asked = asked_of(model, test, threat, **settings)
    >>> asked == evaluate_model(model, test, threat, masking="none", **settings).asked
    True
    """
    parts = attack_parts(attack)
    if parts is None:
        ran, settings = attack, attack_settings(attack, threat_model, restarts)
    else:
        version = AUTOATTACK.get(attack)
        ran, settings = ensemble_name(version, (), "fp32") if version else " + ".join(parts), {"mode": mode}
    return question(
        model=model_hash(model),
        architecture=architecture or {},
        data=dataset.sha256,
        norm=threat_model.norm,
        epsilon=threat_model.epsilon,
        attack=ran,
        settings=settings,
        seed=seed,
        batch_size=batch_size,
    )


def model_entry(model: nn.Module, name: str | None, architecture: Mapping[str, Any] | None) -> ModelEntry:
    """What a record says of a model."""
    return ModelEntry(
        name=name or type(model).__name__,
        sha256=model_hash(model),
        parameters=sum(p.numel() for p in model.parameters()),
        architecture=dict(architecture or {}),
    )


def open_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model in a file, in eval mode, and what its file says of it: `architecture`, and `data` and `threat_model` if they
    are known.

    A checkpoint of ours (safetensors with its JSON), or weights in RobustBench's naming (.pt, .pth, .safetensors; never
    arbitrary pickles).
    """
    if not path.is_file():
        raise CurvactError(f"no checkpoint file {path}")
    if path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
        return load_checkpoint(path), read_sidecar(path)
    return model_from_robustbench(path), {}
