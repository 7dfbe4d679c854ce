"""‖mean‖² of independent vectors and the variance of its unbiased estimate, term by term from the
definitions.

U averages ⟨d_i, d_j⟩ over ordered pairs of different probes. E U² − (E U)² is estimated by U² less
the average of ⟨d_i, d_j⟩⟨d_k, d_l⟩ over ordered quadruples of four different probes, whose two
factors are independent.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np


def u_statistic(d: np.ndarray) -> float:
    return float(np.mean([d[i] @ d[j] for i, j in permutations(range(len(d)), 2)]))


def variance(d: np.ndarray) -> float:
    fourth = [(d[i] @ d[j]) * (d[k] @ d[l]) for i, j, k, l in permutations(range(len(d)), 4)]
    return u_statistic(d) ** 2 - float(np.mean(fourth))


def jackknife(d: np.ndarray) -> float:
    n = len(d)
    left_out = np.array([u_statistic(np.delete(d, i, axis=0)) for i in range(n)])
    return float((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
