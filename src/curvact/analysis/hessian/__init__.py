"""The Hessian of a `Loss`: its diagonal, the parts of that diagonal, and its spectrum."""

from curvact.analysis.hessian.diagonal import (
    DiagonalEstimate,
    DiagonalNorms,
    LayerNorms,
    diagonal_norms,
    exact_diagonal,
    hutchinson_diagonal,
)
from curvact.analysis.hessian.ggn import NotByExample, ggn_diagonal
from curvact.analysis.hessian.probes import NormEstimate, SquaredNorm, norm_estimate, unbiased_squared_norm
from curvact.analysis.hessian.spectrum import (
    Eigenvalues,
    SpectralDensity,
    Trace,
    spectral_density,
    top_eigenvalues,
    trace,
)
from curvact.analysis.hessian.split import (
    DiagonalSplit,
    LayerSplit,
    SplitVectors,
    diagonal_split,
    split_vectors,
)

__all__ = [
    "DiagonalEstimate",
    "DiagonalNorms",
    "DiagonalSplit",
    "Eigenvalues",
    "LayerNorms",
    "LayerSplit",
    "NormEstimate",
    "NotByExample",
    "SpectralDensity",
    "SplitVectors",
    "SquaredNorm",
    "Trace",
    "diagonal_norms",
    "diagonal_split",
    "exact_diagonal",
    "ggn_diagonal",
    "hutchinson_diagonal",
    "norm_estimate",
    "spectral_density",
    "split_vectors",
    "top_eigenvalues",
    "trace",
    "unbiased_squared_norm",
]
