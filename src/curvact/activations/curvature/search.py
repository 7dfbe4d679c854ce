"""The search for the largest |σ''|, in two parts.

First the domain is cut into cells until, in each of them, the function is what a quintic polynomial
through the value, slope and curvature at the two ends predicts. Then the cells that could still
hold the maximum of |σ''| are cut further, until their upper estimates meet the largest curvature
seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curvact.activations.curvature.derivatives import Points, Probe, join
from curvact.activations.curvature.function import Array, NoDerivative, quiet, spread
from curvact.errors import CurvactError
from curvact.notebook import html_facts

NODES = np.array([0.28, 0.5, 0.72])
"""Places of the samples in a cell. A step J of the slope in the cell shows as ≥ 0.30 J at one."""
STEP_SHARE = 0.25
"""The slope may deviate by this part of the resolution; below the 0.30 of NODES."""
AREA_SHARE = 0.5e-4
"""The same for the value. An excursion of the slope of area A shows as ≥ A/2 at the middle."""
NOISE_FACTOR = 8.0
"""Rounding is at most this many times what pairs of samples, or the last digits, show."""
RELATIVE_GAP = 1e-9
"""The search ends when no cell could exceed the largest curvature seen by more than this part."""
CELLS = 1200
WAVE = 6000


@dataclass(frozen=True)
class Peak:
    """The largest curvature of a function.

    value: κ = sup|σ''|; infinite for a kink, where the slope jumps.
    at: where it is attained, or approached; the place of the kink.
    error: bound on |value − κ|, see `max_curvature`; 0.0 for closed forms and for kinks.
    unseen: the error does not cover bumps of the function that are narrower than this part of |x|
        (of 0.01 near 0) and leave no trace beside them; 0.0 for closed forms.
    """

    value: float
    at: float
    error: float = 0.0
    unseen: float = field(default=0.0, compare=False, repr=False)

    def _repr_html_(self) -> str:
        facts = {"κ = sup|σ″|": self.value, "at": self.at, "error": self.error}
        return html_facts("Largest curvature", facts)


@dataclass(frozen=True)
class Cells:
    """Cells [left.x, right.x]. noise: rounding of value, slope and curvature, shape (3, cells)."""

    left: Points
    right: Points
    noise: Array

    def __len__(self) -> int:
        return len(self.left.x)

    def take(self, index: NDArray[Any]) -> Cells:
        return Cells(self.left.take(index), self.right.take(index), self.noise[:, index])


@dataclass(frozen=True)
class Sampled:
    """Cells with their inner samples: arrays of shape (len(NODES), cells)."""

    cells: Cells
    middle: Points
    t: Array
    value: Array
    slope: Array
    curvature: Array
    slope_error: Array
    curvature_error: Array

    def halves(self, index: NDArray[Any]) -> Cells:
        cells, middle = self.cells.take(index), self.middle.take(index)
        return Cells(
            join([cells.left, middle]),
            join([middle, cells.right]),
            np.concatenate([cells.noise, cells.noise], axis=1),
        )


class Record:
    """All curvatures seen. jumps: cells of the smallest width in which the curvature jumps."""

    def __init__(self) -> None:
        self.parts: list[tuple[Array, Array, Array]] = []
        self.best = 0.0
        self.jumps: list[tuple[float, float]] = []

    def add(self, x: Array, curvature: Array, error: Array) -> None:
        size = np.abs(curvature)
        self.parts.append((x, size, error))
        if len(size):
            self.best = max(self.best, float((size - error).max()))

    def all(self) -> tuple[Array, Array, Array]:
        x, size, error = (np.concatenate([part[i] for part in self.parts]) for i in range(3))
        x, index = np.unique(x, return_index=True)
        return x, size[index], error[index]


SCAN = 2**17
"""Points of the last look: about 2e-4 of |x| apart."""


def search(probe: Probe, resolution: float) -> Peak:
    """The peak, after a last look at the values between the samples of the search."""
    none = np.zeros(0)
    peak, start = _search(probe, resolution, none), none
    width = math.inf
    for _ in range(3):
        start, width = _higher(probe, peak)
        if not len(start):
            return replace(peak, unseen=width)
        peak = _search(probe, resolution, start)
    raise CurvactError(
        f"{probe.call.name} bends more sharply near x = {start[0]:.6g} than max_curvature can follow: give a "
        "smaller domain=(low, high)"
    )


def _higher(probe: Probe, peak: Peak) -> tuple[Array, float]:
    """Places of a larger curvature than the peak's, and the relative distance of the points looked at.

    A second divided difference of the values is half a curvature that is attained between them.
    """
    count = SCAN if probe.call.by_arrays else SCAN // 64
    low, high = probe.domain
    width = 4 * (math.asinh(high / 1e-2) - math.asinh(low / 1e-2)) / count
    if math.isinf(peak.value) or math.isinf(peak.error) or probe.call.dtype is not torch.float64:
        return np.zeros(0), width
    x = spread(probe.domain, count)
    with quiet():
        value = probe.call.values(x)
        gap = np.diff(x)
        slope = np.diff(value) / gap
        wide = (gap[1:] + gap[:-1]) / 2
        curvature = np.abs(np.diff(slope)) / wide
        size = np.maximum(np.maximum(np.abs(value[:-2]), np.abs(value[2:])), np.abs(value[1:-1]))
        # A value may be the difference of larger ones, as where an offset at 0 is taken away.
        size = np.maximum(size, np.abs(value[np.abs(x) <= 1]).max(initial=0.0))
        size = size + np.abs(x[1:-1]) * np.maximum(np.abs(slope[:-1]), np.abs(slope[1:]))
        noise = 16 * probe.eps * size / (np.minimum(gap[1:], gap[:-1]) * wide)
        higher = np.flatnonzero(curvature > (peak.value + peak.error) * (1 + 1e-6) + noise)
    best = higher[np.argsort(-(curvature - noise)[higher], kind="stable")[:64]]
    return np.unique(np.concatenate([x[best], x[best + 1], x[best + 2]])), width


def _search(probe: Probe, resolution: float, more: Array) -> Peak:
    grid = np.unique(probe.call.snap(np.concatenate([spread(probe.domain, CELLS + 1), more])))
    grid = grid[(grid >= probe.domain[0]) & (grid <= probe.domain[1])]
    points = probe(grid)
    count = len(grid)
    start = Cells(
        points.take(np.arange(count - 1)), points.take(np.arange(1, count)), np.zeros((3, count - 1))
    )
    record = Record()
    record.add(points.x, points.curvature, points.curvature_error)
    if probe.domain[0] <= 0 <= probe.domain[1]:
        with quiet():
            try:
                zero = probe.sample(np.zeros(1))
                if np.isfinite(zero.curvature).all():
                    record.add(zero.x, zero.curvature, zero.curvature_error)
            except NoDerivative:
                pass
    leaves, kink = _resolve(probe, start, resolution, record)
    if kink is not None:
        return Peak(math.inf, kink)
    ceiling = _climb(probe, leaves, resolution, record)
    return _peak(probe, record, ceiling)


def _sample_cells(probe: Probe, cells: Cells, record: Record) -> Sampled:
    a, b = cells.left.x, cells.right.x
    h = b - a
    x = probe.call.snap((a + NODES[:, None] * h).ravel())
    n = len(cells)
    analytic = probe.order == 2
    middle_x = x[n : 2 * n]
    if analytic:
        near = middle_x + np.minimum(4 * probe.eps * np.maximum(np.abs(middle_x), h), h / 8)
        points = probe(np.concatenate([x, probe.call.snap(near)]))
    else:
        points = probe(x)
    inner = points.take(np.arange(3 * n))
    middle = points.take(np.arange(n, 2 * n))
    record.add(inner.x, inner.curvature, inner.curvature_error)

    # Rounding: a floor from the size of the numbers, and what two neighbouring floats show.
    ends = (cells.left, middle, cells.right)
    value, slope, curvature = (
        np.maximum.reduce([np.abs(getattr(p, name)) for p in ends])
        for name in ("value", "slope", "curvature")
    )
    size = np.maximum(np.abs(a), np.abs(b))
    noise = probe.eps * np.stack([value + size * slope / 2, slope + size * curvature / 2, 2 * curvature])
    if analytic:
        twin = points.take(np.arange(3 * n, 4 * n))
        d = twin.x - middle.x
        seen = np.stack(
            [
                np.abs(twin.value - middle.value - d * middle.slope),
                np.abs(twin.slope - middle.slope - d * middle.curvature),
                np.abs(twin.curvature - middle.curvature),
            ]
        )
        seen[:, np.abs(twin.slope - middle.slope) > 1e-3 * np.maximum(1, slope)] = 0.0  # a kink, not noise
        noise = np.maximum(noise, seen)
    noise = np.maximum(noise, cells.noise)
    shape = (len(NODES), n)
    return Sampled(
        replace(cells, noise=noise),
        middle,
        (inner.x.reshape(shape) - a) / h,
        inner.value.reshape(shape),
        inner.slope.reshape(shape),
        inner.curvature.reshape(shape),
        inner.slope_error.reshape(shape),
        inner.curvature_error.reshape(shape),
    )


def _surprise(s: Sampled) -> tuple[Array, Array]:
    """How far value and slope inside are from the quintic through the ends."""
    left, right = s.cells.left, s.cells.right
    h, t = right.x - left.x, s.t
    t2, t3, t4, t5 = t**2, t**3, t**4, t**5
    rise = right.value - left.value
    value = (
        rise * (10 * t3 - 15 * t4 + 6 * t5)
        + h * (left.slope * (t - 6 * t3 + 8 * t4 - 3 * t5) + right.slope * (-4 * t3 + 7 * t4 - 3 * t5))
        + h * h * (left.curvature * (t2 - 3 * t3 + 3 * t4 - t5) + right.curvature * (t3 - 2 * t4 + t5)) / 2
    )
    slope = (
        (rise / h) * (30 * t2 - 60 * t3 + 30 * t4)
        + left.slope * (1 - 18 * t2 + 32 * t3 - 15 * t4)
        + right.slope * (-12 * t2 + 28 * t3 - 15 * t4)
        + h
        * (
            left.curvature * (2 * t - 9 * t2 + 12 * t3 - 5 * t4)
            + right.curvature * (3 * t2 - 8 * t3 + 5 * t4)
        )
        / 2
    )
    # At small h the rounding of `rise` spoils that slope: there the cubic through the end slopes
    # and curvatures is better.
    cubic = (
        left.slope * (1 - 3 * t2 + 2 * t3)
        + right.slope * (3 * t2 - 2 * t3)
        + h * (left.curvature * (t - 2 * t2 + t3) + right.curvature * (t3 - t2))
    )
    return np.abs(s.value - left.value - value).max(axis=0), np.minimum(
        np.abs(s.slope - slope).max(axis=0), np.abs(s.slope - cubic).max(axis=0)
    )


def _resolve(probe: Probe, start: Cells, resolution: float, record: Record) -> tuple[Cells, float | None]:
    """Cut cells until their ends predict them; return them and the kink nearest to 0, or None."""
    leaves: list[Cells] = []
    kink: float | None = None
    stack = [start]
    while stack:
        cells = stack.pop()
        near = np.minimum(np.abs(cells.left.x), np.abs(cells.right.x))
        if kink is not None:
            cells = cells.take(near <= abs(kink))
            near = near[near <= abs(kink)]
        if len(cells) > WAVE:
            # The nearest to 0 first: where there are kinks without end, one of them ends the
            # search.
            nearest = np.argsort(near, kind="stable")
            stack.append(cells.take(nearest[WAVE:]))
            cells = cells.take(nearest[:WAVE])
        if not len(cells):
            continue
        sampled = _sample_cells(probe, cells, record)
        cells = sampled.cells
        left, right = cells.left, cells.right
        h = right.x - left.x
        value, slope = _surprise(sampled)
        scale = np.maximum(1.0, np.maximum(np.abs(left.slope), np.abs(right.slope)))
        blur = np.maximum(np.maximum(left.slope_error, right.slope_error), sampled.slope_error.max(axis=0))
        value_noise, slope_noise = NOISE_FACTOR * cells.noise[0], NOISE_FACTOR * cells.noise[1]
        slope_allowed = np.maximum(STEP_SHARE * resolution * scale, slope_noise)
        slope_allowed = np.maximum(slope_allowed, np.minimum(4 * blur, 0.02 * scale))
        value_allowed = np.maximum(AREA_SHARE * resolution * scale, value_noise + h * blur)
        settled = (value <= value_allowed) & (slope <= slope_allowed)
        smallest = h <= probe.width(np.maximum(np.abs(left.x), np.abs(right.x)))
        suspects = np.flatnonzero(smallest & ~settled)
        if len(suspects):
            kinks = suspects[_is_kink(probe, cells.take(suspects), resolution)]
            if len(kinks):
                blurred = 4.0 if probe.order == 0 else 0.0
                ends = zip(left.x[kinks], right.x[kinks], blurred * probe.reach(right.x[kinks]), strict=True)
                places = [_simplest(float(a - w), float(b + w)) for a, b, w in ends]
                places += [] if kink is None else [kink]
                kink = min(places, key=lambda place: (abs(place), place < 0))
        leaves.append(cells.take(settled | smallest))
        stack.append(sampled.halves(~(settled | smallest)))
    return _concatenate(leaves), kink


def _concatenate(parts: list[Cells]) -> Cells:
    return Cells(
        join([p.left for p in parts]),
        join([p.right for p in parts]),
        np.concatenate([p.noise for p in parts], axis=1),
    )


def _is_kink(probe: Probe, cells: Cells, resolution: float) -> NDArray[np.bool_]:
    """Whether slope or value jump in cells of the smallest width.

    They do if most of the change over five widths is inside the cell.
    """
    left, right = cells.left, cells.right
    h = right.x - left.x
    low, high = probe.domain
    n = len(cells)
    around = probe(
        probe.call.snap(np.concatenate([np.maximum(left.x - 2 * h, low), np.minimum(right.x + 2 * h, high)]))
    )
    inside = np.abs(right.slope - left.slope)
    outside = np.abs(around.slope[n:] - around.slope[:n])
    scale = np.maximum(1.0, np.maximum(np.abs(left.slope), np.abs(right.slope)))
    blur = left.slope_error + right.slope_error
    noise = NOISE_FACTOR * cells.noise[1]
    bends = (inside > np.maximum(resolution * scale, 2 * blur + noise)) & (inside >= 0.35 * outside)
    rise = np.abs(right.value - left.value - h * (left.slope + right.slope) / 2)
    size = np.maximum.reduce([np.ones(n), np.abs(left.x), np.abs(left.value)])
    jumps = rise > np.maximum(resolution * size, NOISE_FACTOR * cells.noise[0] + h * inside)
    return np.asarray(bends | jumps)


def _simplest(a: float, b: float) -> float:
    """The decimal with the fewest digits between a and b."""
    if a <= 0 <= b:
        return 0.0
    for digits in range(17):
        place = round((a + b) / 2, digits)
        if a <= place <= b:
            return place
    return (a + b) / 2


# The quartic through the curvatures at 0, NODES and 1 on a fine grid, and the cubic without the
# middle one at the middle.
_ALL = np.array([0.0, *NODES, 1.0])
_FINE = np.linspace(0.0, 1.0, 17)
_TO_FINE = np.vander(_FINE, 5) @ np.linalg.inv(np.vander(_ALL, 5))
_AREA = (1 / np.arange(5, 0, -1)) @ np.linalg.inv(np.vander(_ALL, 5))
_OTHERS = _ALL[[0, 1, 3, 4]]
_TO_MIDDLE = np.vander(_ALL[2:3], 4) @ np.linalg.inv(np.vander(_OTHERS, 4))


def _climb(probe: Probe, cells: Cells, resolution: float, record: Record) -> float:
    """Cut cells that could hold the maximum; return the highest upper estimate that is left."""
    ceiling = 0.0
    stack = [cells]
    while stack:
        cells = stack.pop()
        if len(cells) > 8 * WAVE:
            stack.append(cells.take(np.arange(8 * WAVE, len(cells))))
            cells = cells.take(np.arange(8 * WAVE))
        if not len(cells):
            continue
        sampled = _sample_cells(probe, cells, record)
        cells = sampled.cells
        left, right = cells.left, cells.right
        h = right.x - left.x
        curvature = np.concatenate([left.curvature[None], sampled.curvature, right.curvature[None]])
        seen = np.abs(curvature).max(axis=0)
        top, where, missed = _top(np.abs(_TO_FINE @ curvature))
        mismatch = np.abs(_TO_MIDDLE @ curvature[[0, 1, 3, 4]] - curvature[2]).reshape(-1)
        rise = np.abs(right.slope - left.slope - h * (_AREA @ curvature)) / h
        blur = 2 * NOISE_FACTOR * cells.noise[1] + left.slope_error + right.slope_error
        rise = np.maximum(0.0, rise - blur / h)
        unsure = np.maximum.reduce([left.curvature_error, right.curvature_error, *sampled.curvature_error])
        upper = top + missed + mismatch + 4 * rise + unsure

        high = np.flatnonzero(upper > record.best * (1 - 2 * RELATIVE_GAP))
        if len(high):
            x = probe.call.snap(left.x[high] + where[high] * h[high])
            points = probe(np.clip(x, left.x[high], right.x[high]))
            record.add(points.x, points.curvature, points.curvature_error)
            there = np.abs(points.curvature)
            seen[high] = np.maximum(seen[high], there)
            upper[high] = np.maximum(upper[high], there + np.abs(there - top[high]))
        slack = NOISE_FACTOR * cells.noise[2] + np.minimum(4 * unsure, max(1e-3 * record.best, resolution))
        open_ = (upper > record.best * (1 - 2 * RELATIVE_GAP)) & (
            upper > seen + RELATIVE_GAP * record.best + slack
        )
        # Where the quartic is plainly no description, no estimate from it can close a cell of such
        # curvature.
        open_ |= (mismatch + missed > 1e-3 * upper + slack) & (upper > 0.5 * record.best)
        size = np.maximum(np.abs(left.x), np.abs(right.x))
        smallest = h <= np.maximum(probe.width(size), probe.reach(size) / 8)
        if (~open_).any():
            ceiling = max(ceiling, float(upper[~open_].max()))
        last = np.flatnonzero(open_ & smallest)
        if len(last):
            record.jumps += [(float(left.x[i]), float(right.x[i])) for i in last[:64]]
            ceiling = max(ceiling, _beside_jumps(probe, cells.take(last), record.best))
        stack.append(sampled.halves(open_ & ~smallest))
    return ceiling


def _top(fine: Array) -> tuple[Array, Array, Array]:
    """Maxima of functions on the fine points, (17, n), by parabolas; places; what they may miss."""
    n = fine.shape[1]
    column = np.arange(n)
    peak = np.argmax(fine, axis=0)
    i = np.clip(peak, 1, len(_FINE) - 2)
    before, here, after = fine[i - 1, column], fine[i, column], fine[i + 1, column]
    bend = 2 * here - before - after
    with quiet():
        move = np.where(bend > 0, np.clip((after - before) / (2 * bend), -1, 1), 0.0)
    top = here + move * ((after - before) / 2 - move * bend / 2)
    inside = top >= fine[peak, column]
    missed = 0.07 * np.abs(np.diff(fine, n=3, axis=0)).max(axis=0)
    return (
        np.where(inside, top, fine[peak, column]),
        np.where(inside, (i + move) / (len(_FINE) - 1), _FINE[peak]),
        missed,
    )


def _beside_jumps(probe: Probe, cells: Cells, best: float) -> float:
    """Upper estimate of the curvature beside the smallest cells; infinite if it keeps growing."""
    low, high = probe.domain
    h = np.maximum(cells.right.x - cells.left.x, probe.reach(cells.left.x))
    ceiling = 0.0
    for end, sign in ((cells.left, -1.0), (cells.right, 1.0)):
        points = [
            probe(probe.call.snap(np.clip(end.x + sign * k * h, low, high))) for k in (2.0, 20.0, 200.0)
        ]
        near, mid, far = (np.abs(p.curvature) for p in points)
        if probe.order == 2:
            # At both scales: a jump of the curvature between two of the points is no growth.
            grows = near - mid > np.maximum(0.3 * np.abs(mid - far), 1e-3 * near)
            grows &= mid - far > 1e-3 * near
            if (grows & (near > 0.5 * best)).any():
                return math.inf
        upper = near + np.minimum(np.abs(near - mid), np.abs(mid - far)) + points[0].curvature_error
        ceiling = max(ceiling, float(upper.max()))
    return ceiling


def _peak(probe: Probe, record: Record, ceiling: float) -> Peak:
    x, size, error = record.all()
    for a, b in record.jumps:
        reach = float(probe.reach(np.array([a]))[0])
        clear = (x < a - reach) | (x > b + reach)
        if reach and clear.any() and probe.call.dtype is torch.float64:
            x, size, error = x[clear], size[clear], error[clear]
    best = int(np.argmax(size - error))
    value, blur = float(size[best]), float(error[best])
    tie = 4 * RELATIVE_GAP * value + 4 * blur
    clusters = _clusters(size >= value - tie)
    # Only peaks near 0 can be chosen; a periodic function has thousands.
    clusters = sorted(clusters, key=lambda c: float(np.abs(x[c[0] : c[1] + 1]).min()))[:16]
    places = []
    for first, last in clusters:
        place, height = _refine(probe, x, size, first, last, blur)
        reach = (x[last] - x[first]) / 2 if probe.order == 0 else 0.0
        places.append((place, float(reach)))
        value = max(value, height)
    nearest = min(abs(place) + reach for place, reach in places)
    at = max(place for place, reach in places if abs(place) - reach <= nearest * (1 + 1e-6) + 1e-9)
    noise = _rounding_at(probe, at)
    for a, b in record.jumps:
        reach = (b - a) + 1.01 * float(probe.reach(np.array([a]))[0])
        if a - reach <= at <= b + reach:
            at = _simplest(a, b)
            break
    bound = max(0.0, ceiling - value) + NOISE_FACTOR * noise + blur
    # Finite differences do not reach into the smallest cells.
    exact = probe.order == 2 or probe.call.dtype is not torch.float64
    return Peak(value, at, math.inf if record.jumps and not exact and bound > value else bound)


def _clusters(mark: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mark.astype(np.int8), [0]])))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def _refine(probe: Probe, x: Array, size: Array, first: int, last: int, blur: float) -> tuple[float, float]:
    """Place and height of a peak: the vertex of a parabola; on a plateau, the point nearest to 0."""
    height = float(size[first : last + 1].max())
    flat = np.flatnonzero(size[first : last + 1] >= height - 8 * probe.eps * height) + first
    at = float(x[flat[np.argmin(np.abs(x[flat]))]])
    if at == 0.0 or bool(((x[first : last + 1] == 0) & (size[first : last + 1] >= height - blur)).any()):
        return 0.0, height
    i = int(first + np.argmax(size[first : last + 1]))
    if 0 < i < len(x) - 1 and probe.order == 2 and probe.call.dtype is torch.float64:
        reach = max(x[i] - x[max(first - 1, 0)], x[min(last + 1, len(x) - 1)] - x[i])
        a, b = max(x[i] - reach, probe.domain[0]), min(x[i] + reach, probe.domain[1])
        u = np.linspace(-1.0, 1.0, 33)
        mid, half = (a + b) / 2, (b - a) / 2
        points = probe(mid + half * u)
        y = np.abs(points.curvature)
        quadratic = np.polynomial.polynomial.polyfit(u, y / height - 1, 2)
        misfit = float(np.abs(np.polynomial.polynomial.polyval(u, quadratic) - (y / height - 1)).max())
        bend = float(-quadratic[2])
        if bend > 0 and misfit < 0.05 * bend and abs(quadratic[1]) < 2 * bend:
            vertex = float(mid + half * quadratic[1] / (2 * bend))
            top = float(np.abs(probe(np.array([vertex])).curvature)[0])
            if top >= height * (1 - 8 * probe.eps):
                return vertex, max(top, height)
    return at, height


def _rounding_at(probe: Probe, x: float) -> float:
    """How much the curvature differs between neighbouring floats at x, at least its last digits."""
    here = np.full(9, x) + probe.eps * max(abs(x), 1e-9) * np.arange(-4, 5)
    curvature = probe(np.clip(probe.call.snap(here), *probe.domain)).curvature
    size = float(np.abs(curvature).max())
    return max(2 * probe.eps * size, float(np.ptp(curvature)) if probe.order == 2 else 0.0)
