"""What the loss looks like: the Hessian diagonal of any model."""

from curvact.analysis.hessian import (
    DiagonalNorms,
    NormEstimate,
    diagonal_norms,
    exact_diagonal,
    hutchinson_diagonal,
)

__all__ = ["DiagonalNorms", "NormEstimate", "diagonal_norms", "exact_diagonal", "hutchinson_diagonal"]
