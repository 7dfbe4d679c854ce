"""Evaluate a model under a named attack and put the outcome on record."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from curvact.attacks import (
    CLEAN,
    FGSM,
    PGD,
    Adaptive,
    Attack,
    AutoAttack,
    AutoAttackSettings,
    Finding,
    Mode,
    Model,
    NamedAttack,
    Progress,
    SuspectModelWarning,
    ThreatModel,
    accuracy,
    as_named_attack,
    masking_report,
)
from curvact.attacks.adaptive import NAMES as ADAPTIVE_NAMES
from curvact.attacks.arguments import check_kind
from curvact.attacks.batch import checked_module, connected, cuts_graph
from curvact.data import Dataset
from curvact.errors import CurvactError, nearest
from curvact.lab.environment import environment
from curvact.lab.imports import code_hashes
from curvact.lab.record.diagnosis import diagnose
from curvact.lab.record.images import Attacked, write_images
from curvact.lab.record.record import (
    WHOLE,
    ClassEntry,
    DataEntry,
    EvaluationRecord,
    Masking,
    RecordKey,
    flags,
    model_entry,
    model_hash,
)
from curvact.random import generator

OnProgress = Callable[[Progress], None]


class Depth(NamedTuple):
    """The depth of the gradient-masking checks.

    images: the first correctly classified ones. steps, queries: as in
    `curvact.attacks.masking_report`.
    """

    images: int
    steps: int
    queries: int


DEPTHS: dict[str, Depth] = {"quick": Depth(64, 10, 50), "full": Depth(128, 20, 200)}
"""An honest model may have a rate of 5 %. An alarm has probability 0.9 where the rate is 23 %
(quick) or 16 % (full): `curvact.attacks.masking.detected`.
"""
REPLACES_CHECK = 10
"""A PGD of so many steps that is evaluated takes the place of the PGD of the checks."""


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    threat_model: ThreatModel,
    *,
    attack: str | NamedAttack | Attack = "autoattack",
    seed: int = 0,
    batch_size: int = 250,
    mode: Mode = "plain",
    masking: Masking = "quick",
    workers: int = 1,
    devices: Sequence[str] | None = None,
    folder: str | Path | None = None,
    name: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
    on_check: Callable[[Finding], None] | None = None,
    images_to: str | Path | None = None,
) -> EvaluationRecord:
    """Attack every image of a data set and record the outcome image by image.

    model: maps N×C×H×W images in [0, 1] to logits. It works on its own device, in eval mode
    (restored after).
    attack: a name that `curvact.attacks.named_attack` reads, such as "autoattack", "apgd-ce+square"
        or "pgd-20"; or the attack itself, a value such as `PGD(20)` or a function. seed: of the attack.
    mode, workers, devices, folder: as in `curvact.attacks.autoattack`; for AutoAttack and its parts
        only. The checks and other attacks run on the model's device.
    masking: the depth of the gradient-masking checks, see `DEPTHS`. Their alarms are findings of
    the record.
    name, architecture: for the record; by default the name of the class, and nothing.
    images_to: an .npz file for the clean and the attacked images, see `write_images`; None for none.
    on_progress: called with the images done, the robust accuracy so far (NaN in the first batch)
        and the time left. on_check: called with each finding of the checks, alarm or not.
    Raises CurvactError for an unknown attack or depth, numbers below 1, or images that do not fit.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> test, threat = load("digits").test.first(20), ThreatModel("linf", 0.1)
    >>> record = evaluate(MiniResNet(channels=1, width=2), test, threat, attack="pgd-10", masking="none")
    >>> record.attack, record.ensemble, record.data.count
    ('pgd(steps=10, step=0.25)', False, 20)
    """
    if masking not in get_args(Masking):
        allowed = get_args(Masking)
        raise CurvactError(
            f"masking={masking!r}{nearest(masking, allowed)}; allowed are {', '.join(allowed)}"
        )
    for label, value in (("batch_size", batch_size), ("workers", workers)):
        if not isinstance(value, int) or value < 1:
            raise CurvactError(f"{label}={value!r} of evaluate: a whole number >= 1")
    for label, given, kind in (
        ("dataset", dataset, "Dataset"),
        ("threat_model", threat_model, "ThreatModel"),
        ("seed", seed, "int"),
    ):
        check_kind("evaluate", label, given, kind)
    images_to = None if images_to is None else Path(images_to)
    folder = None if folder is None else Path(folder)
    if images_to is not None and images_to.suffix != ".npz":
        raise CurvactError(f"images_to={images_to} of evaluate: the name must end in .npz")
    checked_module(model, "evaluate")
    started = time.perf_counter()
    attack = as_named_attack(attack)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = dataset.to(device)
    key = record_key(
        model,
        dataset,
        threat_model,
        attack=attack,
        seed=seed,
        batch_size=batch_size,
        mode=mode,
        architecture=architecture,
    )
    if isinstance(attack, AutoAttack):
        options: AutoAttackSettings = {
            "seed": seed,
            "mode": mode,
            "batch_size": batch_size,
            "shard_size": batch_size,
            "folder": folder,
            "workers": workers,
            "devices": devices,
            "on_progress": on_progress,
        }
        outcome = _autoattack(model, images, attack, threat_model, options)
    elif isinstance(attack, Adaptive):
        outcome = _adaptive(model, images, attack, key, on_progress)
    else:
        outcome = _simple(model, images, attack, key, on_progress)
    findings = [*diagnose(model, images), *outcome.findings]
    attacked = Attacked.of(model, images, outcome.x_adv, batch_size)
    if masking != "none" and not any(outcome.clean_correct):
        findings.append("gradient masking was not checked: no image is classified correctly")
    elif masking != "none":
        findings += _masking(model, images, threat_model, outcome, DEPTHS[masking], seed, on_check)
    if images_to is not None:
        write_images(attacked, images_to)
    count = len(dataset)
    return EvaluationRecord(
        attack=key.attack,
        ensemble=key.attack in WHOLE,
        mode=key.mode,
        seed=seed,
        batch_size=batch_size,
        threat_model=threat_model,
        model=model_entry(model, name, architecture),
        data=DataEntry(name=dataset.name, sha256=dataset.sha256, count=count),
        clean_accuracy=sum(outcome.clean_correct) / count,
        robust_accuracy=outcome.broken_by.count("") / count,
        rounded_accuracy=sum(
            clean and right
            for clean, right in zip(outcome.clean_correct, attacked.rounded_correct, strict=True)
        )
        / count,
        by_class=_by_class(dataset, outcome),
        clean_correct=flags(outcome.clean_correct),
        robust_correct=flags(not by for by in outcome.broken_by),
        broken_by=outcome.broken_by,
        accuracy_after=dict(outcome.accuracy_after),
        masking=masking,
        findings=findings,
        notes=outcome.notes,
        versions=dict(outcome.versions),
        seconds=round(time.perf_counter() - started + outcome.earlier_seconds, 3),
        environment=environment(device),
        code=dict(key.code),
    )


def record_key(
    model: nn.Module,
    dataset: Dataset,
    threat_model: ThreatModel,
    *,
    attack: NamedAttack,
    seed: int,
    batch_size: int,
    mode: Mode,
    architecture: Mapping[str, Any] | None,
) -> RecordKey:
    """The key of the record that `evaluate` makes with these arguments, without running the attack.
    The user's code that was run in this process is a part of it.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> test, threat, model = load("digits").test.first(5), ThreatModel("linf", 0.1), MiniResNet(channels=1)
    >>> settings = {"attack": PGD(2), "seed": 0, "batch_size": 5, "mode": "plain", "architecture": None}
    >>> key = record_key(model, test, threat, **settings)
    >>> key == evaluate(model, test, threat, masking="none", **settings).key
    True
    """
    return RecordKey(
        model=model_hash(model),
        architecture=dict(architecture or {}),
        data=dataset.sha256,
        threat_model=threat_model,
        attack=_full_name(attack),
        mode=mode if isinstance(attack, AutoAttack) else None,
        seed=seed,
        batch_size=batch_size,
        code=code_hashes(),
    )


def short_name(attack: NamedAttack) -> str:
    """The name of an attack without its settings, such as "pgd-20", for files and random streams.

    >>> short_name(PGD(20, step=0.1, restarts=5)), short_name(FGSM), short_name(AutoAttack())
    ('pgd-20', 'fgsm', 'autoattack')
    """
    if attack == FGSM:
        return "fgsm"
    return f"pgd-{attack.steps}" if isinstance(attack, PGD) else str(attack)


def _full_name(attack: NamedAttack) -> str:
    """The name of an attack in a record. The step of a PGD is written out."""
    if isinstance(attack, AutoAttack):
        return attack.title()
    if isinstance(attack, PGD) and attack != FGSM:
        return str(replace(attack, step=attack.length))
    return short_name(attack)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What an attack did. serves: whether x_adv is strong enough to serve the masking checks."""

    clean_correct: list[bool]
    broken_by: list[str]
    x_adv: Tensor
    findings: list[str]
    versions: Mapping[str, str]
    notes: list[str] = field(default_factory=list)
    accuracy_after: Mapping[str, float] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    serves: bool = False


def _by_class(data: Dataset, outcome: _Outcome) -> list[ClassEntry]:
    """The classes that have images, in order."""
    labels = data.labels.tolist()
    found = []
    for number, name in enumerate(data.classes):
        own = [i for i, label in enumerate(labels) if label == number]
        if own:
            clean = sum(outcome.clean_correct[i] for i in own)
            robust = sum(not outcome.broken_by[i] for i in own)
            found.append(ClassEntry(name=name, count=len(own), clean_correct=clean, robust_correct=robust))
    return found


def _autoattack(
    model: nn.Module,
    images: Dataset,
    attack: AutoAttack,
    threat_model: ThreatModel,
    options: AutoAttackSettings,
) -> _Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SuspectModelWarning)  # they are in `suspicions`
        result = attack.run(model, images.inputs(), images.labels, threat_model, **options)
    return _Outcome(
        clean_correct=[by != CLEAN for by in result.broken_by],
        broken_by=[by or "" for by in result.broken_by],
        x_adv=result.x_adv.to(images.images.device),
        findings=list(result.suspicions),
        versions=result.versions,
        notes=list(result.notes),
        accuracy_after=result.accuracy_after,
        earlier_seconds=result.seconds_resumed,
    )


def _adaptive(
    model: nn.Module,
    images: Dataset,
    attack: Adaptive,
    key: RecordKey,
    on_progress: OnProgress | None,
) -> _Outcome:
    """The adaptive attack, with the attack that broke each image."""
    random = generator(key.seed, f"evaluation/{attack}", device=images.images.device)
    passes = attack.steps * attack.restarts * len(ADAPTIVE_NAMES)
    clock = _Clock("adaptive", len(images), key.batch_size, passes, on_progress)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SuspectModelWarning)
        result = attack.run(
            model,
            images.inputs(),
            images.labels,
            key.threat_model,
            batch_size=key.batch_size,
            generator=random,
            on_step=clock.step,
            on_batch=clock.batch,
        )
    return _Outcome(
        clean_correct=[by != CLEAN for by in result.broken_by],
        broken_by=[by or "" for by in result.broken_by],
        x_adv=result.x_adv,
        findings=[*_said(caught), *result.suspicions],
        versions=_versions(),
        notes=list(result.notes),
        accuracy_after=result.accuracy_after,
    )


def _said(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """The warnings about the model, each once."""
    said = (str(w.message) for w in caught if issubclass(w.category, SuspectModelWarning))
    return list(dict.fromkeys(said))


def _versions() -> dict[str, str]:
    return {package: package_version(package) for package in ("curvact", "torch")}


def _simple(
    model: nn.Module,
    images: Dataset,
    attack: NamedAttack,
    key: RecordKey,
    on_progress: OnProgress | None,
) -> _Outcome:
    """PGD and other attacks that go through the images batch by batch."""
    steps = attack.steps if isinstance(attack, PGD) else 1
    name = short_name(attack)
    random = generator(key.seed, f"evaluation/{name}", device=images.images.device)
    passes = steps * (attack.restarts if isinstance(attack, PGD) else 1)
    clock = _Clock(name, len(images), key.batch_size, passes, on_progress)
    blind: bool | None = None

    def run(model: Model, x: Tensor, y: Tensor) -> Tensor:
        nonlocal blind
        if blind is None:
            blind = cuts_graph(model, x[:1])
        searched = connected(model) if blind else model
        return attack(searched, x, y, key.threat_model, generator=random, on_step=clock.step)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SuspectModelWarning)
        found = accuracy(
            model,
            images.inputs(),
            images.labels,
            run,
            key.threat_model,
            batch_size=key.batch_size,
            on_batch=clock.batch,
        )
    findings = _said(caught)
    if blind:
        findings.append(
            f"the outputs do not depend on the inputs by a differentiable way: {name} sees nothing"
        )
    clean, robust = found.clean_correct.tolist(), found.robust_correct.tolist()
    return _Outcome(
        clean_correct=clean,
        broken_by=["" if r else name if c else CLEAN for c, r in zip(clean, robust, strict=True)],
        x_adv=found.x_adv,
        findings=findings,
        versions=_versions(),
        serves=steps >= REPLACES_CHECK,
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
    """The alarms of the checks. Checks that cannot run are a finding too."""
    index = torch.tensor(outcome.clean_correct, device=images.images.device).nonzero().squeeze(1)
    index = index[: depth.images]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SuspectModelWarning)  # the attack has said it
            report = masking_report(
                model,
                images.inputs(index),
                images.labels[index],
                threat_model,
                seed=seed,
                steps=depth.steps,
                queries=depth.queries,
                attacked=outcome.x_adv[index] if outcome.serves else None,
                on_check=on_check,
            )
    except CurvactError as error:
        return [f"gradient masking was not checked: {error}"]
    return [f"{f.name}: {f.sentence}" for f in report.alarms]


class _Clock:
    """Turns steps and batches of an attack into `Progress`. steps: the most that a batch takes."""

    def __init__(
        self, attack: str, images: int, batch_size: int, steps: int, on_progress: OnProgress | None
    ) -> None:
        self.attack, self.images, self.batch_size, self.steps = attack, images, batch_size, steps
        self.on_progress = on_progress
        self.started = time.perf_counter()
        self.done, self.robust, self.steps_done = 0, math.nan, 0

    def step(self, step: int, x_adv: Tensor, loss: Tensor) -> None:
        self.steps_done += 1
        self._report()

    def batch(self, done: int, robust: float) -> None:
        self.done, self.robust, self.steps_done = done, robust, 0
        self._report()

    def _report(self) -> None:
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
