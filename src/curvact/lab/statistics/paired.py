"""Differences to a baseline, paired by seed, corrected for how many there are; and the mean of
every cell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from curvact.errors import CurvactError, nearest
from curvact.lab.statistics.contrasts import Array
from curvact.lab.statistics.interval import (
    Interval,
    all_equal,
    difference_text,
    interval_text,
    scale_of,
    student,
)
from curvact.lab.statistics.question import Answer, Grid, Question
from curvact.lab.statistics.strata import (
    SEED,
    STRONG,
    by_seed,
    label_text,
    labels_of,
    name_of,
    strongest,
    varying,
)
from curvact.lab.table import Row, Table, Value

Name = TypeVar("Name")
ALPHA = 0.05


@dataclass(frozen=True)
class Measure:
    """A column of the table of means: metric, heading, how a number is written, whether it is a
    fraction shown in per cent."""

    key: str
    title: str
    form: str = "{:.3g}"
    percent: bool = False


MEASURES = (
    Measure("clean_accuracy", "clean", "{:.1f}", percent=True),
    Measure("subset_robust_accuracy", "part of AutoAttack", "{:.1f}", percent=True),
    Measure("subset_pgd_accuracy", "PGD, the same images", "{:.1f}", percent=True),
    Measure("robust_accuracy", "PGD", "{:.1f}", percent=True),
    Measure("train_robust_accuracy", "PGD, training images", "{:.1f}", percent=True),
    Measure("curvature_start", "κ at start"),
    Measure("curvature_end", "κ at end"),
    Measure("effective_curvature_start", "κ effective, start"),
    Measure("effective_curvature_end", "κ effective, end"),
    Measure("clean_hessian_rms", "Hessian norm, clean"),
    Measure("adversarial_hessian_rms", "Hessian norm, adversarial"),
    Measure("hessian_adversarial_curvature_share", "share of σ″ in diag H, adversarial"),
    Measure("flatness_average", "flatness, average"),
    Measure("flatness_worst", "flatness, worst"),
    Measure("smoothness_linf_ratio", "gradient Lipschitz, L∞"),
    Measure("smoothness_l2_ratio", "gradient Lipschitz, L2"),
    Measure("extra_parameters", "extra parameters", "{:.0f}"),
    Measure("gradient_evaluations", "gradients", "{:.0f}"),
    Measure("seconds_per_epoch", "seconds an epoch, median", "{:.2f}"),
    Measure("relative_seconds", "time, relative, median", "{:.2f}"),
)
OUTCOMES = (
    "clean_accuracy",
    "robust_accuracy",
    "subset_robust_accuracy",
    "subset_pgd_accuracy",
    "smoothness_linf_ratio",
    "smoothness_l2_ratio",
    "flatness_average",
    "flatness_worst",
)


@dataclass(frozen=True)
class Difference:
    """A cell minus its baseline at the same seeds.

    mean: with its own interval, not corrected. p: of no difference, by a paired t test (by the
    signs where all differences are equal). p_holm: after Holm's correction. NaN where fewer than
    two seeds are in common.
    """

    mean: Interval
    p: float
    p_holm: float

    @property
    def shown(self) -> bool:
        """Whether the difference is shown at 5 % after the correction."""
        return self.p_holm < ALPHA


@dataclass(frozen=True)
class Cell:
    """What one cell of the sweep gave.

    means: metric → mean over seeds (of times the median). values: metric → seed → value.
    differences: outcome → difference to the baseline; empty for a baseline.
    """

    name: str
    labels: Mapping[str, Value]
    baseline: str | None
    means: Mapping[str, Interval]
    values: Mapping[str, Mapping[int, float]]
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class PairedAnswer(Answer):
    """The cells in the order of the runs, beside sentences and table. axes: those that tell the
    cells apart. judged_by: the metric of the strongest attack that all runs were measured with."""

    question: Paired
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    judged_by: str


class Paired(Question):
    """Which cells differ from a baseline?

    baseline: a label of an axis, or axis → label; a cell is compared with the cell that has these
        labels and is equal to it on the other axes. Not given: the first cell, for all.
    outcomes: the metrics that are compared.
    correct: what Holm's correction is over: the cells of each outcome ("outcome"), or all
    differences ("all").
    """

    baseline: str | dict[str, str | float | int | bool | None] | None = None
    outcomes: tuple[str, ...] = OUTCOMES
    level: float = 0.95
    correct: Literal["outcome", "all"] = "outcome"

    def suits(self, table: Table) -> bool:
        """Two cells or more, and no curve in the curvature."""
        from curvact.lab.statistics.curve import Curve

        axes = [axis for axis in table.axes if axis != SEED]
        done = [row for row in table.rows if row.status == "done"]
        cells = {tuple(row.labels.get(axis) for axis in axes) for row in done}
        return len(cells) > 1 and not Curve().suits(table)

    def check(self, table: Table) -> None:
        """Raises CurvactError for a baseline that is no label."""
        axes = [axis for axis in table.axes if axis != SEED]
        self._baselines(table, axes, [tuple(row.labels.get(axis) for axis in axes) for row in table.rows])

    def answer(self, table: Table) -> PairedAnswer:
        """Means, differences and their table. Raises CurvactError for a baseline that no run
        has."""
        rows: dict[tuple[Value, ...], list[Row]] = {}
        axes = [axis for axis in table.axes if axis != SEED]
        for row in table.rows:
            rows.setdefault(tuple(row.labels.get(axis) for axis in axes), []).append(row)
        shown = varying(table.rows, axes) or axes[:1]
        names = {key: name_of(dict(zip(axes, key, strict=True)), shown) for key in rows}
        own = self._baselines(table, axes, list(rows))
        metrics = sorted({metric for row in table.rows for metric in row.metrics})
        values = {
            key: {metric: found for metric in metrics if (found := by_seed(lines, metric))}
            | {"gradient_evaluations": gradient_evaluations(lines)}
            for key, lines in rows.items()
        }
        for key, base in own.items():
            times = values[key].get("seconds_per_epoch", {})
            unit = values[base].get("seconds_per_epoch", {})
            ratios = {seed: times[seed] / unit[seed] for seed in times if unit.get(seed)}
            if ratios:
                values[key]["relative_seconds"] = ratios
        differences = {
            outcome: paired_differences({key: values[key].get(outcome, {}) for key in rows}, own, self.level)
            for outcome in self.outcomes
        }
        if self.correct == "all":
            differences = corrected_together(differences)
        cells = tuple(
            Cell(
                names[key],
                dict(zip(axes, key, strict=True)),
                names[own[key]] if key in own else None,
                {
                    metric: middle(metric, list(found.values()))
                    for metric, found in values[key].items()
                    if found
                },
                values[key],
                {outcome: found[key] for outcome, found in differences.items() if key in found},
            )
            for key in rows
        )
        against = list(dict.fromkeys(names[base] for base in own.values()))
        return PairedAnswer(
            "Differences to the baseline",
            self._sentences(cells, against, strongest(table)),
            (paired_grid(shown, cells, self.outcomes),),
            self,
            tuple(shown),
            cells,
            strongest(table),
        )

    def _baselines(
        self, table: Table, axes: Sequence[str], keys: Sequence[tuple[Value, ...]]
    ) -> dict[tuple[Value, ...], tuple[Value, ...]]:
        """Which cell each cell is compared with."""
        if not keys:
            return {}
        if self.baseline is None:
            return dict.fromkeys(keys, keys[0])
        if not axes:
            raise CurvactError("questions.paired: the seed is the only axis, so there is nothing to compare")
        wanted = self.baseline
        if isinstance(wanted, str):
            known = {str(label): axis for axis in reversed(axes) for label in labels_of(table.rows, axis)}
            if wanted not in known:
                raise CurvactError(
                    f"questions.paired.baseline = {wanted!r} is no label of an axis{nearest(wanted, known)}; "
                    f"labels of {axes[0]} are {', '.join(str(label) for label in labels_of(table.rows, axes[0]))}"
                )
            wanted = {known[wanted]: wanted}
        for axis, label in wanted.items():
            if axis not in axes:
                raise CurvactError(
                    f"questions.paired.baseline.{axis}: no such axis{nearest(axis, axes)}; axes are {', '.join(axes)}"
                )
            labels = labels_of(table.rows, axis)
            if not any(_same(label, other) for other in labels):
                raise CurvactError(
                    f"questions.paired.baseline.{axis} = {label!r} is no label of that axis; "
                    f"its labels are {', '.join(map(str, labels))}"
                )
        found = {}
        for key in keys:
            for base in keys:
                if all(
                    _same(wanted[axis], b) if axis in wanted else a == b
                    for axis, a, b in zip(axes, key, base, strict=True)
                ):
                    found[key] = base
        return found

    def _sentences(self, cells: Sequence[Cell], against: Sequence[str], judge: str) -> tuple[str, ...]:
        tested = [d for cell in cells for d in cell.differences.values() if not math.isnan(d.p)]
        if not tested:
            return ("No difference can be tested: fewer than two seeds are in common with the baseline.",)
        shown = sum(d.shown for d in tested)
        over = "all of them together" if self.correct == "all" else "the cells of each outcome"
        sentences = [
            (
                f"{shown} of {len(tested)} differences to {' and '.join(repr(name) for name in against)} are shown at "
                f"5 % after Holm's correction over {over}."
            )
        ]
        robust = [
            (cell.name, cell.differences[judge])
            for cell in cells
            if judge in cell.differences and cell.differences[judge].shown
        ]
        for word, sign in (("Higher", 1), ("Lower", -1)):
            names = [name for name, difference in robust if difference.mean.value * sign > 0]
            if names:
                by = " by the strongest attack measured" if judge == STRONG else ""
                sentences.append(f"{word} robust accuracy{by} is shown for {_few(names)}.")
        return tuple(sentences)


def paired_grid(
    axes: Sequence[str],
    cells: Sequence[Cell],
    outcomes: Sequence[str],
    titles: Mapping[str, str] | None = None,
) -> Grid:
    """The table: a column an axis, a column a measure that any cell has, a column a difference.
    titles: metric → heading."""
    own = titles or {}
    known = [
        *MEASURES,
        *(Measure(o, o.replace("_", " ")) for o in outcomes if all(o != m.key for m in MEASURES)),
    ]
    measures = [
        Measure(m.key, own.get(m.key, m.title), m.form, m.percent)
        for m in known
        if any(m.key in cell.means for cell in cells)
    ]
    compared = [m for m in measures if m.key in outcomes]
    heads = (*(axis if len(axes) > 1 else "" for axis in axes), *(m.title for m in measures))
    heads += tuple(f"{m.title} − baseline" for m in compared)
    lines = []
    for cell in cells:
        names = (
            label_text(axis, cell.labels[axis]) if cell.labels[axis] is not None else "" for axis in axes
        )
        means = (_mean_text(cell.means.get(m.key), m) for m in measures)
        if cell.baseline == cell.name:
            differences = ["baseline"] * len(compared)
        else:
            differences = [_difference_text(cell.differences.get(m.key), m) for m in compared]
        lines.append((*names, *means, *differences))
    return Grid("Means and differences", heads, tuple(lines), len(axes))


def _mean_text(mean: Interval | None, measure: Measure) -> str:
    if measure.percent or mean is None:
        return interval_text(mean, measure.form)
    return interval_text(Interval(mean.value, math.nan, math.nan, mean.count), measure.form, factor=1.0)


def _difference_text(difference: Difference | None, measure: Measure) -> str:
    if difference is None:
        return "–"
    return difference_text(difference.mean, percent=measure.percent) + "*" * difference.shown


def gradient_evaluations(rows: Sequence[Row]) -> dict[int, float]:
    """seed → gradient evaluations of the finished runs."""
    from curvact.lab.statistics.strata import seed_of

    return {seed_of(row): float(row.gradient_evaluations) for row in rows if row.status == "done"}


def middle(metric: str, values: Sequence[float]) -> Interval:
    """The mean of the values; of times the median, because other work on the machine lengthens
    single runs."""
    if "seconds" in metric:
        return Interval(statistics.median(values), math.nan, math.nan, len(values))
    return student(values, scale=scale_of(metric))


def paired_differences(
    values: Mapping[Name, Mapping[int, float]], baselines: Mapping[Name, Name], level: float = 0.95
) -> dict[Name, Difference]:
    """What each cell has more than its baseline; cells without one, and without common seeds, are
    left out.

    values: cell → seed → value. baselines: cell → the cell it is compared with. Holm's correction
    is over all cells.

    >>> one = {"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.1}}
    >>> round(paired_differences(one, {"b": "a"})["b"].mean.value, 3)
    1.05
    """
    means: dict[Name, Interval] = {}
    p_values: dict[Name, float] = {}
    for name, cell in values.items():
        base = baselines.get(name, name)
        if base == name:
            continue
        own = values[base]
        seeds = sorted(set(cell) & set(own))
        if not seeds:
            continue
        differences = np.array([cell[s] - own[s] for s in seeds])
        means[name] = student(differences.tolist(), level)
        p_values[name] = _t_test(differences)
    adjusted = holm(p_values)
    return {name: Difference(means[name], p_values[name], adjusted[name]) for name in means}


def corrected_together(
    differences: Mapping[str, Mapping[Name, Difference]],
) -> dict[str, dict[Name, Difference]]:
    """The differences of several outcomes with Holm's correction over all of them."""
    adjusted = holm({(o, name): d.p for o, found in differences.items() for name, d in found.items()})
    return {
        o: {name: Difference(d.mean, d.p, adjusted[o, name]) for name, d in found.items()}
        for o, found in differences.items()
    }


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's step-down correction; NaN stays NaN.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    known = sorted(((p, i) for i, p in enumerate(p_values.values()) if not math.isnan(p)))
    names = list(p_values)
    adjusted = dict.fromkeys(p_values, math.nan)
    highest = 0.0
    for index, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - index) * p))
        adjusted[names[i]] = highest
    return adjusted


def _t_test(differences: Array) -> float:
    from scipy import stats

    if len(differences) < 2:
        return math.nan
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    if all_equal(differences):
        # Counts of few images can all be equal. No spread says nothing of the noise: the signs are
        # left.
        return 1.0 if differences.mean() == 0 else float(2 * 0.5 ** len(differences))
    return float(2 * stats.t.sf(abs(differences.mean() / error), len(differences) - 1))


def _same(wanted: Value, label: Value) -> bool:
    return wanted == label or str(wanted) == str(label)


def _few(names: Sequence[str], most: int = 8) -> str:
    text = "; ".join(names[:most])
    return text if len(names) <= most else f"{text}; and {len(names) - most} more"
