"""A study as data: the YAML that a user writes, checked, and the trials it stands for."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from curvact.activations.registry import activation, parse_name
from curvact.lab.settings import DataSpec, ModelSpec, Strict, ThreatSpec, check_settings, read_settings
from curvact.training import Recipe

SCHEMA = 3
"""Part of every trial's content hash: raised when the meaning of a config changes."""


class EvaluationSpec(Strict):
    """The PGD that measures robust accuracy: on the whole test set, and on the first `train_images` of the training set.

    autoattack_images: so many test images are attacked by a part of AutoAttack too, `autoattack_parts` (0: none). activations: κ,
    effective curvature before and after training, and extra parameters are measured too.
    """

    steps: int = Field(20, ge=1)
    step_size: float = Field(0.04, gt=0, allow_inf_nan=False)
    restarts: int = Field(1, ge=1)
    train_images: int = Field(512, ge=1)
    autoattack_images: int = Field(0, ge=0)
    autoattack_parts: tuple[Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"], ...] = (
        "apgd-ce",
        "apgd-t",
    )
    activations: bool = False


class HessianSpec(Strict):
    """The Hessian diagonal of the trained model: probes and deflated directions of the estimator, images in the fixed batch."""

    probes: int = Field(16, ge=4)
    deflation: int = Field(8, ge=0)
    images: int = Field(128, ge=1)


class AnalysesSpec(Strict):
    """Analyses of every trained model, by `curvact.lab.analyses.run_analyses`; a list alone names the kinds.

    images: looked at. attack_steps: of their PGD. probes, directions, draws: of the Hessian's split, of smoothness, of flatness.
    """

    kinds: tuple[Literal["hessian", "flatness", "smoothness", "curvature"], ...] = Field(min_length=1)
    images: int = Field(128, ge=1)
    attack_steps: int = Field(10, ge=1)
    probes: int = Field(32, ge=4)
    directions: int = Field(3, ge=1)
    draws: int = Field(10, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, content: Any) -> Any:
        return {"kinds": content} if isinstance(content, (list, tuple)) else content


class Factors(Strict):
    """What is varied: every combination is a trial."""

    family: tuple[str, ...] = ("rctaf(beta=0)",)
    curvature: tuple[float, ...]
    centered: tuple[bool, ...] = (False,)
    epochs: tuple[int, ...] = (10,)
    seed: tuple[int, ...] = (0, 1, 2)

    @model_validator(mode="after")
    def _sensible(self) -> Factors:
        for name, values in self:
            if not values:
                raise ValueError(f"{name} is an empty list: give at least one value")
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names a value twice")
        if min(self.epochs) < 1:
            raise ValueError(f"epochs={min(self.epochs)}: must be >= 1")
        for family in self.family:
            if "curvature" in parse_name(family)[1]:
                raise ValueError(
                    f"family {family!r} sets its curvature: leave that to the factor 'curvature'"
                )
            for curvature in self.curvature:
                activation(with_curvature(family, curvature, False))
        return self


class StudySpec(Strict):
    """A curvature sweep."""

    FILE: ClassVar[str] = "study.yaml"

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = ""
    data: DataSpec = DataSpec()
    model: ModelSpec = Field(default_factory=lambda: ModelSpec.model_validate({}))
    threat_model: ThreatSpec = ThreatSpec()
    factors: Factors
    training: Recipe = Recipe(objective="pgd-at(batch_norm=eval)")
    evaluation: EvaluationSpec = EvaluationSpec()
    hessian: HessianSpec | None = HessianSpec()
    analyses: AnalysesSpec | None = None

    @field_validator("training", mode="before")
    @classmethod
    def _epochs_are_a_factor(cls, training: Any) -> Any:
        if isinstance(training, dict) and "epochs" in training:
            raise ValueError("epochs are a factor of a study: set factors.epochs")
        return training

    @field_validator("data", mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    def trials(self) -> list[dict[str, Any]]:
        """One plain config a trial, in the order of the factors. A trial's id depends on its own config alone.

        >>> spec = StudySpec(name="a", factors={"curvature": [1, 4], "seed": [0]})
        >>> [trial["activation"] for trial in spec.trials()]
        ['rctaf(alpha=4.0, beta=0)', 'rctaf(alpha=16.0, beta=0)']
        """
        shared = self.model_dump(exclude={"name", "question", "factors"}, mode="json")
        del shared["training"]["epochs"]
        shared = without_unset(shared)
        f = self.factors
        return [
            {
                **shared,
                "family": family,
                "curvature": curvature,
                "centered": centered,
                "epochs": epochs,
                "seed": seed,
                "activation": str(activation(with_curvature(family, curvature, centered))),
            }
            for family, centered, epochs, curvature, seed in itertools.product(
                f.family, f.centered, f.epochs, f.curvature, f.seed
            )
        ]

    def to_yaml(self) -> str:
        """The resolved spec, every default written out."""
        content = self.model_dump(mode="json")
        del content["training"]["epochs"]
        return yaml.safe_dump(content, sort_keys=False, width=120)

    def label(self, config: dict[str, Any]) -> str:
        """A trial in words."""
        centered = ", centered" if config["centered"] else ""
        return f"{config['family']} κ={config['curvature']:g}{centered} seed {config['seed']}"


OPTIONAL = ("analyses", "activation_from")


def without_unset(config: dict[str, Any]) -> dict[str, Any]:
    """A trial's config without the optional steps that it does not have, so that new steps leave the ids of old trials alone.

    >>> without_unset({"activation": "relu", "analyses": None})
    {'activation': 'relu'}
    """
    return {key: value for key, value in config.items() if key not in OPTIONAL or value is not None}


def trial_id(config: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the hash of a trial's config: equal configs, equal ids, on any machine.

    >>> trial_id({"a": 1, "b": 2.0}) == trial_id({"b": 2.0, "a": 1})
    True
    """
    text = json.dumps({"schema": SCHEMA, **config}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_curvature(family: str, curvature: float, centered: bool) -> str:
    """The name of the family's member with that κ.

    >>> with_curvature("rctaf(beta=1)", 6.0, True)
    'rctaf(beta=1, curvature=6.0, centered=True)'
    """
    name, parameters = parse_name(family)
    parameters["curvature"] = curvature
    if centered:
        parameters["centered"] = True
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in parameters.items())})"


def load_spec(path: str | Path, overrides: list[str] | None = None) -> StudySpec:
    """Read a study from YAML; overrides are `key.key=value`, the value in YAML.

    Raises CurvactError in one line that names the file, the key, the value and what is allowed.
    """
    return read_settings(StudySpec, path, overrides)


def check_spec(content: dict[str, Any], where: str) -> StudySpec:
    """A StudySpec from plain data, or a CurvactError that names the first thing wrong in it."""
    return check_settings(StudySpec, content, where)
