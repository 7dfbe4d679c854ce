"""One trial: a pure function of its config and the data into a record, and the folder that holds it."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from curvact.activations import Activation, activation, activation_parameters, known_curvature
from curvact.analysis import Loss, diagonal_norms
from curvact.analysis.effective_curvature import effective_curvature
from curvact.attacks import PGD, Attack, SuspectModelWarning, ThreatModel, accuracy, ensemble, mode
from curvact.data import ExtraImages, Splits, load, open_extra
from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.lab.analyses import run_analyses
from curvact.lab.environment import environment
from curvact.lab.study_spec import trial_id
from curvact.models import build
from curvact.models.checkpoint import save_checkpoint
from curvact.models.learned import extract_activation, insert_activation
from curvact.random import generator
from curvact.training import Diverged, Epoch, Recipe, Watch, fit

Record = dict[str, Any]

CHANNELS_LAST_FROM = 16
"""Side of the images from which weights lie channels last: on 32×32 images a narrow ResNet-18 is then 1.5 times as fast."""


def run_trial(
    config: dict[str, Any], folder: Path, on_epoch: Callable[[Epoch], None] = lambda epoch: None
) -> Record:
    """Train, attack and analyse what the config says, and put it into `folder/<trial id>` whole or not at all.

    The folder holds config.json, metrics.jsonl (one line an epoch), model.safetensors and model.json, environment.json and
    record.json. A trial whose loss diverges is a record too, with status "failed" and its cause.
    """
    identity = trial_id(config)
    partial = folder / f".{identity}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise CurvactError(f"cannot write {partial}: {error.strerror}") from None
        record = _measure(config, identity, partial, on_epoch)
        atomic_write(partial / "record.json", _json(record))
        if not (folder / identity).exists():
            os.replace(partial, folder / identity)
        return record
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _measure(
    config: dict[str, Any], identity: str, folder: Path, on_epoch: Callable[[Epoch], None]
) -> Record:
    started = time.perf_counter()
    seed = config["seed"]
    data, extra, architecture, model = prepare(config)
    took = take_activation(model, architecture, config, folder.parent)
    threat_model = ThreatModel(**config["threat_model"])
    recipe = Recipe(epochs=config["epochs"], **config["training"])

    atomic_write(folder / "config.json", _json(config))
    atomic_write(folder / "environment.json", _json(environment()))
    history: list[Epoch] = []
    start = _of_activations(model, data, config, "start")

    def remember(epoch: Epoch) -> None:
        history.append(epoch)
        on_epoch(epoch)

    record: Record = {
        "schema": 1,
        "trial": identity,
        "config": config,
        "status": "done",
        "cause": "",
        "metrics": {},
    }
    try:
        if took:
            raise Diverged(took)
        with warnings.catch_warnings():
            warnings.simplefilter("error", SuspectModelWarning)
            fit(
                model,
                data,
                recipe,
                threat_model,
                seed=seed,
                extra=extra,
                watch=Watch(on_epoch=remember),
            )
            record["metrics"] = {
                **_metrics(model, data, config, threat_model),
                **_analyses(model, data, config, threat_model),
                **start,
                **_of_activations(model, data, config, "end"),
                "seconds_per_epoch": round(sum(e.seconds for e in history) / len(history), 4),
            }
            save_checkpoint(
                folder / "model.safetensors",
                model,
                architecture,
                {
                    "trial": identity,
                    "metrics": record["metrics"],
                    "data": config["data"],
                    "threat_model": config["threat_model"],
                },
            )
    except (Diverged, SuspectModelWarning) as error:
        record.update(status="failed", cause=str(error))
    atomic_write(folder / "metrics.jsonl", "".join(json.dumps(epoch.as_dict()) + "\n" for epoch in history))
    record["data_sha256"] = {"train": data.train.sha256, "test": data.test.sha256}
    if extra is not None:
        record["data_sha256"]["extra"] = extra.sha256
    record["test_images"] = len(data.test)
    record["max_curvature"] = _max_curvature(config["activation"])
    record["gradient_evaluations"] = history[-1].gradient_evaluations if history else 0
    record["seconds"] = round(time.perf_counter() - started, 3)
    return record


def prepare(
    config: dict[str, Any],
) -> tuple[Splits, ExtraImages | None, dict[str, Any], torch.nn.Module]:
    """What a trial starts from: data, synthetic images, the model's arguments for `build`, and the model itself.

    Raises CurvactError for data that are missing or damaged, and for a model or an augmentation that these images do not admit.
    """
    data, extra = _load(config["data"])
    architecture = {
        **config["model"],
        "activation": config["activation"],
        "channels": data.train.images.shape[1],
        "classes": len(data.train.classes),
        "size": data.train.images.shape[-1],
        "mean": data.train.mean,
        "std": data.train.std,
    }
    model = build(**architecture, generator=generator(config["seed"], "initialization"))
    if architecture["size"] >= CHANNELS_LAST_FROM:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = architecture["size"]
    if config["training"]["crop"] > size:
        raise CurvactError(
            f"training.crop={config['training']['crop']} is larger than the images, {size} pixels"
        )
    return data, extra, architecture, model


def take_activation(
    model: torch.nn.Module, architecture: dict[str, Any], config: dict[str, Any], trials: Path
) -> str:
    """Put the activation that another trial learned into the model, if the config says so; returns why that is impossible, or "".

    `architecture` is made to name the activation that the model then has.
    Raises CurvactError where that trial has no record, or does not fit the model.
    """
    wanted = config.get("activation_from")
    if wanted is None:
        return ""
    source = trials / wanted["trial"]
    try:
        record = json.loads((source / "record.json").read_text())
    except (OSError, ValueError):
        raise CurvactError(
            f"{source / 'record.json'}, of the activation's source, is missing or damaged"
        ) from None
    if record["status"] != "done":
        return f"its source failed: {record['cause']}"
    put_activation(model, architecture, source / "model.safetensors", frozen=wanted["frozen"])
    return ""


def put_activation(
    model: torch.nn.Module, architecture: dict[str, Any], source: torch.nn.Module | Path, *, frozen: bool
) -> None:
    """Put the activation of a checkpoint or a model into the model; `architecture` is made to name what the model then has."""
    learned = extract_activation(source)
    size = architecture["size"]
    images = torch.full((1, architecture["channels"], size, size), 0.5)
    insert_activation(model, learned, freeze=frozen, inputs=images)
    architecture.update(activation=learned.name, scope=learned.scope)


def _load(config: dict[str, Any]) -> tuple[Splits, ExtraImages | None]:
    counts = {key: config[key] for key in ("size", "train", "validation", "test")}
    data = load(config["name"], **counts)
    if config["extra"] is None:
        return data, None
    channels, height, width = data.train.images.shape[1:]
    shape, fraction = (channels, height, width), config["extra_fraction"]
    return data, open_extra(config["extra"], classes=len(data.train.classes), shape=shape, fraction=fraction)


def _metrics(
    model: torch.nn.Module, data: Splits, config: dict[str, Any], threat_model: ThreatModel
) -> dict[str, float]:
    seed = config["seed"]
    settings = config["evaluation"]
    step = settings["step_size"] / threat_model.epsilon if threat_model.epsilon else None
    attack = PGD(settings["steps"], step, settings["restarts"])

    def attack_for(split: str) -> Attack:
        return attack.on(threat_model, generator(seed, f"evaluation/{split}"))

    some = slice(0, config["evaluation"]["train_images"])
    test = accuracy(model, data.test.inputs(), data.test.labels, attack_for("test"))
    train = accuracy(model, data.train.inputs(some), data.train.labels[some], attack_for("train"))
    metrics = {
        "clean_accuracy": test.clean,
        "robust_accuracy": test.robust,
        "train_clean_accuracy": train.clean,
        "train_robust_accuracy": train.robust,
    }
    if config["evaluation"]["autoattack_images"]:
        some = slice(0, config["evaluation"]["autoattack_images"])
        with mode(model, training=False):
            verdict = ensemble(
                model,
                data.test.inputs(some),
                data.test.labels[some],
                threat_model,
                attacks=config["evaluation"]["autoattack_parts"],
                mode="fast",
                seed=seed,
            )
        metrics["subset_robust_accuracy"] = verdict.robust_accuracy
        metrics["subset_pgd_accuracy"] = test.robust_correct[some].double().mean().item()
    if config["hessian"] is None:
        return metrics
    count = min(config["hessian"]["images"], len(train.x_adv))
    y = data.train.labels[:count]
    own = {id(p) for p in activation_parameters(model)}
    exclude = [name for name, p in model.named_parameters() if id(p) in own]
    for label, x in (("clean", data.train.inputs(slice(0, count))), ("adversarial", train.x_adv[:count])):
        try:
            norms = diagonal_norms(
                Loss(model, x, y, exclude=exclude),
                probes=config["hessian"]["probes"],
                deflation=config["hessian"]["deflation"],
                generator=generator(seed, f"hessian/{label}"),
            )
        except CurvactError as error:
            # Something in the trained network is not finite: the fault of this trial, not of the sweep.
            raise Diverged(f"the Hessian of the {label} loss: {error}") from None
        for name in ("rms", "gradient_relative", "scale_invariant"):
            estimate = getattr(norms, name)
            metrics[f"{label}_hessian_{name}"] = estimate.value
            metrics[f"{label}_hessian_{name}_se"] = estimate.standard_error
    return metrics


def _analyses(
    model: torch.nn.Module, data: Splits, config: dict[str, Any], threat_model: ThreatModel
) -> dict[str, float]:
    wanted = config.get("analyses")
    if wanted is None:
        return {}
    settings = {key: wanted[key] for key in ("images", "attack_steps", "probes", "directions", "draws")}
    try:
        return run_analyses(model, data, threat_model, wanted["kinds"], seed=config["seed"], **settings)
    except CurvactError as error:
        raise Diverged(f"an analysis of the trained network: {error}") from None


def _of_activations(
    model: torch.nn.Module, data: Splits, config: dict[str, Any], when: str
) -> dict[str, float]:
    """κ (the largest in the model), effective curvature (the mean over call sites) and extra parameters, if asked for."""
    if not config["evaluation"]["activations"]:
        return {}
    kappas = [known_curvature(m) for m in model.modules() if isinstance(m, Activation)]
    known = [k for k in kappas if k is not None]
    found: dict[str, float] = {"extra_parameters": sum(p.numel() for p in activation_parameters(model))}
    if known:
        found[f"curvature_{when}"] = max(known)
    some = slice(0, config["evaluation"]["train_images"])
    try:
        measured = effective_curvature(model, data.train.inputs(some), batch_statistics=when == "start").mean
    except CurvactError:  # nothing there that is a function of one number, such as Sparta's gates
        measured = None
    if measured is not None:
        found[f"effective_curvature_{when}"] = measured
    return found


def _max_curvature(name: str) -> float | None:
    """κ of the activation as it is built; None where it has none (Sparta)."""
    return known_curvature(activation(name))


def _json(content: object) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
