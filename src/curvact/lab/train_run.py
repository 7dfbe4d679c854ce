"""One training run into a folder that explains itself: config, metrics by epoch, best and last weights, how to go on."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import distributed, nn

from curvact.attacks import PGD, SuspectModelWarning, ThreatModel, accuracy
from curvact.data import Dataset, ExtraImages, Splits, load, open_extra
from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.lab.environment import environment
from curvact.lab.settings import check_settings
from curvact.lab.train_config import Hardware, TrainConfig
from curvact.models import build
from curvact.models.checkpoint import load_checkpoint, save_checkpoint
from curvact.models.learned import (
    LearnedActivation,
    insert_activation,
    read_learned,
    write_learned,
)
from curvact.random import generator
from curvact.training import Compute, Diverged, Epoch, Step, Watch, fit

KEPT = "activation.safetensors"
"""The copy of a moved activation in the folder of the run that began with it."""

CHANNELS_LAST_FROM = 16
"""Side of the images from which weights lie channels last: on 32×32 images a narrow ResNet-18 is then 1.5 times as fast."""


def run_training(
    config: TrainConfig, folder: Path, *, resume: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Train what the config says, and return the record that is then in `folder/record.json`.

    The folder holds config.yaml, environment.json, metrics.jsonl (one line an epoch), best.safetensors and last.safetensors
    (by validation robust accuracy; each with its JSON), those of other epochs if `logging.keep` asks for them, state.safetensors
    (while unfinished), and record.json.
    Raises CurvactError for a folder that holds something else, or data that are not there (before anything is written), and
    Diverged, after the cause is in record.json.
    """
    with launched(config.hardware) as fabric:
        console = console or Console(stderr=True, quiet=not fabric.is_global_zero)
        return _run(config, folder, resume, console, fabric)


def _run(config: TrainConfig, folder: Path, resume: bool, console: Console, fabric: Fabric) -> dict[str, Any]:
    first = fabric.is_global_zero
    config, learned = settle_activation(config, folder)
    identity = config_id(config)
    data, extra, architecture, model = prepare(config, learned)
    if first:
        _open_folder(folder, config, identity, resume, learned)
    fabric.barrier()
    if (folder / "record.json").is_file():
        console.print(f"{folder} has run to its end")
        return dict(json.loads((folder / "record.json").read_text()))
    loggers = _loggers(config, folder) if first else []
    for logger in loggers:
        logger.log_hyperparams(_flat(config.model_dump(mode="json")))
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)
    about = {
        "run": identity,
        "data": config.data.model_dump(mode="json"),
        "threat_model": config.threat_model.model_dump(mode="json"),
    }
    if config.activation_from is not None:
        about["activation_from"] = config.activation_from.model_dump(exclude={"path"})
    history = read_history(folder)
    record: dict[str, Any] = {"schema": 1, "run": identity, "status": "done", "cause": "", "metrics": {}}

    show: Callable[[Step | Epoch], None] = lambda event: None  # noqa: E731

    def remember(epoch: Epoch) -> None:
        show(epoch)
        del history[epoch.epoch - 1 :]
        history.append(epoch.as_dict())
        if first:
            atomic_write(folder / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in history))
            for logger in loggers:
                logger.log_metrics(_numbers(epoch.as_dict()), step=epoch.epoch)
                logger.save()

    def keep(model: nn.Module, epoch: Epoch, best: bool) -> None:
        names = ["last", *(["best"] if best else [])]
        if config.logging.keep is not None and epoch.epoch % config.logging.keep == 0:
            names.append(f"epoch-{epoch.epoch:04d}")
        told = {**about, "epoch": epoch.epoch, "gradient_evaluations": epoch.gradient_evaluations}
        for name in names:
            where = folder / f"{name}.safetensors"
            save_checkpoint(where, model, architecture, told)

    started = time.perf_counter()
    try:
        with _bar(console, config) as show, _strict():
            epochs = fit(
                model,
                data,
                config.training,
                threat_model,
                seed=config.seed,
                extra=extra,
                compute=Compute(fabric, config.hardware.accumulate, config.hardware.compile),
                state=folder / "state.safetensors",
                watch=Watch(on_step=show, on_epoch=remember, on_evaluated=keep),
            )
    except (Diverged, SuspectModelWarning) as error:
        record.update(status="failed", cause=str(error))
        if first:
            _write(folder / "record.json", {**record, **_provenance(config, data, extra, started)})
        raise Diverged(str(error)) from None
    if not first:
        return {}
    record["gradient_evaluations"] = epochs[-1].gradient_evaluations
    record["note"] = epochs[-1].note
    for name in ("best", "last"):
        kept = load_checkpoint(folder / f"{name}.safetensors").to(fabric.device)
        metrics = _test(kept, data.test.first(config.test.images), config, threat_model, fabric)
        best = max(history, key=lambda e: e["validation_robust_accuracy"])
        record["metrics"][name] = {**metrics, "epoch": best["epoch"] if name == "best" else len(history)}
    record.update(_provenance(config, data, extra, started))
    _write(folder / "record.json", record)
    (folder / "state.safetensors").unlink(missing_ok=True)
    for logger in loggers:
        logger.finalize("success")
    return record


@contextmanager
def launched(hardware: Hardware) -> Iterator[Fabric]:
    """Device, precision and processes; under `torchrun`, one process of many.

    Their process group is taken down at the end: left to the interpreter's exit, gloo's threads now and then abort the process.
    """
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    cuda = torch.cuda.is_available() and hardware.accelerator != "cpu"
    if hardware.accelerator == "cuda" and not cuda:
        raise CurvactError(
            "hardware.accelerator='cuda': torch sees no CUDA device here; allowed are auto and cpu"
        )
    if hardware.precision == "16-mixed" and not cuda:
        raise CurvactError(
            "hardware.precision='16-mixed' needs a GPU; allowed here are 32-true and bf16-mixed"
        )
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=local,
        num_nodes=max(1, size // local),
        strategy="ddp" if size > 1 else "auto",
        precision=hardware.precision,
    )
    fabric.launch()
    try:
        yield fabric
    finally:
        if size > 1:
            distributed.destroy_process_group()


def prepare(
    config: TrainConfig, learned: LearnedActivation | None = None
) -> tuple[Splits, ExtraImages | None, dict[str, Any], nn.Module]:
    """What a run starts from: data, synthetic images, the model's arguments for `build`, and the model itself.

    learned: the activation that `config.activation_from` means, if any, see `settle_activation`.

    Raises CurvactError for data that are missing or damaged, and for a model or an augmentation that these images do not admit.
    """
    wanted = config.data
    data = load(
        wanted.name, size=wanted.size, train=wanted.train, validation=wanted.validation, test=wanted.test
    )
    channels, height, width = data.train.images.shape[1:]
    extra = None
    if wanted.extra is not None:
        shape = (channels, height, width)
        extra = open_extra(
            wanted.extra, classes=len(data.train.classes), shape=shape, fraction=wanted.extra_fraction
        )
    architecture = {
        **config.model.model_dump(mode="json"),
        "activation": config.activation,
        "channels": channels,
        "classes": len(data.train.classes),
        "size": width,
        "mean": data.train.mean,
        "std": data.train.std,
    }
    model = build(**architecture, generator=generator(config.seed, "initialization"))
    if learned is not None and config.activation_from is not None:
        inputs = data.train.inputs(slice(0, 1))
        insert_activation(model, learned, freeze=config.activation_from.frozen, inputs=inputs)
    last = config.hardware.channels_last
    if width >= CHANNELS_LAST_FROM if last is None else last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.training.crop > width:
        raise CurvactError(f"training.crop={config.training.crop} is larger than the images, {width} pixels")
    return data, extra, architecture, model


def config_id(config: TrainConfig) -> str:
    """Twelve hexadecimal digits of the hash of what determines a run's numbers."""
    content = config.model_dump(mode="json", exclude={"name", "about", "logging"})
    if config.activation_from is None:
        del content["activation_from"]
    else:
        del content["activation_from"]["path"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _open_folder(
    folder: Path, config: TrainConfig, identity: str, resume: bool, learned: LearnedActivation | None
) -> None:
    known = folder / "config.yaml"
    first = {
        KEPT,
        str(Path(KEPT).with_suffix(".json")),
        "environment.json",
    }  # a run killed before its config was there has these
    if folder.exists() and {file.name for file in folder.iterdir()} - first:
        if not known.is_file():
            raise CurvactError(f"{folder} holds something else than a training run: give another --out")
        from curvact.lab.settings import read_settings

        if config_id(read_settings(TrainConfig, known)) != identity:
            raise CurvactError(f"{folder} holds a run of another config ({known}): give another --out")
        if not resume:
            raise CurvactError(f"{folder} holds this run already: --resume goes on with it")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurvactError(f"cannot write {folder}: {error.strerror}") from None
    if learned is not None:
        write_learned(folder / KEPT, learned)
    _write(folder / "environment.json", environment())
    atomic_write(known, config.to_yaml())


def read_history(folder: Path) -> list[dict[str, Any]]:
    """What a run's metrics.jsonl says, epoch by epoch."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _loggers(config: TrainConfig, folder: Path) -> list[Logger]:
    loggers: list[Logger] = []
    if config.logging.tensorboard:
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    if config.logging.wandb is not None:
        from curvact.lab.wandb_logger import WandbLogger

        loggers.append(WandbLogger(config.logging.wandb, config.name, folder))
    return loggers


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


def _numbers(epoch: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in _flat(epoch).items() if not isinstance(value, str)}


@contextmanager
def _strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SuspectModelWarning)
        yield


@contextmanager
def _bar(console: Console, config: TrainConfig) -> Iterator[Any]:
    """A bar over all steps with loss and robust accuracy; without a terminal, one line an epoch."""
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f} % {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(config.name, total=None, note="")
        robust = ""

        def show(event: Step | Epoch) -> None:
            nonlocal robust
            if isinstance(event, Step):
                note = f"epoch {event.epoch}, loss {event.loss:.3f}{robust}"
                progress.update(task, total=event.total, completed=event.step, note=note)
                return
            robust = f", robust {event.validation_robust_accuracy:.1%}"
            if not console.is_terminal or event.note:
                console.print(
                    f"epoch {event.epoch}: loss {event.loss:.3f}, validation {event.validation_accuracy:.1%}, "
                    f"robust {event.validation_robust_accuracy:.1%}, {event.gradient_evaluations} gradients, "
                    f"{event.seconds:.1f} s {event.note}".rstrip(),
                    soft_wrap=True,
                    highlight=False,
                )

        yield show


def _test(
    model: nn.Module, images: Dataset, config: TrainConfig, threat_model: ThreatModel, fabric: Fabric
) -> dict[str, float]:
    step = config.test.step_size
    step = step / threat_model.epsilon if step is not None and threat_model.epsilon else 0.25
    attack = PGD(config.test.steps, step, config.test.restarts)
    random = generator(config.seed, "evaluation/test", device=fabric.device)
    images = images.to(fabric.device)
    result = accuracy(model, images.inputs(), images.labels, attack.on(threat_model, random))
    return {"clean_accuracy": result.clean, "robust_accuracy": result.robust, "images": len(images)}


def _provenance(
    config: TrainConfig, data: Splits, extra: ExtraImages | None, started: float
) -> dict[str, Any]:
    hashes = {"train": data.train.sha256, "validation": data.validation.sha256, "test": data.test.sha256}
    if extra is not None:
        hashes["extra"] = extra.sha256
    return {
        "config": config.model_dump(mode="json"),
        "data_sha256": hashes,
        "environment": environment(),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _write(path: Path, content: object) -> None:
    atomic_write(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def settle_activation(config: TrainConfig, folder: Path) -> tuple[TrainConfig, LearnedActivation | None]:
    """The learned activation that a run is to use, and its config with that activation's name, scope and sha256.

    A config that has the sha256 already (of a run that was begun) is served from the copy in the run's folder, if there is one.
    Raises CurvactError for a file that is missing, damaged, or not the one that the run began with.
    """
    wanted = config.activation_from
    if wanted is None:
        return config, None
    kept = folder / KEPT
    path = kept if wanted.sha256 is not None and kept.is_file() else Path(wanted.path)
    learned = read_learned(path)
    found = learned.sha256
    if wanted.sha256 not in (None, found):
        raise CurvactError(
            f"{path} is not the activation that the config means: its sha256 is {found[:12]}…, not {str(wanted.sha256)[:12]}…"
        )
    content = config.model_dump(mode="json")
    content["activation"] = learned.name
    content["model"]["scope"] = learned.scope
    content["activation_from"]["sha256"] = found
    return check_settings(TrainConfig, content, str(path)), learned
