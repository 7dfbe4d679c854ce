"""The loss of a model and its shape: Hessian, smoothness, flatness, landscapes, activations on
data.

`Loss(model, x, y)` is the loss as a function of the parameters. The analyses are functions of it.
"""

from curvact.analysis.calls import CallSite as CallSite
from curvact.analysis.calls import call_sites as call_sites
from curvact.analysis.effective_curvature import EffectiveCurvature as EffectiveCurvature
from curvact.analysis.effective_curvature import EffectiveCurvatureChange as EffectiveCurvatureChange
from curvact.analysis.effective_curvature import SiteCurvature as SiteCurvature
from curvact.analysis.effective_curvature import effective_curvature as effective_curvature
from curvact.analysis.effective_curvature import effective_curvature_change as effective_curvature_change
from curvact.analysis.flatness import AverageFlatness as AverageFlatness
from curvact.analysis.flatness import WorstFlatness as WorstFlatness
from curvact.analysis.flatness import average_flatness as average_flatness
from curvact.analysis.flatness import worst_case_flatness as worst_case_flatness
from curvact.analysis.hessian.diagonal import DiagonalEstimate as DiagonalEstimate
from curvact.analysis.hessian.diagonal import DiagonalNorms as DiagonalNorms
from curvact.analysis.hessian.diagonal import LayerNorms as LayerNorms
from curvact.analysis.hessian.diagonal import diagonal_norms as diagonal_norms
from curvact.analysis.hessian.diagonal import exact_diagonal as exact_diagonal
from curvact.analysis.hessian.diagonal import hutchinson_diagonal as hutchinson_diagonal
from curvact.analysis.hessian.ggn import NotByExample as NotByExample
from curvact.analysis.hessian.ggn import ggn_diagonal as ggn_diagonal
from curvact.analysis.hessian.probes import NormEstimate as NormEstimate
from curvact.analysis.hessian.spectrum import Eigenvalues as Eigenvalues
from curvact.analysis.hessian.spectrum import SpectralDensity as SpectralDensity
from curvact.analysis.hessian.spectrum import Trace as Trace
from curvact.analysis.hessian.spectrum import spectral_density as spectral_density
from curvact.analysis.hessian.spectrum import top_eigenvalues as top_eigenvalues
from curvact.analysis.hessian.spectrum import trace as trace
from curvact.analysis.hessian.split import DiagonalSplit as DiagonalSplit
from curvact.analysis.hessian.split import LayerSplit as LayerSplit
from curvact.analysis.hessian.split import SplitVectors as SplitVectors
from curvact.analysis.hessian.split import diagonal_split as diagonal_split
from curvact.analysis.hessian.split import split_vectors as split_vectors
from curvact.analysis.input_flatness import InputFlatness as InputFlatness
from curvact.analysis.input_flatness import input_flatness as input_flatness
from curvact.analysis.input_flatness import input_gradient as input_gradient
from curvact.analysis.input_flatness import input_spectrum as input_spectrum
from curvact.analysis.input_flatness import linearity_error as linearity_error
from curvact.analysis.landscape import Landscape as Landscape
from curvact.analysis.landscape import filter_normalized_direction as filter_normalized_direction
from curvact.analysis.landscape import loss_landscape as loss_landscape
from curvact.analysis.loss import Loss as Loss
from curvact.analysis.loss import LossFunction as LossFunction
from curvact.analysis.matching import Matched as Matched
from curvact.analysis.matching import match_radii as match_radii
from curvact.analysis.matching import seeded as seeded
from curvact.analysis.shape import ActivationShape as ActivationShape
from curvact.analysis.shape import ShapeRow as ShapeRow
from curvact.analysis.shape import ShapeSettings as ShapeSettings
from curvact.analysis.shape import ShapeTable as ShapeTable
from curvact.analysis.shape import activation_shape as activation_shape
from curvact.analysis.shape import empirical_lipschitz as empirical_lipschitz
from curvact.analysis.shape import shape_table as shape_table
from curvact.analysis.smoothness import SmoothnessReport as SmoothnessReport
from curvact.analysis.smoothness import TrajectorySmoothness as TrajectorySmoothness
from curvact.analysis.smoothness import replayed as replayed
from curvact.analysis.smoothness import smoothness_report as smoothness_report
from curvact.analysis.smoothness import trajectory_smoothness as trajectory_smoothness
