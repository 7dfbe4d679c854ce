"""Where the numbers of a run also go: TensorBoard and Weights & Biases, through lightning-fabric's
loggers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from curvact.errors import CurvactError
from curvact.lab.spec import RunSpec
from curvact.training import Epoch


def check_loggers(spec: RunSpec) -> None:
    """Raise CurvactError for a logger whose package is not installed."""
    if spec.logging.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise CurvactError(
            f"logging.wandb={spec.logging.wandb!r} needs Weights & Biases: pip install curvact[wandb]"
        )
    if spec.logging.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise CurvactError("logging.tensorboard=true needs TensorBoard: pip install curvact[tensorboard]")


def open_loggers(spec: RunSpec, folder: Path) -> list[Logger]:
    """The loggers that the spec asks for, its settings sent to each."""
    loggers: list[Logger] = []
    if spec.logging.tensorboard:
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    if spec.logging.wandb is not None:
        loggers.append(WandbLogger(spec.logging.wandb, f"{spec.name}-{spec.id}", folder))
    for logger in loggers:
        logger.log_hyperparams(_flat(spec.model_dump(mode="json")))
    return loggers


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
    """Sends metrics and settings to a project. The id of the W&B run is `name`, so runs never
    merge.
    """

    def __init__(self, project: str, name: str, folder: Path) -> None:
        import wandb

        self._run: Any = wandb.init(project=project, name=name, dir=str(folder), resume="allow", id=name)

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
