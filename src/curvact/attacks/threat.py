"""The threat model: which perturbations an attacker may add."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from curvact.errors import CurvactError

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class ThreatModel:
    """All x' in [0, 1] with ‖x' − x‖ ≤ epsilon, per image.

    norm: "linf" or "l2".
    epsilon: radius in input units (inputs lie in [0, 1]); 0 allows no perturbation.

    >>> threat = ThreatModel("linf", 8 / 255)
    >>> threat.project(torch.tensor([[0.9]]), torch.tensor([[0.5]]))
    tensor([[0.5314]])
    """

    norm: Norm
    epsilon: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise CurvactError(
                f"norm={self.norm!r} of a threat model: allowed are {', '.join(get_args(Norm))}"
            )
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise CurvactError(
                f"epsilon={self.epsilon!r} of a threat model: a finite number >= 0, in input units"
            )

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The allowed point nearest to x_adv in each coordinate (linf), or along the ray from x, then cut to [0, 1] (l2)."""
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x_adv, x - self.epsilon), x + self.epsilon).clamp_(0, 1)
        delta = x_adv - x
        norm = _length(delta)
        return (x + delta * (self.epsilon / norm.clamp_min(1e-12)).clamp_max(1)).clamp_(0, 1)

    def random_start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """x plus a perturbation uniform in the ball, cut to [0, 1]."""
        if self.norm == "linf":
            noise = torch.empty_like(x).uniform_(-self.epsilon, self.epsilon, generator=generator)
            return (x + noise).clamp_(0, 1)
        direction = torch.empty_like(x).normal_(generator=generator)
        radius = torch.empty(len(x), *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device)
        radius = radius.uniform_(0, 1, generator=generator) ** (1 / max(x.shape[1:].numel(), 1))
        return (x + direction * (self.epsilon * radius / _length(direction).clamp_min(1e-12))).clamp_(0, 1)

    def ascend(self, x: Tensor, gradient: Tensor, step: float) -> Tensor:
        """One step of steepest ascent of length `step`: the sign of the gradient (linf) or its direction (l2)."""
        if self.norm == "linf":
            return x + step * gradient.sign()
        return x + gradient * (step / _length(gradient).clamp_min(1e-12))


def _length(delta: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return norm.view(-1, *[1] * (delta.dim() - 1))


def check_images(x: Tensor) -> None:
    """CurvactError unless x lies in [0, 1] and has no NaN. Reads the values: call it once, outside loops."""
    if x.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(x))
    if not (low >= 0 and high <= 1):
        raise CurvactError(
            f"images lie in [{low:.4g}, {high:.4g}]: attacks take inputs in [0, 1] (normalize in the model)"
        )
