"""Weights & Biases as a logger of lightning-fabric; an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger

from curvact.errors import CurvactError


class WandbLogger(Logger):
    """Sends metrics and settings to a project. Raises CurvactError where wandb is not installed."""

    def __init__(self, project: str, name: str, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise CurvactError(
                f"logging.wandb={project!r} needs Weights & Biases: pip install wandb"
            ) from None
        self._run = wandb.init(project=project, name=name, dir=str(folder), resume="allow", id=folder.name)

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
