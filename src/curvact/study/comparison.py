"""A comparison: one network trained in several ways with one budget and the same seeds, and paired differences."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import Field, field_validator, model_validator

from curvact.activations import activation
from curvact.config import DataSpec, ModelSpec, Strict, ThreatSpec, check_settings, override_in, read_settings
from curvact.errors import CurvactError, nearest
from curvact.study.spec import EvaluationSpec, HessianSpec
from curvact.training import Recipe

Overrides = dict[str, Any]


class ComparisonSpec(Strict):
    """What is compared. Every row with every column is a cell, every cell is trained once with every seed.

    rows, columns: by name, what is different there: settings by their dotted key, such as {activation: relu} or
    {training.objective: trades(beta=6)}; without columns a cell is a row.
    baseline: the cell that the others are compared with, "row" or "row / column"; the first if not given.
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
        names = [cell_name(row, column) for row in self.rows for column in self.columns]
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(
                f"baseline={self.baseline!r} is no cell{nearest(self.baseline, names)}; cells are {', '.join(names)}"
            )
        for row in self.rows:
            for column in self.columns:
                self._cell(row, column)
        return self

    def _cell(self, row: str, column: str) -> dict[str, Any]:
        """The plain settings of a cell, checked."""
        shared = self.model_dump(
            mode="json", exclude={"name", "question", "rows", "columns", "baseline", "seeds", "budget"}
        )
        content = copy.deepcopy(shared)
        if self.budget is not None:
            content["training"]["budget"] = self.budget
        for key, value in {**self.rows[row], **self.columns[column]}.items():
            override_in(content, key, value, f"cell {cell_name(row, column)!r}")
        cell = check_settings(_Cell, content, f"cell {cell_name(row, column)!r}")
        return cell.model_dump(mode="json")

    def trials(self) -> list[dict[str, Any]]:
        """One plain config a trial, seed by seed. A trial's id depends on its own config alone.

        >>> spec = ComparisonSpec(name="a", rows={"relu": {}, "smooth": {"activation": "silu"}}, seeds=[0, 1])
        >>> [(trial["cell"], trial["seed"]) for trial in spec.trials()]
        [('relu', 0), ('smooth', 0), ('relu', 1), ('smooth', 1)]
        """
        cells = {
            cell_name(row, column): self._cell(row, column) for row in self.rows for column in self.columns
        }
        trials = []
        for seed in self.seeds:
            for name, cell in cells.items():
                config = copy.deepcopy(cell)
                epochs = config["training"].pop("epochs")
                trials.append({**config, "epochs": epochs, "seed": seed, "cell": name})
        return trials

    def label(self, config: dict[str, Any]) -> str:
        """A trial in words."""
        return f"{config['cell']} seed {config['seed']}"

    def against(self) -> str:
        """The baseline's name."""
        return self.baseline or cell_name(next(iter(self.rows)), next(iter(self.columns)))

    def to_yaml(self) -> str:
        """The resolved spec, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


class _Cell(Strict):
    data: DataSpec
    model: ModelSpec
    activation: str
    threat_model: ThreatSpec
    training: Recipe
    evaluation: EvaluationSpec
    hessian: HessianSpec | None

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


def load_comparison(path: str | Path, overrides: list[str] | None = None) -> ComparisonSpec:
    """Read a comparison from YAML; overrides are `key.key=value`. CurvactError in one line for what is wrong in it."""
    path = Path(path)
    if path.is_dir():
        path = path / ComparisonSpec.FILE
        if not path.is_file():
            raise CurvactError(f"{path.parent} holds no comparison (no {ComparisonSpec.FILE})")
    return read_settings(ComparisonSpec, path, overrides)
