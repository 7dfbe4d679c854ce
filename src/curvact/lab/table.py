"""A table of runs: what every question is asked of, and every page is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curvact.notebook import html_table

if TYPE_CHECKING:
    import pandas

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

    def as_dicts(self) -> list[dict[str, Any]]:
        """A mapping for each run: run, its labels, reference (where the table has references), status,
        cause, its metrics, gradient_evaluations and seconds."""
        rows = []
        for row in (*self.rows, *self.references):
            labels = {axis: row.labels.get(axis) for axis in self.axes}
            marked = {"reference": row.reference} if self.references else {}
            cost = {"gradient_evaluations": row.gradient_evaluations, "seconds": row.seconds}
            rows.append(
                {
                    "run": row.run,
                    **labels,
                    **marked,
                    "status": row.status,
                    "cause": row.cause,
                    **row.metrics,
                    **cost,
                }
            )
        return rows

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a data frame, a line each run. CurvactError where pandas is not installed."""
        from curvact.lab.frames import frame

        return frame(self.as_dicts())

    def _repr_html_(self) -> str:
        metrics = list(dict.fromkeys(m for row in self.rows for m in row.metrics if m.endswith("accuracy")))
        lines = [
            [
                *(row.labels.get(axis) for axis in self.axes),
                row.reference,
                row.status,
                *map(row.metrics.get, metrics),
            ]
            for row in (*self.rows, *self.references)
        ]
        title = f"{len(self.rows)} runs, {len(self.references)} of references"
        return html_table(title, [*self.axes, "reference", "status", *metrics], lines)
