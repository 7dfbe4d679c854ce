"""Where the numbers of a run also go: TensorBoard and Weights & Biases, through lightning-fabric's
loggers.
"""

from __future__ import annotations

import importlib.util
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from curvact.errors import CurvactError, first_line
from curvact.files import atomic_write
from curvact.lab.layout import WANDB_FILE
from curvact.lab.spec import RunSpec
from curvact.training import Epoch

TENSORBOARD = "tensorboard"

LONGEST_NAME = 128
"""Characters of a run's name and of its group in Weights & Biases."""


@dataclass(frozen=True)
class Shown:
    """How loggers name a run. group: its sweep or search. label: the run in it. Both "" for a single run."""

    group: str = ""
    label: str = ""


BY_ITSELF = Shown()
"""A run that is of no sweep."""


def check_loggers(spec: RunSpec) -> None:
    """Raise CurvactError for a logger whose package is not installed."""
    if spec.logging.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise CurvactError(
            f"logging.wandb={spec.logging.wandb!r} needs Weights & Biases: pip install curvact[wandb]"
        )
    if spec.logging.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise CurvactError("logging.tensorboard=true needs TensorBoard: pip install curvact[tensorboard]")


def open_loggers(spec: RunSpec, folder: Path, shown: Shown = BY_ITSELF) -> list[Logger]:
    """The loggers that the spec asks for, its settings sent to each.

    TensorBoard's events are in tensorboard/LABEL-ID of the run's folder, so `tensorboard --logdir` of a
    sweep's folder names every run. Raises CurvactError where Weights & Biases refuses the run.
    """
    loggers: list[Logger] = []
    label = shown.label or spec.name
    if spec.logging.tensorboard:
        version = _events_of(folder / TENSORBOARD, label, spec.id)
        loggers.append(TensorBoardLogger(folder, name=TENSORBOARD, version=version))
    if spec.logging.wandb is not None:
        name = label if shown.label else f"{spec.name}-{spec.id}"
        loggers.append(WandbLogger(spec.logging.wandb, wandb_id(folder, spec.id), name, shown.group, folder))
    for logger in loggers:
        logger.log_hyperparams(_flat(spec.model_dump(mode="json")))
    return loggers


def _events_of(folder: Path, label: str, run: str) -> str:
    """The name of the folder of a run's events: the one that it has already, else its label and id."""
    if folder.is_dir():
        if any(path.is_file() for path in folder.iterdir()):
            return ""  # of an earlier version
        for path in sorted(folder.iterdir()):
            return path.name
    words = re.sub(r"[^\w.=+()-]+", "_", label)
    return f"{words[:80]}-{run}"


def wandb_id(folder: Path, run: str) -> str:
    """The id of a run's folder in Weights & Biases: the run's own id and a part that no other folder has.

    It is kept in the folder. So a run that is resumed or moved goes on there, and equal runs of two
    folders are two. A folder that is deleted and made again has another id. A copy has the same.
    """
    path = folder / WANDB_FILE
    known = path.read_text().strip() if path.is_file() else ""
    if re.fullmatch(r"[\w-]{1,64}", known):
        return known
    made = f"{run}-{secrets.token_hex(4)}"
    atomic_write(path, made + "\n")
    return made


def log_epoch(logger: Logger, epoch: Epoch) -> None:
    """Send the numbers of an epoch."""
    numbers = {key: value for key, value in _flat(epoch.as_dict()).items() if not isinstance(value, str)}
    logger.log_metrics(numbers, step=epoch.epoch)
    logger.save()


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


class WandbLogger(Logger):
    """Sends metrics and settings to a project.

    key: the id of the W&B run, see `wandb_id`. group: "" for a run by itself.
    Raises CurvactError where W&B refuses it, as for want of a login.
    """

    def __init__(self, project: str, key: str, name: str, group: str, folder: Path) -> None:
        import wandb

        try:
            self._run: Any = wandb.init(
                project=project,
                id=key,
                name=name[:LONGEST_NAME],
                group=group[:LONGEST_NAME] or None,
                dir=str(folder),
                resume="allow",
                reinit="finish_previous",
            )
        except wandb.errors.Error as error:
            raise CurvactError(
                f"logging.wandb={project!r}: {first_line(error)}; `wandb login` or WANDB_MODE=offline"
            ) from None

    @property
    def name(self) -> str:
        return str(self._run.project)

    @property
    def version(self) -> str:
        return str(self._run.id)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._run.config.update(dict(params), allow_val_change=True)

    def finalize(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "success" else 1)
