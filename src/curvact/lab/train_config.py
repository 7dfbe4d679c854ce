"""One training run as data: the YAML that `curvact train` reads, and the recipes that come with curvact."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from curvact.activations import activation
from curvact.errors import CurvactError, nearest
from curvact.lab.settings import (
    DataSpec,
    ModelSpec,
    Strict,
    ThreatSpec,
    check_settings,
    override_key,
    read_settings,
)
from curvact.training.recipe import Recipe


class Hardware(Strict):
    """Where and how a run computes; processes come from `torchrun`.

    accelerator: "auto" takes a GPU if there is one. precision: of training and attack; weights are kept in float32. accumulate:
    parts in which a batch goes through the network. channels_last: None for where it is faster (images from 16 px).
    threads: of each process on a CPU; torch's choice if None.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = Field(1, ge=1)
    compile: bool = False
    channels_last: bool | None = None
    threads: int | None = Field(None, ge=1)


class Logging(Strict):
    """What is written beside metrics.jsonl. wandb: a project of Weights & Biases (needs `pip install wandb`).

    keep: the weights of every so many epochs stay as epoch-0001.safetensors and so on, for `curvact analyze`.
    """

    keep: int | None = Field(None, ge=1)
    tensorboard: bool = False
    wandb: str | None = None


class Test(Strict):
    """The PGD on the test split, at the end, for the best and the last weights. images: at most so many."""

    __test__ = False

    steps: int = Field(20, ge=1)
    step_size: float | None = Field(None, gt=0, allow_inf_nan=False)
    restarts: int = Field(1, ge=1)
    images: int | None = Field(None, ge=1)


class ActivationFrom(Strict):
    """A learned activation to begin with, see `curvact transfer`. path: its file. frozen: whether it stays as it is.

    sha256: of its content; filled in when the run begins.
    """

    path: str
    frozen: bool = True
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")


class TrainConfig(Strict):
    """A training run. activation: a name such as "rctaf(curvature=6)". seed: of everything random.

    activation_from: a learned activation, whose name and scope then take the place of `activation` and `model.scope`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = ""
    data: DataSpec = DataSpec()
    model: ModelSpec = Field(default_factory=lambda: ModelSpec.model_validate({}))
    activation: str = "relu"
    activation_from: ActivationFrom | None = None
    threat_model: ThreatSpec = ThreatSpec()
    training: Recipe = Recipe()
    test: Test = Test()
    hardware: Hardware = Hardware()
    logging: Logging = Logging()
    seed: int = Field(0, ge=0)

    @field_validator("data", mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str) -> str:
        activation(name)
        return name

    def to_yaml(self) -> str:
        """The resolved config, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


def recipes() -> dict[str, str]:
    """The recipes that come with curvact: name → what it is.

    >>> "paf" in recipes()
    True
    """
    folder = resources.files("curvact.lab") / "recipes"
    files = sorted(f.name for f in folder.iterdir() if f.name.endswith(".yaml"))
    return {f.removesuffix(".yaml"): yaml.safe_load((folder / f).read_text())["about"] for f in files}


def read_config(source: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """A run's config from a YAML file, a run's folder, or the name of a recipe; overrides are `key.key=value`.

    Raises CurvactError in one line that names the file, the key, the value and what is allowed.

    >>> read_config("paf", ["training.epochs=1"]).training.epochs
    1
    """
    path = Path(source)
    if path.is_dir():
        path = path / "config.yaml"
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return read_settings(TrainConfig, path, overrides)
    known = recipes()
    if str(source) not in known:
        raise CurvactError(
            f"no file or folder {source}, and no recipe of that name{nearest(str(source), known)}; recipes are {', '.join(known)}"
        )
    content = yaml.safe_load((resources.files("curvact.lab") / "recipes" / f"{source}.yaml").read_text())
    for override in overrides or []:
        override_key(content, override)
    return check_settings(TrainConfig, content, f"recipe {source}")
