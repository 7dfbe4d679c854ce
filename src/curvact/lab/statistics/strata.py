"""A table of runs cut into strata: what one curve is drawn for, and the values of a metric in
it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from curvact.errors import CurvactError
from curvact.lab.statistics.contrasts import Array
from curvact.lab.table import Row, Table, Value

SEED = "seed"
QUICK, STRONG = "robust_accuracy", "subset_robust_accuracy"
"""Robust accuracy under the PGD of the evaluation, and under parts of AutoAttack."""

STRONGEST = "strongest"
"""In a question: the robust accuracy under the strongest attack measured on all runs."""

BESIDE: Mapping[str, str] = MappingProxyType({STRONG: "subset_pgd_accuracy"})
"""The quick attack on the same images, beside the strong one."""


@dataclass(frozen=True)
class Stratum:
    """The runs that share a label on every axis but the curve's own and the seed.

    labels: the label on each of those axes. name: the labels that differ between strata, in words.
    rows: runs with a place on the curve. references: runs without one (a ReLU has no finite
    curvature), by name; no fit and no test of the curve uses them.
    """

    name: str
    labels: Mapping[str, Value]
    rows: tuple[Row, ...]
    references: Mapping[str, tuple[Row, ...]]


@dataclass(frozen=True, eq=False)
class Cells:
    """The values of a metric in a stratum: (K, S), NaN where a run is missing; points (K,)
    ascending, seeds (S,)."""

    points: Array
    seeds: tuple[int, ...]
    values: Array


def strongest(table: Table) -> str:
    """The robust accuracy by the strongest attack that every finished run was measured with."""
    done = [row for row in (*table.rows, *table.references) if row.status == "done"]
    return STRONG if done and all(STRONG in row.metrics for row in done) else QUICK


def metric_of(wanted: str, table: Table) -> str:
    """The metric that a question names; `STRONGEST` stands for that of the strongest attack."""
    return strongest(table) if wanted == STRONGEST else wanted


def axis_name(axis: str) -> str:
    """An axis in a word.

    >>> axis_name("training.epochs"), axis_name("data.name")
    ('epochs', 'data')
    """
    return axis.removesuffix(".name").rsplit(".", 1)[-1]


def label_text(axis: str, value: Value) -> str:
    """A label in words.

    >>> label_text("activation", "relu"), label_text("training.epochs", 40), label_text("centered", True)
    ('relu', 'epochs = 40', 'centered = true')
    """
    if isinstance(value, str):
        return value
    name = axis_name(axis)
    if value is None:
        return f"no {name}"
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}"
    return f"{name} = {text}"


def place(value: Value) -> float | None:
    """Where a label lies on a logarithmic axis; None for what has no place on it, such as ∞."""
    if value is None or isinstance(value, (bool, str)):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def labels_of(rows: Iterable[Row], axis: str) -> list[Value]:
    """The labels on an axis, each once, in the order of the rows."""
    return list(dict.fromkeys(row.labels.get(axis) for row in rows))


def varying(rows: Sequence[Row], axes: Iterable[str]) -> list[str]:
    """The axes on which the rows have more than one label."""
    return [axis for axis in axes if len(labels_of(rows, axis)) > 1]


def name_of(labels: Mapping[str, Value], axes: Iterable[str]) -> str:
    """The labels on some axes, in words.

    >>> name_of({"activation": "relu", "seed": 1}, ["activation"])
    'relu'
    """
    return ", ".join(label_text(axis, labels.get(axis)) for axis in axes)


def strata(table: Table, axis: str) -> list[Stratum]:
    """The strata of a table for a curve along `axis`, in the order of the runs.

    The table's references, and rows without a place on the axis, are references of every stratum
    that agrees with them on the other axes. An axis on which such a run has no label, or one that
    occurs in no stratum (such as the activation "relu"), does not count.
    """
    others = [name for name in table.axes if name not in (axis, SEED)]
    groups: dict[tuple[Value, ...], list[Row]] = {}
    apart: dict[tuple[Value, ...], list[Row]] = {}
    for row in table.rows:
        key = tuple(row.labels.get(name) for name in others)
        (apart if place(row.labels.get(axis)) is None else groups).setdefault(key, []).append(row)
    on_curve = [row for rows in groups.values() for row in rows]
    shown = varying(on_curve, others)
    known = [set(labels_of(on_curve, name)) for name in others]
    found = []
    for key, rows in groups.items():
        references: dict[str, tuple[Row, ...]] = {}
        for other, lines in apart.items():
            if all(a == b or a not in labels for a, b, labels in zip(other, key, known, strict=True)):
                own = [name for name, a, labels in zip(others, other, known, strict=True) if a not in labels]
                name = name_of(lines[0].labels, own or [axis])
                references[name] = references.get(name, ()) + tuple(lines)
        for row in table.references:
            if all(row.labels.get(name, label) == label for name, label in zip(others, key, strict=True)):
                references[row.reference] = (*references.get(row.reference, ()), row)
        labels = dict(zip(others, key, strict=True))
        found.append(Stratum(name_of(labels, shown), labels, tuple(rows), references))
    return found


def cells(rows: Sequence[Row], axis: str, metric: str) -> Cells:
    """The finite values of a metric in the finished runs among `rows`; points and seeds without any
    are left out.

    Raises CurvactError when two finished runs have the same place and seed.
    """
    found: dict[tuple[float, int], float] = {}
    for row in rows:
        at, value = place(row.labels.get(axis)), row.metrics.get(metric)
        if row.status != "done" or at is None or value is None or not math.isfinite(value):
            continue
        key = (at, seed_of(row))
        if key in found:
            raise CurvactError(
                f"two finished runs at {axis} = {at:g} and seed {key[1]} in one stratum; 1 is allowed"
            )
        found[key] = float(value)
    points = sorted({at for at, _ in found})
    seeds = sorted({seed for _, seed in found})
    values = np.full((len(points), len(seeds)), math.nan)
    for (at, seed), value in found.items():
        values[points.index(at), seeds.index(seed)] = value
    return Cells(np.array(points, dtype=np.float64), tuple(seeds), values)


def by_seed(rows: Iterable[Row], metric: str) -> dict[int, float]:
    """seed → value of a metric in the finished runs that have it (∞ counts)."""
    found = {}
    for row in rows:
        value = row.metrics.get(metric)
        if row.status == "done" and value is not None and not math.isnan(value):
            found[seed_of(row)] = float(value)
    return found


def seed_of(row: Row) -> int:
    """The seed of a run; 0 where the sweep has no seed axis."""
    seed = row.labels.get(SEED)
    return 0 if seed is None else int(seed)
