"""κ = sup|σ''| of any scalar function or elementwise module, measured, with an error. [ours]"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

from torch import Tensor, nn

from curvact.activations.curvature.derivatives import Order, Probe
from curvact.activations.curvature.function import NoDerivative, ScalarFunction, name_of
from curvact.activations.curvature.search import Peak, search
from curvact.errors import CurvactError
from curvact.names import shortened

__all__ = ["Peak", "max_curvature"]


def max_curvature(
    f: str | type[nn.Module] | nn.Module | Callable[[Tensor], Tensor] | Callable[[float], float],
    *,
    domain: tuple[float, float] = (-1e4, 1e4),
    resolution: float = 1e-6,
    max_evaluations: int = 4_000_000,
) -> Peak:
    """κ = sup|f''| over the domain, and the place where it is attained.

    f: an elementwise module, or a function of tensors, arrays or Python floats; a name of an
       activation, or a class of modules, which is made with its defaults.
    domain: finite (low, high).
    resolution: of the slope, > 0.
    max_evaluations: of f, at single points; of a function of one Python number four times that. The
        default is about a second.

    Everything is measured from what `f` returns, in float64 on the CPU. A module is copied first:
    its dtype, mode and gradients stay. Slope and curvature come from autograd. If autograd gives
    none, or contradicts the values (straight-through estimators, backward passes without a
    derivative, plain Python functions), they are finite differences, and the error is larger. A
    function that computes in lower precision is measured on the points of that precision.

    The search finds, anywhere in the domain, with S = max(1, |slope|):

    - every change of the slope by more than `resolution`·S;
    - every excursion of the slope that comes back, if its area (the integral of the excursion) is
      more than 1e-4·`resolution`·S and more than the rounding of f (1e-11 to 1e-10 at |x| = 1e4);
    - a kink, κ = ∞: a slope change of more than `resolution`·S, most of it within
      1e-11·max(1, |x|), or a jump of the value by more than `resolution`·max(1, |x|, |f|). With
      finite differences of f that width is 4e-6·√max(1, |x|). In lower precision it is at least
      16 units in the last place of x.

    It misses:

    - slope changes below these thresholds, however sharp (`F.softplus` has a step of 2e-9 at 20);
    - features that are closer together than the samples and cancel each other in value and slope,
      such as a dip of the value that changes nothing beside it and is narrower than `unseen` of the
      result, about 1e-3 of |x|, or 1e-5 near 0. 131,072 values at the end look for wider ones (2,048
      of functions of one Python number);
    - whatever is outside the domain.

    The error has three parts: the search (the highest upper estimate of any cell, about 1e-9·κ or
    less), rounding (8 times the scatter of the floats around the peak), and the step error of
    finite differences. It is infinite if the curvature still grows at the smallest width, or if finite
    differences cannot resolve it there. It is no proof: it does not cover what the search misses.

    Of equal peaks the result is the one nearest to 0, and of ±x the positive one.
    Raises CurvactError for a bad domain or resolution, and for an f that is not elementwise, that
    is NaN or infinite in the domain (the message names the place), or that bends in more places
    than max_evaluations can resolve. Common activations take well under a second.

    >>> import torch
    >>> max_curvature(torch.tanh)  # 4/(3√3) at artanh(1/√3)
    Peak(value=0.7698..., at=0.65847..., error=...)
    >>> max_curvature(nn.ReLU6())
    Peak(value=inf, at=0.0, error=0.0)
    >>> round(max_curvature(nn.SiLU()).value, 9)
    0.5
    """
    if isinstance(f, (str, type)):
        from curvact.activations.registry import activation  # it imports this module

        f = activation(f)
    low, high = _checked_domain(domain)
    number = isinstance(resolution, (int, float)) and not isinstance(resolution, bool)
    if not (number and 0 < resolution <= sys.float_info.max):
        raise CurvactError(
            f"resolution={shortened(resolution)} in max_curvature: it must be a finite number > 0"
        )
    if isinstance(max_evaluations, bool) or not isinstance(max_evaluations, int) or max_evaluations < 1:
        raise CurvactError(
            f"max_evaluations={shortened(max_evaluations)} in max_curvature: a whole number >= 1"
        )
    where = (low, high)
    call = ScalarFunction.of(f, where, max_evaluations)
    orders: list[Order] = [2, 1, 0] if call.differentiable else [0]
    for order in orders:
        probe = Probe(call, order, where)
        try:
            if order == 0 or probe.consistent():
                return search(probe, resolution)
        except NoDerivative:
            continue
    raise CurvactError(f"max_curvature cannot differentiate {name_of(f)} on [{low:g}, {high:g}]")


def _checked_domain(domain: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in domain)
    except (TypeError, ValueError, OverflowError):
        raise CurvactError(
            f"domain={shortened(domain)} in max_curvature: it must be two numbers, low < high"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise CurvactError(f"domain={shortened(domain)} in max_curvature: it must be finite with low < high")
    return low, high
