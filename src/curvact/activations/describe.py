"""An activation in words and as curves: κ, limits, output at 0, monotone or not, positive on negative inputs or not."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from curvact.activations.base import Activation, Elementwise
from curvact.activations.curvature import Peak
from curvact.activations.registry import activation, name_of

FAR = 1e4
"""Where the limits are read off."""

_RESOLUTION = 1e-12
"""Slopes and values smaller than this, in float64, count as 0."""


@dataclass(frozen=True)
class Description:
    """What `curvact activation` prints. Limits are read off at ±1e4, the other properties on a float64 grid over ±50/κ and ±1e4.

    slope_low, slope_high: slope as x → −∞ and +∞.
    value_low: value as x → −∞; infinite where it does not settle. gap_high: lim σ(x) − slope_high·x as x → +∞.
    monotone: the slope is nowhere negative. least_slope: the least slope.
    positive_on_negative: σ(x) > 0 for some x < 0. largest_on_negative: sup of σ over x < 0.
    """

    name: str
    max_curvature: Peak
    at_zero: float
    slope_at_zero: float
    slope_low: float
    slope_high: float
    value_low: float
    gap_high: float
    monotone: bool
    least_slope: float
    positive_on_negative: bool
    largest_on_negative: float


def describe(module: nn.Module | str) -> Description:
    """Measure an activation given as a module or a name.

    >>> report = describe("rctaf(curvature=6)")
    >>> report.max_curvature.value, report.slope_high, report.monotone, report.positive_on_negative
    (6.0, 1.0, True, True)
    """
    act = as_activation(module)
    peak = act.max_curvature
    x = probe_grid(peak.value)
    value, slope = act(x), act.slope(x)
    low, high = torch.tensor([-FAR, -FAR / 2]).double(), torch.tensor([FAR / 2, FAR]).double()
    slope_low, slope_high = float(act.slope(low)[0]), float(act.slope(high)[1])
    settles = abs(slope_low) < 1e-6
    zero = torch.zeros(1, dtype=torch.float64)
    negative = x < 0
    largest = float(value[negative].max())
    return Description(
        name=name_of(module) if isinstance(module, nn.Module) else str(act),
        max_curvature=peak,
        at_zero=float(act(zero)),
        slope_at_zero=float(act.slope(zero)),
        slope_low=slope_low,
        slope_high=slope_high,
        value_low=float(act(low)[0]) if settles else math.copysign(math.inf, float(act(low)[0])),
        gap_high=float(act(high)[1] - slope_high * high[1]),
        monotone=bool((slope >= -_RESOLUTION).all()),
        least_slope=float(slope.min()),
        positive_on_negative=largest > _RESOLUTION,
        largest_on_negative=largest,
    )


def as_activation(module: nn.Module | str) -> Activation:
    """The activation in float64, detached from training; any other module is wrapped."""
    if isinstance(module, str):
        module = activation(module)
    module = copy.deepcopy(module).double().requires_grad_(False).eval()
    return module if isinstance(module, Activation) else Elementwise(module)


def probe_grid(curvature: float) -> Tensor:
    """Points in float64, dense where an activation of that κ bends and reaching to ±1e4."""
    reach = 50 / curvature if 0 < curvature < math.inf else 10.0
    near = torch.linspace(-reach, reach, 100_001, dtype=torch.float64)
    far = torch.logspace(-6, 4, 20_001, dtype=torch.float64)
    return torch.cat([near, far, -far]).sort().values


def draw(modules: Sequence[nn.Module | str], path: Path, reach: float | None = None) -> Path:
    """σ, σ' and σ'' of several activations side by side, as a PNG, SVG or PDF file. reach: half the width of the x axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from curvact.files import atomic_write

    acts = [as_activation(module) for module in modules]
    if reach is None:
        scales = [act.max_curvature.value for act in acts]
        finite = [s for s in scales if 0 < s < math.inf]
        reach = min(6.0, max(1.0, 6 / min(finite))) if finite else 3.0
    x = torch.linspace(-reach, reach, 4001, dtype=torch.float64)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    for index, (module, act) in enumerate(zip(modules, acts, strict=True)):
        label = module if isinstance(module, str) else str(act)
        peak = act.max_curvature
        kappa = "∞" if math.isinf(peak.value) else f"{peak.value:.4g}"
        style = {
            "color": colours[index % len(colours)],
            "linestyle": ["-", "--", "-.", ":"][index // len(colours) % 4],
        }
        for axis, curve in zip(axes, (act(x), act.slope(x), act.curvature(x)), strict=True):
            axis.plot(x.numpy(), curve.numpy(), linewidth=1.8, label=f"{label}  (κ = {kappa})", **style)
    for axis, title in zip(axes, ("value σ(x)", "slope σ′(x)", "curvature σ″(x)"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("x")
        axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(3, len(acts)),
        frameon=False,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=150)
    atomic_write(path, buffer.getvalue())
    return path
