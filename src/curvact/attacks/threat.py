"""The threat model: allowed perturbations, and checks of images, labels and model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from curvact.errors import CurvactError, nearest

Norm = Literal["linf", "l2", "l1"]


class SuspectModelWarning(UserWarning):
    """The model runs, but robust accuracy is not well defined on its outputs."""


@dataclass(frozen=True)
class ThreatModel:
    """All x' in [0, 1] with ‖x' − x‖ ≤ epsilon, per image.

    norm: "linf", "l2" or "l1".
    epsilon: radius in input units (inputs lie in [0, 1]); 0 allows no perturbation.

    Methods take `epsilon`, a tensor of N radii, in the place of the threat model's one.

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
                + nearest(str(self.norm), get_args(Norm))
            )
        given: object = self.epsilon
        number = isinstance(given, Real) and not isinstance(given, bool)
        if not (number and math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise CurvactError(
                f"epsilon={self.epsilon!r} of a threat model: a finite number >= 0, in input units"
            )

    def project(self, x_adv: Tensor, x: Tensor, epsilon: Tensor | None = None) -> Tensor:
        """An allowed point near x_adv: the nearest one (linf, l1), or the cut to [0, 1] of the
        nearest one in the ball (l2).

        l1: the exact Euclidean projection onto ball and box together (arXiv 2103.01208), by
            sorting.
        x_adv, x: N×…, x in [0, 1]. epsilon: N.

        >>> threat = ThreatModel("l1", 0.6)
        >>> threat.project(torch.tensor([[2.0, 0.9]]), torch.tensor([[0.6, 0.5]]))  # ball alone: [1.2, 0.5]
        tensor([[1.0000, 0.7000]])
        """
        radius = self._radius(x, epsilon)
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x_adv, x - radius), x + radius).clamp_(0, 1)
        delta = x_adv - x
        if self.norm == "l1":
            return (x + _onto_l1_ball_and_box(delta, x, radius)).clamp_(0, 1)
        norm = _length(delta)
        return (x + delta * (radius / norm.clamp_min(1e-12)).clamp_max(1)).clamp_(0, 1)

    def random_start(
        self, x: Tensor, generator: torch.Generator | None, epsilon: Tensor | None = None
    ) -> Tensor:
        """x plus a perturbation uniform in the ball, cut to [0, 1]. x: N×…. epsilon: N."""
        radius = self._radius(x, epsilon)
        if self.norm == "linf":
            if isinstance(radius, Tensor):
                noise = torch.empty_like(x).uniform_(-1, 1, generator=generator) * radius
            else:
                noise = torch.empty_like(x).uniform_(-radius, radius, generator=generator)
            return (x + noise).clamp_(0, 1)
        if self.norm == "l1":
            # d of d + 1 exponentials over their sum are uniform in the corner of the simplex.
            parts = torch.empty_like(x).exponential_(generator=generator)
            rest = x.new_empty(_column(x)).exponential_(generator=generator)
            signs = torch.empty_like(x).uniform_(-1, 1, generator=generator).sign()
            total = rest + parts.flatten(1).sum(1).view_as(rest)
            return (x + signs * parts * (radius / total)).clamp_(0, 1)
        direction = torch.empty_like(x).normal_(generator=generator)
        share = torch.empty(_column(x), dtype=x.dtype, device=x.device)
        share = share.uniform_(0, 1, generator=generator) ** (1 / max(x.shape[1:].numel(), 1))
        return (x + direction * (radius * share / _length(direction).clamp_min(1e-12))).clamp_(0, 1)

    def ascend(
        self, x: Tensor, gradient: Tensor, step: float | Tensor, sparsity: float | Tensor = 0.05
    ) -> Tensor:
        """One step of ascent of length `step` in the norm of the threat model; not projected.

        linf: the sign of the gradient. l2: its direction.
        l1: equal steps along its signs in the coordinates where it is largest, walls of [0, 1] that
        it pushes against left out (SLIDE, arXiv 1904.13000).
        x, gradient: N×…. step: one length, or N.
        sparsity: the fraction of coordinates that an l1 step moves (at least one moves), or N
            fractions.

        >>> x, gradient = torch.full((1, 4), 0.5), torch.tensor([[1.0, -3.0, 0.0, 2.0]])
        >>> ThreatModel("l1", 1.0).ascend(x, gradient, 0.2, sparsity=0.5)
        tensor([[0.5000, 0.4000, 0.5000, 0.6000]])
        """
        if isinstance(step, Tensor):
            step = step.to(x).view(_column(x))
        if self.norm == "linf":
            return x + step * gradient.sign()
        # One pixel without a finite gradient would take the whole image with it.
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        if self.norm == "l1":
            chosen = _largest(x, gradient, sparsity)
            return x + chosen * (step / chosen.abs().flatten(1).sum(1).clamp_min(1).view(_column(x)))
        return x + gradient * (step / _length(gradient).clamp_min(1e-12))

    def _radius(self, x: Tensor, epsilon: Tensor | None) -> float | Tensor:
        if epsilon is None:
            return self.epsilon
        check_per_sample("epsilon", epsilon, x)
        return epsilon.to(x).view(_column(x))


def check_per_sample(name: str, value: Tensor, x: Tensor) -> None:
    """CurvactError unless value holds one number for each row of x. Looks at shapes only, so it
    never waits for a device.
    """
    if value.shape != (len(x),):
        raise CurvactError(
            f"{name} has shape {tuple(value.shape)}: one value for each of {len(x)} images, shape ({len(x)},)"
        )


def distance(x_adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """‖x_adv − x‖ for each image, N.

    >>> distance(torch.tensor([[0.5, 0.2]]), torch.tensor([[0.2, 0.6]]), "l2")
    tensor([0.5000])
    """
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    norm_of_each: Tensor = torch.linalg.vector_norm((x_adv - x).flatten(1), ord=order, dim=1)
    return norm_of_each


def _column(x: Tensor) -> tuple[int, ...]:
    return (len(x), *[1] * (x.dim() - 1))


def _length(delta: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return norm.view(-1, *[1] * (delta.dim() - 1))


def _largest(x: Tensor, gradient: Tensor, sparsity: float | Tensor) -> Tensor:
    """The gradient's signs where it is largest and does not push against a wall of [0, 1]; 0
    elsewhere.
    """
    blocked = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
    free = gradient.masked_fill(blocked, 0).flatten(1)
    count = free.shape[1]
    if isinstance(sparsity, Tensor):
        moved = (sparsity.view(-1, 1) * count).ceil().clamp_min(1)
        order = free.abs().argsort(dim=1, descending=True)
        keep = torch.arange(count, device=x.device).expand_as(order) < moved
    else:
        order = free.abs().topk(min(max(math.ceil(sparsity * count), 1), count), dim=1).indices
        keep = torch.ones_like(order, dtype=torch.bool)
    return (free.sign() * torch.zeros_like(free).scatter(1, order, keep.to(free.dtype))).view_as(x)


def _onto_l1_ball_and_box(delta: Tensor, x: Tensor, radius: float | Tensor) -> Tensor:
    """The δ' with ‖δ'‖₁ ≤ radius and x + δ' in [0, 1] that is nearest to delta.

    δ'ᵢ = sign(δᵢ)·clamp(|δᵢ| − λ, 0, wallᵢ) with the least λ ≥ 0 that the radius allows. ‖δ'‖₁ is
    piecewise linear in λ:
    as λ falls, a coordinate starts to grow at |δᵢ| and stops at |δᵢ| − wallᵢ; λ lies between two of
    these 2d sorted points.
    """
    size = delta.abs().flatten(1)
    wall = torch.where(delta > 0, 1 - x, x).clamp_min(0).flatten(1)
    if size.numel() == 0:
        return delta
    limit = torch.as_tensor(radius, dtype=torch.float64, device=x.device).reshape(-1, 1)
    points, order = torch.cat([size, (size - wall).clamp_min(0)], 1).sort(dim=1, descending=True)
    growing = torch.where(order < size.shape[1], 1, -1).cumsum(1)
    points = points.double()
    grown = torch.zeros_like(points)
    grown[:, 1:] = (growing[:, :-1] * -points.diff(dim=1)).cumsum(1)
    at = ((grown <= limit).sum(1, keepdim=True) - 1).clamp_min(0)
    lam = points.gather(1, at) - (limit - grown.gather(1, at)) / growing.gather(1, at).clamp_min(1)
    inside = torch.minimum(size, wall).double().sum(1, keepdim=True) <= limit
    lam = torch.where(inside, 0.0, lam.clamp_min(0)).to(x.dtype)
    return delta.sign() * torch.minimum((size - lam).clamp_min(0), wall).view_as(delta)


def check_images(x: Tensor) -> None:
    """CurvactError unless x is floating point in [0, 1] and has no NaN. Reads the values: call it
    once, outside loops.
    """
    if not x.is_floating_point():
        raise CurvactError(
            f"images are {x.dtype}: attacks take floating-point inputs in [0, 1] (divide bytes by 255)"
        )
    if x.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(x))
    if not (low >= 0 and high <= 1):
        raise CurvactError(
            f"images lie in [{low:.4g}, {high:.4g}]: attacks take inputs in [0, 1] (normalize in the model)"
        )


def check_labels(y: Tensor, count: int) -> None:
    """CurvactError unless y is int64 and names classes 0 … count − 1. Reads the values: call it
    once, outside loops.
    """
    if y.dtype != torch.int64:
        raise CurvactError(f"labels are {y.dtype}: int64, one class an image")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= count:
        raise CurvactError(
            f"labels lie in {low} … {high}, the model has {count} classes: labels 0 … {count - 1}"
        )


def cuts_graph(model: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether no gradient leads from the outputs to the inputs, as after a comparison. One pass, on
    x.

    >>> cuts_graph(lambda x: (x > 0.5).float(), torch.rand(1, 4)), cuts_graph(lambda x: 2 * x, torch.rand(1, 4))
    (True, False)
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        outputs = model(leaf)
        return (
            not outputs.requires_grad
            or torch.autograd.grad(outputs.sum(), leaf, allow_unused=True)[0] is None
        )


def connected(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same outputs, with a gradient of zero where the model cuts the graph."""

    def joined(x: Tensor) -> Tensor:
        outputs = model(x)
        if wrong_shape(outputs, len(x)):
            return outputs
        return outputs + 0 * x.flatten(1).sum(1, keepdim=True)

    return joined


def check_model(model: Callable[[Tensor], Tensor], x: Tensor) -> list[str]:
    """Reasons to doubt attacks on the model, one line each; empty if there is none. One forward
    pass.

    Checked: parts in training mode, outputs that are not N×classes, not finite, or already
    probabilities.

    >>> check_model(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1)).eval(), torch.rand(8, 1, 2, 2))
    ['the outputs are probabilities (each row lies in [0, 1] and sums to 1): attacks need the logits
    before the softmax']"""
    with torch.no_grad():
        outputs = model(x)
    wrong = wrong_shape(outputs, len(x))
    return training_parts(model) + ([wrong] if wrong else suspect_logits(outputs))


def training_parts(model: Callable[[Tensor], Tensor]) -> list[str]:
    """A line if any module of the model is in training mode."""
    if not isinstance(model, nn.Module):
        return []
    names = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"'{names[0]}'{more} in training mode: dropout and batch norm make the outputs depend on chance and batch"
    ]


def wrong_shape(outputs: object, count: int) -> str:
    """A line if the outputs are not a tensor of count×classes logits with classes ≥ 2, else an
    empty string.
    """
    if not isinstance(outputs, Tensor):
        return f"the model returns {type(outputs).__name__}: attacks need one tensor of logits"
    if outputs.dim() != 2 or len(outputs) != count or outputs.shape[1] < 2:
        return (
            f"the outputs have shape {tuple(outputs.shape)}: attacks need {count}×classes, at least 2 classes"
        )
    return ""


def suspect_logits(logits: Tensor) -> list[str]:
    """A line for logits that are not finite, one for logits that are already probabilities. Reads
    the values.
    """
    if len(logits) == 0:
        return []
    finite = logits.isfinite().all(1)
    # A softmax in float32 sums to 1 within 1e-6; in half precision within 1e-2.
    near = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    rows = logits.detach().double()
    stochastic = ((rows >= 0) & (rows <= 1)).all() & ((rows.sum(1) - 1).abs() < near).all()
    lines = []
    if not bool(finite.all()):
        lines.append(f"{int((~finite).sum())} of {len(logits)} rows of logits hold NaN or infinity")
    elif bool(stochastic):
        lines.append(
            "the outputs are probabilities (each row lies in [0, 1] and sums to 1): attacks need the logits before the softmax"
        )
    return lines
