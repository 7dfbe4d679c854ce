"""The question of the curve: how does an outcome depend on the curvature, in each stratum and
across them?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from curvact.lab.statistics import words
from curvact.lab.statistics.across import Common, SameShape, common_optimum, same_shape
from curvact.lab.statistics.calibration import Calibration, nearest_calibration
from curvact.lab.statistics.contrasts import NULL_DRAWS, Array, Design, precise_p_values
from curvact.lab.statistics.interval import (
    Interval,
    curve_intervals,
    difference_text,
    interval_text,
    scale_of,
    student,
)
from curvact.lab.statistics.paired import holm, middle
from curvact.lab.statistics.question import Answer, Grid, Question
from curvact.lab.statistics.strata import (
    BESIDE,
    QUICK,
    SEED,
    STRONG,
    STRONGEST,
    Cells,
    Stratum,
    axis_name,
    by_seed,
    cells,
    label_text,
    metric_of,
    place,
    strata,
    varying,
)
from curvact.lab.statistics.verdict import MOST_POINTS, Range, Verdict, decide, difference, peak_test
from curvact.lab.table import Row, Table

PUBLISHED_BAND = (4.0, 10.0)
"""Where the paper sees the best curvatures. [paper, arXiv 2603.23860]"""

ACCURACIES = ("clean_accuracy", "robust_accuracy", "train_clean_accuracy", "train_robust_accuracy")
Key = tuple[int, str]
"""A stratum by its number, and a metric."""

ROBUST_ACCURACIES = (STRONG, BESIDE[STRONG], QUICK)
"""On the test images, the strongest attack first: in a table they stand beside what is asked."""
LOSSES = ("clean", "adversarial")
NORM_SYMBOLS = {
    "rms": "‖diag H‖₂/√P",
    "gradient_relative": "‖diag H‖₂/‖∇L‖₂",
    "scale_invariant": "‖θ²⊙diag H‖₂",
}
HESSIAN_NORMS = tuple(f"{loss}_hessian_{norm}" for loss in LOSSES for norm in NORM_SYMBOLS)
PRIMARY_NORM = "adversarial_hessian_scale_invariant"
"""The norm whose U shape is the claim under test: of the loss that is trained, and the only one that
stays when layers are rescaled, which changes nothing in a network with batch norm. [ours]
"""
PRECISE_DRAWS = (40_000, 160_000, 640_000)
ERRORS = 4.0  # standard errors of the simulation that must not change a decision
MOST_IN_WORDS = 4  # strata whose own sentences belong to the answer; of more, the table tells


@dataclass(frozen=True)
class UTest:
    """The test of a U shape of one norm in one stratum.

    p: by itself. error: the standard error of p, from the simulation. p_holm: after Holm's
    correction, of the primary norm over the strata, of the others over all tests.
    """

    p: float
    error: float
    p_holm: float


@dataclass(frozen=True)
class Against:
    """The mean at the best point of a curve minus the mean of a reference, at equal seeds.

    interval: simultaneous over all comparisons of the curve and the reference, because the best
    point was chosen by looking; None without noise to judge. seeds: in common.
    """

    reference: Interval
    difference: float
    interval: Range | None
    seeds: int


@dataclass(frozen=True, eq=False)
class StratumAnswer:
    """One curve: its verdict, that of each norm, and what they say.

    cells: the values of the outcome. norms: metric → verdict; u_tests: metric → the test of its U
    shape. against: reference → the best point's mean minus the reference's. sentences: on the
    outcome; details: one for each norm.
    """

    stratum: Stratum
    cells: Cells
    verdict: Verdict
    norms: Mapping[str, Verdict]
    u_tests: Mapping[str, UTest]
    against: Mapping[str, Against]
    sentences: tuple[str, ...]
    beside: tuple[str, ...]
    details: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CurveAnswer(Answer):
    """All curves of the sweep; common and same are None for one stratum."""

    question: Curve
    strata: tuple[StratumAnswer, ...]
    common: Common | None
    same: SameShape | None
    calibration: Calibration | None


class Curve(Question):
    """How does an outcome depend on an axis, in each stratum and across them?

    outcome, axis: metric and axis of the curve. Without a setting the outcome is the robust
    accuracy under the strongest attack that all runs were measured with ("strongest").
    maximise: whether the optimum is the highest value.
    band: where the optimum was published to be, None for nowhere; without a setting 4 to 10 for the
    curvature.
    margin, norm_margin: differences that count as none, in the outcome and in log10 of a norm (0.05
    is 12 %).
    norms: metrics whose logarithm is asked for a U shape. primary_norm: the one that the question is
    about, chosen before the runs: it is corrected (Holm) over its strata alone. The others are
    secondary, and corrected over all tests.
    """

    outcome: str = STRONGEST
    axis: str = "curvature"
    maximise: bool = True
    band: tuple[float, float] | None = PUBLISHED_BAND
    level: float = 0.95
    margin: float = 0.02
    norm_margin: float = 0.05
    norms: tuple[str, ...] = HESSIAN_NORMS
    primary_norm: str = PRIMARY_NORM

    @property
    def shown_band(self) -> tuple[float, float] | None:
        """The band to draw: the default one only for the curvature."""
        return self.band if self.axis == "curvature" or "band" in self.model_fields_set else None

    @property
    def terms(self) -> words.Terms:
        """What the sentences call the outcome and the axis."""
        symbol = "κ" if self.axis == "curvature" else axis_name(self.axis)
        return words.Terms(words.outcome_name(self.outcome), symbol, scale_of(self.outcome) == "fraction")

    def suits(self, table: Table) -> bool:
        """The axis has two numbers or more above 0, with a seed axis or not, and a finished run has
        the outcome."""
        places = {place(row.labels.get(self.axis)) for row in table.rows if row.status == "done"}
        measured = any(metric_of(self.outcome, table) in row.metrics for row in table.rows)
        return self.axis in table.axes and len(places - {None}) > 1 and measured

    def answer(self, table: Table) -> CurveAnswer:
        """The verdict in each stratum and across them. Raises CurvactError as `decide` does."""
        if self.outcome == STRONGEST:
            return self.model_copy(update={"outcome": metric_of(self.outcome, table)}).answer(table)
        found = [self._stratum(stratum) for stratum in strata(table, self.axis)]
        known = [one for one in found if one is not None]
        known, u_sentences = self._correct(known)
        able = {s.stratum.name: s for s in known if math.isfinite(s.verdict.plateau_spread)}
        common = same = None
        across: tuple[str, ...] = ()
        if len(able) > 1:
            common = common_optimum([s.verdict for s in able.values()])
            same = same_shape({name: (s.cells.points, s.cells.values) for name, s in able.items()})
            across = words.across_sentences({n: s.verdict for n, s in able.items()}, common, same, self.terms)
            across += self._along_axes(list(able.values()))
        few = known if len(known) <= MOST_IN_WORDS else ()
        short = tuple(
            (f"{s.stratum.name}: " if len(known) > 1 else "") + line
            for s in few
            for line in (*s.sentences[:2], *s.beside)
        )
        axes = varying(
            [row for s in known for row in s.stratum.rows],
            [a for a in table.axes if a not in (self.axis, SEED)],
        )
        tables = (
            self._strata_grid(known, axes),
            self._references_grid(known, axes),
            self._means_grid(known, axes),
            self._norms_grid(known, axes),
        )
        return CurveAnswer(
            f"{self.terms.outcome[:1].upper()}{self.terms.outcome[1:]} against {axis_name(self.axis)}",
            across + short + u_sentences if len(known) == 1 else across + u_sentences + short,
            tuple(grid for grid in tables if grid.lines and len(grid.heads) > grid.names),
            self,
            tuple(known),
            common,
            same,
            self._calibration(known),
        )

    def _stratum(self, stratum: Stratum) -> StratumAnswer | None:
        outcome = cells(stratum.rows, self.axis, self.outcome)
        if not len(outcome.points):
            return None
        points = outcome.points.tolist()
        verdict = decide(points, outcome.values, level=self.level, margin=self.margin, maximise=self.maximise)
        norms, details = {}, []
        for metric in self.norms:
            logs = self._logs(stratum, metric, outcome)
            if logs is None:
                continue
            margin = self.norm_margin
            norm = decide(points, logs, level=self.level, margin=margin, maximise=False, planned=False)
            norms[metric] = norm
            name = norm_name(metric)
            notes = [f"Note: {note}." for note in norm.notes if note not in verdict.notes]
            line = words.norm_sentences(name, norm, verdict, points, outcome.values, logs, self.terms)
            details.append(" ".join([line, *notes]))
        against = self._against(stratum, outcome, verdict)
        sentences = words.curve_sentences(verdict, self.terms, self.shown_band)
        beside = (
            *(self._against_sentence(name, one, verdict) for name, one in against.items()),
            *self._quick_sentences(stratum),
        )
        return StratumAnswer(stratum, outcome, verdict, norms, {}, against, sentences, beside, tuple(details))

    def _against(self, stratum: Stratum, outcome: Cells, verdict: Verdict) -> dict[str, Against]:
        """The best point against each reference. The reference is one more row of the table, so that
        its noise is judged with that of the curve."""
        found = {}
        for name, rows in stratum.references.items():
            own = by_seed(rows, self.outcome)
            line = np.array([own.get(seed, math.nan) for seed in outcome.seeds])
            best = outcome.points.tolist().index(verdict.best)
            common = np.isfinite(line) & np.isfinite(outcome.values[best])
            if not common.any():
                continue
            table = np.vstack([outcome.values, line])
            judged = (
                difference(table, best, len(table) - 1, self.level) if len(table) <= MOST_POINTS else None
            )
            gap = float((outcome.values[best] - line)[common].mean())
            interval = None if judged is None else judged[1]
            mean = middle(self.outcome, [value for value in own.values() if math.isfinite(value)])
            found[name] = Against(mean, gap if judged is None else judged[0], interval, int(common.sum()))
        return found

    def _against_sentence(self, name: str, one: Against, verdict: Verdict) -> str:
        place = f"{self.terms.symbol} = {verdict.best:g}, the best point,"
        if one.interval is None:
            return f"{place} differs from {name} by {self.terms.size(one.difference)}. There is no error bar."
        if one.interval.low > 0 or one.interval.high < 0:
            shown = "above" if one.interval.low > 0 else "below"
            return (
                f"{place} lies {shown} {name}: difference {self.terms.signed(one.difference, one.interval)}."
            )
        return (
            f"{place} is not shown to differ from {name}: {self.terms.signed(one.difference, one.interval)}."
        )

    def _quick_sentences(self, stratum: Stratum) -> list[str]:
        """How much the quick attack flatters, and whether that depends on the point."""
        beside = BESIDE.get(self.outcome)
        if beside is None:
            return []
        strong, quick = (cells(stratum.rows, self.axis, metric) for metric in (self.outcome, beside))
        if quick.values.shape != strong.values.shape or len(strong.points) < 2:
            return []
        gaps = 100 * (quick.values - strong.values)
        decades = np.log10(strong.points)
        slopes = [
            float(np.polyfit(decades[known], gap[known], 1)[0])
            for gap in gaps.T
            if (known := np.isfinite(gap)).sum() > 1
        ]
        if not slopes or not np.isfinite(gaps).any():
            return []
        slope = interval_text(student(slopes, self.level), "{:+.1f}", factor=1.0, brackets=True)
        return [
            (
                f"PGD on the same images is {np.nanmean(gaps):.1f} points above this attack. The gap changes by "
                f"{slope} points a decade of {self.terms.symbol}."
            )
        ]

    def _logs(self, stratum: Stratum, metric: str, outcome: Cells) -> Array | None:
        """log10 of a norm in the cells of the outcome; NaN where an estimate is not above 0 (its
        noise exceeded it)."""
        found = cells(stratum.rows, self.axis, metric)
        if found.seeds != outcome.seeds or not np.array_equal(found.points, outcome.points):
            return None
        logs: Array = np.log10(np.where(found.values > 0, found.values, np.nan))
        return logs if np.isfinite(logs).any() else None

    def _correct(self, found: Sequence[StratumAnswer]) -> tuple[list[StratumAnswer], tuple[str, ...]]:
        """The U tests of all strata and norms, and what is left of them after correction: a sentence
        on the primary norm and one on the others."""
        tests: dict[Key, tuple[Design, float]] = {}
        p_values = {}
        for i, one in enumerate(found):
            for metric, norm in one.norms.items():
                p_values[i, metric] = norm.peak_p
                logs = self._logs(one.stratum, metric, one.cells)
                test = None if logs is None else peak_test(logs, maximise=False)
                if test is not None and norm.peak_p < 1 - self.level:
                    tests[i, metric] = test
        if not p_values:
            return list(found), ()
        known = _precise(p_values, tests, self._corrected, 1 - self.level)
        sentences = []
        for primary in (True, False):
            tested = {key: test for key, test in known.items() if (key[1] == self.primary_norm) is primary}
            if tested:
                sentences.append(self._u_sentence(found, tested, primary=primary))
        changed = [
            replace(one, u_tests={metric: known[i, metric] for metric in one.norms})
            for i, one in enumerate(found)
        ]
        return changed, tuple(sentences)

    def _corrected(self, p_values: Mapping[Key, float]) -> dict[Key, float]:
        """p-values after Holm's correction: of the primary norm over its strata, of the others over
        all tests."""
        primary = {key: p for key, p in p_values.items() if key[1] == self.primary_norm}
        return {**holm(p_values), **holm(primary)}

    def _u_sentence(
        self, found: Sequence[StratumAnswer], tested: Mapping[Key, UTest], *, primary: bool
    ) -> str:
        alpha = 1 - self.level
        single = sum(test.p <= alpha for test in tested.values())
        left = {key: test for key, test in tested.items() if test.p_holm <= alpha}
        if primary:
            text = f"The primary norm, {norm_name(self.primary_norm)}: a U shape is shown in "
        else:
            text = "Secondary norms: a U shape is shown in "
        text += f"{single} of {words.count(len(tested), 'test')} taken singly"

        def p_of(test: UTest) -> str:
            error = f" ± {test.error * test.p_holm / test.p:.2g}" if test.error else ""
            return f"p {words.p_text(test.p_holm)}{error}"

        smallest = min(tested.values(), key=lambda test: test.p_holm)
        over = "its strata" if primary else "all tests"
        after = f"after Holm's correction over {over}"
        if not left:
            return f"{text}, and in none {after} (smallest {p_of(smallest)})."
        names = "; ".join(
            (f"{found[i].stratum.name}: " if len(found) > 1 else "") + f"{norm_name(metric)} ({p_of(test)})"
            for (i, metric), test in left.items()
        )
        return f"{text}, and in {len(left)} {after}: {names}."

    def _along_axes(self, found: Sequence[StratumAnswer]) -> tuple[str, ...]:
        """Along each axis alone, the others held fixed: in how many groups of strata the confidence
        sets overlap."""
        axes = [axis for axis in found[0].stratum.labels if len({s.stratum.labels[axis] for s in found}) > 1]
        if len(axes) < 2:
            return ()
        lines = []
        for axis in axes:
            groups: dict[tuple[object, ...], list[Verdict]] = {}
            for s in found:
                key = tuple(label for name, label in s.stratum.labels.items() if name != axis)
                groups.setdefault(key, []).append(s.verdict)
            several = [group for group in groups.values() if len(group) > 1]
            overlap = sum(common_optimum(group).overlap is not None for group in several)
            if several:
                lines.append(f"{overlap} of {len(several)} along {axis}")
        return (f"With the other axes held fixed, the sets overlap in {', '.join(lines)}.",)

    def _calibration(self, found: Sequence[StratumAnswer]) -> Calibration | None:
        able = [s.verdict for s in found if s.verdict.seeds > 1 and len(s.verdict.curvatures) > 2]
        if not able or scale_of(self.outcome) != "fraction":
            return None
        widest = max(able, key=lambda v: (len(v.curvatures), v.seeds))
        sd = float(np.sqrt(np.mean([(v.noise.low**2 + v.noise.high**2) / 2 for v in able])))
        return nearest_calibration(len(widest.curvatures), widest.seeds, sd) if sd > 0 else None

    def _strata_grid(self, found: Sequence[StratumAnswer], axes: Sequence[str]) -> Grid:
        """One line a stratum: the verdict and its numbers."""
        names = tuple(axes) or ("",)
        symbol = self.terms.symbol
        heads = (
            *names,
            "verdict",
            f"best {symbol}",
            f"optimum, {words.percent(self.level)} set",
            f"best mean{' (%)' if self.terms.percent else ''}",
            "peak p" if self.maximise else "U p",
            "rise p",
            "fall p",
            "seeds",
            f"seeds for a peak of {self.terms.size(self.margin)}",
        )
        norms = any(s.norms for s in found)
        if norms:
            heads += ("U of a norm, corrected",)
        lines = []
        for s in found:
            v = s.verdict
            best = max(v.means) if v.maximise else min(v.means)
            tested = math.isfinite(v.plateau_spread)
            left = sum(test.p_holm <= 1 - self.level for test in s.u_tests.values())
            lines.append(
                (
                    *(tuple(label_text(axis, s.stratum.labels[axis]) for axis in axes) or ("all",)),
                    v.kind,
                    f"{v.best:g}",
                    _span(v.optimum),
                    self.terms.value(best).removesuffix(" %"),
                    *(
                        (words.p_text(p).removeprefix("= ") if tested else "–")
                        for p in (v.peak_p, v.rise_p, v.fall_p)
                    ),
                    str(v.seeds),
                    (words.seed_number(v.seeds_for_peak).removesuffix(" seeds") if v.likely else "–"),
                    *((f"{left} of {len(s.norms)}",) if norms else ()),
                )
            )
        return Grid("Verdict by stratum", heads, tuple(lines), len(names))

    def _references_grid(self, found: Sequence[StratumAnswer], axes: Sequence[str]) -> Grid:
        """One line a stratum and reference: both means, and their difference."""
        symbol = self.terms.symbol
        percent = scale_of(self.outcome) == "fraction"
        unit, gap_unit = (" (%)", " (points)") if percent else ("", "")
        heads = (
            *axes,
            "reference",
            f"mean{unit}",
            f"best {symbol}",
            f"best mean{unit}",
            f"best − reference{gap_unit}",
            "seeds",
        )
        lines = []
        for s in found:
            best = curve_of(s.stratum.rows, self.axis, self.outcome, self.level).get(s.verdict.best)
            for name, one in s.against.items():
                ends = (math.nan, math.nan) if one.interval is None else (one.interval.low, one.interval.high)
                gap = Interval(one.difference, *ends, one.seeds)
                lines.append(
                    (
                        *(label_text(axis, s.stratum.labels[axis]) for axis in axes),
                        name,
                        mean_text(one.reference, self.outcome),
                        f"{s.verdict.best:g}",
                        mean_text(best, self.outcome),
                        difference_text(gap, percent=percent),
                        str(one.seeds),
                    )
                )
        note = (
            "Differences are paired by seed. Their intervals hold for all comparisons at once, because the best "
            "point was chosen by looking."
        )
        return Grid("Against references", heads, tuple(lines), len(axes) + 1, (note,))

    def _means_grid(self, found: Sequence[StratumAnswer], axes: Sequence[str]) -> Grid:
        every = {metric for s in found for row in s.stratum.rows for metric in row.metrics}
        wanted = dict.fromkeys((self.outcome, *ROBUST_ACCURACIES, *ACCURACIES))
        metrics = [m for m in wanted if m in every]
        return self._grid("Means over seeds", found, axes, metrics, [accuracy_head(m) for m in metrics])

    def _norms_grid(self, found: Sequence[StratumAnswer], axes: Sequence[str]) -> Grid:
        metrics = [m for m in self.norms if any(m in r.metrics for s in found for r in s.stratum.rows)]
        heads = tuple(norm_name(m) for m in metrics)
        return self._grid("Hessian norms: geometric means over seeds", found, axes, metrics, heads)

    def _grid(
        self,
        title: str,
        found: Sequence[StratumAnswer],
        axes: Sequence[str],
        metrics: Sequence[str],
        heads: Sequence[str],
    ) -> Grid:
        """A line for each point of each stratum, with the intervals of the curve; references below
        their points."""
        lines: list[tuple[str, ...]] = []
        shown: set[str] = set()
        for s in found:
            name = tuple(label_text(axis, s.stratum.labels[axis]) for axis in axes)
            rows = s.stratum.rows
            at = sorted({p for r in rows if (p := place(r.labels.get(self.axis))) is not None})
            estimates = {m: curve_of(rows, self.axis, m, self.level) for m in metrics}
            for p in at:
                here = [r for r in rows if place(r.labels.get(self.axis)) == p]
                values = [mean_text(estimates[m].get(p), m) for m in metrics]
                lines.append((*name, f"{p:g}", seeds_text(here), *values))
            for reference, others in s.stratum.references.items():
                runs = ", ".join(sorted(r.run for r in others))
                if runs not in shown:
                    shown.add(runs)
                    labels = others[0].labels
                    own = tuple(label_text(axis, labels[axis]) if axis in labels else "" for axis in axes)
                    values = [reference_text(others, m) for m in metrics]
                    lines.append((*own, reference, seeds_text(others), *values))
        lines = lines if metrics else []
        return Grid(title, (*axes, self.terms.symbol, "seeds", *heads), tuple(lines), len(axes) + 1)


def accuracy_head(metric: str) -> str:
    """The heading of a metric in a table of means.

    >>> accuracy_head("robust_accuracy"), accuracy_head("flatness_average")
    ('robust (%)', 'flatness average')
    """
    name = metric.removesuffix("_accuracy").replace("_", " ")
    return f"{name} (%)" if scale_of(metric) == "fraction" else name


def curve_of(rows: Sequence[Row], axis: str, metric: str, level: float = 0.95) -> dict[float, Interval]:
    """point → mean over seeds with its interval, of a metric along an axis; of a positive quantity
    the geometric mean."""
    found, scale = cells(rows, axis, metric), scale_of(metric)
    if not len(found.points):
        return {}
    values = np.where(found.values > 0, found.values, np.nan) if scale == "positive" else found.values
    parts = curve_intervals(values, level, scale)
    result = {}
    for at, own, mean, low, high in zip(found.points, values, *parts, strict=True):
        known = own[np.isfinite(own)]
        if len(known):
            ends = (float(known.min()), float(known.max()))
            result[float(at)] = Interval(float(mean), float(low), float(high), len(known), *ends)
    return result


def reference_text(rows: Sequence[Row], metric: str) -> str:
    """The mean of a reference, which has no curve to borrow strength from."""
    values = list(by_seed(rows, metric).values())
    return mean_text(middle(metric, values) if values else None, metric)


def seeds_text(rows: Sequence[Row]) -> str:
    """How many runs are done: `3`, or `2/3` where one failed."""
    done = sum(row.status == "done" for row in rows)
    return str(done) if done == len(rows) else f"{done}/{len(rows)}"


def mean_text(mean: Interval | None, metric: str) -> str:
    """A mean with its interval in the unit of its metric: accuracies in per cent.

    >>> mean_text(Interval(0.671, 0.656, 0.686, 3), "robust_accuracy")
    '67.1 ± 1.5'
    >>> mean_text(Interval(0.012, 0.011, 0.014, 3), "clean_hessian_rms")
    '0.0120 [0.0110, 0.0140]'
    """
    if scale_of(metric) == "fraction":
        return interval_text(mean)
    return interval_text(mean, "{:#.3g}", factor=1.0, brackets=True)


def norm_name(metric: str) -> str:
    """A Hessian norm in words.

    >>> norm_name("clean_hessian_rms")
    '‖diag H‖₂/√P of the clean loss'
    """
    loss, _, norm = metric.partition("_hessian_")
    return f"{NORM_SYMBOLS[norm]} of the {loss} loss" if norm in NORM_SYMBOLS else metric.replace("_", " ")


def _span(part: Range) -> str:
    return f"{part.low:g}" if part.low == part.high else f"{part.low:g} to {part.high:g}"


def _precise(
    p_values: Mapping[Key, float],
    tests: Mapping[Key, tuple[Design, float]],
    corrected: Callable[[Mapping[Key, float]], dict[Key, float]],
    alpha: float,
) -> dict[Key, UTest]:
    """The tests after their correction, from as many draws as it takes to decide them.

    A test is drawn again, with the numbers of PRECISE_DRAWS in turn, while ERRORS standard errors of
    the simulation could change its decision at `alpha`.
    """
    known = dict(p_values)
    draws = dict.fromkeys(known, NULL_DRAWS)

    def error(key: Key) -> float:
        return math.sqrt(max(known[key] * (1 - known[key]), 1e-9) / draws[key])

    for more in PRECISE_DRAWS:
        low = corrected({key: max(0.0, p - ERRORS * error(key)) for key, p in known.items()})
        high = corrected({key: p + ERRORS * error(key) for key, p in known.items()})
        groups: dict[int, list[Key]] = {}
        for key in tests:
            if (low[key] <= alpha) != (high[key] <= alpha):
                groups.setdefault(id(tests[key][0]), []).append(key)
        for keys in groups.values():
            plan = tests[keys[0]][0]
            found = precise_p_values(plan, np.array([tests[key][1] for key in keys]), more)
            known.update(zip(keys, found.tolist(), strict=True))
            draws.update(dict.fromkeys(keys, more))
    after = corrected(known)
    return {key: UTest(p, error(key), after[key]) for key, p in known.items()}
