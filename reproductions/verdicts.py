"""The verdict on a claim, from its results, by the statistics of `curvact.lab.statistics`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from criteria import (
    Claim,
    CommonJudge,
    CurveJudge,
    DifferenceJudge,
    Effect,
    Finding,
    GapJudge,
    Judge,
    MeanTest,
    Outcome,
    RatioJudge,
    SameShapeJudge,
    SlopeJudge,
    UntestableJudge,
    Where,
    WithinJudge,
    ZeroJudge,
    evidence_of,
    read_results,
    together,
)
from scipy.stats import ttest_1samp

from curvact.lab.statistics.across import same_shape, widened
from curvact.lab.statistics.curve import norm_name
from curvact.lab.statistics.interval import difference_text, scale_of, student
from curvact.lab.statistics.paired import holm
from curvact.lab.statistics.strata import cells, strata
from curvact.lab.statistics.verdict import Verdict, decide
from curvact.lab.statistics.words import Terms
from curvact.lab.table import Row, Table, Value

FEWEST_STRATA, FEWEST_SEEDS, FEWEST_POINTS = 4, 3, 3
"""Fewer leave a claim about all strata open."""
DECAY = "decay"
"""The axis of weight decay."""
AS_ONE = "With both ways of weight decay as one stratum"
HARDLY = 0.3
"""Of ten classes three times chance: a network with less clean accuracy has hardly learned."""


def judge(claim: Claim, results: Mapping[str, Path]) -> Finding:
    """The verdict on a claim, from the results that are there."""
    rule = claim.judge
    if isinstance(rule, UntestableJudge):
        return Finding("not testable here", "No run here can settle it.")
    files = evidence_of(claim, results)
    if not files:
        return Finding("not run", f"No result of {', '.join(claim.evidence)} is here yet.")
    if isinstance(rule, ZeroJudge):
        return _zero(rule, next(iter(files.values())))
    tables = {name: read_results(path) for name, path in files.items()}
    if isinstance(rule, WithinJudge):
        return _within(rule, together(tables), results)
    if isinstance(rule, DifferenceJudge) and rule.each and len(tables) > 1:
        return _each(rule, tables)
    return verdict_on(rule, together(tables))


def verdict_on(rule: Judge, table: Table) -> Finding:
    if isinstance(rule, CurveJudge):
        return _curve(rule, table)
    if isinstance(rule, DifferenceJudge):
        return _difference(rule, table)
    if isinstance(rule, GapJudge):
        return _gap(rule, table)
    if isinstance(rule, SlopeJudge):
        return _slope(rule, table)
    if isinstance(rule, RatioJudge):
        return _ratio(rule, table)
    if isinstance(rule, CommonJudge):
        return _common(rule, table)
    assert isinstance(rule, SameShapeJudge)
    return _same_shape(rule, table)


def _each(rule: DifferenceJudge, tables: Mapping[str, Table]) -> Finding:
    """Each result by itself; the claim has the verdict that all of them share, and so the largest p of it."""
    found = {name: _difference(rule, table) for name, table in tables.items()}
    verdicts = {one.verdict for one in found.values()}
    verdict = verdicts.pop() if len(verdicts) == 1 else "inconclusive"
    shared = set.intersection(*(set(one.tests) for one in found.values()))
    tests = {
        kind: max((one.tests[kind] for one in found.values()), key=lambda test: test.p)
        for kind in sorted(shared)
    }
    effects = tuple(
        replace(effect, what=f"{name}: {effect.what}")
        for name, one in found.items()
        for effect in one.effects
    )
    return Finding(
        verdict, " ".join(f"{name}: {one.sentence}" for name, one in found.items()), tests, effects
    )


def mean_curves(table: Table, outcome: str, as_one: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray, int]:
    """The mean over seeds at the curvatures that all strata have: points (K,), values (K, strata), and how
    many strata were left out because they have fewer than FEWEST_POINTS with FEWEST_SEEDS seeds. Of a
    Hessian norm the log10.

    as_one: strata that differ on these axes alone are one, the mean of their curves.
    """
    found: dict[object, list[dict[float, float]]] = {}
    left_out = 0
    for stratum in strata(table, "curvature"):
        own = cells(stratum.rows, "curvature", outcome)
        values = _logs(outcome, own.values)
        enough = np.isfinite(values).sum(axis=1) >= FEWEST_SEEDS
        if enough.sum() < FEWEST_POINTS:
            left_out += 1
            continue
        means = np.nanmean(values[enough], axis=1)
        key = tuple((axis, label) for axis, label in stratum.labels.items() if axis not in as_one)
        found.setdefault(key, []).append(dict(zip(own.points[enough].tolist(), means.tolist(), strict=True)))
    shared = sorted(
        set.intersection(*(set(curve) for part in found.values() for curve in part)) if found else []
    )
    values = np.array([[np.mean([curve[at] for curve in part]) for part in found.values()] for at in shared])
    return np.array(shared), values.reshape(len(shared), len(found)), left_out


def _logs(outcome: str, values: np.ndarray) -> np.ndarray:
    """log10 of a Hessian norm, NaN where it is not above 0; other outcomes as they are."""
    if "hessian" not in outcome:
        return values
    return np.log10(np.where(values > 0, values, np.nan))


def verdict_on_mean(rule: CurveJudge, points: np.ndarray, values: np.ndarray) -> Verdict | None:
    """The verdict on the mean of such curves, every stratum a replicate. None for fewer than two strata."""
    if values.shape[1] < 2 or len(points) < FEWEST_POINTS:
        return None
    return decide(points.tolist(), values, margin=rule.margin, maximise=rule.shape == "peak", planned=False)


def _curve(rule: CurveJudge, table: Table) -> Finding:
    points, values, left_out = mean_curves(table, rule.outcome)
    count = values.shape[1]
    beside = f" {left_out} strata are incomplete and left out." if left_out else ""
    verdict = verdict_on_mean(rule, points, values)
    if verdict is None:
        return Finding("inconclusive", f"{_strata(count)} with {FEWEST_SEEDS} seeds: no mean curve.{beside}")
    first = _on_mean(rule, verdict, f"The mean curve of {_strata(count)}", count)
    points, values, _ = mean_curves(table, rule.outcome, [DECAY])
    merged = values.shape[1]
    again = verdict_on_mean(rule, points, values) if merged < count else None
    if again is not None:
        first = _confirmed(first, _on_mean(rule, again, f"{AS_ONE}, {merged} in all", merged))
    return replace(first, sentence=f"{first.sentence}{_own(rule, table)}{beside}")


def _on_mean(rule: CurveJudge, verdict: Verdict, what: str, count: int) -> Finding:
    """What the mean curve of `count` strata says. what: the beginning of the sentence."""
    inside = [k for k in verdict.optimum_set if rule.band[0] <= k <= rule.band[1]]
    word = "optimum" if rule.shape == "peak" else "least"
    level = "" if verdict.plateau is None else f" at {Terms().span(verdict.plateau)}"
    sentence = (
        f"{what}: {_kind(verdict)}{level} ({rule.shape} p {_p(verdict.peak_p)}); the 95 % set of the {word} is "
        f"κ = {_listed(verdict)}."
    )
    if count < FEWEST_STRATA:
        return Finding("inconclusive", f"{sentence} Fewer than {FEWEST_STRATA} strata decide nothing.")
    if not inside:
        return Finding("not supported", sentence)
    if verdict.interior:
        return Finding("supported", sentence)
    settled = verdict.kind in ("plateau", "flat", "monotone rise", "monotone fall")
    return Finding("not supported" if settled else "inconclusive", sentence)


def _listed(verdict: Verdict) -> str:
    """The curvatures of the set of the optimum."""
    return ", ".join(f"{k:g}" for k in verdict.optimum_set)


def _confirmed(first: Finding, again: Finding) -> Finding:
    """A verdict, read once more with strata as one that are nearly copies of each other. It is taken back where
    the second reading does not confirm it, and each test has the larger p of the two.
    """
    tests = {
        kind: max(test, again.tests[kind], key=lambda one: one.p)
        for kind, test in first.tests.items()
        if kind in again.tests
    }
    sentence = f"{first.sentence} {again.sentence}"
    if again.verdict == first.verdict or first.verdict == "inconclusive":
        return replace(first, sentence=sentence, tests=tests)
    return replace(
        first,
        verdict="inconclusive",
        sentence=f"{sentence} The first reading alone would be {first.verdict!r}; the two disagree.",
        tests=tests,
    )


def _kind(verdict: Verdict) -> str:
    """The kind of a verdict. It is told where the best point of a shape with an optimum inside is at an end. A norm has
    a hump where an accuracy has a peak.
    """
    kind = verdict.kind if verdict.maximise else verdict.kind.replace("interior peak", "hump")
    at_end = verdict.best in (verdict.curvatures[0], verdict.curvatures[-1])
    if not (verdict.interior and at_end):
        return kind
    return f"{kind} with a {'higher' if verdict.maximise else 'lower'} end"


def _own(rule: CurveJudge, table: Table) -> str:
    """The verdicts of the single strata, counted; a few with an optimum inside are named."""
    names: dict[str, list[str]] = {}
    interior: set[str] = set()
    peaks: dict[str, float] = {}
    outside = 0
    for stratum in strata(table, "curvature"):
        own = cells(stratum.rows, "curvature", rule.outcome)
        values = _logs(rule.outcome, own.values)
        if not len(own.points) or not np.isfinite(values).any():
            continue
        one = decide(
            own.points.tolist(), values, margin=rule.margin, maximise=rule.shape == "peak", planned=False
        )
        about = f"{stratum.name}: p {_p(one.peak_p)}, κ = {_listed(one)}"
        names.setdefault(_kind(one), []).append(about if one.interior else stratum.name)
        interior |= {_kind(one)} if one.interior else set()
        peaks[about] = one.peak_p
        outside += not any(rule.band[0] <= k <= rule.band[1] for k in one.optimum_set)

    corrected = holm(peaks)

    def counted(kind: str) -> str:
        few = kind in interior and len(names[kind]) <= 3 and len(names) > 1
        if not few:
            return f"{len(names[kind])} {kind}"
        told = "; ".join(f"{about}, p after Holm {_p(corrected[about])}" for about in names[kind])
        return f"{len(names[kind])} {kind} ({told})"

    words = ", ".join(map(counted, sorted(names, key=lambda kind: -len(names[kind]))))
    best = "best" if rule.shape == "peak" else "least"
    count = sum(map(len, names.values()))
    return (
        f" Each stratum alone: {words}. In {outside} of {count} the set of the {best} κ holds no point of "
        f"{rule.band[0]:g} to {rule.band[1]:g}."
    )


def _matches(row: Row, where: Where) -> bool:
    return all(
        any(
            _same(row.labels.get(axis), one)
            for one in (allowed if isinstance(allowed, tuple) else (allowed,))
        )
        for axis, allowed in where.items()
    )


def _same(label: Value, wanted: Value) -> bool:
    return label == wanted or str(label) == str(wanted)


Key = tuple[tuple[str, str], ...]


def _by_key(rows: Sequence[Row], outcome: str, leave_out: set[str]) -> dict[tuple[Key, int], float]:
    """(stratum, seed) → the mean of the outcome over what `leave_out` leaves free."""
    found: dict[tuple[Key, int], list[float]] = {}
    for row in rows:
        value = row.metrics.get(outcome)
        if row.status != "done" or value is None or math.isnan(value):
            continue
        key = tuple(sorted((a, str(v)) for a, v in row.labels.items() if a not in leave_out | {"seed"}))
        found.setdefault((key, int(row.labels.get("seed") or 0)), []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def differences(
    rule: DifferenceJudge, table: Table, over: Sequence[str] = ()
) -> dict[tuple[Key, int], float]:
    """(stratum, seed) → the difference. over: axes whose labels are averaged, and tell no strata apart."""
    choices = {axis for axis, allowed in rule.where.items() if isinstance(allowed, tuple)}
    free = {rule.axis, *choices, *rule.baseline_where, *over}
    ours, theirs = (_by_key(part, rule.outcome, free) for part in _compared(rule, table))
    return {key: ours[key] - theirs[key] for key in ours if key in theirs}


def _compared(rule: DifferenceJudge, table: Table) -> tuple[list[Row], list[Row]]:
    """The runs with the label, and those with the baseline."""
    rows = [r for r in table.rows if _same(r.labels.get(rule.axis), rule.label) and _matches(r, rule.where)]
    base = [
        r
        for r in (*table.rows, *table.references)
        if (
            r.reference == rule.baseline
            or (not r.reference and _same(r.labels.get(rule.axis), rule.baseline))
        )
        and _matches(r, rule.baseline_where or ({} if r.reference else rule.where))
    ]
    return rows, base


def _replicates(found: Mapping[tuple[Key, int], float], replicate: str) -> list[float]:
    groups: dict[object, list[float]] = {}
    for (stratum, seed), value in found.items():
        groups.setdefault(stratum if replicate == "stratum" else seed, []).append(value)
    fewest = FEWEST_SEEDS if replicate == "stratum" else 1
    return [float(np.mean(values)) for values in groups.values() if len(values) >= fewest]


def _difference(rule: DifferenceJudge, table: Table) -> Finding:
    found = differences(rule, table)
    values = _replicates(found, rule.replicate)
    what = f"{_said(rule.axis, rule.label)} minus {_said(rule.axis, rule.baseline)}"
    if rule.replicate == "stratum":
        first = _mean_of_strata(rule, what, values)
        merged = _replicates(differences(rule, table, over=[DECAY]), "stratum")
        if 1 < len(merged) < len(values):
            again = _mean_of_strata(rule, AS_ONE, merged)
            first = replace(_confirmed(first, again), effects=first.effects)
    else:
        counted = f"{len(values)} seeds in {_strata(len({key for key, _ in found}))}"
        first = _decided(what, values, rule.outcome, rule.expect, rule.margin, counted, FEWEST_SEEDS)
    if not rule.tested:
        first = replace(first, tests={})
    return _where_networks_learn(rule, table, first)


def _mean_of_strata(rule: DifferenceJudge, what: str, values: Sequence[float]) -> Finding:
    counted = _strata(len(values))
    return _decided(what, values, rule.outcome, rule.expect, rule.margin, counted, FEWEST_STRATA)


def _where_networks_learn(rule: DifferenceJudge, table: Table, found: Finding) -> Finding:
    """The finding; a verdict is taken back where more than half of the networks compared have hardly learned."""
    runs = {row.run: row for part in _compared(rule, table) for row in part if row.status == "done"}
    known = [row.metrics["clean_accuracy"] for row in runs.values() if "clean_accuracy" in row.metrics]
    hardly = sum(value < HARDLY for value in known)
    if 2 * hardly <= len(known):
        return found
    taken = "" if found.verdict == "inconclusive" else f" Without this rule it would be {found.verdict!r}."
    sentence = f"{found.sentence} {hardly} of the {len(known)} networks compared hardly learned.{taken}"
    return replace(found, verdict="inconclusive", sentence=sentence)


def _said(axis: str, label: object) -> str:
    """A label of an axis in words."""
    if label == "relu":
        return "ReLU"
    before = {"curvature": "κ = ", DECAY: "decay of ", "training.weight_decay_on": "decay of "}.get(axis, "")
    return f"{before}{label}"


def _gap(rule: GapJudge, table: Table) -> Finding:
    rows = [row for row in table.rows if _matches(row, rule.where)]
    first, second = (_by_key(rows, metric, set()) for metric in (rule.outcome, rule.minus))
    values = _replicates({key: first[key] - second[key] for key in first if key in second}, "seed")
    counted = f"{len(values)} seeds"
    return _decided(rule.words, values, rule.outcome, rule.expect, rule.margin, counted, FEWEST_SEEDS)


def _slope(rule: SlopeJudge, table: Table) -> Finding:
    slopes: dict[object, list[float]] = {}
    for stratum in strata(table, rule.axis):
        first, second = (cells(stratum.rows, rule.axis, metric) for metric in (rule.outcome, rule.minus))
        if first.seeds != second.seeds or first.points.tolist() != second.points.tolist():
            continue
        key = tuple((a, v) for a, v in stratum.labels.items() if rule.replicate == "curve" or a != DECAY)
        for column in (first.values - second.values).T:
            known = np.isfinite(column)
            if known.sum() > 2:
                slope = np.polyfit(np.log10(first.points[known]), column[known], 1)[0]
                slopes.setdefault(key, []).append(float(slope))
    if rule.replicate == "stratum":
        values = [float(np.mean(part)) for part in slopes.values()]
        return _decided(
            rule.words, values, rule.outcome, rule.expect, rule.margin, _strata(len(values)), FEWEST_STRATA
        )
    values = [value for part in slopes.values() for value in part]
    counted = f"{len(values)} curves in {_strata(len(slopes))}"
    return _decided(rule.words, values, rule.outcome, rule.expect, rule.margin, counted, FEWEST_SEEDS)


def _decided(
    what: str, values: Sequence[float], outcome: str, expect: str, margin: float, counted: str, fewest: int
) -> Finding:
    """The verdict on the mean of some differences."""
    percent = _in_points(outcome)
    if len(values) < max(2, fewest):
        return Finding("inconclusive", f"{what}: {counted}, and {fewest} are asked for.")
    mean = student(values)
    sentence = f"{what}: {difference_text(mean, percent=percent)}{' points' if percent else ''}, {counted}."
    effects = (Effect(f"{what}, {counted}", mean, percent),)
    if not mean.bounded:
        return Finding("inconclusive", f"{sentence} The values are all equal, so there is no interval.")
    sign = -1 if expect == "lower" else 1
    low, high = sorted((sign * mean.low, sign * mean.high))
    verdicts: tuple[Outcome, Outcome] = ("supported", "not supported")
    if expect == "not-higher":
        verdicts = ("not supported", "supported")
    size = f"{'+' if sign > 0 else '-'}{Terms(percent=percent).size(margin)}"
    tests = {
        verdict: MeanTest(float(ttest_1samp(sign * np.array(values), at).pvalue), size if at else "0")
        for verdict, at in zip(verdicts, (0.0, margin), strict=True)
    }
    if low > 0:
        return Finding(verdicts[0], sentence, tests, effects)
    return Finding(verdicts[1] if high < margin else "inconclusive", sentence, tests, effects)


def _in_points(outcome: str) -> bool:
    """Whether differences of an outcome are written in points."""
    return scale_of(outcome) == "fraction" or outcome.endswith("loss")


def _ratio(rule: RatioJudge, table: Table) -> Finding:
    values, most = {}, {}
    ours, theirs = (
        _by_key([r for r in table.rows if _same(r.labels.get(rule.axis), label)], rule.outcome, {rule.axis})
        for label in (rule.label, rule.baseline)
    )
    for stratum in {key for key, _ in ours}:
        first, second = (
            float(np.mean([v for (key, _), v in found.items() if key == stratum] or [math.nan]))
            for found in (ours, theirs)
        )
        if second > 0:
            name = ", ".join(label for _, label in stratum)
            values[name], most[name] = first / second, 1 / second
    if not values:
        return Finding("inconclusive", "In no stratum is the baseline above 0, so there is no ratio.")
    name = max(values, key=lambda key: values[key])
    sentence = f"The largest ratio is {values[name]:.2f} ({name}), of {_strata(len(values))} with a baseline above 0."
    if values[name] >= rule.least:
        return Finding("supported", sentence)
    if max(most.values()) < rule.least:
        return Finding(
            "not testable here",
            f"{sentence} With these baselines no accuracy gives more than {max(most.values()):.2f}.",
        )
    if len(values) < FEWEST_STRATA:
        return Finding("inconclusive", f"{sentence} {FEWEST_STRATA} are asked for.")
    return Finding("not supported" if values[name] < 2 else "inconclusive", sentence)


def _within(rule: WithinJudge, table: Table, results: Mapping[str, Path]) -> Finding:
    rows = [r for r in table.rows if _same(r.labels.get(rule.axis), rule.label)]
    values = list(_by_key(rows, rule.outcome, set()).values())
    if rule.curve not in results or len(values) < FEWEST_SEEDS:
        return Finding("not run", f"{rule.curve} and {FEWEST_SEEDS} seeds of {rule.label} are asked for.")
    curve = read_results(results[rule.curve])
    chosen = [r for r in curve.rows if _matches(r, rule.where)]
    own = cells(chosen, "curvature", rule.optimum)
    decided = decide(own.points.tolist(), own.values, planned=False)
    optimum = decided.optimum
    mean = student(values)
    ends = (mean.low, mean.high) if mean.bounded else (mean.value, mean.value)
    sentence = (
        f"{norm_name(rule.outcome)} of {rule.label}: {mean.value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}], {len(values)} seeds; "
        f"the 95 % set of the optimum is κ = {optimum.low:g} to {optimum.high:g}, {len(decided.optimum_set)} of "
        f"{len(own.points)} points."
    )
    if ends[1] < optimum.low or ends[0] > optimum.high:
        return Finding("not supported", sentence)
    inside = optimum.low <= ends[0] and ends[1] <= optimum.high
    return Finding("supported" if inside else "inconclusive", sentence)


def _verdicts(table: Table, outcome: str) -> dict[str, Verdict]:
    found = {}
    for stratum in strata(table, "curvature"):
        own = cells(stratum.rows, "curvature", outcome)
        if len(own.seeds) >= FEWEST_SEEDS and len(own.points) > 2:
            found[stratum.name] = decide(own.points.tolist(), own.values, planned=False)
    return found


def _common(rule: CommonJudge, table: Table) -> Finding:
    verdicts = list(_verdicts(table, rule.outcome).values())
    if len(verdicts) < FEWEST_STRATA:
        return Finding("inconclusive", f"{_strata(len(verdicts))}, and {FEWEST_STRATA} are asked for.")
    if not set.intersection(*(set(v.curvatures) for v in verdicts)):
        return Finding("inconclusive", f"{_strata(len(verdicts))} without a curvature that all have.")
    sets = widened(verdicts)
    shared = sorted(set.intersection(*sets))
    widest = max(map(len, sets))
    about = f"The 95 % sets of {_strata(len(verdicts))}, each widened for their number,"
    if not shared:
        return Finding("not supported", f"{about} have no point in common.")
    where = ", ".join(f"{k:g}" for k in shared)
    sentence = (
        f"{about} have κ = {where} in common; the widest has {widest} point{'s' if widest > 1 else ''}."
    )
    meets = any(rule.band[0] <= k <= rule.band[1] for k in shared)
    return Finding("supported" if meets and widest <= 3 else "inconclusive", sentence)


def _same_shape(rule: SameShapeJudge, table: Table) -> Finding:
    curves = {}
    for stratum in strata(table, "curvature"):
        own = cells(stratum.rows, "curvature", rule.outcome)
        if len(own.points):
            curves[stratum.name] = (own.points, own.values)
    found = same_shape(curves)
    if math.isnan(found.p):
        return Finding("inconclusive", f"One shape cannot be tested with {_strata(len(curves))}.")
    apart = [name for name, p in found.departs.items() if p < rule.least]
    names = f" Apart: {', '.join(apart)}." if apart else ""
    sentence = f"One shape of {_strata(len(curves))}: p {_p(found.p)}.{names}"
    return Finding("not supported" if found.p < rule.least else "inconclusive", sentence)


def _zero(rule: ZeroJudge, path: Path) -> Finding:
    record = json.loads(path.read_text(encoding="utf-8"))
    count, pairs = int(record[rule.outcome]), int(record["pairs"])
    sentence = f"{count:,} {rule.outcome} of {record['bounds']} bounds, on {pairs:,} pairs of weights each."
    return Finding("supported" if count == 0 else "not supported", sentence)


def _strata(count: int) -> str:
    return "1 stratum" if count == 1 else f"{count} strata"


def after_holm(found: Mapping[str, Mapping[str, Finding]]) -> dict[str, dict[str, Finding]]:
    """The findings with the p-value of each verdict that a test has led to, by itself and after Holm's
    correction over all tests of all claims: two a claim, one for it and one against it.
    """
    each = {
        (folder, name, verdict): test.p
        for folder, part in found.items()
        for name, one in part.items()
        for verdict, test in one.tests.items()
    }
    adjusted = holm(each)

    def told(folder: str, name: str, one: Finding) -> Finding:
        key = (folder, name, one.verdict)
        if key not in each:
            return one
        test = one.tests[one.verdict]
        beside = "" if test.against == "0" else f" against {test.against}"
        sentence = f"{one.sentence} p {_p(test.p)}{beside}, after Holm {_p(adjusted[key])}."
        return replace(one, sentence=sentence, corrected=adjusted[key])

    return {f: {name: told(f, name, one) for name, one in part.items()} for f, part in found.items()}


def _p(p: float) -> str:
    return f"= {p:.2g}"
