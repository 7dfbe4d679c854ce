"""RCT-AF from its definition only: the slope by smoothstep recursion in mpmath, the value by
integrating it numerically.
"""

from __future__ import annotations

from mpmath import mp, mpf, quad


def slope(x: float, alpha: float, beta: int) -> mpf:
    g = 1 / (1 + mp.exp(-mpf(alpha) * mpf(x)))
    for _ in range(beta):
        g = g**2 * (3 - 2 * g)
    return g


def value(x: float, alpha: float, beta: int) -> mpf:
    """∫ slope from −∞, cut where the slope is below e⁻⁶⁰."""
    start = -mpf(60) / mpf(alpha)
    if x <= start:
        return mpf(0)
    knots = [
        start,
        *[mpf(k) / mpf(alpha) for k in range(-20, 21, 5) if start < mpf(k) / mpf(alpha) < x],
        mpf(x),
    ]
    return quad(lambda t: slope(t, alpha, beta), knots)
