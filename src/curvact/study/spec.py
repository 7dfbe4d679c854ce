"""A study as data: the YAML that a user writes, checked, and the trials it stands for."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from curvact.activations.registry import activation, parse_name
from curvact.data import DATASETS, names_a_place
from curvact.errors import CurvactError, nearest
from curvact.models import MODELS, arguments_of
from curvact.training import OBJECTIVES

SCHEMA = 2
"""Part of every trial's content hash: raised when the meaning of a config changes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(_Strict):
    """The images: anything `curvact.data.load` knows, at most so many of each split, and synthetic ones to mix in."""

    name: str = "digits"
    size: int | None = Field(None, ge=1)
    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)
    extra: str | None = None
    extra_fraction: float = Field(0.5, gt=0, lt=1)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return name if names_a_place(name) else _choice(name, list(DATASETS))


class ModelSpec(_Strict):
    """The architecture: a name of `curvact.models.MODELS`, and the arguments that this one takes, such as width."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "mini_resnet"
    scope: Literal["network", "stage", "layer"] = "layer"

    @model_validator(mode="before")
    @classmethod
    def _with_its_defaults(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        name = content.get("name", "mini_resnet")
        if not isinstance(name, str) or name not in MODELS:
            return content
        defaults = arguments_of(name)
        for key, value in content.items():
            if key in ("name", "scope"):
                continue
            if key not in defaults:
                raise ValueError(
                    f"{name} has no argument '{key}'{nearest(key, defaults)}; allowed are {', '.join(['scope', *defaults])}"
                )
            _check_kind(key, value, defaults[key])
        return {"name": name, "scope": "layer", **defaults, **content}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _choice(name, list(MODELS))


class ThreatSpec(_Strict):
    """The perturbations: norm and epsilon in input units."""

    norm: Literal["linf", "l2"] = "linf"
    epsilon: float = Field(0.2, ge=0, allow_inf_nan=False)


class TrainingSpec(_Strict):
    """How each trial is trained; epochs are a factor."""

    objective: str = "pgd-at"
    batch_size: int = Field(48, ge=2)
    learning_rate: float = Field(0.06, gt=0, allow_inf_nan=False)
    warmup: float = Field(0.3, ge=0, lt=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    attack_steps: int = Field(5, ge=0)
    attack_step_size: float = Field(0.08, gt=0, allow_inf_nan=False)
    crop: int = Field(0, ge=0)
    flip: bool = False
    cutout: int = Field(0, ge=0)

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        return _choice(name, list(OBJECTIVES))


class EvaluationSpec(_Strict):
    """The PGD that measures robust accuracy: on the whole test set, and on the first `train_images` of the training set."""

    steps: int = Field(20, ge=1)
    step_size: float = Field(0.04, gt=0, allow_inf_nan=False)
    restarts: int = Field(1, ge=1)
    train_images: int = Field(512, ge=1)


class HessianSpec(_Strict):
    """The Hessian diagonal of the trained model: probes and deflated directions of the estimator, images in the fixed batch."""

    probes: int = Field(16, ge=4)
    deflation: int = Field(8, ge=0)
    images: int = Field(128, ge=1)


class Factors(_Strict):
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


class StudySpec(_Strict):
    """A curvature sweep."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = ""
    data: DataSpec = DataSpec()
    model: ModelSpec = Field(default_factory=lambda: ModelSpec.model_validate({}))
    threat_model: ThreatSpec = ThreatSpec()
    factors: Factors
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    hessian: HessianSpec | None = HessianSpec()

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
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


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
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise CurvactError(f"cannot read the study {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CurvactError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise CurvactError(f"{path} holds no study: expected keys such as name and factors")
    for override in overrides or []:
        _override(content, override)
    return check_spec(content, str(path))


def check_spec(content: dict[str, Any], where: str) -> StudySpec:
    """A StudySpec from plain data, or a CurvactError that names the first thing wrong in it."""
    try:
        return StudySpec.model_validate(content)
    except ValidationError as error:
        raise CurvactError(f"{where}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    # A misspelt key is named before the missing one it causes.
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    place = ".".join(location)
    if problem["type"] == "extra_forbidden":
        owner = _model_at(location[:-1])
        allowed = list(owner.model_fields) if owner else []
        return f"unknown key '{place}'{nearest(location[-1], allowed)}; allowed are {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"the key '{place}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and not isinstance(problem["input"], (str, int, float)):
        return f"{place}: {message}"
    return f"{place}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def _model_at(location: list[str]) -> type[BaseModel] | None:
    owner: Any = StudySpec
    for part in location:
        field = owner.model_fields.get(part)
        if field is None:
            return None
        options = getattr(field.annotation, "__args__", (field.annotation,))
        owner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if owner is None:
            return None
    return owner  # type: ignore[no-any-return]


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise CurvactError(f"--set {override!r}: write it as key.key=value")
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise CurvactError(f"--set {override!r}: '{parent}' holds a value, not keys")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise CurvactError(f"--set {override!r}: the value is not valid YAML") from None


def _check_kind(key: str, value: Any, default: Any) -> None:
    """A size is a whole number >= 1 (0 only where that is the default), a fraction a number, a switch true or false."""
    if default is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        fits, allowed = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        least = min(default, 1)
        fits = isinstance(value, int) and number and value >= least
        allowed = f"a whole number >= {least}"
    elif isinstance(default, float):
        fits, allowed = number and math.isfinite(value), "a number"
    else:
        fits, allowed = isinstance(value, type(default)), f"a {type(default).__name__}"
    if not fits:
        raise ValueError(f"{key}={value!r}: must be {allowed}")


def _choice(name: str, allowed: list[str]) -> str:
    if name not in allowed:
        raise ValueError(f"allowed are {', '.join(allowed)}{nearest(name, allowed)}")
    return name
