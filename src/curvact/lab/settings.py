"""Settings as data: what the YAML files of studies and training runs share, and errors that name the wrong key."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from curvact.data import DATASETS, names_a_place
from curvact.errors import CurvactError, nearest
from curvact.models import MODELS, arguments_of

Settings = TypeVar("Settings", bound=BaseModel)
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


class Strict(BaseModel):
    """Settings that cannot be changed, and admit no unknown key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(Strict):
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
        return name if names_a_place(name) else choice(name, list(DATASETS))


class ModelSpec(Strict):
    """The architecture: a name of `curvact.models.MODELS`, and the arguments that this one takes, such as width.

    scope: where an activation is shared; None for what suits it, the whole network for learned ones.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "mini_resnet"
    scope: Literal["network", "stage", "layer", "channel"] | None = None

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
        return {"name": name, "scope": None, **defaults, **content}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return choice(name, list(MODELS))


class ThreatSpec(Strict):
    """The perturbations: norm and epsilon in input units."""

    norm: Literal["linf", "l2"] = "linf"
    epsilon: float = Field(0.2, ge=0, allow_inf_nan=False)


def _keys_at(kind: Any, location: list[str]) -> list[str]:
    """The keys that settings of this kind admit at a place in them."""
    for part in location:
        annotation = _annotations(kind).get(part)
        options = [annotation, *getattr(annotation, "__args__", ())]
        kind = next((o for o in options if isinstance(o, type) and _annotations(o)), None)
        if kind is None:
            return []
    return list(_annotations(kind))


def _annotations(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return {field.name: field.type for field in dataclasses.fields(kind)}
    return {}


def read_settings(kind: type[Settings], path: str | Path, overrides: list[str] | None = None) -> Settings:
    """Settings of that kind from a YAML file; overrides are `key.key=value`, the value in YAML.

    Raises CurvactError in one line that names the file, the key, the value and what is allowed.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CurvactError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        keys = ", ".join(_keys_at(kind, []))
        raise CurvactError(f"{path} holds no settings: expected keys such as {keys}")
    for override in overrides or []:
        override_key(content, override)
    return check_settings(kind, content, str(path))


def check_settings(kind: type[Settings], content: dict[str, Any], where: str) -> Settings:
    """Settings from plain data, or a CurvactError that names the first thing wrong in them."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise CurvactError(f"{where}: {first_problem(kind, error)}") from None


def first_problem(kind: type[BaseModel], error: ValidationError) -> str:
    """The first thing wrong with settings, in one line."""
    # A misspelt key is named before the missing one it causes.
    problems = sorted(error.errors(), key=lambda e: e["type"] not in UNKNOWN)
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    place = ".".join(location)
    if problem["type"] in UNKNOWN:
        allowed = _keys_at(kind, location[:-1])
        return f"unknown key '{place}'{nearest(location[-1], allowed)}; allowed are {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"the key '{place}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and not isinstance(problem["input"], (str, int, float)):
        return f"{place}: {message}" if place else message
    return f"{place}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def override_key(content: dict[str, Any], override: str) -> None:
    """Set `key.key=value`, the value in YAML, in plain nested settings."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise CurvactError(f"{override!r}: write it as key.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise CurvactError(f"{override!r}: the value is not valid YAML") from None
    override_in(content, key, value, repr(override))


def override_in(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the value at a dotted key in plain nested settings; CurvactError where a part of the key is no mapping."""
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise CurvactError(f"{where}: '{parent}' holds a value, not keys")
    place[last] = value


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


def choice(name: str, allowed: list[str]) -> str:
    """The name, or a ValueError that says what is allowed."""
    if name not in allowed:
        raise ValueError(f"allowed are {', '.join(allowed)}{nearest(name, allowed)}")
    return name
