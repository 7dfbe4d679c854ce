"""Tensor code that several families share, without overflow or NaN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.activations.kernels.polynomials import polynomial
from curvact.activations.kernels.shape import SATURATED, Scale, compiled_once

FLAT = 1e3
"""Beyond |u| = 1000 the gates are 0 or 1 in float64. Inputs are cut there: no 0·inf."""


def scaled_softplus(x: Tensor, alpha: Scale) -> Tensor:
    """softplus(αx)/α, without the step of 2e-9 at αx = 20 that `F.softplus` has."""
    if compiled_once():
        e = decay(x * alpha)
        return ramp(x) + over(e * polynomial("softplus", e - 0.5), alpha)
    if not isinstance(alpha, Tensor):
        return F.softplus(x, alpha, SATURATED)
    u = (alpha * x).clamp(max=SATURATED)
    return F.softplus(u, 1.0, SATURATED) / alpha + F.relu(x - SATURATED / alpha)


def ramp(x: Tensor) -> Tensor:
    """relu(x), with slope 1 at 0."""
    return x.clamp(min=0)


def decay(u: Tensor) -> Tensor:
    """exp(−|u|)."""
    return torch.exp(-u.abs())


def over(r: Tensor, alpha: Scale) -> Tensor:
    """r/α."""
    return r / alpha if isinstance(alpha, Tensor) else r * (1 / alpha)


def fade(s: Tensor, power: int) -> Tensor:
    """s, but 0 if s**power is below the normal numbers: processors are many times slower there."""
    return F.threshold(s, torch.finfo(s.dtype).tiny ** (1 / power), 0.0)


def floor(x: Tensor, alpha: Scale) -> Tensor:
    """x cut from below at a point where σ is 0, so that −inf gives 0 and not NaN."""
    if isinstance(alpha, Tensor):
        return torch.maximum(x, (-FLAT / alpha).to(x.dtype))
    return x.clamp(min=-FLAT / alpha)


def sigmoids(u: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(u) and sigmoid(−u), each to its own relative accuracy."""
    if not compiled_once():
        return torch.sigmoid(u), torch.sigmoid(-u)
    e = decay(u)
    large = 1 / (1 + e)
    small = e * large
    return torch.where(u < 0, small, large), torch.where(u < 0, large, small)
