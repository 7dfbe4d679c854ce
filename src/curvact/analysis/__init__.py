"""The loss of a model and its shape: Hessian, smoothness, flatness, landscapes, activations on
data.

`Loss(model, x, y)` is the loss as a function of the parameters. The analyses are functions of it.
"""

from curvact.analysis.calls import CallSite, call_sites
from curvact.analysis.effective_curvature import (
    EffectiveCurvature,
    EffectiveCurvatureChange,
    SiteCurvature,
    effective_curvature,
    effective_curvature_change,
)
from curvact.analysis.flatness import (
    AverageFlatness,
    WorstFlatness,
    average_flatness,
    worst_case_flatness,
)
from curvact.analysis.hessian import (
    DiagonalEstimate,
    DiagonalNorms,
    DiagonalSplit,
    Eigenvalues,
    LayerNorms,
    LayerSplit,
    NormEstimate,
    SpectralDensity,
    SplitVectors,
    Trace,
    diagonal_norms,
    diagonal_split,
    exact_diagonal,
    ggn_diagonal,
    hutchinson_diagonal,
    spectral_density,
    split_vectors,
    top_eigenvalues,
    trace,
)
from curvact.analysis.input_flatness import (
    InputFlatness,
    input_flatness,
    input_gradient,
    input_spectrum,
    linearity_error,
)
from curvact.analysis.landscape import Landscape, filter_normalized_direction, loss_landscape
from curvact.analysis.loss import Loss, LossFunction
from curvact.analysis.matching import Matched, match_radii, seeded
from curvact.analysis.shape import (
    ActivationShape,
    ShapeRow,
    ShapeSettings,
    ShapeTable,
    activation_shape,
    empirical_lipschitz,
    shape_table,
)
from curvact.analysis.smoothness import (
    SmoothnessReport,
    TrajectorySmoothness,
    replayed,
    smoothness_report,
    trajectory_smoothness,
)

__all__ = [
    "ActivationShape",
    "AverageFlatness",
    "CallSite",
    "DiagonalEstimate",
    "DiagonalNorms",
    "DiagonalSplit",
    "EffectiveCurvature",
    "EffectiveCurvatureChange",
    "Eigenvalues",
    "InputFlatness",
    "Landscape",
    "LayerNorms",
    "LayerSplit",
    "Loss",
    "LossFunction",
    "Matched",
    "NormEstimate",
    "ShapeRow",
    "ShapeSettings",
    "ShapeTable",
    "SiteCurvature",
    "SmoothnessReport",
    "SpectralDensity",
    "SplitVectors",
    "Trace",
    "TrajectorySmoothness",
    "WorstFlatness",
    "activation_shape",
    "average_flatness",
    "call_sites",
    "diagonal_norms",
    "diagonal_split",
    "effective_curvature",
    "effective_curvature_change",
    "empirical_lipschitz",
    "exact_diagonal",
    "filter_normalized_direction",
    "ggn_diagonal",
    "hutchinson_diagonal",
    "input_flatness",
    "input_gradient",
    "input_spectrum",
    "linearity_error",
    "loss_landscape",
    "match_radii",
    "replayed",
    "seeded",
    "shape_table",
    "smoothness_report",
    "spectral_density",
    "split_vectors",
    "top_eigenvalues",
    "trace",
    "trajectory_smoothness",
    "worst_case_flatness",
]
