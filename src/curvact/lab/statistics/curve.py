"""The question of the curve: how does an outcome depend on the curvature, in each stratum and
across them?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curvact.lab.statistics import words
from curvact.lab.statistics.across import Common, SameShape, common_optimum, same_shape
from curvact.lab.statistics.calibration import Calibration, nearest_calibration
from curvact.lab.statistics.contrasts import Array, Design, precise_p_values
from curvact.lab.statistics.interval import Interval, curve_intervals, interval_text, scale_of
from curvact.lab.statistics.paired import holm
from curvact.lab.statistics.question import Answer, Grid, Question
from curvact.lab.statistics.strata import (
    SEED,
    Cells,
    Stratum,
    axis_name,
    cells,
    label_text,
    place,
    strata,
    varying,
)
from curvact.lab.statistics.verdict import Range, Verdict, decide, peak_test
from curvact.lab.table import Row, Table

PUBLISHED_BAND = (4.0, 10.0)
"""Where the paper sees the best curvatures. [paper, arXiv 2603.23860]"""

ACCURACIES = ("clean_accuracy", "robust_accuracy", "train_clean_accuracy", "train_robust_accuracy")
LOSSES = ("clean", "adversarial")
NORM_SYMBOLS = {
    "rms": "‖diag H‖₂/√P",
    "gradient_relative": "‖diag H‖₂/‖∇L‖₂",
    "scale_invariant": "‖θ²⊙diag H‖₂",
}
HESSIAN_NORMS = tuple(f"{loss}_hessian_{norm}" for loss in LOSSES for norm in NORM_SYMBOLS)
PRECISE_DRAWS = (40_000, 160_000, 320_000)
MOST_IN_WORDS = 4  # strata whose own sentences belong to the answer; of more, the table tells


@dataclass(frozen=True, eq=False)
class StratumAnswer:
    """One curve: its verdict, that of each norm, and what they say.

    cells: the values of the outcome. norms: metric → verdict; u_tests: metric → p-value of the U
    shape and that after Holm's correction for all norms of the sweep. sentences: on the outcome;
    details: one for each norm.
    """

    stratum: Stratum
    cells: Cells
    verdict: Verdict
    norms: Mapping[str, Verdict]
    u_tests: Mapping[str, tuple[float, float]]
    sentences: tuple[str, ...]
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

    outcome, axis: metric and axis of the curve; maximise: whether its optimum is the highest value.
    band: where the optimum was published to be, None for nowhere; without a setting 4 to 10 for the
    curvature.
    margin, norm_margin: differences that count as none, in the outcome and in log10 of a norm (0.05
    is 12 %).
    norms: metrics whose logarithm is asked for a U shape, corrected together.
    """

    outcome: str = "robust_accuracy"
    axis: str = "curvature"
    maximise: bool = True
    band: tuple[float, float] | None = PUBLISHED_BAND
    level: float = 0.95
    margin: float = 0.02
    norm_margin: float = 0.05
    norms: tuple[str, ...] = HESSIAN_NORMS

    @property
    def shown_band(self) -> tuple[float, float] | None:
        """The band to draw: the default one only for the curvature."""
        return self.band if self.axis == "curvature" or "band" in self.model_fields_set else None

    @property
    def terms(self) -> words.Terms:
        """What the sentences call the outcome and the axis."""
        symbol = "κ" if self.axis == "curvature" else axis_name(self.axis)
        return words.Terms(self.outcome.replace("_", " "), symbol)

    def suits(self, table: Table) -> bool:
        """The axis has two numbers or more above 0, with a seed axis or not, and a finished run has
        the outcome."""
        places = {place(row.labels.get(self.axis)) for row in table.rows if row.status == "done"}
        measured = any(self.outcome in row.metrics for row in table.rows)
        return self.axis in table.axes and len(places - {None}) > 1 and measured

    def answer(self, table: Table) -> CurveAnswer:
        """The verdict in each stratum and across them. Raises CurvactError as `decide` does."""
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
            (f"{s.stratum.name}: " if len(known) > 1 else "") + line for s in few for line in s.sentences[:2]
        )
        axes = varying(
            [row for s in known for row in s.stratum.rows],
            [a for a in table.axes if a not in (self.axis, SEED)],
        )
        tables = (
            self._strata_grid(known, axes),
            self._means_grid(known, axes),
            self._norms_grid(known, axes),
        )
        return CurveAnswer(
            f"{self.terms.outcome[:1].upper()}{self.terms.outcome[1:]} against {axis_name(self.axis)}",
            across + u_sentences + short,
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
        sentences = words.curve_sentences(verdict, self.terms, self.shown_band)
        return StratumAnswer(stratum, outcome, verdict, norms, {}, sentences, tuple(details))

    def _logs(self, stratum: Stratum, metric: str, outcome: Cells) -> Array | None:
        """log10 of a norm in the cells of the outcome; NaN where an estimate is not above 0 (its
        noise exceeded it)."""
        found = cells(stratum.rows, self.axis, metric)
        if found.seeds != outcome.seeds or not np.array_equal(found.points, outcome.points):
            return None
        logs: Array = np.log10(np.where(found.values > 0, found.values, np.nan))
        return logs if np.isfinite(logs).any() else None

    def _correct(self, found: Sequence[StratumAnswer]) -> tuple[list[StratumAnswer], tuple[str, ...]]:
        """The U tests of all strata and norms, corrected together, and what is left of them in a
        sentence."""
        tests: dict[tuple[int, str], tuple[Design, float]] = {}
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
        p_values, error = _precise(p_values, tests, 1 - self.level)
        corrected = holm(p_values)
        changed = [
            StratumAnswer(
                one.stratum,
                one.cells,
                one.verdict,
                one.norms,
                {metric: (p_values[i, metric], corrected[i, metric]) for metric in one.norms},
                one.sentences,
                one.details,
            )
            for i, one in enumerate(found)
        ]
        alpha = 1 - self.level
        single = sum(p <= alpha for p in p_values.values())
        left = [key for key, p in corrected.items() if p <= alpha]
        smallest = min(corrected.values())
        text = f"A U shape of a Hessian norm is shown in {single} of {len(p_values)} tests taken singly. "
        if left:
            names = "; ".join(
                (f"{found[i].stratum.name}: " if len(found) > 1 else "") + norm_name(metric)
                for i, metric in left
            )
            text += f"After Holm's correction for the {len(p_values)} tests, {len(left)} left: {names}."
        else:
            text += (
                f"After Holm's correction for the {len(p_values)} tests none is left (smallest p {words.p_text(smallest)}"
                + (f" ± {error * len(p_values):.2g}, standard error of the simulation)." if error else ").")
            )
        return changed, (text,)

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
        if not able or self.outcome not in ACCURACIES:
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
            "best mean",
            "peak p" if self.maximise else "U p",
            "rise p",
            "fall p",
            "seeds",
            f"seeds for a peak of {self.margin:g}",
        )
        norms = any(s.norms for s in found)
        if norms:
            heads += ("U of a norm, corrected",)
        lines = []
        for s in found:
            v = s.verdict
            best = max(v.means) if v.maximise else min(v.means)
            tested = math.isfinite(v.plateau_spread)
            left = sum(p <= 1 - self.level for _, p in s.u_tests.values())
            lines.append(
                (
                    *(tuple(label_text(axis, s.stratum.labels[axis]) for axis in axes) or ("all",)),
                    v.kind,
                    f"{v.best:g}",
                    _span(v.optimum),
                    f"{best:.3f}",
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

    def _means_grid(self, found: Sequence[StratumAnswer], axes: Sequence[str]) -> Grid:
        every = {metric for s in found for row in s.stratum.rows for metric in row.metrics}
        metrics = [m for m in dict.fromkeys((self.outcome, *ACCURACIES)) if m in every]
        heads = [
            f"{m.removesuffix('_accuracy').replace('_', ' ')} (%)"
            if scale_of(m) == "fraction"
            else m.replace("_", " ")
            for m in metrics
        ]
        return self._grid("Means over seeds", found, axes, metrics, heads)

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
                if runs in shown:
                    continue
                shown.add(runs)
                values = [reference_text(others, m) for m in metrics]
                lines.append(
                    (
                        *(name[:-1] if name else ()),
                        *((reference,) if name else ()),
                        "–",
                        seeds_text(others),
                        *values,
                    )
                )
        return Grid(title, (*axes, self.terms.symbol, "seeds", *heads), tuple(lines), len(axes) + 1)


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
    from curvact.lab.statistics.paired import middle
    from curvact.lab.statistics.strata import by_seed

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
    p_values: Mapping[tuple[int, str], float],
    tests: Mapping[tuple[int, str], tuple[Design, float]],
    alpha: float,
) -> tuple[dict[tuple[int, str], float], float]:
    """p-values from as many draws as it takes to decide each test after Holm's correction, and the
    largest standard error.

    More draws are taken while three standard errors of the simulation could change what is left at
    `alpha`.
    """
    known = dict(p_values)
    draws = 10_000

    def error(p: float) -> float:
        return math.sqrt(max(p * (1 - p), 1e-9) / draws)

    for more in PRECISE_DRAWS:
        low = holm({key: max(0.0, p - 3 * error(p)) for key, p in known.items()})
        high = holm({key: p + 3 * error(p) for key, p in known.items()})
        if all((low[key] <= alpha) == (high[key] <= alpha) for key in tests):
            break
        groups: dict[int, list[tuple[int, str]]] = {}
        for key, (plan, _) in tests.items():
            groups.setdefault(id(plan), []).append(key)
        for keys in groups.values():
            plan = tests[keys[0]][0]
            found = precise_p_values(plan, np.array([tests[key][1] for key in keys]), more)
            known.update(zip(keys, found.tolist(), strict=True))
        draws = more
    return known, error(min(known.values())) if draws > 10_000 else 0.0
