"""Properties of an activation: κ, limits, output at 0, monotonicity, sign on negative inputs."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvact.activations.base import Activation, Elementwise
from curvact.activations.curvature import Peak
from curvact.activations.registry import ActivationLike, activation, name_of

FAR = 1e4
"""The limits are read at ±FAR."""

_RESOLUTION = 1e-12
"""Slopes and values smaller than this, in float64, count as 0."""


@dataclass(frozen=True)
class Description:
    """What `curvact activation` prints.

    Limits are values at ±1e4; the other properties hold on a float64 grid over ±50/κ and ±1e4.

    slope_low, slope_high: slope as x → −∞ and +∞.
    value_low: value as x → −∞; infinite if it does not settle.
    gap_high: lim σ(x) − slope_high·x as x → +∞.
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


def describe(module: ActivationLike) -> Description:
    """Measure an activation given as a module, a name, a class or a function of a tensor.

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
        name=name_of(module) if isinstance(module, nn.Module) else repr(act),
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


def as_activation(activation_like: ActivationLike) -> Activation:
    """The activation in float64, detached from training; any other module is wrapped."""
    module = copy.deepcopy(activation(activation_like)).double().requires_grad_(False).eval()
    return module if isinstance(module, Activation) else Elementwise(module)


def probe_grid(curvature: float) -> Tensor:
    """Points in float64, dense where an activation of that κ bends and reaching to ±1e4."""
    reach = 50 / curvature if 0 < curvature < math.inf else 10.0
    near = torch.linspace(-reach, reach, 100_001, dtype=torch.float64)
    far = torch.logspace(-6, 4, 20_001, dtype=torch.float64)
    return torch.cat([near, far, -far]).sort().values
