"""A second opinion on where the optimum of a curve is: a Gaussian process on log κ, from scikit-learn.

It shares no code with `curvact.lab.statistics`. That procedure tests differences between runs of curvatures and
assumes nothing of the curve; this one assumes that the curve is smooth in log κ, and interpolates.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

DRAWS = 4000
GRID = 121


@dataclass(frozen=True)
class SecondOpinion:
    """Where the optimum is, by samples of the posterior. low, high: 95 % of them lie between.

    in_band: the share of samples with the optimum in the band.
    """

    low: float
    high: float
    in_band: float


def second_opinion(
    points: np.ndarray, values: np.ndarray, band: tuple[float, float], *, maximise: bool = True
) -> SecondOpinion:
    """The posterior of the place of the optimum, given values (K, S) at curvatures (K,).

    The level of each column is taken off first. The kernel is a constant times an RBF, plus white noise, its
    parameters by maximum likelihood.

    >>> kappa = np.array([0.1, 0.5, 2.0, 6.0, 20.0, 60.0, 200.0])
    >>> curve = -((np.log10(kappa) - np.log10(6)) ** 2)
    >>> noise = 0.02 * np.random.default_rng(0).standard_normal((7, 5))
    >>> second_opinion(kappa, curve[:, None] + noise, (4, 10)).in_band > 0.9
    True
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    level = np.nanmean(values, axis=0, keepdims=True)
    residuals = (values - level) * (1 if maximise else -1)
    at = np.broadcast_to(np.log10(points)[:, None], values.shape)
    known = np.isfinite(residuals)
    scale = float(np.nanstd(residuals)) or 1.0
    x, y = at[known][:, None], residuals[known] / scale
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(0.7, (0.2, 5.0)) + WhiteKernel(0.3, (1e-4, 1e1))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    grid = np.linspace(np.log10(points[0]), np.log10(points[-1]), GRID)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, y)
    # The optimum of the curve itself: the white noise belongs to the runs.
    smooth = process.kernel_.k1
    own = process.kernel_(x)
    cross = smooth(grid[:, None], x)
    solved = np.linalg.solve(own, np.column_stack([y, cross.T]))
    mean = cross @ solved[:, 0]
    covariance = smooth(grid[:, None]) - cross @ solved[:, 1:]
    random = np.random.default_rng(0)
    factor = np.linalg.cholesky((covariance + covariance.T) / 2 + 1e-6 * np.eye(GRID))
    samples = mean[:, None] + factor @ random.standard_normal((GRID, DRAWS))
    best = 10 ** grid[samples.argmax(axis=0)]
    low, high = np.quantile(best, [0.025, 0.975])
    return SecondOpinion(float(low), float(high), float(np.mean((best >= band[0]) & (best <= band[1]))))
