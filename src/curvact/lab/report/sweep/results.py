"""results.csv: one line a run."""

from __future__ import annotations

import os

from curvact.files import atomic_write, csv_text
from curvact.lab.statistics.curve import ACCURACIES, HESSIAN_NORMS
from curvact.lab.table import Table

FIRST = (*ACCURACIES, *(column for norm in HESSIAN_NORMS for column in (norm, f"{norm}_se")))


def write_csv(table: Table, path: str | os.PathLike[str]) -> None:
    """Write the lines of `csv_lines`, atomically."""
    atomic_write(path, csv_text(csv_lines(table)))


def csv_lines(table: Table) -> list[list[object]]:
    """The heads, and a line for each run, failed ones too, in the order of the table.

    Columns: run, one for each axis, reference (where the sweep has references), status, cause, the
    metrics (accuracies, Hessian norms, then others by name), gradient_evaluations, seconds.
    """
    rows = [*table.rows, *table.references]
    marked = bool(table.references)
    found = {metric for row in rows for metric in row.metrics}
    metrics = [*(m for m in FIRST if m in found), *sorted(found - set(FIRST))]
    heads = [
        "run",
        *table.axes,
        *["reference"] * marked,
        "status",
        "cause",
        *metrics,
        "gradient_evaluations",
        "seconds",
    ]
    lines: list[list[object]] = [
        [
            row.run,
            *(row.labels.get(axis) for axis in table.axes),
            *[row.reference] * marked,
            row.status,
            row.cause,
            *(row.metrics.get(metric) for metric in metrics),
            row.gradient_evaluations,
            row.seconds,
        ]
        for row in rows
    ]
    return [[*heads], *lines]
