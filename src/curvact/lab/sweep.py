"""Many runs from one spec: a base, what varies, and the questions that are asked of the finished
table.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from curvact.errors import CurvactError, nearest
from curvact.lab.imports import Import, changing_runs, read_with_code
from curvact.lab.settings import Strict, check_settings, override_all, override_in, read_plain
from curvact.lab.spec import RunSpec, with_hashes
from curvact.lab.statistics import QUESTIONS
from curvact.lab.statistics.question import Question, question
from curvact.lab.table import Row, Table, Value

SWEEP_FILE = "sweep.yaml"
SHIPPED = Path(__file__).with_name("sweeps")
"""The folder of the sweeps that come with curvact."""

MOST_RUNS = 10_000
"""A sweep of more runs is refused: a list too many is a likelier cause than the wish."""

MOST_AXES = 50
"""A sweep over more axes is refused."""

Settings = dict[str, Any]
"""Settings of a RunSpec by dotted key, such as `{"training.objective": "trades(beta=6)"}`."""


@dataclass(frozen=True)
class Planned:
    """A run of a sweep.

    labels: its value on each axis; of a source only its seed; of a reference on each axis that does
    not choose the activation. source, reference: its name, where the run is one.
    """

    labels: Mapping[str, Value]
    spec: RunSpec
    source: str | None = None
    reference: str | None = None

    @cached_property
    def id(self) -> str:
        return self.spec.id

    @property
    def label(self) -> str:
        """The run in words, for progress bars and messages."""
        if self.source is not None:
            return f"source {self.source}, seed {self.spec.seed}"
        words = ", ".join(in_words(axis, value) for axis, value in self.labels.items())
        return words if self.reference is None else f"reference {self.reference}, {words}"


def nested(base: Settings) -> Settings:
    """Dotted keys and names alone, as mappings.

    >>> nested({"model": "mlp", "training.epochs": 2})
    {'model': {'name': 'mlp'}, 'training': {'epochs': 2}}
    """
    content: Settings = {}
    override_all(content, base, "base")
    return content


def in_words(axis: str, value: Value) -> str:
    """A value of an axis in words, such as κ=4.

    >>> in_words("curvature", 4.0), in_words("training.epochs", 2)
    ('κ=4', 'epochs 2')
    """
    if isinstance(value, str):
        return value
    # Two values never share their words: a number is shortened only where nothing is lost.
    short = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return f"κ={short}" if axis == "curvature" else f"{axis.rpartition('.')[2]} {short}"


def _chooses_activation(key: str) -> bool:
    return key.partition(".")[0] in ("activation", "curvature", "centered", "activation_from")


def run_of(content: Settings, imports: Sequence[Import], where: str) -> RunSpec:
    """The run with these nested settings, and with those of the imports that can change it.

    Raises CurvactError that begins with `where`.
    """
    model = content.get("model")
    name = str(model.get("name", "") if isinstance(model, dict) else model)
    code = changing_runs(imports, name)
    if code:
        content = {**content, "imports": [item.model_dump() for item in code]}
    return check_settings(RunSpec, content, where)


class SweepSpec(Strict):
    """A sweep.

    name: the folder is named so, unless another is given. question: what it is run for, in words.
    imports: files of Python that register what the spec names, such as `[my.py]`.
    base: settings of a `RunSpec` that all runs share.
    grid: lists of values by dotted key. Every combination is a run. The key `curvature` chooses κ
        within the family that `activation` names; `seed` is the seed.
    cells: axes of named settings, axis → name → settings by dotted key, such as
        `{method: {sgd: {}, awp: {training.perturbation: awp(gamma=0.01)}}}`. They combine with each
        other and with the grid.
    sources: runs that only learn an activation, by name, with the same seeds. A cell takes it with
        `activation_from: {source: NAME, frozen: true}`; its `activation` and `model.scope` are the
        source's.
    references: activations that have no κ to choose, such as `[relu, silu]`, beside a grid over
        `curvature`. Each is run once at every combination of the axes that do not choose the
        activation, at every seed.
    questions: what is asked of the finished table, by kind, with settings. None: each kind that
    suits the axes.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    question: str = ""
    imports: tuple[Import, ...] = ()
    base: Settings = Field(default_factory=dict)
    grid: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    cells: dict[str, dict[str, Settings]] = Field(default_factory=dict)
    sources: dict[str, Settings] = Field(default_factory=dict)
    references: tuple[str, ...] = ()
    questions: dict[str, Settings] | None = None

    @field_validator("base")
    @classmethod
    def _nested(cls, base: Settings) -> Settings:
        """Dotted keys and names alone, as mappings."""
        return with_hashes(nested(base))

    @field_validator("cells")
    @classmethod
    def _hashed(cls, cells: dict[str, dict[str, Settings]]) -> dict[str, dict[str, Settings]]:
        return {
            axis: {name: with_hashes(settings) for name, settings in own.items()}
            for axis, own in cells.items()
        }

    @field_validator("grid")
    @classmethod
    def _values(cls, grid: dict[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
        for key, values in grid.items():
            if not values:
                raise ValueError(f"grid.{key} is an empty list: give at least one value")
            if len(set(values)) != len(values):
                raise ValueError(f"grid.{key} names a value twice")
        for seed in grid.get("seed", ()):
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise ValueError(f"grid.seed has {seed!r}: a seed is a whole number >= 0")
        return grid

    @model_validator(mode="before")
    @classmethod
    def _three_seeds(cls, content: Any) -> Any:
        if isinstance(content, dict) and isinstance(content.get("grid", {}), dict):
            return {**content, "grid": {"seed": [0, 1, 2], **content.get("grid", {})}}
        return content

    @model_validator(mode="after")
    def _plans_its_runs(self) -> SweepSpec:
        count = 1
        if len(self.axes) > MOST_AXES:
            raise ValueError(f"{len(self.axes):,} axes: at most {MOST_AXES} in one sweep")
        for axis, values in self.axes.items():
            if axis in self.grid and axis in self.cells:
                raise ValueError(f"{axis!r} is an axis of grid and of cells: give one of them another name")
            if not values:
                raise ValueError(f"cells.{axis} names no cell")
            count *= len(values)
        count += len(self.sources) * len(self.grid["seed"])
        if count > MOST_RUNS:
            many = f"{count:,}" if count < 10**12 else "more than a trillion"
            raise ValueError(f"{many} runs: at most {MOST_RUNS:,} in one sweep")
        self._check_keys()
        if self.references:
            self._check_references()
            others = [values for axis, values in self.axes.items() if not self._decides(axis)]
            count += len(self.references) * math.prod(map(len, others))
            if count > MOST_RUNS:
                raise ValueError(f"{count:,} runs with the references: at most {MOST_RUNS:,} in one sweep")
        asked = self.asked() or {}
        own = [run for run in self.planned if run.source is None and run.reference is None]
        rows = tuple(Row(run.id, run.labels, "planned", "", {}, 0, 0.0) for run in own)
        for one in asked.values():
            one.check(Table(tuple(self.axes), rows))
        return self

    def _check_keys(self) -> None:
        """What an axis sets is neither without effect nor overwritten by another axis."""
        for key in self.grid:
            if (
                key in ("name", "about", "imports", "hardware.accelerator")
                or key.partition(".")[0] == "logging"
            ):
                raise ValueError(f"grid.{key}: it changes no number of a run, so it cannot be an axis")
        if "imports" in self.base:
            raise ValueError("base.imports: write imports beside base, for the whole sweep")
        if "seed" in self.base:
            raise ValueError("base.seed: the seeds are in grid.seed, such as grid: {seed: [0, 1, 2]}")
        sets = {axis: {key for cell in cells.values() for key in cell} for axis, cells in self.cells.items()}
        sets |= {key: {key} for key in self.grid}
        for (axis, keys), (other, others) in itertools.combinations(sets.items(), 2):
            for a, b in itertools.product(sorted(keys), sorted(others)):
                if a == b or a.startswith(f"{b}.") or b.startswith(f"{a}."):
                    both = a if len(a) >= len(b) else b
                    raise ValueError(
                        f"{both} is set by two axes, {axis!r} and {other!r}: leave it to one of them"
                    )

    def _check_references(self) -> None:
        """A reference stands beside a κ axis, and no axis mixes its activation with other settings."""
        if "curvature" not in self.grid:
            raise ValueError(
                "references stand beside a grid over curvature: give grid.curvature, or use cells"
            )
        for name in self.references:
            if self.references.count(name) > 1:
                raise ValueError(f"references names {name!r} twice")
        for axis, cells in self.cells.items():
            others = sorted({key for cell in cells.values() for key in cell if not _chooses_activation(key)})
            if others and self._decides(axis):
                raise ValueError(
                    f"cells.{axis} chooses the activation and sets {others[0]}: beside references an "
                    "axis does one of the two"
                )

    def _decides(self, axis: str) -> bool:
        """Whether the axis chooses the activation."""
        if axis not in self.cells:
            return _chooses_activation(axis)
        return any(_chooses_activation(key) for cell in self.cells[axis].values() for key in cell)

    @property
    def axes(self) -> dict[str, tuple[Value, ...]]:
        """What varies: cells first, then the grid, the seed last."""
        grid = {key: values for key, values in self.grid.items() if key != "seed"}
        return {
            **{axis: tuple(cells) for axis, cells in self.cells.items()},
            **grid,
            "seed": self.grid["seed"],
        }

    def asked(self) -> dict[str, Question] | None:
        """The questions with their settings, by kind. None: every kind that suits the table."""
        if self.questions is None:
            return None
        return {kind: question(QUESTIONS, kind, settings) for kind, settings in self.questions.items()}

    @cached_property
    def planned(self) -> tuple[Planned, ...]:
        """Every run, sources first and references last. A run's id depends on its own spec alone.

        >>> spec = SweepSpec(name="a", base={"activation": "rctaf(beta=0)"}, grid={"curvature": [1, 4], "seed": [0]})
        >>> [(run.labels["curvature"], run.spec.activation) for run in spec.planned]
        [(1, 'rctaf(alpha=4.0, beta=0)'), (4, 'rctaf(alpha=16.0, beta=0)')]
        """
        return (*self._sources(), *self._runs(), *self._references())

    def _sources(self) -> Iterator[Planned]:
        for name in self.sources:
            for seed in self.grid["seed"]:
                yield Planned({"seed": seed}, self._source(name, seed), name)

    def _source(self, name: str, seed: Value) -> RunSpec:
        where = f"source {name!r}"
        if "activation_from" in {**self.base, **self.sources[name]}:
            raise ValueError(f"{where} has activation_from: a source learns its own activation")
        return self._spec({**self.sources[name], "seed": seed}, where)

    def _runs(self) -> Iterator[Planned]:
        for labels, settings in self._combinations(self.axes):
            where = "the run " + ", ".join(in_words(axis, value) for axis, value in labels.items())
            yield Planned(labels, self._spec(settings, where))

    def _references(self) -> Iterator[Planned]:
        axes = {axis: values for axis, values in self.axes.items() if not self._decides(axis)}
        for name in self.references:
            alone = {"activation": name, "curvature": None, "centered": False, "activation_from": None}
            for labels, settings in self._combinations(axes):
                spec = self._spec({**settings, **alone}, f"the reference {name!r}")
                yield Planned(labels, spec, reference=name)

    def _combinations(
        self, axes: Mapping[str, Sequence[Value]]
    ) -> Iterator[tuple[dict[str, Value], Settings]]:
        """Every combination of the axes' values: its labels, and its settings by dotted key."""
        for values in itertools.product(*axes.values()):
            labels = dict(zip(axes, values, strict=True))
            settings: Settings = {}
            for axis, value in labels.items():
                settings |= self.cells[axis][str(value)] if axis in self.cells else {axis: value}
            yield labels, settings

    def _spec(self, settings: Settings, where: str) -> RunSpec:
        content = copy.deepcopy(self.base)
        content.setdefault("name", self.name)
        origin = settings.get("activation_from")
        if not isinstance(origin, dict) or "source" not in origin:
            override_all(content, settings, where)
        else:
            override_all(content, {k: v for k, v in settings.items() if k != "activation_from"}, where)
            name = origin["source"]
            if not isinstance(name, str) or name not in self.sources:
                allowed = ", ".join(self.sources) or "none"
                raise ValueError(
                    f"{where}: activation_from.source={name!r}{nearest(str(name), self.sources)}; sources are {allowed}"
                )
            for key in ("activation", "curvature", "centered", "model.scope"):
                if key in settings:
                    raise ValueError(f"{where}: {key} comes from the source {name!r}: leave it out")
            source = self._source(name, settings["seed"])
            content["activation"] = source.activation
            override_in(content, "model.scope", source.model.scope, where)
            rest = {key: value for key, value in origin.items() if key != "source"}
            content["activation_from"] = {**rest, "run": source.id}
        spec = run_of(content, self.imports, where)
        taken = spec.activation_from
        if taken is not None and taken.path is not None and taken.sha256 is None:
            raise ValueError(
                f"{where}: activation_from.path={taken.path!r} in a sweep: give its sha256 too, "
                "which `curvact transfer show` prints"
            )
        return spec

    def to_yaml(self) -> str:
        """The spec as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100, allow_unicode=True)


def sweeps() -> dict[str, str]:
    """The sweeps that come with curvact: name → the question of each.

    >>> "demo" in sweeps()
    True
    """
    return {path.stem: str(read_plain(path)["question"]) for path in sorted(SHIPPED.glob("*.yaml"))}


def read_sweep(source: str | Path, overrides: list[str] | None = None) -> SweepSpec:
    """The spec of a sweep from a YAML file, from a sweep's folder, or by the name of one of `sweeps()`.

    A file or folder of that name goes first. overrides: each `key.key=value`, the value in YAML.

    The files in `imports` are run; those of a folder only if they are trusted, see
    `curvact.lab.imports`. What follows `grid.` is one key, dots included: `grid.training.epochs=[10,40]`.
    Raises CurvactError in one line for what is wrong in it.

    >>> read_sweep("demo", ["grid.seed=[0]"]).name
    'demo'
    """
    path = Path(source)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{source}.yaml"
        known = [file.stem for file in sorted(SHIPPED.glob("*.yaml"))]
        if str(source) not in known:
            raise CurvactError(
                f"no file or folder {source}, and no sweep of that name{nearest(str(source), known)}; "
                f"sweeps that come with curvact are {', '.join(known)}"
            )
    return read_with_code(
        SweepSpec,
        path,
        overrides,
        name=SWEEP_FILE,
        what="sweep",
        writer="curvact sweep run",
        flat=("grid",),
    )
