"""AWP's and SAM's perturbations in float64 numpy, entry by entry from the formulas."""

from __future__ import annotations

import math

import numpy as np


def length(values: np.ndarray) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for v in values.ravel()))


def awp(
    weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray], gamma: float
) -> dict[str, np.ndarray]:
    chosen = [name for name, w in weights.items() if "weight" in name and w.ndim > 1]
    return {
        name: gamma * length(weights[name]) * gradients[name] / length(gradients[name]) for name in chosen
    }


def sam(gradients: dict[str, np.ndarray], rho: float) -> dict[str, np.ndarray]:
    norm = math.sqrt(math.fsum(length(g) ** 2 for g in gradients.values()))
    return {name: rho * g / norm for name, g in gradients.items()}
