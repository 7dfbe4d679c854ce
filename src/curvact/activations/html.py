"""An activation as a notebook shows it: a small drawing and its κ."""

from __future__ import annotations

import html
import math

import torch
from torch import Tensor

from curvact.activations.base import Activation
from curvact.activations.describe import as_activation
from curvact.errors import CurvactError

WIDTH, HEIGHT = 220, 130


def html_of(act: Activation) -> str:
    """The name, σ and σ' as SVG, and κ with its place. Without a κ, the name and why.

    >>> from curvact.activations import RCTAF
    >>> "κ = 6 at x = 0" in html_of(RCTAF.from_curvature(6))
    True
    """
    name = f"<code>{html.escape(repr(act))}</code>"
    try:
        peak = act.max_curvature
        reach = min(6.0, max(1.0, 6 / peak.value)) if 0 < peak.value < math.inf else 3.0
        x = torch.linspace(-reach, reach, 121, dtype=torch.float64)
        exact = as_activation(act)
        with torch.no_grad():
            value = exact(x)
        slope = exact.slope(x).detach()
    except (CurvactError, RuntimeError) as error:
        why = str(error).splitlines()[0] if isinstance(error, CurvactError) else "it cannot be drawn"
        return f"<div>{name}<br>{html.escape(why)}</div>"
    kappa = "∞" if math.isinf(peak.value) else f"{peak.value:.6g}"
    lines = _line(x, value, "#0072B2") + _line(x, slope, "#D55E00")
    return (
        f"<div>{name}<br><svg width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}'>{lines}</svg><br>"
        f"<span style='color:#0072B2'>σ</span>, <span style='color:#D55E00'>σ′</span> for |x| ≤ {reach:.3g}; "
        f"κ = {kappa} at x = {peak.at:.6g}</div>"
    )


def _line(x: Tensor, y: Tensor, colour: str) -> str:
    """A curve, scaled to its own range with 0 in it."""
    low, high = min(0.0, float(y.min())), max(float(y.max()), 1e-12)
    across = (x - x[0]) / (x[-1] - x[0]) * (WIDTH - 8) + 4
    down = HEIGHT - 4 - (y - low) / (high - low) * (HEIGHT - 8)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across.tolist(), down.tolist(), strict=True))
    return f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.5'/>"
