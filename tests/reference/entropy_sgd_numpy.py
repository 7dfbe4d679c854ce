"""Entropy-SGD in float64 numpy, from the algorithm as printed and from what is known of the
authors' code; and its known defects.

`run` follows one parameter vector; gradients and standard normal numbers are given from outside. A
`defect` repeats one of those of the public PyTorch code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

DEFECTS = ("scoping", "schedule", "buffer kept", "buffer aliased", "gradient wasted")


def run(
    start: np.ndarray,
    gradients: Iterator[Callable[[np.ndarray], np.ndarray]],
    normals: Iterator[np.ndarray],
    steps: int,
    *,
    variant: str,
    rate: Callable[[int], float],
    L: int,
    inner_rate: float,
    gamma: float,
    scoping: float,
    alpha: float,
    epsilon: float,
    momentum: float,
    decay: float,
    defect: str = "",
) -> list[dict[str, np.ndarray]]:
    """After every inner step: `inner` (x'), `outer` (x), `average` (μ) and `gamma`. rate: from the
    number of inner steps done.
    """
    x = np.array(start, dtype=np.float64)
    history = []
    buffer = np.zeros_like(x)
    for outer in range(steps // L):
        inner, average = x.copy(), x.copy()
        now = gamma if defect == "scoping" else gamma * scoping**outer
        if defect not in ("buffer kept", "buffer aliased"):
            buffer = np.zeros_like(x)
        if defect == "gradient wasted":
            next(gradients)
        for l in range(L):
            g = next(gradients)(inner) + decay * inner
            pull = now * (x - inner)
            if variant == "algorithm":
                noise = np.sqrt(inner_rate) * epsilon * next(normals)
            else:
                noise = np.sqrt(2 * inner_rate) * epsilon * next(normals)
            if defect == "buffer aliased":
                buffer = momentum * buffer + g - pull - noise / inner_rate
                inner = inner - inner_rate * (g - pull + momentum * buffer) + noise
            else:
                buffer = momentum * buffer + g
                inner = inner - inner_rate * (g + momentum * buffer - pull) + noise
            if variant == "algorithm":
                average = (1 - alpha) * average + alpha * inner
            else:
                average = alpha * average + (1 - alpha) * inner
            if l == L - 1:
                eta = rate(0 if defect == "schedule" else outer * L + l)
                x = x - eta * (now if variant == "algorithm" else 1.0) * (x - average)
                inner = average = x.copy()
            history.append({"inner": inner, "outer": x, "average": average, "gamma": np.float64(now)})
    return history
