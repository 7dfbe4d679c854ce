"""The models and images that a command works on, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from torch import Tensor, nn

from curvact.analysis import Loss
from curvact.attacks import ThreatModel, radius_text
from curvact.data import Dataset
from curvact.errors import CurvactError, printable
from curvact.lab.checkpoints import Checkpoint, open_checkpoint
from curvact.lab.cli.options import Attacked, Subject, agreed
from curvact.lab.spec import DataSpec

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True, eq=False)
class Subjects:
    """checkpoints: by name. images: on the device. threat_model: None for what needs no attack."""

    options: Subject
    checkpoints: dict[str, Checkpoint]
    images: Dataset
    x: Tensor
    y: Tensor
    threat_model: ThreatModel | None

    @property
    def models(self) -> dict[str, nn.Module]:
        return {name: checkpoint.model for name, checkpoint in self.checkpoints.items()}

    @property
    def threat(self) -> ThreatModel:
        assert self.threat_model is not None
        return self.threat_model

    def loss(self, model: nn.Module) -> Loss:
        """The loss of a model on the images."""
        return Loss(model, self.x, self.y, batch_size=self.options.batch_size)

    @property
    def caption(self) -> str:
        """The images and the threat model, in words."""
        threat = self.threat_model
        radius = "" if threat is None else f", {NORMS[threat.norm]} ε = {radius_text(threat.epsilon)}"
        return f"{self.images.name}, {len(self.images)} images{radius}"


def open_subjects(command: str, paths: Sequence[Path], options: Subject) -> Subjects:
    """Open the checkpoints and their images, and check that they fit.

    command: its name, for messages. options: `Attacked` where a threat model is needed, with ε > 0.
    """
    device = options.torch_device
    checkpoints = _by_name([open_checkpoint(path, options.weights, options.network) for path in paths])
    opened = list(checkpoints.values())
    threat = threat_model_of(opened, options) if isinstance(options, Attacked) else None
    if threat is not None and threat.epsilon == 0:
        raise CurvactError(f"epsilon 0 in curvact {command}: an attack is needed, give --epsilon > 0")
    data = data_of(opened, options)
    images: Dataset = getattr(data.load(), options.split).first(options.n).to(device)
    subjects = Subjects(options, checkpoints, images, images.inputs(), images.labels, threat)
    for checkpoint in opened:
        checkpoint.model.to(device)
        check_fit(checkpoint, subjects)
    for line in trained_on_others(opened, data):
        typer.echo(f"note: {printable(line)}", err=True)
    return subjects


def data_of(checkpoints: Sequence[Checkpoint], options: Subject) -> DataSpec:
    """The data set of the options, else the one that all checkpoints name."""
    if options.data is not None:
        return DataSpec.model_construct(name=options.data)  # `load` says what is wrong with a name
    known = {checkpoint.path: checkpoint.data for checkpoint in checkpoints}
    data: DataSpec = agreed("data set", known, None, "--data, such as --data cifar10")
    return data


def trained_on_others(checkpoints: Sequence[Checkpoint], data: DataSpec) -> list[str]:
    """A line for each checkpoint that was trained on another data set, as far as it is known."""
    known = {checkpoint.name: checkpoint.sidecar.get("data") for checkpoint in checkpoints}
    names = {name: own.get("name") for name, own in known.items() if isinstance(own, dict)}
    return [
        f"{name} was trained on {own}, not on {data.name}"
        for name, own in names.items()
        if own not in (None, data.name)
    ]


def threat_model_of(checkpoints: Sequence[Checkpoint], options: Attacked) -> ThreatModel:
    """Norm and radius of the options, each else the one that all checkpoints name."""
    if options.norm is not None and options.radius is not None:
        return ThreatModel(options.norm, options.radius)  # type: ignore[arg-type]
    known = {checkpoint.path: checkpoint.threat_model for checkpoint in checkpoints}
    radii = {path: None if threat is None else threat.epsilon for path, threat in known.items()}
    norms = {path: "linf" if threat is None else threat.norm for path, threat in known.items()}
    radius = agreed("epsilon", radii, options.radius, "--epsilon, such as --epsilon 8/255")
    return ThreatModel(agreed("norm", norms, options.norm, "--norm"), radius)


def check_fit(checkpoint: Checkpoint, subjects: Subjects) -> None:
    """Raises CurvactError where the model cannot take the images, or has too few outputs."""
    path, x, data = checkpoint.path, subjects.x, subjects.images.name
    shape = "×".join(map(str, x.shape[1:]))
    problem = CurvactError(f"{path} does not take the images of {data}, {shape}: give another --data")
    # Without this check, a grey image would be broadcast to three channels.
    if checkpoint.architecture.get("channels", x.shape[1]) != x.shape[1]:
        raise problem
    try:
        with torch.no_grad():
            outputs = tuple(checkpoint.model(x[:1]).shape)
    except (RuntimeError, ValueError):
        raise problem from None
    last = int(subjects.y.max())
    if len(outputs) != 2 or outputs[1] <= last:
        raise CurvactError(
            f"{path} gives outputs of shape {outputs} for one image of {data}, whose labels go up to {last}"
        )


def _by_name(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """The checkpoints by name; names that are alike get that of the folder, then an apostrophe."""
    short = [checkpoint.name for checkpoint in checkpoints]
    found: dict[str, Checkpoint] = {}
    seen: set[Path] = set()
    for checkpoint, name in zip(checkpoints, short, strict=True):
        path = checkpoint.path.absolute()
        if path in seen:
            raise CurvactError(f"{checkpoint.path} is given twice")
        seen.add(path)
        if short.count(name) > 1:
            name = f"{path.parent.name}-{path.stem}".strip("-")
        while name in found:
            name += "'"
        found[name] = checkpoint
    return found
