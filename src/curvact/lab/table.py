"""A table of runs: what every question is asked of, and every page is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = str | float | int | bool | None


@dataclass(frozen=True)
class Row:
    """One run of a sweep.

    run: its id. labels: its value on each axis of the sweep, such as `{"curvature": 4.0, "seed":
    0}`.
    status: "done" or "failed". cause: why it failed, or "".
    metrics: the numbers of its record by name; accuracies are fractions.
    reference: its name, where the run is a reference, such as "relu"; else "".
    """

    run: str
    labels: Mapping[str, Value]
    status: str
    cause: str
    metrics: Mapping[str, float]
    gradient_evaluations: int
    seconds: float
    reference: str = ""


@dataclass(frozen=True)
class Table:
    """The finished runs of a sweep.

    axes: what the sweep varies, in the order of its spec; "seed" is one of them.
    Every row has a label on every axis.
    references: runs of activations without a κ to choose, which a curve in κ leaves out. They have
    labels on the axes that do not choose the activation.
    """

    axes: tuple[str, ...]
    rows: tuple[Row, ...]
    references: tuple[Row, ...] = ()
