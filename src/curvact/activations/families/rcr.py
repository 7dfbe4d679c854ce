"""RCR-AF: softplus(αx)/α [paper, arXiv 2507.22446], clipped from above if γ is given [ours]."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from curvact.activations.arguments import positive, reached
from curvact.activations.base import Activation
from curvact.activations.curvature import Peak
from curvact.activations.families.rct import rct_shape
from curvact.activations.kernels.autograd import apply
from curvact.activations.kernels.shape import Scale

if TYPE_CHECKING:
    from typing_extensions import Self


def rcraf(x: Tensor, alpha: Scale = 1.0, gamma: Scale | None = None) -> Tensor:
    """min(softplus(αx)/α, γ) [paper]; the clip is [ours].

    alpha, gamma: numbers > 0, or tensors; gamma=None for no clip.

    >>> import torch
    >>> rcraf(torch.tensor([0.0, 9.0]), 10.0, gamma=6.0)
    tensor([0.0693, 6.0000])
    """
    out = apply(x, positive(alpha, "alpha", "rcraf"), rct_shape(0))
    return out if gamma is None else out.clamp(max=positive(gamma, "gamma", "rcraf"))


class RCRAF(Activation):
    """RCR-AF: softplus(αx)/α [paper, arXiv 2507.22446], clipped from above at γ [ours].

    κ = α/4 without a clip. With one, the slope jumps at the clip and κ is infinite: keep it out of
    κ sweeps.

    alpha: scale, a finite number > 0.
    gamma: upper bound of σ, a finite number > 0, or None.
    centered: subtract σ(0).
    Raises CurvactError for a parameter out of range.

    >>> RCRAF(10).max_curvature.value, RCRAF(10, gamma=6).max_curvature.value
    (2.5, inf)
    """

    def __init__(self, alpha: float = 1.0, gamma: float | None = None, *, centered: bool = False) -> None:
        super().__init__()
        self.alpha = positive(alpha, "alpha", "rcraf")
        self.gamma = None if gamma is None else positive(gamma, "gamma", "rcraf")
        self.centered = centered
        at_zero = math.log(2) if self.gamma is None else min(math.log(2), self.alpha * self.gamma)
        self.shape = replace(rct_shape(0), centered=centered, at_zero=at_zero)

    @classmethod
    def from_curvature(cls, curvature: float, *, centered: bool = False) -> Self:
        """The unclipped member with κ = `curvature`: α = 4κ."""
        kappa = positive(curvature, "curvature", "rcraf")
        return cls(reached(4 * kappa, kappa, "rcraf"), centered=centered)

    def forward(self, x: Tensor) -> Tensor:
        out = apply(x, self.alpha, self.shape)
        if self.gamma is None:
            return out
        return out.clamp(max=self.gamma - (self.shape.at_zero / self.alpha if self.centered else 0.0))

    @property
    def max_curvature(self) -> Peak:
        if self.gamma is None:
            return Peak(self.alpha / 4, 0.0)
        u = self.alpha * self.gamma
        return Peak(math.inf, (u + math.log1p(-math.exp(-u))) / self.alpha)

    def extra_repr(self) -> str:
        return self._described(*["alpha", "gamma"][: 1 if self.gamma is None else 2])
