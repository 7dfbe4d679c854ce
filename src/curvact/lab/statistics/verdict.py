"""Study room, the verdict in words: what a sweep says of robustness and of the Hessian norm, with its numbers. [ours]"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curvact.errors import CurvactError
from curvact.lab.statistics._contrasts import Array
from curvact.lab.statistics.calibration import band_share
from curvact.lab.statistics.shape import Height, Interval, ShapeVerdict, difference, shape_verdict

MOST_SEEDS = 200


@dataclass(frozen=True)
class Verdict:
    """One family of activations: the shape of robustness, of each Hessian norm, and sentences for page and terminal."""

    family: str
    robustness: ShapeVerdict
    norms: dict[str, ShapeVerdict]
    sentences: tuple[str, ...]


def sweep_verdict(
    family: str,
    curvatures: Sequence[float],
    robust: Array,
    norms: Mapping[str, Array] | None = None,
    *,
    band: tuple[float, float] = (4.0, 10.0),
    level: float = 0.95,
    margin: float = 0.02,
    norm_margin: float = 0.05,
    seed: int = 0,
) -> Verdict:
    """The verdict on one family.

    curvatures (K,) ascending; robust (K, S) robust accuracy in [0, 1]; norms: name -> log10 of a Hessian norm (K, S),
    the same seeds in the same columns; NaN for a failed trial. band: the published optimum. margin and norm_margin:
    differences that count as none, in robust accuracy and in log10 (0.05 is 12 %). Raises CurvactError as `shape_verdict`.

    >>> rng = np.random.default_rng(0)
    >>> kappa = [0.1, 0.5, 1, 2, 4, 6, 10, 20, 50, 200]
    >>> robust = np.minimum(0.65 + 0.1 * np.log10(kappa), 0.68)[:, None] + 0.02 * rng.standard_normal((10, 3))
    >>> verdict = sweep_verdict("rctaf", kappa, robust)
    >>> verdict.robustness.kind
    'inconclusive'
    """
    table = np.asarray(robust, dtype=np.float64)
    shape = shape_verdict(curvatures, table, level=level, margin=margin, seed=seed)
    others = {}
    for name, values in (norms or {}).items():
        logs = np.asarray(values, dtype=np.float64)
        if logs.shape != table.shape:
            raise CurvactError(
                f"norm '{name}' has shape {logs.shape}: expected {table.shape}, as robust accuracy has"
            )
        if np.isfinite(logs).any():
            others[name] = shape_verdict(
                curvatures, logs, level=level, margin=norm_margin, maximise=False, seed=seed
            )
    sentences = [
        *_place(family, shape),
        *_shape(shape),
        *_likely(shape),
        *_seeds(shape),
        *_band(shape, band, seed),
    ]
    for name, norm in others.items():
        sentences += _norm(name, norm, shape, curvatures, table, np.asarray((norms or {})[name], dtype=float))
    sentences += [f"Note: {note}." for note in shape.notes]
    sentences += [
        f"Note on {name}: {note}."
        for name, norm in others.items()
        for note in norm.notes
        if note not in shape.notes
    ]
    return Verdict(family, shape, others, tuple(sentences))


def compare_families(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Whether the optimum lies at the same curvature in all families, as far as their confidence sets can tell."""
    known = [v for v in verdicts if math.isfinite(v.robustness.plateau_spread)]
    if len(known) < 2:
        return ()
    sentences = []
    parts = "; ".join(f"{v.family}: {_span(v.robustness.optimum)}" for v in known)
    common = sorted(set.intersection(*(set(v.robustness.optimum_set) for v in known)))
    shared = set.intersection(*(set(v.robustness.curvatures) for v in known))
    level = known[0].robustness.level
    low = max(v.robustness.optimum.low for v in known)
    high = min(v.robustness.optimum.high for v in known)
    if low <= high and (common or not shared):
        sentences.append(
            f"The confidence sets of the optimum overlap at {_span(Interval(low, high))} ({parts}): one common optimal "
            "κ is not contradicted, which does not prove that there is one."
        )
        widest = max(len(v.robustness.optimum_set) / len(v.robustness.curvatures) for v in known)
        if widest > 0.5:
            sentences.append(
                f"A set that holds {100 * widest:.0f} % of the curvatures overlaps with almost anything: "
                "this comparison says little."
            )
    else:
        sentences.append(
            f"The confidence sets of the optimum have no κ in common ({parts}): the optimum does not coincide across "
            f"families (confidence at least {100 * (1 - len(known) * (1 - level)):.0f} %)."
        )
    kinds = {v.robustness.kind for v in known}
    if len(kinds) == 1:
        sentences.append(f"The verdict on the shape is the same in all {len(known)} families: {kinds.pop()}.")
    else:
        each = "; ".join(f"{v.family}: {v.robustness.kind}" for v in known)
        sentences.append(
            f"The verdicts on the shape differ ({each}); different verdicts are no proof of different curves."
        )
    return tuple(sentences)


def _place(family: str, shape: ShapeVerdict) -> list[str]:
    value = max(shape.means)
    seeds = _count(shape.seeds)
    if not math.isfinite(shape.plateau_spread):
        text = f"{family}: the best mean robust accuracy is {value:.3f}, at κ = {shape.best:g} ({seeds}); "
        return [text + "without an error bar nothing more can be said."]
    noise = f"{shape.noise.low:.3f}"
    if f"{shape.noise.high:.3f}" != noise:
        noise += f" to {shape.noise.high:.3f}"
    text = (
        f"{family}: the best mean robust accuracy is {value:.3f}, at κ = {shape.best:g}; the optimum lies at "
        f"{_span(shape.optimum)} ({_percent(shape.level)} confidence set: {len(shape.optimum_set)} of "
        f"{len(shape.curvatures)} curvatures; {seeds}; noise sd of one trial {noise})."
    )
    naive = shape.bootstrap
    if naive is not None and shape.noise.high > 0:
        text += f" A plain bootstrap over the seeds says {_span(naive)}, and is too narrow at so few seeds."
    return [text if shape.seeds < 10 else text.replace(", and is too narrow at so few seeds", "")]


def _shape(shape: ShapeVerdict) -> list[str]:
    if not math.isfinite(shape.plateau_spread):
        return []
    tests = f"rise p {_p(shape.rise_p)}, fall p {_p(shape.fall_p)}"
    if shape.kind == "interior peak" and shape.interior:
        return [
            f"An interior peak is supported (p {_p(shape.peak_p)}): {_heights(shape, 'above', _difference)}."
        ]
    refused = f"An interior peak is not supported against a monotone curve (p {_p(shape.peak_p)}; {tests})."
    if len(shape.curvatures) < 3:
        refused = f"Two curvatures cannot show an interior peak ({tests})."
    words = {
        "plateau": f"{'A rise' if shape.rise_p < shape.fall_p else 'A fall'} and a plateau are shown: "
        f"{_span(shape.plateau)} lies within {shape.margin:g} ({_percent(shape.level)}).",
        "monotone rise": f"Robustness rises towards large κ: its optimum is at {_span(shape.optimum)}.",
        "monotone fall": f"Robustness falls with κ: its optimum is at {_span(shape.optimum)}.",
        "flat": f"The curve is flat: all curvatures lie within {shape.margin:g}.",
        "U shape": "The curve has a valley: it is lower in the interior than on both sides.",
        "inconclusive": f"Inconclusive at {_count(shape.seeds)}.",
    }
    return [f"{refused} {words[shape.kind]}"]


def _likely(shape: ShapeVerdict) -> list[str]:
    if not shape.likely:
        return []
    plateau = shape.weight("rise then plateau", "plateau then fall", "flat")
    peak = shape.weight("interior peak")
    monotone = shape.weight("monotone rise", "monotone fall")
    weights = f"weights {plateau:.2f} plateau, {monotone:.2f} monotone without one, {peak:.2f} peak"
    where, spread = shape.likely_plateau, f"at most {shape.plateau_spread:.3f} (each pair, upper bound)"
    if max(plateau, peak, monotone) == plateau and where is not None:
        best = next(w.shape for w in shape.likely if w.shape not in ("monotone rise", "monotone fall"))
        if best == "flat" or where == Interval(shape.curvatures[0], shape.curvatures[-1]):
            name = "a flat curve"
        elif where.high == shape.curvatures[-1]:
            name = f"a plateau from κ = {where.low:g}"
        else:
            name = f"a plateau up to κ = {where.high:g}"
        return [
            f"By BIC, which favours simple curves, what fits best is {name} ({weights}); over it the means differ by {spread}."
        ]
    name = "a monotone curve without a plateau" if monotone >= peak else "a peak"
    return [f"By BIC, which favours simple curves, what fits best is {name} ({weights})."]


def _seeds(shape: ShapeVerdict) -> list[str]:
    if not shape.likely:
        if shape.kind == "inconclusive" and shape.seeds < 2:
            return ["At least 2 seeds are needed for an error bar, and 3 or more for a verdict worth having."]
        return []
    if shape.kind != "inconclusive":
        return []
    parts = [
        f"to find a peak of {shape.margin:g} over both sides takes {_seed_number(shape.seeds_for_peak)}",
        f"to show that a plateau is one within {shape.margin:g} takes {_seed_number(shape.seeds_for_plateau)}",
    ]
    if shape.likely and len(shape.curvatures) > 2:
        parts.append(
            "to support a peak if the truth is the observed curve (what departs from the best monotone curve shrunken for "
            f"its noise) takes {_seed_number(shape.seeds_needed)}"
        )
    return ["What would settle it, with 80 % power: " + "; ".join(parts) + "."]


def _band(shape: ShapeVerdict, band: tuple[float, float], seed: int) -> list[str]:
    if not math.isfinite(shape.plateau_spread) or shape.noise.high == 0:
        return []
    low, high = band
    name = f"{low:g} to {high:g}"
    inside = [low <= k <= high for k in shape.optimum_set]
    if all(inside):
        text = f"The confidence set lies within the published band {name}."
    elif any(inside):
        text = f"The confidence set reaches into the published band {name}, and beyond it."
    elif any(low <= k <= high for k in shape.curvatures):
        text = f"The confidence set has no curvature in the published band {name}."
    else:
        return [f"No curvature of this sweep lies in the published band {name}."]
    sd = math.sqrt((shape.noise.low**2 + shape.noise.high**2) / 2)
    share = band_share(shape.curvatures, sd, shape.seeds, band, studies=4000, seed=seed)
    text += " The best point alone proves nothing: if robustness rose to κ = 2 and were flat after, the best of these "
    return [
        text
        + f"{len(shape.curvatures)} curvatures would lie in {name} in {100 * share.value:.0f} % of studies."
    ]


def _norm(
    name: str,
    norm: ShapeVerdict,
    shape: ShapeVerdict,
    curvatures: Sequence[float],
    robust: Array,
    logs: Array,
) -> list[str]:
    if not math.isfinite(norm.plateau_spread):
        return [
            f"Hessian norm {name}: lowest mean at κ = {norm.best:g}; without an error bar nothing more can be said."
        ]
    if norm.interior:
        text = (
            f"Hessian norm {name}: a U shape is supported (p {_p(norm.peak_p)}): "
            f"{_heights(norm, 'below', _ratio)}; its minimum lies at {_span(norm.optimum)}."
        )
    else:
        text = (
            f"Hessian norm {name}: a U shape is not supported (p {_p(norm.peak_p)}; rise p {_p(norm.rise_p)}, "
            f"fall p {_p(norm.fall_p)}; verdict: {norm.kind}); its minimum lies at {_span(norm.optimum)}."
        )
    if norm.kind == "inconclusive" and len(norm.curvatures) > 2:
        text += f" A U shape of the observed depth (shrunken) would take {_seed_number(norm.seeds_needed)} to support."
    if not math.isfinite(shape.plateau_spread):
        return [text]
    common = sorted(set(norm.optimum_set) & set(shape.optimum_set))
    if common:
        wide = (
            len(norm.optimum_set) > len(norm.curvatures) / 2
            or len(shape.optimum_set) > len(shape.curvatures) / 2
        )
        text += (
            f" Its confidence set meets that of the optimum at {_span(Interval(common[0], common[-1]))}"
            + (", which says little, as a set is wide." if wide else ".")
        )
    else:
        text += f" Its confidence set has no curvature in common with that of the optimum ({_span(shape.optimum)})."
    grid = [float(k) for k in curvatures]
    at, best = grid.index(norm.best), grid.index(shape.best)
    if at != best:
        gap = difference(robust, at, best, shape.level)
        if gap is not None:
            text += (
                f" Where the norm is lowest, at κ = {norm.best:g}, robust accuracy differs from that at its own best "
                f"κ = {shape.best:g} by {_difference(gap[0], gap[1])}."
            )
    both = np.isfinite(robust) & np.isfinite(logs)
    seeds = np.flatnonzero(both.any(0))
    tops = np.where(both, robust, -np.inf)[:, seeds].argmax(0)
    lows = np.where(both, logs, np.inf)[:, seeds].argmin(0)
    near = int((np.abs(tops - lows) <= 1).sum())
    text += f" Seed by seed, the two lie within one grid step of each other in {near} of {len(seeds)}."
    return [text]


def _heights(shape: ShapeVerdict, word: str, number: Callable[[float, Interval], str]) -> str:
    parts = [
        f"{number(height.value, height.interval)} {word} {_span(height.over)}"
        for height in (shape.over_left, shape.over_right)
        if isinstance(height, Height)
    ]
    return f"{_span(shape.peak_at)} lies " + " and ".join(parts)


def _difference(value: float, interval: Interval) -> str:
    return f"{value:.3f} [{interval.low:.3f}, {interval.high:.3f}]".replace("-", "−")


def _ratio(value: float, interval: Interval) -> str:
    """Of a log10 difference, drawn as a depth: a factor above 1 is below."""
    return f"a factor {10**-value:.3g} [{10**-interval.high:.3g}, {10**-interval.low:.3g}]"


def _span(interval: Interval | None) -> str:
    if interval is None:
        return "no κ"
    if interval.low == interval.high:
        return f"κ = {interval.low:g}"
    return f"κ = {interval.low:g} to {interval.high:g}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"


def _percent(level: float) -> str:
    return f"{100 * level:g} %"


def _count(seeds: int) -> str:
    return f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"


def _seed_number(seeds: int | None) -> str:
    return f"more than {MOST_SEEDS} seeds" if seeds is None else _count(seeds)
