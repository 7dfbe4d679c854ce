"""Settings as data: reading YAML, changing one key, and errors that name the wrong key."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from curvact.errors import CurvactError, nearest, short

Settings = TypeVar("Settings", bound=BaseModel)
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
MOST_BYTES = 200_000
"""A larger file of settings is refused."""

MOST_VALUES = 10_000
"""Settings of more values, every alias written out, are refused."""

MOST_LEVELS = 50
"""Settings that are nested deeper are refused."""

LONGEST_MESSAGE = 1000
"""A longer message is cut."""


class Strict(BaseModel):
    """Frozen settings without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


def read_settings(
    kind: type[Settings],
    path: str | Path,
    overrides: list[str] | None = None,
    flat: Collection[str] = (),
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Settings:
    """Settings of that kind from a YAML file. overrides: each `key.key=value`, the value in YAML.

    flat: mappings whose keys contain dots, so that `grid.training.epochs=[1]` sets one key of
    `grid`. prepare: changes the plain settings before they are checked. Raises CurvactError in one
    line that names the file, the key, the value and what is allowed.
    """
    path = Path(path)
    content = read_plain(path)
    if not isinstance(content, dict):
        keys = ", ".join(_keys_at(kind, []))
        raise CurvactError(f"{path} holds no settings: expected keys such as {keys}")
    for override in overrides or []:
        override_key(content, override, flat)
    return check_settings(kind, prepare(content), str(path))


_TOO_DEEP = re.compile(rf"(?:[\[{{]\s*){{{MOST_LEVELS + 1}}}")


def read_plain(path: Path) -> Any:
    """The content of a YAML file as plain data. Every key is text.

    Raises CurvactError in one line for what is no file, for more than MOST_BYTES or MOST_VALUES,
    and for what is not YAML.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CurvactError(f"{path} is no file of settings: give a YAML file")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise CurvactError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > MOST_BYTES:
        raise CurvactError(f"{path} is larger than the {MOST_BYTES:,} bytes that settings may have")
    return plain_of(text, str(path))


def plain_of(text: str | bytes, where: str) -> Any:
    """YAML as plain data: dicts whose keys are text, lists, and values.

    >>> plain_of("a: [1, x]", "here")
    {'a': [1, 'x']}
    >>> plain_of("a: {1: 2}", "here")
    Traceback (most recent call last):
        ...
    curvact.errors.CurvactError: here: the key 1 in 'a' is no text: write it in quotes
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if _TOO_DEEP.search(text):  # PyYAML takes seconds for them
            raise CurvactError(f"nested more than {MOST_LEVELS} levels deep")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _values_in(node, {}) > MOST_VALUES:
                raise CurvactError(f"more than {MOST_VALUES:,} values, aliases written out")
            content = loader.construct_document(node)
        finally:
            loader.dispose()
        _check_plain(content, "")
    except CurvactError as error:
        raise CurvactError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise CurvactError(f"{where} is not valid YAML: {short(why)}") from None
    return content


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """Plain data only, and no more of them, nor deeper, than settings have."""

    depth = values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.values += 1
        if self.depth > MOST_LEVELS:
            raise CurvactError(f"nested more than {MOST_LEVELS} levels deep")
        if self.values > MOST_VALUES:
            raise CurvactError(f"more than {MOST_VALUES:,} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and ":" in node.value:
            return node.value  # 1:30:00 stays text: YAML 1.1 reads it as 5400, a number to the base 60
        try:
            return super().construct_object(node, deep)
        except (CurvactError, yaml.YAMLError):
            raise
        # Of Python, for `!!int x`, `!!bool x`, a date such as 2001-99-99 or a number of 5000 digits.
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise CurvactError(f"line {line}: {short(repr(node.value))} is no {kind}") from None


def _values_in(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds, every alias written out."""
    found = known.get(id(node))
    if found is None:
        known[id(node)] = 0
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        found = known[id(node)] = 1 + sum(_values_in(child, known) for child in children)
    elif found == 0:
        raise CurvactError("an alias stands inside what it means")
    return found


def _check_plain(content: Any, place: str) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                inside = f" in '{short(place)}'" if place else ""
                raise CurvactError(f"the key {short(repr(key))}{inside} is no text: write it in quotes")
            _check_plain(key, place)
            _check_plain(value, f"{place}.{key}" if place else key)
    elif isinstance(content, list):
        for value in content:
            _check_plain(value, place)
    elif isinstance(content, int) and abs(content) > 10**300:
        raise CurvactError(
            f"'{short(place)}' has a number of {content.bit_length():,} bits, which is too large"
        )
    elif (
        isinstance(content, str) and not content.isascii() and any("\ud800" <= c <= "\udfff" for c in content)
    ):
        raise CurvactError(f"'{short(place)}' has half a surrogate pair, which is no text")


def check_settings(kind: type[Settings], content: dict[str, Any], where: str) -> Settings:
    """Settings from plain data, or a CurvactError that names the first thing wrong in them."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise CurvactError(short(f"{where}: {first_problem(kind, error)}", LONGEST_MESSAGE)) from None


def first_problem(kind: type[BaseModel], error: ValidationError) -> str:
    """The first thing wrong with settings, in one line."""
    # A misspelt key is named before the missing one it causes.
    problems = sorted(error.errors(), key=lambda e: e["type"] not in UNKNOWN)
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    place = ".".join(location)
    if problem["type"] in UNKNOWN:
        allowed = _keys_at(kind, location[:-1])
        return (
            f"unknown key '{short(place)}'{nearest(location[-1], allowed)}; allowed are {', '.join(allowed)}"
        )
    if problem["type"] == "missing":
        return f"the key '{place}' is missing"
    message = problem["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, such as [0, 1]")
    if problem["type"] == "value_error" and not isinstance(problem["input"], (str, int, float)):
        return f"{place}: {message}" if place else message
    return f"{short(place)}={short(repr(problem['input']))}: {message[0].lower()}{message[1:]}"


def override_key(content: dict[str, Any], override: str, flat: Collection[str] = ()) -> None:
    """Set `key.key=value`, the value in YAML, in plain nested settings. flat: as in
    `read_settings`.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise CurvactError(f"{override!r}: write it as key.key=value")
    try:
        value = plain_of(text, repr(override))
    except CurvactError as error:
        if "not valid YAML" not in str(error):
            raise
        raise CurvactError(f"{short(repr(override))}: the value is not valid YAML") from None
    first, dot, rest = key.partition(".")
    if dot and first in flat:
        place = content.setdefault(first, {})
        if not isinstance(place, dict):
            raise CurvactError(f"{override!r}: '{first}' holds a value, not keys")
        place[rest] = value
        return
    override_in(content, key, value, repr(override))


def override_in(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the value at a dotted key in plain nested settings.

    A data set or a model given by its name alone becomes a mapping with that name, and weights given by
    their path alone one with that path.
    Raises CurvactError where a part of the key holds a value.

    >>> content = {"data": "digits"}
    >>> override_in(content, "data.train", 100, "example")
    >>> content
    {'data': {'name': 'digits', 'train': 100}}
    """
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        alone = {"data": "name", "model": "name", "helper": "path", "init_from": "path"}.get(parent)
        if alone is not None and isinstance(place.get(parent), str):
            place[parent] = {alone: place[parent]}
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise CurvactError(f"{where}: '{parent}' holds a value, not keys")
    place[last] = value


def override_all(content: dict[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """Set settings by dotted key. The name of a data set or a model alone leaves its other settings.

    >>> content = {"data": {"name": "digits", "train": 100}}
    >>> override_all(content, {"data": "fashion", "training.epochs": 2}, "example")
    >>> content
    {'data': {'name': 'fashion', 'train': 100}, 'training': {'epochs': 2}}
    """
    for key, value in settings.items():
        short = key in ("data", "model") and isinstance(value, str)
        override_in(content, f"{key}.name" if short else key, copy.deepcopy(value), where)


def argument_problem(key: str, value: Any, default: Any) -> str:
    """Why the value cannot take the place of the default, in one line, or "".

    A size is a whole number >= 1 (0 only where the default is 0). A fraction is a number.
    A switch is true or false.

    >>> argument_problem("width", 0, 8)
    'width=0: must be a whole number >= 1'
    """
    if default is None:
        return ""
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
    return "" if fits else f"{key}={short(repr(value))}: must be {allowed}"


def choice(name: str, allowed: list[str]) -> str:
    """The name, or a ValueError that says what is allowed."""
    if name not in allowed:
        raise ValueError(f"allowed are {', '.join(allowed)}{nearest(name, allowed)}")
    return name
