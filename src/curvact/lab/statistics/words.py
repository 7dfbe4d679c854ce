"""A verdict in sentences. Nothing is said that the numbers do not carry. [ours]"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from curvact.lab.statistics.across import Common, SameShape
from curvact.lab.statistics.calibration import band_share
from curvact.lab.statistics.contrasts import Array
from curvact.lab.statistics.verdict import Height, Range, Verdict, difference

MOST_SEEDS = 200


OUTCOMES = {
    "subset_robust_accuracy": "robust accuracy",
    "subset_pgd_accuracy": "robust accuracy under PGD",
}


def outcome_name(metric: str) -> str:
    """A metric in words. Which attack judges is said beside it.

    >>> outcome_name("robust_accuracy"), outcome_name("subset_robust_accuracy")
    ('robust accuracy', 'robust accuracy')
    """
    return OUTCOMES.get(metric, metric.replace("_", " "))


@dataclass(frozen=True)
class Terms:
    """What the sentences call things, and how they write numbers.

    outcome: such as "robust accuracy". symbol: of the axis, such as "κ". percent: whether the outcome is
    a fraction, which is written in per cent, and its differences in points.
    """

    outcome: str = "robust accuracy"
    symbol: str = "κ"
    percent: bool = False

    def value(self, value: float) -> str:
        """A value of the outcome.

        >>> Terms(percent=True).value(0.625), Terms("loss").value(0.625)
        ('62.5 %', '0.625')
        """
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3f}"

    def size(self, low: float, high: float | None = None) -> str:
        """The size of a difference, or a range of sizes that are not alike.

        >>> Terms(percent=True).size(0.02), Terms("loss").size(0.02), Terms("loss").size(0.017, 0.0185)
        ('2 points', '0.02', '0.017 to 0.0185')
        """
        factor = 100 if self.percent else 1
        text = " to ".join(
            dict.fromkeys(f"{factor * end:.3g}" for end in (low, low if high is None else high))
        )
        return text if not self.percent else f"{text} point" if text == "1" else f"{text} points"

    def signed(self, value: float, interval: Range) -> str:
        """A difference with its interval.

        >>> Terms(percent=True).signed(-0.02, Range(-0.05, 0.01)), Terms("loss").signed(1, Range(0, 2))
        ('−2.0 points [−5.0, 1.0]', '1.000 [0.000, 2.000]')
        """
        form, unit, factor = (".1f", " points", 100) if self.percent else (".3f", "", 1)
        middle, low, high = (format(factor * x, form) for x in (value, interval.low, interval.high))
        return f"{middle}{unit} [{low}, {high}]".replace("-", "−")

    def depth(self, value: float, interval: Range) -> str:
        """A negative difference with its interval, as a depth."""
        return self.signed(-value, Range(-interval.high, -interval.low))

    def span(self, part: Range | None) -> str:
        """A range in words.

        >>> Terms().span(Range(4.0, 10.0)), Terms().span(Range(4.0, 4.0))
        ('κ = 4 to 10', 'κ = 4')
        """
        if part is None:
            return f"no {self.symbol}"
        if part.low == part.high:
            return f"{self.symbol} = {part.low:g}"
        return f"{self.symbol} = {part.low:g} to {part.high:g}"


def curve_sentences(verdict: Verdict, terms: Terms, band: tuple[float, float] | None) -> tuple[str, ...]:
    """The verdict on one curve: what is decided or how many seeds decide, where the optimum is,
    what fits, the band."""
    if not math.isfinite(verdict.plateau_spread):
        best = max(verdict.means) if verdict.maximise else min(verdict.means)
        lines = [
            (
                f"The best mean {terms.outcome} is {terms.value(best)}, at {terms.symbol} = {verdict.best:g} "
                f"({count(verdict.seeds, 'seed')}). Without an error bar nothing more can be said."
            )
        ]
        if verdict.seeds < 2:
            lines.append("An error bar needs 2 seeds; a verdict needs 3 or more.")
    else:
        lines = [_shape(verdict, terms), _place(verdict, terms), *_fits(verdict, terms)]
        if band is not None:
            lines += _band(verdict, terms, band)
    return (*lines, *(f"Note: {note}." for note in verdict.notes))


def seeds_sentence(verdict: Verdict, terms: Terms) -> str:
    """How many seeds would decide an inconclusive verdict; empty where nothing is open or nothing
    is known."""
    if verdict.kind != "inconclusive" or not verdict.likely:
        return ""
    margin = terms.size(verdict.margin)
    text = (
        f"A peak of {margin} is found with {seed_number(verdict.seeds_for_peak)} and a plateau within "
        f"{margin} is shown with {seed_number(verdict.seeds_for_plateau)} (power 80 %)."
    )
    if len(verdict.curvatures) > 2 and verdict.seeds_needed is not None:
        text += f" If the curve is what it looks like, its peak is found with {seed_number(verdict.seeds_needed)}."
    return text


def _shape(verdict: Verdict, terms: Terms) -> str:
    tests = f"rise p {p_text(verdict.rise_p)}, fall p {p_text(verdict.fall_p)}"
    peak = "An interior peak" if verdict.maximise else "A U shape"
    if verdict.interior and verdict.kind in ("interior peak", "U shape"):
        heights = _heights(
            verdict, terms, *(("above", terms.signed) if verdict.maximise else ("below", terms.depth))
        )
        return f"{peak} is shown (p {p_text(verdict.peak_p)}): {heights}."
    refused = f"{peak} is not shown (p {p_text(verdict.peak_p)}; {tests})."
    if len(verdict.curvatures) < 3:
        refused = f"Two points cannot show an interior optimum ({tests})."
    outcome = terms.outcome[:1].upper() + terms.outcome[1:]
    words = {
        "plateau": f"{'A rise' if verdict.rise_p < verdict.fall_p else 'A fall'} and a plateau are shown: "
        f"each point of {terms.span(verdict.plateau)} lies within {terms.size(verdict.margin)} of their mean "
        f"({percent(verdict.level)}).",
        "monotone rise": f"{outcome} rises with {terms.symbol}: its optimum is at {terms.span(verdict.optimum)}.",
        "monotone fall": f"{outcome} falls with {terms.symbol}: its optimum is at {terms.span(verdict.optimum)}.",
        "flat": f"The curve is flat: each point lies within {terms.size(verdict.margin)} of the mean of all.",
        "U shape": "The curve has a valley: it is lower in the interior than on both sides.",
        "interior peak": "The curve has a peak: it is higher in the interior than on both sides.",
    }
    if verdict.kind == "inconclusive":
        lead = f"Inconclusive at {count(verdict.seeds, 'seed')}."
        return " ".join(filter(None, (lead, seeds_sentence(verdict, terms), refused)))
    return f"{refused} {words[verdict.kind]}"


def _place(verdict: Verdict, terms: Terms) -> str:
    best = max(verdict.means) if verdict.maximise else min(verdict.means)
    noise = terms.size(verdict.noise.low, verdict.noise.high)
    return (
        f"The best mean {terms.outcome} is {terms.value(best)}, at {terms.symbol} = {verdict.best:g}. The optimum lies at "
        f"{terms.span(verdict.optimum)} ({percent(verdict.level)} confidence set: {len(verdict.optimum_set)} of "
        f"{len(verdict.curvatures)} points; {count(verdict.seeds, 'seed')}; noise of one run: sd {noise})."
    )


def _fits(verdict: Verdict, terms: Terms) -> list[str]:
    if not verdict.likely:
        return []
    plateau = verdict.weight("rise then plateau", "plateau then fall", "flat")
    peak = verdict.weight("interior peak")
    monotone = verdict.weight("monotone rise", "monotone fall")
    weights = f"weights: plateau {plateau:.2f}, monotone {monotone:.2f}, peak {peak:.2f}"
    where = verdict.likely_plateau
    text = "By BIC, which favours simple curves, the best fit is "
    if max(plateau, peak, monotone) == plateau and where is not None:
        best = next(w.shape for w in verdict.likely if w.shape not in ("monotone rise", "monotone fall"))
        if best == "flat" or where == Range(verdict.curvatures[0], verdict.curvatures[-1]):
            name = "a flat curve"
        elif where.high == verdict.curvatures[-1]:
            name = f"a plateau from {terms.symbol} = {where.low:g}"
        else:
            name = f"a plateau up to {terms.symbol} = {where.high:g}"
        return [
            (
                f"{text}{name} ({weights}). Over it, two means differ by at most {terms.size(verdict.plateau_spread)} "
                f"(upper bound, each pair at {percent(verdict.level)})."
            )
        ]
    return [f"{text}{'a monotone curve without a plateau' if monotone >= peak else 'a peak'} ({weights})."]


def _band(verdict: Verdict, terms: Terms, band: tuple[float, float]) -> list[str]:
    if verdict.noise.high == 0:
        return []
    low, high = band
    name = f"the published band {low:g} to {high:g}"
    inside = [low <= at <= high for at in verdict.optimum_set]
    if all(inside):
        text = f"The confidence set lies within {name}."
    elif any(inside):
        text = f"The confidence set reaches into {name}, and beyond it."
    elif any(low <= at <= high for at in verdict.curvatures):
        text = f"The confidence set has no point in {name}."
    else:
        return [f"No point of this curve lies in {name}."]
    sd = math.sqrt((verdict.noise.low**2 + verdict.noise.high**2) / 2)
    share = band_share(np.array(verdict.curvatures), sd, verdict.seeds, band)
    return [
        (
            f"{text} The best point alone proves nothing: if {terms.outcome} rose to {terms.symbol} = 2 and were flat "
            f"after, the best of these {len(verdict.curvatures)} points would lie in {low:g} to {high:g} "
            f"in {100 * share:.0f} % of sweeps."
        )
    ]


def norm_sentences(
    name: str,
    norm: Verdict,
    verdict: Verdict,
    points: Sequence[float],
    values: Array,
    logs: Array,
    terms: Terms,
) -> str:
    """What one Hessian norm does along the curve, and whether its minimum meets the optimum of the
    outcome.

    points (K,); values (K, S) of the outcome; logs (K, S): log10 of the norm, the same seeds in the
    same columns.
    """
    if not math.isfinite(norm.plateau_spread):
        return (
            f"{name}: the lowest mean is at {terms.symbol} = {norm.best:g}. "
            "Without an error bar nothing more can be said."
        )
    if norm.interior:
        text = (
            f"{name}: a U shape is shown (p {p_text(norm.peak_p)}, not corrected): "
            f"{_heights(norm, terms, 'below', ratio)}. Its minimum lies at {terms.span(norm.optimum)}."
        )
    else:
        text = (
            f"{name}: a U shape is not shown (p {p_text(norm.peak_p)}; rise p {p_text(norm.rise_p)}, "
            f"fall p {p_text(norm.fall_p)}; verdict: {norm.kind}). Its minimum lies at {terms.span(norm.optimum)}."
        )
    if norm.kind == "inconclusive" and len(norm.curvatures) > 2:
        text += f" If the curve is what it looks like, its U is found with {seed_number(norm.seeds_needed)}."
    if not math.isfinite(verdict.plateau_spread):
        return text
    common = sorted(set(norm.optimum_set) & set(verdict.optimum_set))
    if common:
        wide = any(len(v.optimum_set) > len(v.curvatures) / 2 for v in (norm, verdict))
        text += (
            f" Its confidence set meets that of the optimum at {terms.span(Range(common[0], common[-1]))}."
        )
        text += " That says little: a set holds more than half of the points." if wide else ""
    else:
        text += f" Its confidence set has no point in common with that of the optimum ({terms.span(verdict.optimum)})."
    at, best = list(points).index(norm.best), list(points).index(verdict.best)
    gap = difference(values, at, best, verdict.level) if at != best else None
    if gap is not None:
        text += (
            f" Where the norm is lowest, at {terms.symbol} = {norm.best:g}, {terms.outcome} differs from that at its "
            f"own best {terms.symbol} = {verdict.best:g} by {terms.signed(*gap)}."
        )
    both = np.isfinite(values) & np.isfinite(logs)
    seeds = np.flatnonzero(both.any(0))
    sign = 1.0 if verdict.maximise else -1.0
    tops = np.where(both, sign * values, -np.inf)[:, seeds].argmax(0)
    lows = np.where(both, logs, np.inf)[:, seeds].argmin(0)
    near = int((np.abs(tops - lows) <= 1).sum())
    return f"{text} The two lie within one step of each other in {near} of {count(len(seeds), 'seed')}."


def across_sentences(
    verdicts: dict[str, Verdict], common: Common, same: SameShape, terms: Terms
) -> tuple[str, ...]:
    """Whether one value can be the optimum in all strata, and whether the curves have one shape."""
    number = len(verdicts)
    level = percent(next(iter(verdicts.values())).level)
    if common.overlap is not None:
        first = (
            f"The {level} confidence sets of the optimum overlap in all {number} strata, at "
            f"{terms.span(common.overlap)}. One common optimum is not contradicted; this does not prove that it exists."
        )
        widest = max(len(v.optimum_set) / len(v.curvatures) for v in verdicts.values())
        if widest > 0.5:
            first += f" A set that holds {100 * widest:.0f} % of the points overlaps with almost any other."
    elif common.possible is not None:
        first = (
            f"The {level} confidence sets of the optimum do not overlap in all {number} strata. With a correction for "
            f"{number} strata, a common optimum at {terms.span(common.possible)} remains possible: this is undecided."
        )
    else:
        first = (
            f"No {terms.symbol} can be the optimum in all {number} strata ({level}, corrected for {number} strata): "
            "the optimum is not common."
        )
    lines = [first]
    kinds = {v.kind for v in verdicts.values()}
    if len(kinds) == 1:
        lines.append(f"The verdict is the same in all {number} strata: {kinds.pop()}.")
    else:
        each = "; ".join(
            f"{kind} in {sum(v.kind == kind for v in verdicts.values())}" for kind in sorted(kinds)
        )
        lines.append(f"The verdicts differ: {each}. Different verdicts do not prove different curves.")
    if math.isfinite(same.p):
        alpha = 1 - next(iter(verdicts.values())).level
        if same.p <= alpha:
            departing = [name for name, p in same.departs.items() if p <= alpha]
            names = f" It is {'; '.join(departing)} that differs." if len(departing) == 1 else ""
            names = (
                f" These differ from the common shape: {'; '.join(departing)}."
                if len(departing) > 1
                else names
            )
            lines.append(
                f"The curves do not have one shape (p {p_text(same.p)}): no shift and stretch makes them equal.{names}"
            )
        else:
            lines.append(
                f"A difference of shape is not shown (p {p_text(same.p)}): up to a shift and a stretch, "
                "one shape fits all strata."
            )
    return tuple(lines)


def _heights(verdict: Verdict, terms: Terms, word: str, number: Callable[[float, Range], str]) -> str:
    parts = [
        f"{number(height.value, height.interval)} {word} {terms.span(height.over)}"
        for height in (verdict.over_left, verdict.over_right)
        if isinstance(height, Height)
    ]
    return f"{terms.span(verdict.peak_at)} lies " + " and ".join(parts)


def ratio(value: float, interval: Range) -> str:
    """A log10 difference, drawn as a depth, as a factor: above 1 is below."""
    return f"a factor {10**-value:.3g} [{10**-interval.high:.3g}, {10**-interval.low:.3g}]"


def p_text(value: float) -> str:
    """A p-value after the letter p.

    >>> p_text(0.0004), p_text(0.0312), p_text(0.5)
    ('< 0.001', '= 0.031', '= 0.50')
    """
    return "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"


def percent(level: float) -> str:
    """A level of confidence.

    >>> percent(0.95)
    '95 %'
    """
    return f"{100 * level:g} %"


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> count(1, "seed"), count(3, "seed"), count(2, "family", "families")
    ('1 seed', '3 seeds', '2 families')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def seed_number(seeds: int | None) -> str:
    """A number of seeds, None above the largest that is searched."""
    return f"more than {MOST_SEEDS} seeds" if seeds is None else count(seeds, "seed")
