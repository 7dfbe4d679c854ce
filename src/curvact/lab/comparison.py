"""A comparison: one network trained in several ways with one budget and the same seeds, and paired differences."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import Field, field_validator, model_validator

from curvact.activations import activation
from curvact.errors import CurvactError, nearest
from curvact.lab.settings import (
    DataSpec,
    ModelSpec,
    Strict,
    ThreatSpec,
    check_settings,
    override_in,
    read_settings,
)
from curvact.lab.study_spec import AnalysesSpec, EvaluationSpec, HessianSpec, trial_id, without_unset
from curvact.training import Recipe

Overrides = dict[str, Any]


class ComparisonSpec(Strict):
    """What is compared. Every row with every column is a cell, every cell is trained once with every seed.

    rows, columns: by name, what is different there: settings by their dotted key, such as {activation: relu} or
    {training.objective: trades(beta=6)}; without columns a cell is a row.
    sources: trials of their own, by name and with the same seeds, that cells may take a learned activation from, by
        {activation_from: {source: NAME, frozen: true}}; activation and model.scope are then the source's.
    baseline: the cell that the others are compared with, "row" or "row / column", the first if not given; a row alone, where
        there are columns, means that row in each column.
    budget: gradient evaluations of every trial (the attack's included), so that dear methods take fewer steps; epochs follow.
    """

    FILE: ClassVar[str] = "comparison.yaml"

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = ""
    data: DataSpec = DataSpec()
    model: ModelSpec = Field(default_factory=lambda: ModelSpec.model_validate({}))
    activation: str = "relu"
    threat_model: ThreatSpec = ThreatSpec()
    training: Recipe = Recipe(objective="pgd-at(batch_norm=eval)")
    evaluation: EvaluationSpec = EvaluationSpec()
    hessian: HessianSpec | None = None
    analyses: AnalysesSpec | None = None
    sources: dict[str, Overrides] = Field(default={})
    rows: dict[str, Overrides] = Field(min_length=1)
    columns: dict[str, Overrides] = Field(default={"": {}}, min_length=1)
    baseline: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: int | None = Field(None, ge=1)

    @field_validator("data", mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str) -> str:
        activation(name)
        return name

    @model_validator(mode="after")
    def _sensible(self) -> ComparisonSpec:
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds={list(self.seeds)}: at least one, none twice")
        names = self.cells()
        if self.baseline is not None and self.baseline not in {*names, *self.rows}:
            raise ValueError(
                f"baseline={self.baseline!r} is no cell{nearest(self.baseline, names)}; cells are {', '.join(names)}"
            )
        for name in self.sources:
            self._source(name)
        for row in self.rows:
            for column in self.columns:
                self._cell(row, column)
        return self

    def cells(self) -> list[str]:
        """The names of all cells."""
        return [cell_name(row, column) for row in self.rows for column in self.columns]

    def _settings(self, overrides: Overrides, where: str) -> dict[str, Any]:
        """The plain settings of a cell or a source, checked."""
        apart = {"name", "question", "sources", "rows", "columns", "baseline", "seeds", "budget"}
        content = copy.deepcopy(self.model_dump(mode="json", exclude=apart))
        if self.budget is not None:
            content["training"]["budget"] = self.budget
        for key, value in overrides.items():
            override_in(content, key, value, where)
        return without_unset(check_settings(_Cell, content, where).model_dump(mode="json"))

    def _source(self, name: str) -> dict[str, Any]:
        where = f"source {name!r}"
        source = self._settings(self.sources[name], where)
        if "activation_from" in source:
            raise ValueError(f"{where} has activation_from: a source learns its own activation")
        return source

    def _cell(self, row: str, column: str) -> dict[str, Any]:
        where = f"cell {cell_name(row, column)!r}"
        overrides = {**self.rows[row], **self.columns[column]}
        cell = self._settings(overrides, where)
        if "activation_from" not in cell:
            return cell
        wanted = cell["activation_from"]["source"]
        if wanted not in self.sources:
            raise ValueError(
                f"{where}: activation_from.source={wanted!r}{nearest(wanted, self.sources)}; "
                f"sources are {', '.join(self.sources) or 'none'}"
            )
        for key in ("activation", "model.scope"):
            if key in overrides:
                raise ValueError(f"{where}: {key} comes from the source {wanted!r}: leave it out")
        source = self._source(wanted)
        cell["activation"] = source["activation"]
        cell["model"]["scope"] = source["model"].get("scope")
        return cell

    def trials(self) -> list[dict[str, Any]]:
        """One plain config a trial, seed by seed, sources first. A trial's id depends on its own config alone.

        >>> spec = ComparisonSpec(name="a", rows={"relu": {}, "smooth": {"activation": "silu"}}, seeds=[0, 1])
        >>> [(trial["cell"], trial["seed"]) for trial in spec.trials()]
        [('relu', 0), ('smooth', 0), ('relu', 1), ('smooth', 1)]
        """
        sources = {source_name(name): self._source(name) for name in self.sources}
        cells = {
            cell_name(row, column): self._cell(row, column) for row in self.rows for column in self.columns
        }
        trials = []
        for seed in self.seeds:
            ids = {name: trial_id(_trial(source, name, seed)) for name, source in sources.items()}
            for name, settings in {**sources, **cells}.items():
                trial = _trial(settings, name, seed)
                wanted = trial.get("activation_from")
                if wanted is not None:
                    trial["activation_from"] = {
                        "trial": ids[source_name(wanted["source"])],
                        "frozen": wanted["frozen"],
                    }
                trials.append(trial)
        return trials

    def label(self, config: dict[str, Any]) -> str:
        """A trial in words."""
        return f"{config['cell']} seed {config['seed']}"

    def baselines(self) -> dict[str, str]:
        """Which cell each cell is compared with.

        >>> spec = ComparisonSpec(name="a", rows={"x": {}, "y": {}}, columns={"1": {}, "2": {}}, baseline="y")
        >>> spec.baselines()
        {'x / 1': 'y / 1', 'x / 2': 'y / 2', 'y / 1': 'y / 1', 'y / 2': 'y / 2'}
        """
        if self.baseline in self.rows and self.baseline not in self.cells():
            return {
                cell_name(row, column): cell_name(self.baseline, column)
                for row in self.rows
                for column in self.columns
            }
        return dict.fromkeys(self.cells(), self.baseline or self.cells()[0])

    def to_yaml(self) -> str:
        """The resolved spec, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


class FromSource(Strict):
    """Which source the activation comes from; frozen: whether it stays as it was learned there."""

    source: str
    frozen: bool = True


class _Cell(Strict):
    data: DataSpec
    model: ModelSpec
    activation: str
    threat_model: ThreatSpec
    training: Recipe
    evaluation: EvaluationSpec
    hessian: HessianSpec | None
    analyses: AnalysesSpec | None = None
    activation_from: FromSource | None = None

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str) -> str:
        activation(name)
        return name


def cell_name(row: str, column: str) -> str:
    """What a cell is called.

    >>> cell_name("trades", "awp"), cell_name("relu", "")
    ('trades / awp', 'relu')
    """
    return f"{row} / {column}" if column else row


def source_name(name: str) -> str:
    """What a source's trials are called.

    >>> source_name("sparta")
    'source sparta'
    """
    return f"source {name}"


def _trial(settings: dict[str, Any], cell: str, seed: int) -> dict[str, Any]:
    config = copy.deepcopy(settings)
    epochs = config["training"].pop("epochs")
    return {**config, "epochs": epochs, "seed": seed, "cell": cell}


def load_comparison(path: str | Path, overrides: list[str] | None = None) -> ComparisonSpec:
    """Read a comparison from YAML; overrides are `key.key=value`. CurvactError in one line for what is wrong in it."""
    path = Path(path)
    if path.is_dir():
        path = path / ComparisonSpec.FILE
        if not path.is_file():
            raise CurvactError(f"{path.parent} holds no comparison (no {ComparisonSpec.FILE})")
    return read_settings(ComparisonSpec, path, overrides)
