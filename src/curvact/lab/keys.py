"""The keys of specs, with defaults and meaning: read off the types, so that no list is written twice."""

from __future__ import annotations

import copy
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from curvact.attacks import ThreatModel
from curvact.errors import CurvactError, nearest
from curvact.lab.imports import Import
from curvact.lab.search import Range, SearchSpec
from curvact.lab.spec import (
    ActivationFrom,
    AnalysesSpec,
    DataSpec,
    EvaluationSpec,
    HardwareSpec,
    HelperFrom,
    HessianSpec,
    InitFrom,
    LoggingSpec,
    ModelSpec,
    RunSpec,
)
from curvact.lab.sweep import SweepSpec
from curvact.training import Recipe

SPECS: dict[str, type[BaseModel]] = {"run": RunSpec, "sweep": SweepSpec, "search": SearchSpec}
"""The kinds of spec: of `curvact train`, `curvact sweep run` and `curvact search`."""

_PARTS = (
    *(RunSpec, SweepSpec, SearchSpec, DataSpec, ModelSpec, ActivationFrom, InitFrom, HelperFrom),
    *(EvaluationSpec, HessianSpec, AnalysesSpec, HardwareSpec, LoggingSpec),
    *(ThreatModel, Recipe, Import, Range),
)

Schema = dict[str, Any]

_MEMBER: Schema = {
    "curvature": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "description": "κ of the member of the family that `activation` names.",
    },
    "centered": {"type": "boolean", "description": "whether σ(0) is moved to 0."},
}


@dataclass(frozen=True)
class Key:
    """A key of a spec.

    path: with dots, such as "training.epochs". default: as YAML has it; None where the key has
    none. required: whether a spec must have it. values: what is allowed, in words.
    about: what it means.
    """

    path: str
    default: Any
    required: bool
    values: str
    about: str

    @property
    def holds_keys(self) -> bool:
        return self.values == "keys"


def check_kind(name: str) -> None:
    """CurvactError for an unknown kind of spec."""
    if name not in SPECS:
        raise CurvactError(f"no kind of spec '{name}'{nearest(name, SPECS)}; allowed are {', '.join(SPECS)}")


def schema_of(name: str) -> Schema:
    """The JSON schema of a kind of spec: what an editor needs to complete and check it.

    It admits every spec that is right as far as JSON schemas can say it. Values that depend on each
    other are checked when the spec is read. Raises CurvactError for an unknown kind.
    """
    check_kind(name)
    schema: Schema = SPECS[name].model_json_schema()
    definitions = schema.setdefault("$defs", {})
    if name != "run":
        run = schema_of("run")
        definitions |= run.pop("$defs")
        del run["$schema"]
        definitions["RunSpec"] = {**run, "patternProperties": {r"\.": {}}}
        schema["properties"]["base"] = {"$ref": "#/$defs/RunSpec"}
    by_name = {part.__name__: part for part in _PARTS}
    for title, part in [*definitions.items(), (SPECS[name].__name__, schema)]:
        if "properties" in part and title in by_name and (part is schema or title != "RunSpec"):
            _describe(part, by_name[title])
    if name == "run":
        schema["properties"] |= copy.deepcopy(_MEMBER)
    short = dict.fromkeys(("DataSpec", "ModelSpec", "InitFrom", "HelperFrom", "Import"), "string")
    for title, kind in (short | {"AnalysesSpec": "array"}).items():
        if title in definitions and "anyOf" not in definitions[title]:
            long = definitions[title]
            definitions[title] = {"anyOf": [long, {"type": kind}], "description": long["description"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _describe(part: Schema, kind: type) -> None:
    """Put the meaning of each key into a schema, its right default, and the text of attacks."""
    said, fields = meanings(kind), _fields(kind)
    part["description"] = _first_paragraph(kind)
    for key, value in part["properties"].items():
        value.pop("title", None)
        default = fields[key]
        if default is not None and "default" not in value and isinstance(default, dict):
            value["default"] = default
        if key in said:
            value["description"] = said[key]
        if key == "epsilon":
            value["type"] = ["number", "string"]
        if key in ("attack", "validation") and kind is not DataSpec:
            value.clear()
            value |= {"type": ["string", "null"], "description": said.get(key, "")}
            value["default"] = None if default is None else str(default)
    part.pop("title", None)


def keys_of(name: str, base: bool = False) -> list[Key]:
    """The keys of a kind of spec and of the settings inside it, in their order.

    base: whether those of a run are listed within the key `base` of a sweep or a search.

    >>> [key.path for key in keys_of("run")][:3]
    ['name', 'about', 'imports']
    >>> next(key for key in keys_of("run") if key.path == "training.learning_rate").default
    0.06
    """
    schema = schema_of(name)
    return list(_keys(schema, schema["$defs"], "", {}, base))


def _keys(
    part: Schema, definitions: Schema, place: str, given: Mapping[str, Any], base: bool
) -> Iterator[Key]:
    """given: defaults of a key that holds keys, which are those of the keys inside it."""
    for name, value in part["properties"].items():
        path = f"{place}.{name}" if place else name
        inner = _inner(value, definitions)
        default = value.get("default", given.get(name))
        about = value.get("description") or (inner or {}).get("description", "")
        words = "keys" if inner else _in_words(value, definitions)
        yield Key(path, None if inner else default, name in part.get("required", ()), words, about)
        if inner is not None and (base or path != "base"):
            yield from _keys(inner, definitions, path, default or {}, base)


def _inner(value: Schema, definitions: Schema) -> Schema | None:
    """The settings that a key holds."""
    for option in (value, *value.get("anyOf", ())):
        if "$ref" in option:
            found: Schema = definitions[option["$ref"].rpartition("/")[2]]
            return (
                found if "properties" in found else found["anyOf"][0] | {"description": found["description"]}
            )
    return None


def _in_words(value: Schema, definitions: Schema) -> str:
    """What a value may be.

    >>> _in_words({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}, {})
    'a whole number >= 1, or null'
    """
    if "anyOf" in value:
        kinds = dict.fromkeys(_in_words(option, definitions) for option in value["anyOf"])
        return ", or ".join(kinds) if len(kinds) < 5 else "a value"
    if "enum" in value:
        return ", ".join(map(str, value["enum"]))
    if isinstance(value.get("type"), list):
        return ", or ".join(_in_words({**value, "type": kind}, definitions) for kind in value["type"])
    words = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true, false"}
    kind = value.get("type", "")
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [
        f"{sign} {value[bound]:g}" for bound, sign in bounds.items() if bound in value and value[bound] < 1e9
    ]
    if kind in ("integer", "number"):
        return " ".join([words[kind], " and ".join(limits)]).strip()
    if kind == "array":
        items = value.get("items", {})
        one = "text" if "$ref" in items else _in_words(items, definitions)
        return f"a list: {one}"
    return words.get(kind, "null" if kind == "null" else "a mapping")


def meanings(kind: type) -> dict[str, str]:
    """What the docstring of a type says of each of its fields.

    A docstring says `name: meaning.`, and of several fields `first, second: meaning.`
    """
    names = list(_fields(kind))
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    text = re.split(r" Raises CurvactError| >>> | Methods take ", text)[0]
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    starts = list(re.finditer(rf"(?:^|(?<=[.;)`\"\]] ))({one})((?:, (?:{one}))*): ", text))
    found: dict[str, str] = {}
    for number, start in enumerate(starts):
        end = starts[number + 1].start() if number + 1 < len(starts) else len(text)
        for name in (start[1] + start[2]).split(", "):
            found[name] = re.sub(r"\bNone\b", "null", text[start.end() : end].strip())
    return found


def _fields(kind: type) -> dict[str, Any]:
    """name → default."""
    if issubclass(kind, BaseModel):
        return {
            name: None if field.is_required() else field.get_default(call_default_factory=True)
            for name, field in kind.model_fields.items()
        }
    return {
        name: getattr(kind, name, None) for name in inspect.get_annotations(kind) if not name.startswith("__")
    }


def _first_paragraph(kind: type) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


def commented(name: str, given: Mapping[str, Any], every: bool = False) -> str:
    """A spec to begin with, as YAML. Above each key stands what it means, and what it may be.

    given: settings by dotted key. every: all other keys too, each with its default behind a `#`
    without a space after it: take the # away to set the key.
    """
    lines: list[str] = []
    left = dict(given)
    for key in keys_of(name, base=True):
        *parents, last = key.path.split(".")
        is_set = key.path in given or any(path.startswith(f"{key.path}.") for path in given)
        if not (is_set or every):
            continue
        indent = "  " * len(parents)
        if not parents:
            lines.append("")
        allowed = f" ({key.values})" if not key.holds_keys and key.values not in ("text", "a mapping") else ""
        margin = f"{indent}# "
        lines += textwrap.wrap(
            f"{key.about}{allowed}",
            100,
            initial_indent=margin,
            subsequent_indent=margin,
            break_on_hyphens=False,
        )
        if key.holds_keys and key.path not in given:
            rest = [f"{last}:"]
        else:
            rest = _yaml(last, left.pop(key.path, key.default))
        lines += [f"{'' if is_set else '#'}{indent}{line}" for line in rest]
    if left:
        raise KeyError(", ".join(left))
    return "\n".join(lines).strip() + "\n"


def _yaml(name: str, value: Any) -> list[str]:
    """A key and its value as lines of YAML. Lists stand in one line."""
    if not isinstance(value, (dict, list)) or not value:
        return yaml.safe_dump({name: value}, width=100, allow_unicode=True).rstrip().split("\n")
    text = yaml.safe_dump(value, sort_keys=False, width=90, allow_unicode=True, default_flow_style=None)
    lines = text.rstrip().split("\n")
    if len(lines) == 1 and lines[0][0] in "[{":
        return [f"{name}: {lines[0]}"]
    return [f"{name}:", *(f"  {line}" for line in lines)]
