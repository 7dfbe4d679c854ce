"""results.csv: one line a run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence

from curvact.files import atomic_write
from curvact.lab.statistics.curve import ACCURACIES, HESSIAN_NORMS
from curvact.lab.table import Table

FIRST = (*ACCURACIES, *(column for norm in HESSIAN_NORMS for column in (norm, f"{norm}_se")))


def write_csv(table: Table, path: str | os.PathLike[str]) -> None:
    """Write a line for each run, failed ones too, in the order of the table; atomically.

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
    lines = [
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
    atomic_write(path, csv_text([heads, *lines]))


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Lines of values as CSV. A float is the shortest text that reads back as the same number; None
    and NaN are empty.

    >>> print(csv_text([["a", "b"], [0.1, None], [True, "x, y"]]), end="")
    a,b
    0.1,
    true,"x, y"
    """
    return "".join(",".join(_quoted(_cell(value)) for value in line) + "\n" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)


def _quoted(text: str) -> str:
    # csv.writer leaves a bare carriage return unquoted when lines end in "\n": no reader takes that
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text
