"""What the loss looks like: Hessian, smoothness, flatness, landscapes, shapes and theory, for any model."""

from curvact.analysis.danskin import AttackSensitivity, attack_sensitivity
from curvact.analysis.effective_curvature import (
    EffectiveCurvature,
    EffectiveCurvatureChange,
    SiteCurvature,
    call_sites,
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
    LayerNorms,
    NormEstimate,
    diagonal_norms,
    exact_diagonal,
    exact_diagonals,
    hutchinson_diagonal,
)
from curvact.analysis.input_flatness import InputFlatness, input_flatness, linearity_error
from curvact.analysis.landscape import Landscape, filter_normalized_direction, loss_landscape
from curvact.analysis.linear_theory import TheoryCheck, check_theory, illustrate
from curvact.analysis.shape import (
    ActivationShape,
    ShapeRow,
    ShapeTable,
    activation_shape,
    empirical_lipschitz,
    shape_table,
)
from curvact.analysis.smoothness import (
    Matched,
    SmoothnessReport,
    TrajectorySmoothness,
    fixed_pgd,
    match_radii,
    replayed,
    smoothness_report,
    trajectory_smoothness,
)
from curvact.analysis.spectrum import (
    Eigenvalues,
    SpectralDensity,
    Trace,
    spectral_density,
    top_eigenvalues,
    trace,
)
from curvact.analysis.split import DiagonalSplit, LayerSplit, SplitVectors, diagonal_split, split_vectors

__all__ = [
    "ActivationShape",
    "AttackSensitivity",
    "AverageFlatness",
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
    "Matched",
    "NormEstimate",
    "ShapeRow",
    "ShapeTable",
    "SiteCurvature",
    "SmoothnessReport",
    "SpectralDensity",
    "SplitVectors",
    "TheoryCheck",
    "Trace",
    "TrajectorySmoothness",
    "WorstFlatness",
    "activation_shape",
    "attack_sensitivity",
    "average_flatness",
    "call_sites",
    "check_theory",
    "diagonal_norms",
    "diagonal_split",
    "effective_curvature",
    "effective_curvature_change",
    "empirical_lipschitz",
    "exact_diagonal",
    "exact_diagonals",
    "filter_normalized_direction",
    "fixed_pgd",
    "hutchinson_diagonal",
    "illustrate",
    "input_flatness",
    "linearity_error",
    "loss_landscape",
    "match_radii",
    "replayed",
    "shape_table",
    "smoothness_report",
    "spectral_density",
    "split_vectors",
    "top_eigenvalues",
    "trace",
    "trajectory_smoothness",
    "worst_case_flatness",
]
