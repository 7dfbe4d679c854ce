"""A search for the best value of any keys of a run's spec, as one typed, frozen value."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from curvact.errors import nearest
from curvact.lab.imports import Import, read_with_code
from curvact.lab.settings import Strict, first_problem, override_all
from curvact.lab.spec import RunSpec, with_hashes
from curvact.lab.sweep import Settings, in_words, nested, run_of
from curvact.lab.table import Value

SEARCH_FILE = "search.yaml"

JUDGES = ("evaluation", "threat_model", "data", "hessian", "analyses", "training.validation")
"""Keys that decide how a trial is judged, or what on: trials that differ in them cannot be compared."""

WITHOUT_EFFECT = ("name", "about", "imports", "logging", "hardware")

MOST_COMBINATIONS = 10_000
"""A grid of more trials is refused."""

MOST_CORNERS = 512
"""A space with more corners is tried key by key before the search, not corner by corner."""

DIGITS = 4
"""Significant digits of a value from a range, so that specs can be read and typed."""


class Range(Strict):
    """Numbers from low to high, both included.

    log: uniform in the logarithm. integer: whole numbers. points: how many values a grid takes.
    """

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    integer: bool = False
    points: int = Field(5, ge=2, le=1000)

    @model_validator(mode="after")
    def _rises(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} and high={self.high:g}: low must be lower than high")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g} of a logarithmic range: must be > 0")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"low={self.low:g} and high={self.high:g}: must be whole where integer is true")
        return self

    def plain(self, value: float) -> float | int:
        """A value as it is written in specs: whole, or of four significant digits.

        >>> Range(low=0.1, high=60, log=True).plain(3.14159)
        3.142
        """
        if self.integer:
            return int(min(max(round(value), self.low), self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    @property
    def values(self) -> tuple[float | int, ...]:
        """The values of a grid, evenly spaced on the scale of the range.

        >>> Range(low=1, high=16, log=True, points=3).values
        (1.0, 4.0, 16.0)
        """
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        steps = (low + (high - low) * i / (self.points - 1) for i in range(self.points))
        return tuple(dict.fromkeys(self.plain(math.exp(step) if self.log else step) for step in steps))


class SearchSpec(Strict):
    """A search.

    name: the folder is named so, unless another is given. question: what it is run for, in words.
    imports: files of Python that register what the spec names, such as `[my.py]`.
    base: settings of a `RunSpec` that all trials share.
    space: what is searched, by dotted key: a list of choices, or a `Range`. The key `curvature`
        chooses κ within the family that `activation` names.
    budget: gradient evaluations of all trials together, as the records count them.
    sampler: "tpe" (the tree-structured Parzen estimator of Optuna), "random", or "grid" (every
        combination once, in an order drawn from the seed).
    pruning: "median" stops a trial whose validation curve is below the median of the completed
        trials; "none" lets every trial end.
    seed: of the sampler and of every run.
    baseline: settings on the base that the winner is compared with; {} for none. Its cost is beside
        the budget.
    test_attack: what the winner and the baseline are attacked with on the test images at the end, such
        as "autoattack". None: the attack of the evaluation.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = ""
    imports: tuple[Import, ...] = ()
    base: Settings = Field(default_factory=dict)
    space: dict[str, Range | tuple[Value, ...]]
    budget: int = Field(ge=1)
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruning: Literal["median", "none"] = "median"
    seed: int = Field(0, ge=0)
    baseline: Settings = Field(default_factory=lambda: {"activation": "relu"})
    test_attack: str | None = None

    @field_validator("base")
    @classmethod
    def _nested(cls, base: Settings) -> Settings:
        return with_hashes(nested(base))

    @field_validator("space", mode="before")
    @classmethod
    def _values(cls, space: Any) -> Any:
        if not isinstance(space, dict) or not space:
            raise ValueError("give at least one key with a range or a list, such as {curvature: [1, 4]}")
        return {key: _plain(key, values) for key, values in space.items()}

    @model_validator(mode="after")
    def _can_run(self) -> SearchSpec:
        self._check_keys()
        if self.sampler == "grid" and self.size > MOST_COMBINATIONS:
            raise ValueError(f"a grid of {self.size:,.0f} trials: at most {MOST_COMBINATIONS:,}")
        if self.test_attack is not None:
            from curvact.attacks import named_attack

            named_attack(self.test_attack)
        for settings in self.corners():
            self.trial(settings)
        _ = self.baseline_run
        return self

    def _check_keys(self) -> None:
        def within(key: str, names: tuple[str, ...]) -> bool:
            return any(key == name or key.startswith(f"{name}.") for name in names)

        known = [*RunSpec.model_fields, "curvature", "centered"]
        for place, keys in (("space", self.space), ("baseline", self.baseline)):
            for key in keys:
                if key.partition(".")[0] not in known:
                    raise ValueError(
                        f"{place}: unknown key '{key}'{nearest(key, known)}; allowed are {', '.join(known)}"
                    )
                if within(key, JUDGES) and not key.startswith("data.extra"):
                    raise ValueError(f"{place}.{key}: it decides how trials are judged; set it in base")
                if within(key, WITHOUT_EFFECT):
                    raise ValueError(f"{place}.{key}: it changes no accuracy; set it in base")
                if key == "seed":
                    raise ValueError(f"{place}.seed: the seed of every run is the key seed of the search")
        for key in self.baseline:
            if key.startswith("activation_from"):
                raise ValueError(f"baseline.{key}: give the baseline an activation by name")
        for key, where in (("seed", "seed"), ("imports", "imports")):
            if key in self.base:
                raise ValueError(f"base.{key}: write {where} beside base, for the whole search")
        evaluation = self.base.get("evaluation", {})
        if isinstance(evaluation, dict) and "split" in evaluation:
            raise ValueError("base.evaluation.split: trials are judged on validation images, always")
        if self.pruning == "median" and {"training.epochs", "training.batch_size"} & set(self.space):
            raise ValueError(
                "pruning='median' compares trials epoch by epoch: with training.epochs or "
                "training.batch_size in space set pruning to none"
            )

    @cached_property
    def size(self) -> float:
        """The number of different trials; infinite with a range, except for a grid."""

        def count(values: Range | tuple[Value, ...]) -> float:
            if isinstance(values, tuple):
                return len(values)
            if self.sampler == "grid":
                return len(values.values)
            return values.high - values.low + 1 if values.integer else math.inf

        return math.prod(map(count, self.space.values()))

    def combinations(self) -> Iterator[dict[str, Value]]:
        """Every combination of a grid."""
        values = [v if isinstance(v, tuple) else v.values for v in self.space.values()]
        for chosen in itertools.product(*values):
            yield dict(zip(self.space, chosen, strict=True))

    def corners(self) -> Iterator[dict[str, Value]]:
        """Settings that are tried before the search: every choice with both ends of every range; key
        by key, the others at their first value, where these are too many.
        """
        ends: dict[str, tuple[Value, ...]] = {
            key: v if isinstance(v, tuple) else (v.plain(v.low), v.plain(v.high))
            for key, v in self.space.items()
        }
        if math.prod(map(len, ends.values())) <= MOST_CORNERS:
            for chosen in itertools.product(*ends.values()):
                yield dict(zip(ends, chosen, strict=True))
            return
        first = {key: values[0] for key, values in ends.items()}
        for key, values in ends.items():
            for value in values:
                yield {**first, key: value}

    def trial(self, settings: Mapping[str, Value]) -> RunSpec:
        """The run of a trial. Raises CurvactError for settings that cannot be together.

        >>> spec = SearchSpec(name="a", base={"activation": "rctaf(beta=0)"}, budget=1,
        ...                   space={"curvature": Range(low=1, high=16, log=True)})
        >>> spec.trial({"curvature": 4.0}).activation, spec.trial({"curvature": 4.0}).evaluation.split
        ('rctaf(alpha=16.0, beta=0)', 'validation')
        """
        words = ", ".join(in_words(key, value) for key, value in settings.items())
        return self._run(settings, f"the trial {words}")

    @cached_property
    def baseline_run(self) -> RunSpec | None:
        """The run of the baseline, judged as the trials are."""
        if not self.baseline:
            return None
        chooses = "activation" in self.baseline and "curvature" not in self.baseline
        alone: Settings = {"curvature": None, "centered": False} if chooses else {}
        return self._run({**alone, **self.baseline}, "the baseline")

    def _run(self, settings: Mapping[str, Any], where: str) -> RunSpec:
        content = copy.deepcopy(self.base)
        content.setdefault("name", self.name)
        override_all(content, {**settings, "seed": self.seed, "evaluation.split": "validation"}, where)
        return run_of(content, self.imports, where)

    def to_yaml(self) -> str:
        """The spec as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100, allow_unicode=True)


def _plain(key: str, values: Any) -> Range | tuple[Value, ...]:
    """A range or a list of choices from plain settings."""
    if isinstance(values, Range):
        return values
    if isinstance(values, dict):
        try:
            return Range.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{key}: {first_problem(Range, error)}") from None
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{key}={values!r}: a list of choices, or a range such as {{low: 1, high: 60}}")
    for value in values:
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise ValueError(f"{key} has {value!r}: a choice is a text, a number, true, false or null")
    if len({(type(value), value) for value in values}) != len(values):
        raise ValueError(f"{key} names a value twice")
    return tuple(values)


def on_test_images(spec: RunSpec) -> RunSpec:
    """The run of a trial as a run by itself, which is attacked on the test images."""
    evaluation = spec.evaluation.model_copy(update={"split": "test"})
    return spec.model_copy(update={"evaluation": evaluation})


def read_search(path: str | Path, overrides: list[str] | None = None) -> SearchSpec:
    """The spec of a search from YAML, or of a search's folder; overrides are `key.key=value`.

    What follows `space.` is one key, dots included. The files in `imports` are run; those of a folder
    only if they are trusted, see `curvact.lab.imports`.
    Raises CurvactError in one line for what is wrong in it.
    """
    return read_with_code(
        SearchSpec,
        Path(path),
        overrides,
        name=SEARCH_FILE,
        what="search",
        writer="curvact search",
        flat=("space", "baseline"),
    )
