"""Evaluate a model under a named attack and put what came out on record."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curvact.attacks import SuspectModelWarning, ThreatModel, evaluate, fgsm, masking_report, pgd
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


def evaluate_model(
    model: nn.Module,
    dataset: Dataset,
    threat_model: ThreatModel,
    *,
    attack: str = "pgd-20",
    seed: int = 0,
    batch_size: int = 250,
    restarts: int = 1,
    name: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    checks: bool = True,
) -> EvaluationRecord:
    """Attack every image of a data set and record the outcome image by image.

    model: any module from N×C×H×W in [0, 1] to logits; works on the device of its parameters, in eval mode (restored after).
    attack: "fgsm" or "pgd-STEPS" (step ε/4, random start; ours [ours]). seed: of the attack. restarts: of PGD.
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
    settings = attack_settings(attack, threat_model, restarts)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = dataset.to(device)
    random = generator(seed, f"evaluation/{attack}", device=device)
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SuspectModelWarning)
        outcome = evaluate(
            model,
            images.inputs(),
            images.labels,
            lambda m, x, y: (
                pgd(m, x, y, threat_model, generator=random, **settings)
                if settings
                else fgsm(m, x, y, threat_model)
            ),
            batch_size=batch_size,
        )
    findings = [str(w.message) for w in caught if issubclass(w.category, SuspectModelWarning)]
    if checks and outcome.clean > 0:
        few = images.first(MASKING_IMAGES)
        report = masking_report(model, few.inputs(), few.labels, threat_model, seed=seed)
        findings += [f"{f.name}: {f.sentence}" for f in report.alarms]
    broken = ~outcome.robust_correct & outcome.clean_correct
    broken_by = [
        "clean" if not c else attack if b else ""
        for c, b in zip(outcome.clean_correct.tolist(), broken.tolist(), strict=True)
    ]
    return EvaluationRecord(
        attack=attack,
        ensemble=False,
        settings=settings,
        seed=seed,
        batch_size=batch_size,
        threat_model=ThreatEntry(norm=threat_model.norm, epsilon=threat_model.epsilon),
        model=model_entry(model, name, architecture),
        data=DataEntry(name=dataset.name, sha256=dataset.sha256, count=len(dataset)),
        clean_accuracy=outcome.clean,
        robust_accuracy=outcome.robust,
        clean_correct=flags(outcome.clean_correct),
        robust_correct=flags(outcome.robust_correct),
        broken_by=broken_by,
        findings=findings,
        seconds=round(time.perf_counter() - started, 3),
        environment=environment(),
    )


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
            f"unknown attack '{attack}'; allowed are autoattack, fgsm, and pgd-STEPS such as pgd-20"
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
