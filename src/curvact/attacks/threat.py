"""The threat model: a norm, a radius, and the allowed perturbations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from curvact.errors import CurvactError, nearest

Norm = Literal["linf", "l2", "l1"]


def as_radius(value: object, what: str, *, above_zero: bool = False) -> float:
    """A radius in input units: a number, or text such as "0.03" or "8/255".

    what: names value and place in the message. Raises CurvactError for anything else, and for
    numbers that are not finite, below 0, or 0 with `above_zero`.

    >>> as_radius("8/255", "epsilon") == 8 / 255
    True
    """
    number: float
    try:
        if isinstance(value, str):
            numerator, slash, denominator = value.partition("/")
            number = float(numerator) / float(denominator) if slash else float(value)
        elif isinstance(value, bool) or not isinstance(value, (int, Real)):
            number = math.nan
        else:
            number = value if isinstance(value, int) and float(value) == value else float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and (number > 0 or (number == 0 and not above_zero))):
        least = "> 0" if above_zero else ">= 0"
        raise CurvactError(f"{what}: a finite number {least} in input units, such as 0.03 or 8/255")
    return number


def radius_text(epsilon: float) -> str:
    """A radius as text that `as_radius` reads: k/255 where that is exact and the decimal is long.

    >>> radius_text(8 / 255), radius_text(0.2), radius_text(0.031)
    ('8/255', '0.2', '0.031')
    """
    text, parts = f"{epsilon:g}", round(epsilon * 255)
    exact = parts >= 1 and abs(epsilon * 255 - parts) < 1e-9
    return f"{parts}/255" if exact and len(text) > 5 else text


class _Radius:
    """How pydantic reads a radius: text such as "8/255" too. Pydantic is not imported for it."""

    def __get_pydantic_core_schema__(self, source: object, handler: Any) -> dict[str, Any]:
        def read(value: object) -> object:
            return as_radius(value, "a radius") if isinstance(value, str) else value

        return {
            "type": "function-before",
            "function": {"type": "no-info", "function": read},
            "schema": handler(source),
        }


@dataclass(frozen=True)
class ThreatModel:
    """All x' in [0, 1] with ‖x' − x‖ ≤ epsilon, per image.

    norm: "linf", "l2" or "l1".
    epsilon: radius in input units (inputs lie in [0, 1]), a number or text such as "8/255", which
        becomes the number; 0 allows no perturbation.
    Raises CurvactError for an unknown norm, for what is no radius, and for linf radii of 1 and
    more, which would allow every image.

    Methods take `epsilon`, a tensor of N radii, in the place of the threat model's one.

    >>> threat = ThreatModel("linf", 8 / 255)
    >>> threat.project(torch.tensor([[0.9]]), torch.tensor([[0.5]]))
    tensor([[0.5314]])
    """

    norm: Norm
    epsilon: Annotated[float, _Radius()]

    if TYPE_CHECKING:

        def __init__(self, norm: Norm, epsilon: float | str) -> None: ...

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise CurvactError(
                f"norm={self.norm!r} of a threat model: allowed are {', '.join(get_args(Norm))}"
                + nearest(str(self.norm), get_args(Norm))
            )
        what = f"epsilon={self.epsilon!r} of a threat model"
        object.__setattr__(self, "epsilon", as_radius(self.epsilon, what))
        if self.norm == "linf" and self.epsilon >= 1:
            meant = f"; did you mean {self.epsilon:g}/255?" if 1 <= self.epsilon < 255 else ""
            raise CurvactError(f"{what}: below 1 in linf, because images lie in [0, 1]{meant}")

    def __str__(self) -> str:
        """Such as "linf ε = 8/255"."""
        return f"{self.norm} ε = {radius_text(self.epsilon)}"

    def excess(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """‖x_adv − x‖ − ε less the room for rounding, N, float64: above 0 (or NaN) outside the ball.

        The room, for float32: 1e-6 in linf (x ± ε rounds by 6e-8); 1e-6 + 1e-5·ε in l2;
        1e-5 + 1e-4·ε in l1, where thousands of roundings add up. In half precision an image may
        round by the machine epsilon at each coordinate.
        """
        epsilon = self.epsilon
        room = {"linf": 1e-6, "l2": 1e-6 + 1e-5 * epsilon, "l1": 1e-5 + 1e-4 * epsilon}[self.norm]
        if x_adv.dtype in (torch.float16, torch.bfloat16):
            share = {"linf": 1.0, "l2": math.sqrt(x[0].numel()), "l1": float(x[0].numel())}[self.norm]
            room += torch.finfo(x_adv.dtype).eps * share
        return distance(x_adv.double(), x.double(), self.norm) - (epsilon + room)

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

        linf: the sign of the gradient, 0 where it is NaN. l2: its direction.
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


def ball(norm: Norm, epsilon: float) -> ThreatModel:
    """A threat model of any radius ≥ 0, for searches whose ball may hold every image.

    >>> ball("linf", 1.0).project(torch.tensor([[1.5]]), torch.tensor([[0.0]]))
    tensor([[1.]])
    """
    made = object.__new__(ThreatModel)
    object.__setattr__(made, "norm", norm)
    object.__setattr__(made, "epsilon", as_radius(epsilon, f"radius {epsilon!r} of a ball"))
    return made


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
