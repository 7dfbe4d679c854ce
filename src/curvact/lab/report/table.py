"""Report room, tables: rows of trials as `results.csv`, as means with intervals, and as a table in the terminal."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text
from scipy import stats

from curvact.errors import CurvactError
from curvact.files import atomic_write

Row: TypeAlias = Mapping[str, object]
Array: TypeAlias = NDArray[np.float64]
Intervals: TypeAlias = Callable[[Array], tuple[Array, Array, Array]]

ACCURACIES = ("clean_accuracy", "robust_accuracy", "train_clean_accuracy", "train_robust_accuracy")
HESSIAN_LOSSES = ("clean", "adversarial")
HESSIAN_NORMALIZATIONS = ("rms", "gradient_relative", "scale_invariant")
HESSIAN_NORMS = tuple(f"{loss}_hessian_{norm}" for loss in HESSIAN_LOSSES for norm in HESSIAN_NORMALIZATIONS)
COLUMNS = (
    *("trial", "family", "activation", "curvature", "centered", "epochs", "seed", "status", "cause"),
    *ACCURACIES,
    *(column for norm in HESSIAN_NORMS for column in (norm, f"{norm}_se")),
    *("gradient_evaluations", "seconds"),
)
CONFIDENCE = 0.95


@dataclass(frozen=True, order=True)
class Group:
    """What one curve is drawn for: a family at one level of each factor."""

    family: str
    centered: bool
    epochs: int


@dataclass(frozen=True, eq=False)
class Cells:
    """The values of one column in one group: (K, S), NaN where a trial is missing; curvatures (K,), seeds (S,)."""

    curvatures: Array
    seeds: tuple[int, ...]
    values: Array


@dataclass(frozen=True)
class Estimate:
    """Mean over `count` seeds with its interval; `low` and `high` are NaN where the seeds are too few."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Summary:
    """One line of the table of means. `done` of `planned` trials have finished."""

    group: Group
    curvature: float
    done: int
    planned: int
    estimates: Mapping[str, Estimate]


def number(row: Row, column: str) -> float:
    """The value of a column as a float; NaN when it is absent, None or empty.

    >>> number({"curvature": 4}, "curvature"), number({}, "seconds")
    (4.0, nan)
    """
    value = row.get(column)
    if value is None or value == "":
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise CurvactError(
            f"column {column!r} of trial {row.get('trial')!r} must be a number, not {value!r}"
        ) from None


def finished(rows: Sequence[Row]) -> list[Row]:
    """The rows of trials that are done."""
    return [row for row in rows if row.get("status") == "done"]


def group_of(row: Row) -> Group:
    """The group a row belongs to.

    >>> group_of({"family": "swish", "centered": True, "epochs": 10})
    Group(family='swish', centered=True, epochs=10)
    """
    return Group(
        str(row.get("family", "")),
        bool(row.get("centered", False)),
        int(number({"epochs": 0, **row}, "epochs")),
    )


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """Every group of the rows, sorted."""
    return sorted({group_of(row) for row in rows})


def level_names(rows: Sequence[Row]) -> dict[Group, str]:
    """What tells the levels of the factors apart, in words; empty for a factor with a single level.

    >>> rows = [{"family": "swish", "centered": c, "epochs": 10} for c in (False, True)]
    >>> list(level_names(rows).values())
    ['not centred', 'centred']
    """
    groups = groups_of(rows)
    both_centerings = len({group.centered for group in groups}) > 1
    several_budgets = len({group.epochs for group in groups}) > 1

    def name(group: Group) -> str:
        parts = []
        if both_centerings:
            parts.append("centred" if group.centered else "not centred")
        if several_budgets:
            parts.append(f"{group.epochs} epochs")
        return ", ".join(parts)

    return {group: name(group) for group in groups}


def row_order(row: Row) -> tuple[Group, float, float, str]:
    """Key that sorts rows by group, curvature, seed and id, whatever order they came in."""
    kappa, seed = number(row, "curvature"), number(row, "seed")
    return (
        group_of(row),
        math.inf if math.isnan(kappa) else kappa,
        math.inf if math.isnan(seed) else seed,
        str(row.get("trial")),
    )


def cells(rows: Sequence[Row], group: Group, column: str) -> Cells:
    """The finite values of a column in the finished trials of a group; curvatures without any are left out.

    Raises CurvactError when two finished trials claim the same cell.
    """
    found: dict[tuple[float, int], float] = {}
    for row in finished(rows):
        kappa, value = number(row, "curvature"), number(row, column)
        if group_of(row) != group or math.isnan(kappa) or not math.isfinite(value):
            continue
        key = (kappa, int(number({"seed": 0, **row}, "seed")))
        if key in found:
            raise CurvactError(
                f"two finished trials of {group} at curvature {key[0]:g} and seed {key[1]}; one is allowed"
            )
        found[key] = value
    curvatures = sorted({kappa for kappa, _ in found})
    seeds = sorted({seed for _, seed in found})
    values = np.full((len(curvatures), len(seeds)), math.nan)
    for (kappa, seed), value in found.items():
        values[curvatures.index(kappa), seeds.index(seed)] = value
    return Cells(np.array(curvatures, dtype=np.float64), tuple(seeds), values)


def student_intervals(values: Array) -> tuple[Array, Array, Array]:
    """Mean over seeds and its 95 % interval by Student's t, one curvature at a time: (K, S) to three of (K,).

    NaN marks a missing seed; every curvature uses its own number of seeds, and below two there is no interval (NaN).

    >>> [part.round(3).tolist() for part in student_intervals(np.array([[1.0, 2.0, 3.0], [5.0, np.nan, np.nan]]))]
    [[2.0, 5.0], [-0.484, nan], [4.484, nan]]
    """
    present = np.isfinite(values)
    count = present.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(present, values, 0.0).sum(1) / count
        squares = np.where(present, values - mean[:, None], 0.0) ** 2
        deviation = np.sqrt(squares.sum(1) / (count - 1) / count)
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, np.maximum(count - 1, 1)) * deviation
    half = np.where(count > 1, half, math.nan)
    return mean, mean - half, mean + half


def interval_of(values: Array, intervals: Intervals, *, logarithmic: bool) -> tuple[Array, Array, Array]:
    """Mean, low and high of (K, S) values; `logarithmic`: taken of the logarithms, values not above 0 being missing.

    The logarithmic mean is the geometric one, and its interval stays above 0.
    """
    if not logarithmic:
        return intervals(values)
    logs = np.log(values, out=np.full_like(values, math.nan), where=values > 0)
    kept = np.isfinite(logs).any(1)
    result = np.full((3, len(values)), math.nan)
    if kept.any():
        result[:, kept] = np.exp(np.stack(intervals(logs[kept])))
    return result[0], result[1], result[2]


def summaries(rows: Sequence[Row], intervals: Intervals = student_intervals) -> list[Summary]:
    """Mean and interval over seeds of every accuracy and Hessian norm, for each group and curvature, sorted.

    Hessian norms are summarised by their logarithms (geometric mean): they vary by factors, over decades.
    """
    result = []
    for group in groups_of(rows):
        mine = [row for row in rows if group_of(row) == group]
        planned = sorted({kappa for row in mine if not math.isnan(kappa := number(row, "curvature"))})
        estimates: dict[float, dict[str, Estimate]] = {kappa: {} for kappa in planned}
        for column in (*ACCURACIES, *HESSIAN_NORMS):
            table = cells(mine, group, column)
            if not len(table.curvatures):
                continue
            logarithmic = column in HESSIAN_NORMS
            counts = (np.isfinite(table.values) & ((table.values > 0) | (not logarithmic))).sum(1)
            columns = interval_of(table.values, intervals, logarithmic=logarithmic)
            for kappa, mean, low, high, count in zip(table.curvatures, *columns, counts, strict=True):
                if count:
                    estimates[float(kappa)][column] = Estimate(
                        float(mean), float(low), float(high), int(count)
                    )
        for kappa in planned:
            here = [row for row in mine if number(row, "curvature") == kappa]
            result.append(Summary(group, kappa, len(finished(here)), len(here), estimates[kappa]))
    return result


def write_csv(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Write `results.csv`: one row a trial, failed ones too, atomically; the same rows in any order give the same bytes.

    Columns are `COLUMNS`, then others by name, with `seconds` last. Rows are sorted by group, curvature, seed and id.
    Floats are the shortest text that reads back as the same number; None and NaN are empty, booleans true and false.
    """
    extra = sorted({column for row in rows for column in row} - set(COLUMNS))
    header = [*COLUMNS[:-1], *extra, COLUMNS[-1]]
    lines = [header, *([_cell(row.get(column)) for column in header] for row in sorted(rows, key=row_order))]
    atomic_write(path, "".join(",".join(map(_quoted, line)) + "\n" for line in lines))


def results_table(rows: Sequence[Row], intervals: Intervals = student_intervals) -> Table:
    """A table for the terminal: for each family, level and curvature the means over seeds with 95 % half-widths.

    Accuracies in per cent. The Hessian norm is a geometric mean with the factor to either end of its interval. A factor
    with a single level is not mentioned.
    """
    names = level_names(rows)
    table = Table(
        title="Means over seeds with 95 % intervals",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("family", overflow="fold")
    for name in ("κ", "seeds", "clean\n%", "robust\n%", "train\nrobust %", "adv. Hessian\nrms"):
        table.add_column(name, justify="right", no_wrap=True)
    previous: Group | None = None
    for line in summaries(rows, intervals):
        fresh = line.group != previous
        if fresh and previous is not None:
            table.add_section()
        previous = line.group
        heading = "\n".join(filter(None, (line.group.family, names[line.group]))) if fresh else ""
        accuracies = [
            estimate_text(line.estimates.get(column), percent=True)
            for column in ("clean_accuracy", "robust_accuracy", "train_robust_accuracy")
        ]
        norm = factor_text(line.estimates.get("adversarial_hessian_rms"))
        table.add_row(*map(Text, (heading, f"{line.curvature:g}", seeds_text(line), *accuracies, norm)))
    return table


def seeds_text(line: Summary) -> str:
    """`3`, or `2/3` where a trial has not finished."""
    return str(line.done) if line.done == line.planned else f"{line.done}/{line.planned}"


def estimate_text(estimate: Estimate | None, *, percent: bool) -> str:
    """An estimate in words: `67.1 ± 1.5` where the interval is symmetric, else `0.0120 [0.0110, 0.0140]`.

    >>> estimate_text(Estimate(0.671, 0.656, 0.686, 3), percent=True)
    '67.1 ± 1.5'
    >>> estimate_text(Estimate(0.012, 0.011, 0.014, 3), percent=False)
    '0.0120 [0.0110, 0.0140]'
    >>> estimate_text(None, percent=True)
    '–'
    """
    if estimate is None:
        return "–"
    scale = 100.0 if percent else 1.0
    mean, low, high = (scale * value for value in (estimate.mean, estimate.low, estimate.high))

    def text(value: float) -> str:
        return f"{value:.1f}" if percent else _digits(value)

    if not (math.isfinite(low) and math.isfinite(high)):
        return text(mean)
    if percent and abs((high - mean) - (mean - low)) <= 1e-9 * max(abs(high), abs(low)):
        return f"{text(mean)} ± {text((high - low) / 2)}"
    return f"{text(mean)} [{text(low)}, {text(high)}]"


def factor_text(estimate: Estimate | None) -> str:
    """A geometric mean and its interval as a factor.

    >>> factor_text(Estimate(0.012, 0.01, 0.0144, 3))
    '0.0120 ×÷ 1.20'
    """
    if estimate is None:
        return "–"
    if not (math.isfinite(estimate.high) and estimate.low > 0):
        return _digits(estimate.mean)
    return f"{_digits(estimate.mean)} ×÷ {math.sqrt(estimate.high / estimate.low):.2f}"


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)


def _quoted(text: str) -> str:
    # csv.writer leaves a bare carriage return unquoted when lines end in "\n", and no reader takes that back
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text
