"""A trained model from a run folder or a file, with what is known of its training."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from curvact.attacks import ThreatModel
from curvact.errors import CurvactError
from curvact.lab.imports import load_imports, network_name
from curvact.lab.remote import is_of_zoo, local_weights
from curvact.lab.settings import check_settings
from curvact.lab.spec import DataSpec
from curvact.models.checkpoint import find_weights, load_checkpoint, read_sidecar
from curvact.models.foreign import Foreign
from curvact.models.interchange import model_from_robustbench
from curvact.models.named import ALIASES
from curvact.models.registry import build
from curvact.names import parse_call

IMAGES = ("name", "size", "train", "validation", "test")
"""The settings of a data set that decide which images there are."""
NAMES_IN_A_RUN = re.compile(r"best|last|model|epoch-\d+")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model in eval mode, and the JSON beside its weights.

    path: the file of the weights. sidecar: `architecture`, and `data` and `threat_model` where they
    are known; empty for weights that come without such a file. of_zoo: whether it is of the zoo.
    """

    path: Path
    model: nn.Module
    sidecar: Mapping[str, Any]
    of_zoo: bool = False

    @property
    def name(self) -> str:
        return checkpoint_name(self.path)

    @property
    def analyses(self) -> Path:
        """The folder of its analyses, where none is given: beside the weights, or below runs/ for the zoo's."""
        return (Path("runs/zoo") / self.name if self.of_zoo else self.path.parent) / "analysis"

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of `curvact.models.build`; empty where they are not known."""
        return dict(self.sidecar.get("architecture", {}))

    @property
    def data(self) -> DataSpec | None:
        """The images of the training, without synthetic ones.

        Raises CurvactError where the JSON holds something else.
        """
        content = self.sidecar.get("data")
        if content is None:
            return None
        if not isinstance(content, dict) or not isinstance(content.get("name"), str):
            raise self._problem("data", content, 'expected such as {"name": "digits"}', "--data")
        try:
            known = {key: content.get(key) for key in IMAGES}
            return check_settings(DataSpec, known, f"{self._file}: data")
        except CurvactError as error:
            raise CurvactError(f"{error}; correct it or give --data") from None

    @property
    def threat_model(self) -> ThreatModel | None:
        """The threat model of the training. CurvactError where the JSON holds something else."""
        content = self.sidecar.get("threat_model")
        if content is None:
            return None
        remedy = "--norm and --epsilon"
        if not isinstance(content, dict) or "epsilon" not in content:
            raise self._problem(
                "threat_model", content, 'expected such as {"norm": "linf", "epsilon": 0.1}', remedy
            )
        try:
            return ThreatModel(content.get("norm", "linf"), content["epsilon"])
        except (CurvactError, OverflowError) as error:
            raise self._problem("threat_model", content, str(error), remedy) from None

    @property
    def _file(self) -> Path:
        return self.path.with_suffix(".json")

    def _problem(self, key: str, value: Any, why: str, remedy: str) -> CurvactError:
        text = json.dumps(value)
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        return CurvactError(f"{self._file}: {key}={shown}: {why}; correct it or give {remedy}")


def run_code_of(path: Path) -> Path:
    """Run the code that the model of a checkpoint needs, if it is trusted. Return the file of its weights.

    path: as in `open_checkpoint`.
    """
    weights = find_weights(local_weights(path))
    if weights.with_suffix(".json").is_file():
        load_imports(read_sidecar(weights), weights.parent, ask=True)
    return weights


@dataclass(frozen=True)
class Network:
    """The network of weights that come without a description.

    model: a name of `build` with settings, such as "resnet18(width=32)", `my.py:Net` or
        "timm:resnet50(num_classes=10)"; the file is run.
    mean, std: of its normalization, one number for each channel; None: of the network itself.
    activation: a name; None: the network's own.
    """

    model: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    activation: str | None = None

    def described(self) -> dict[str, Any]:
        """The sidecar of such weights: `architecture`, and `imports` where a file is run."""
        name, needed = network_name(self.model, Path())
        name, settings = parse_call(name, "network", "name(argument=value), such as my.py:Net(width=8)")
        if (self.mean is None) != (self.std is None):
            raise CurvactError(f"mean={self.mean}, std={self.std} of {name}: give both or neither")
        own = ":" in name
        given = {"mean": self.mean, "std": self.std, "activation": self.activation}
        settings |= {key: value for key, value in given.items() if value is not None}
        if own:
            settings = {"activation": None, **{ALIASES.get(key, key): v for key, v in settings.items()}}
        imports = {} if needed is None else {"imports": [needed.model_dump()]}
        return {"architecture": {"name": name, **settings}, **imports}


def open_checkpoint(path: str | Path, weights: str = "best", network: Network | None = None) -> Checkpoint:
    """The model of a run folder or of a file, in eval mode.

    path: a URL of fsspec, a network of the zoo ("zoo:NAME"), a run folder, a folder of `save_pretrained`, a checkpoint
    (safetensors with its JSON), or weights in RobustBench's naming (.pt, .pth, .safetensors; never arbitrary pickles).
    weights: "best" or "last" of a run folder. network: of weights without a description; the names in
    the file are those of the network without its normalization.
    Code that the model needs runs only if it is trusted, see `curvact.lab.imports`.
    Raises CurvactError for a file that is missing, damaged, or does not fit its architecture.

    >>> import tempfile
    >>> from curvact.models import build
    >>> from curvact.models.checkpoint import save_checkpoint
    >>> architecture = {"name": "mini_resnet", "activation": "silu", "width": 2, "channels": 1}
    >>> run = Path(tempfile.mkdtemp())
    >>> save_checkpoint(run / "best.safetensors", build(**architecture), architecture, {"data": {"name": "digits"}})
    >>> checkpoint = open_checkpoint(run)
    >>> checkpoint.architecture["width"], checkpoint.data.name, checkpoint.threat_model
    (2, 'digits', None)
    """
    given, of_zoo, path = path, is_of_zoo(Path(path)), local_weights(Path(path))
    folder = path.is_dir()
    path = find_weights(path / "last.safetensors" if folder and weights == "last" else path)
    if weights == "last" and not folder:
        raise CurvactError(
            f"weights last of {given}: only a run folder has best and last weights; leave it out"
        )
    if network is not None:
        sidecar = network.described()
        model = build(**sidecar["architecture"])
        load_checkpoint(path, model=model.model if isinstance(model, Foreign) else model)
        return Checkpoint(path, model.eval(), sidecar, of_zoo)
    if path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
        sidecar = read_sidecar(path)
        load_imports(sidecar, path.parent, ask=True)
        return Checkpoint(path, load_checkpoint(path), sidecar, of_zoo)
    return Checkpoint(path, model_from_robustbench(path), {})


def checkpoint_name(path: Path) -> str:
    """The name of a checkpoint's file, after its folder's name where every run has such a file.

    >>> checkpoint_name(Path("runs/swish/best.safetensors")), checkpoint_name(Path("resnet18.pt"))
    ('swish-best', 'resnet18')
    """
    folder = Path(os.path.abspath(path)).parent.name
    return f"{folder}-{path.stem}" if folder and NAMES_IN_A_RUN.fullmatch(path.stem) else path.stem
