"""Evaluate a model under a named attack and put what came out on record."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvact.attacks import (
    Model,
    SuspectModelWarning,
    ThreatModel,
    autoattack,
    ensemble,
    evaluate,
    fgsm,
    masking_report,
    pgd,
)
from curvact.attacks._autoattack.ensemble import ATTACKS, Mode, Version
from curvact.attacks._autoattack.shard import CLEAN
from curvact.attacks.autoattack import Progress, Settings
from curvact.data import Dataset
from curvact.environment import environment
from curvact.errors import CurvactError
from curvact.evaluation.record import (
    DataEntry,
    EvaluationRecord,
    ModelEntry,
    ThreatEntry,
    flags,
    model_hash,
)
from curvact.models.interchange import model_from_robustbench
from curvact.random import generator
from curvact.training.checkpoint import load_checkpoint, read_sidecar

MASKING_IMAGES = 128
"""Images that the checklist for gradient masking looks at."""


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
    accuracy_after: dict[str, float] = field(default_factory=dict)

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
    name: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    checks: bool = True,
) -> EvaluationRecord:
    """Attack every image of a data set and record the outcome image by image.

    model: any module from N×C×H×W in [0, 1] to logits; works on the device of its parameters, in eval mode (restored after).
    attack: "autoattack", "autoattack-plus" or "autoattack-rand", the whole ensemble; some of its attacks, such as
    "apgd-ce+square"; "fgsm"; or "pgd-STEPS" (random start, step ε/4 [ours]). seed: of the attack. restarts: of PGD.
    mode, workers, folder, on_progress: of `curvact.autoattack`: "plain" or "fast", processes, where to resume from, progress.
    name, architecture: for the record; by default the class's name, and nothing.
    checks: run the checklist for gradient masking on the first 128 images.
    Raises CurvactError for an unknown attack or images that the model cannot take.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> test = load("digits").test.first(20)
    >>> record = evaluate_model(MiniResNet(channels=1, width=2), test, ThreatModel("linf", 0.1), attack="pgd-2", checks=False)
    >>> record.attack, record.ensemble, record.data.count, record.settings["steps"]
    ('pgd-2', False, 20, 2)
    """
    started = time.perf_counter()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = dataset.to(device)
    parts = attack_parts(attack)
    if parts is None:
        outcome = _quick(model, images, threat_model, attack, seed, batch_size, restarts)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SuspectModelWarning)  # the verdict holds them
            options: Settings = {
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
            dict(verdict.accuracy_after),
        )
    findings = list(outcome.findings)
    if checks and any(outcome.clean_correct):
        few = images.first(MASKING_IMAGES)
        if bool(torch.tensor(outcome.clean_correct[: len(few)]).any()):
            report = masking_report(model, few.inputs(), few.labels, threat_model, seed=seed)
            findings += [f"{f.name}: {f.sentence}" for f in report.alarms]
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
        findings=findings,
        seconds=round(time.perf_counter() - started, 3),
        environment=environment(),
    )


def _quick(
    model: nn.Module,
    images: Dataset,
    threat_model: ThreatModel,
    attack: str,
    seed: int,
    batch_size: int,
    restarts: int,
) -> _Outcome:
    settings = attack_settings(attack, threat_model, restarts)
    random = generator(seed, f"evaluation/{attack}", device=images.images.device)

    def run(model: Model, x: Tensor, y: Tensor) -> Tensor:
        if not settings:
            return fgsm(model, x, y, threat_model)
        return pgd(model, x, y, threat_model, generator=random, **settings)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SuspectModelWarning)
        result = evaluate(model, images.inputs(), images.labels, run, batch_size=batch_size)
    findings = [str(w.message) for w in caught if issubclass(w.category, SuspectModelWarning)]
    clean, robust = result.clean_correct.tolist(), result.robust_correct.tolist()
    broken_by = ["" if r else attack if c else CLEAN for c, r in zip(clean, robust, strict=True)]
    return _Outcome(attack, settings, clean, broken_by, findings)


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
