"""Smoothness of a loss after the worst attack: the binary linear model in closed form, and a check
of its bounds.

Binary linear model, y = ±1, no box around the inputs (the linear case of Kanai et al., arXiv
2103.01400; constants [derived]):

    ℓ(w) = max over ‖δ‖ ≤ ε of log(1 + exp(−y wᵀ(x+δ))) = log(1 + e^{−m}),    m = y wᵀx − ε‖w‖_q
    δ* = −yε w/‖w‖₂ (L2, q = 2),    −yε sign(w) (L∞, q = 1),    ∇ℓ = −sigmoid(−m)·y(x + δ*)

With A = (‖x‖+ρ)²/4, where ρ = ε for L2 and ε√d for L∞, r = min(‖w₁‖, ‖w₂‖), K the number of
coordinates that change sign:

    L2    ‖Δ∇‖ ≤ (A + ε/r)‖Δw‖,    ‖Δδ*‖ ≤ (ε/r)‖Δw‖,
          |‖Δ∇‖ − (ε/2)‖Δŵ‖| ≤ A(‖w₁‖+‖w₂‖): a jump of up to ε at w = 0
    L∞    ‖Δ∇‖ ≤ A‖Δw‖ + 2ε√K,     ‖Δδ*‖ = 2ε√K,
          a jump of 2ε√K·sigmoid(−m) where K coordinates pass through 0

All of these hold for any pair, near or far: m is Lipschitz with constant ‖x‖+ρ everywhere, and
‖Δŵ‖ ≤ ‖Δw‖/r. [derived]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from curvact.analysis.records import OnProgress, plain
from curvact.errors import CurvactError, nearest
from curvact.random import generator

LinearNorm = Literal["l2", "linf"]
KINDS = (
    "random",
    "small step",
    "sign flips",
    "near zero",
    "through zero",
    "collinear",
    "equal norm",
    "worst input, l2",
    "worst input, linf",
    "misclassified flip",
    "zero coordinates",
)
"""What `pairs` makes, in turn."""


# ---- the model in closed form ----


def optimal_attack(w: Tensor, y: Tensor, epsilon: float | Tensor, norm: LinearNorm) -> Tensor:
    """δ* of shape (…, d): the worst perturbation of an input of class y = ±1.

    w: (…, d). y: (…). epsilon: radius, a number or (…). Where w (L2) or a coordinate of it (L∞) is
    0 every choice is optimal; it is 0 there.
    Raises CurvactError for an unknown norm.

    >>> optimal_attack(torch.tensor([3.0, -4.0]), torch.tensor(1.0), 0.5, "l2")
    tensor([-0.3000,  0.4000])
    """
    check_norm(norm)
    direction = w.sign() if norm == "linf" else _unit(w)
    return -_column(y * torch.as_tensor(epsilon, dtype=w.dtype, device=w.device)) * direction


def robust_margin(w: Tensor, x: Tensor, y: Tensor, epsilon: float | Tensor, norm: LinearNorm) -> Tensor:
    """m = y wᵀx − ε‖w‖_q, of shape (…). w, x: (…, d); y and epsilon as `optimal_attack`."""
    check_norm(norm)
    length = w.abs().sum(-1) if norm == "linf" else _length(w)
    return y * (w * x).sum(-1) - epsilon * length


def robust_loss(w: Tensor, x: Tensor, y: Tensor, epsilon: float | Tensor, norm: LinearNorm) -> Tensor:
    """log(1 + e^{−m}), of shape (…): the loss after the best attack. Arguments as `robust_margin`.

    >>> w, x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.2]), torch.tensor(1.0)
    >>> robust_loss(w, x, y, 0.5, "l2")  # the attack takes the margin of 0.5 away
    tensor(0.6931)
    """
    m = robust_margin(w, x, y, epsilon, norm)
    return torch.logaddexp(torch.zeros_like(m), -m)


def robust_gradient(w: Tensor, x: Tensor, y: Tensor, epsilon: float | Tensor, norm: LinearNorm) -> Tensor:
    """∇_w of `robust_loss`, of shape (…, d): −sigmoid(−m)·y(x + δ*). Where the loss has a kink, one
    of its subgradients.
    """
    m = robust_margin(w, x, y, epsilon, norm)
    return _column(-torch.sigmoid(-m) * y) * (x + optimal_attack(w, y, epsilon, norm))


def gradient_jump(w: Tensor, x: Tensor, y: Tensor, epsilon: float | Tensor, norm: LinearNorm) -> Tensor:
    """The jump of the gradient at w, of shape (…), when it is crossed on a straight line. [derived]

    L∞: 2ε√K·sigmoid(−m) with K the coordinates of w that are 0, all of which change sign. L2: ε at
    w = 0, else 0.

    >>> gradient_jump(torch.zeros(4), torch.ones(4), torch.tensor(1.0), 0.5, "linf")  # 2·0.5·√4·sigmoid(0)
    tensor(1.)
    """
    m = robust_margin(w, x, y, epsilon, norm)
    if norm == "linf":
        crossed: Tensor = 2 * (w == 0).sum(-1).to(w.dtype).sqrt()
    else:
        crossed = 2 * (w == 0).all(-1).to(w.dtype)
    return epsilon * crossed * torch.sigmoid(-m)


# ---- bounds for pairs ----


def curvature_constant(x: Tensor, epsilon: float | Tensor, norm: LinearNorm) -> Tensor:
    """A = (‖x‖ + ρ)²/4, of shape (…): what the logistic loss alone bends by. ρ = ε (L2), ε√d (L∞).
    x: (…, d).
    """
    check_norm(norm)
    radius = epsilon * math.sqrt(x.shape[-1]) if norm == "linf" else epsilon
    return (_length(x) + radius) ** 2 / 4


def sign_changes(w1: Tensor, w2: Tensor) -> Tensor:
    """K, of shape (…): the coordinates where one is positive and the other is negative. w1, w2: (…,
    d).
    """
    return (w1.sign() * w2.sign() < 0).sum(-1)


def half_changes(w1: Tensor, w2: Tensor) -> Tensor:
    """Of shape (…): the coordinates where exactly one of the two is 0."""
    return ((w1 == 0) != (w2 == 0)).sum(-1)


def gradient_bound(w1: Tensor, w2: Tensor, x: Tensor, epsilon: float | Tensor, norm: LinearNorm) -> Tensor:
    """The bound on ‖∇ℓ(w₁) − ∇ℓ(w₂)‖, of shape (…): see the head of the module. Infinite for L2
    where a w is 0. [derived]

    A coordinate that is 0 in one of the two counts as a change of sign.
    """
    return curvature_constant(x, epsilon, norm) * _length(w1 - w2) + attack_bound(w1, w2, epsilon, norm)


def attack_bound(w1: Tensor, w2: Tensor, epsilon: float | Tensor, norm: LinearNorm) -> Tensor:
    """The bound on ‖δ*(w₁) − δ*(w₂)‖₂, of shape (…): (ε/r)‖Δw‖ for L2, 2ε√K for L∞, where it is an
    equality. [derived]

    >>> attack_bound(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 2.0]), 0.1, "linf")
    tensor(0.2000)
    """
    check_norm(norm)
    if norm == "linf":
        changes = sign_changes(w1, w2) + half_changes(w1, w2)
        return 2 * epsilon * changes.to(w1.dtype).sqrt()
    step, least = _length(w1 - w2), torch.minimum(_length(w1), _length(w2))
    return torch.where(step == 0, torch.zeros_like(step), epsilon * step / least)


# ---- pairs, and the check on them ----


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of weights with an input each. w1, w2, x: (n, d); y = ±1, epsilon: (n); kind: (n), an
    index into KINDS. float64.
    """

    w1: Tensor
    w2: Tensor
    x: Tensor
    y: Tensor
    epsilon: Tensor
    kind: Tensor


def pairs(count: int, dimension: int, random: torch.Generator) -> Pairs:
    """Random pairs, with those among them that press on the bounds: each of KINDS in turn.

    Scales are spread over decades: ‖w‖ from 1e-2 to 1e2 (1e-8 near zero), ‖x‖ from 1e-2 to 1e2, ε
    from 1e-3 to 10. Raises CurvactError for a count or dimension below 1.

    >>> some = pairs(22, 3, torch.Generator().manual_seed(0))
    >>> KINDS[some.kind[2]], bool((sign_changes(some.w1, some.w2)[2] >= 1).item())
    ('sign flips', True)
    """
    if count < 1 or dimension < 1:
        raise CurvactError(f"count={count}, dimension={dimension} of pairs: at least 1 of each")
    device = random.device

    def spread(low: float, high: float) -> Tensor:
        """(n, 1), log-uniform between powers of ten."""
        exponent = torch.rand(count, 1, generator=random, dtype=torch.float64, device=device)
        return 10 ** (low + (high - low) * exponent)

    def direction() -> Tensor:
        return _unit(torch.randn(count, dimension, generator=random, dtype=torch.float64, device=device))

    def some() -> Tensor:
        """(n, d): a random choice of coordinates, at least one in each row."""
        chance = torch.rand(count, 1, generator=random, dtype=torch.float64, device=device)
        chosen = (
            torch.rand(count, dimension, generator=random, dtype=torch.float64, device=device) < chance**2
        )
        one = torch.randint(dimension, (count, 1), generator=random, device=device)
        return chosen.scatter(1, one, torch.ones_like(one, dtype=torch.bool))

    kind = torch.arange(count, device=device) % len(KINDS)
    at = {name: (kind == index)[:, None] for index, name in enumerate(KINDS)}
    y = torch.where(torch.rand(count, generator=random, device=device) < 0.5, -1.0, 1.0).double()
    epsilon, x = spread(-3, 1), spread(-2, 2) * direction()
    w1 = spread(-2, 2) * direction()
    w2 = spread(-2, 2) * direction()
    step, tiny = spread(-6, 0), spread(-8, -1)

    w2 = torch.where(at["small step"], w1 + step * direction(), w2)

    flipped = some()
    wall = torch.where(flipped, tiny * w1.sign(), w1)
    flips = at["sign flips"] | at["misclassified flip"]
    w1 = torch.where(flips, wall, w1)
    w2 = torch.where(flips, torch.where(flipped, -wall, wall), w2)

    near = at["near zero"] | at["through zero"]
    w1 = torch.where(near, tiny * _unit(w1), w1)
    w2 = torch.where(at["near zero"], spread(-8, -1) * _unit(w2), w2)
    w2 = torch.where(at["through zero"], -spread(-1, 1) * w1, w2)
    w2 = torch.where(at["collinear"], spread(-2, 2) * w1, w2)
    turned = _column(_length(w1)) * _unit(_unit(w1) + step * direction())
    w2 = torch.where(at["equal norm"], turned, w2)

    # Both terms of the bound at once, as nearly as can be: margin near 0, the step along the
    # gradient of the margin.
    against = -y[:, None] * torch.where(at["worst input, linf"], w1.sign() / math.sqrt(dimension), _unit(w1))
    worst = at["worst input, l2"] | at["worst input, linf"]
    x = torch.where(worst, _column(_length(x)) * against, x)
    scale = spread(-4, 0) / _column(_length(x))
    w1 = torch.where(worst, scale * _unit(w1), w1)
    along = -y[:, None] * _unit(x)
    grown = torch.where(at["worst input, linf"], w1 + step * scale * along.abs() * w1.sign(), w1)
    grown = torch.where(at["worst input, l2"], w1 * (1 + step), grown)
    w2 = torch.where(worst, grown, w2)

    # The input far on the wrong side, so that the sigmoid in front of the jump is 1.
    lost = -y[:, None] * _unit(w1) * spread(0, 2) / _column(_length(w1)).clamp_min(1e-6)
    x = torch.where(at["misclassified flip"], lost, x)

    w1 = torch.where(at["zero coordinates"] & some(), 0.0, w1)
    w2 = torch.where(at["zero coordinates"] & some(), 0.0, w2)
    return Pairs(w1, w2, x, y, epsilon[:, 0], kind)


@dataclass(frozen=True)
class Claim:
    """One statement, and how it fared.

    norm, name, statement: what is claimed. pairs: on how many it was tried. violations: on how many
    it failed, by more than the rounding of float64 explains. tightness: the highest ratio of value,
    less that rounding, to bound; hardest: the kind of pair that has it. least: the lowest ratio.
    For an equality both are those of the value itself, 1 up to rounding. Ratios are taken where
    rounding is below 1e-6 of the bound.
    """

    norm: str
    name: str
    statement: str
    pairs: int
    violations: int
    tightness: float
    least: float
    hardest: str


@dataclass(frozen=True)
class TheoryCheck:
    """The linear theory on many pairs. claims: one each; pairs: how many were made; dimensions,
    seed: of them.
    """

    claims: tuple[Claim, ...]
    pairs: int
    dimensions: tuple[int, ...]
    seed: int

    @property
    def violations(self) -> int:
        """Of all claims."""
        return sum(claim.violations for claim in self.claims)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {**plain(self), "violations": self.violations}


CLAIMS: tuple[tuple[LinearNorm, str, str], ...] = (
    ("l2", "gradient", "‖Δ∇‖ ≤ [(‖x‖+ε)²/4 + ε/r]·‖Δw‖"),
    ("l2", "jump at w = 0", "|‖Δ∇‖ − (ε/2)‖Δŵ‖| ≤ (‖x‖+ε)²/4·(‖w₁‖+‖w₂‖)"),
    ("l2", "attack map", "‖Δδ*‖ ≤ (ε/r)·‖Δw‖"),
    ("linf", "gradient inside an orthant", "‖Δ∇‖ ≤ (‖x‖+ε√d)²/4·‖Δw‖"),
    ("linf", "gradient across K sign changes", "‖Δ∇‖ ≤ (‖x‖+ε√d)²/4·‖Δw‖ + 2ε√K"),
    ("linf", "jump at K zeros of w", "|‖Δ∇‖ − 2ε√K·sigmoid(−m)| ≤ (‖x‖+ε√d)²/4·‖Δw‖"),
    ("linf", "attack map", "‖Δδ*‖ = 2ε√K"),
)


def check_theory(
    count: int = 100_000,
    *,
    dimensions: Sequence[int] = (1, 2, 5, 20, 50),
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> TheoryCheck:
    """Every claim of CLAIMS on `count` pairs in all, shared out over the dimensions, in float64.

    A claim counts as violated where value − bound is more than the rounding that float64 can
    explain (some 1e-15 of the terms that are subtracted). The claim "inside an orthant" is tried on
    the pairs with no change of sign, the next on the others, the last on pairs where no coordinate
    is 0 in one of the two only. Raises CurvactError for no dimensions, or fewer pairs than 11 a
    dimension.

    >>> check = check_theory(1100, dimensions=(3,))
    >>> check.violations, [claim.pairs for claim in check.claims][:2]
    (0, [1100, 1100])
    """
    each = count // max(1, len(dimensions))
    if not dimensions or each < len(KINDS):
        raise CurvactError(
            f"count={count} pairs over {len(dimensions)} dimensions in check_theory: at least {len(KINDS)} a dimension"
        )
    tried: list[list[_Tried]] = [[] for _ in CLAIMS]
    for number, dimension in enumerate(dimensions):
        size = each + (count - each * len(dimensions) if number == 0 else 0)
        made = pairs(size, dimension, generator(seed, "linear theory", number, device=device))
        crossing = generator(seed, "linear theory, crossings", number, device=device)
        for outcome, found in zip(_outcomes(made, crossing), tried, strict=True):
            found.append(outcome)
        if on_progress is not None:
            on_progress(number + 1, len(dimensions))
    claims = [_claim(head, found) for head, found in zip(CLAIMS, tried, strict=True)]
    return TheoryCheck(tuple(claims), count, tuple(dimensions), seed)


@dataclass(frozen=True, eq=False)
class _Tried:
    """A claim on some pairs, each (n): value ≤ bound up to rounding, and value ≥ bound too for an
    equality.
    """

    value: Tensor
    bound: Tensor
    rounding: Tensor
    kind: Tensor
    equality: bool = False

    def where(self, chosen: Tensor) -> _Tried:
        value, bound, rounding, kind = (t[chosen] for t in (self.value, self.bound, self.rounding, self.kind))
        return _Tried(value, bound, rounding, kind, self.equality)


def _outcomes(p: Pairs, random: torch.Generator) -> list[_Tried]:
    """As CLAIMS, for these pairs."""
    step = _length(p.w1 - p.w2)
    lengths = _length(p.w1) + _length(p.w2)
    outcomes: dict[tuple[str, str], _Tried] = {}

    def differences(norm: LinearNorm, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """‖Δ∇‖, the rounding in it, and the constant A."""
        slopes = [robust_gradient(w, p.x, p.y, p.epsilon, norm) for w in (first, second)]
        constant = curvature_constant(p.x, p.epsilon, norm)
        reach = 2 * constant.sqrt()
        longest = torch.maximum(_length(first), _length(second))
        # |rounding of m| ≤ (d+3)u·‖w‖(‖x‖+ρ), a quarter of it reaches the sigmoid; the other terms
        # are a few u each.
        unit = (p.x.shape[-1] + 8) * torch.finfo(torch.float64).eps
        return _length(slopes[0] - slopes[1]), unit * reach * (2 + longest * reach), constant

    value, rounding, constant = differences("l2", p.w1, p.w2)
    bound = gradient_bound(p.w1, p.w2, p.x, p.epsilon, "l2")
    outcomes["l2", "gradient"] = _Tried(value, bound, rounding, p.kind)
    turn = p.epsilon / 2 * _length(_unit(p.w1) - _unit(p.w2))
    outcomes["l2", "jump at w = 0"] = _Tried((value - turn).abs(), constant * lengths, rounding, p.kind)
    drift = _length(optimal_attack(p.w1, p.y, p.epsilon, "l2") - optimal_attack(p.w2, p.y, p.epsilon, "l2"))
    noise = p.epsilon * (p.x.shape[-1] + 8) * torch.finfo(torch.float64).eps
    outcomes["l2", "attack map"] = _Tried(drift, attack_bound(p.w1, p.w2, p.epsilon, "l2"), 2 * noise, p.kind)

    value, rounding, constant = differences("linf", p.w1, p.w2)
    bound = gradient_bound(p.w1, p.w2, p.x, p.epsilon, "linf")
    inside = (sign_changes(p.w1, p.w2) + half_changes(p.w1, p.w2)) == 0
    orthant = _Tried(value, constant * step, rounding, p.kind)
    outcomes["linf", "gradient inside an orthant"] = orthant.where(inside)
    across = _Tried(value, bound, rounding, p.kind)
    outcomes["linf", "gradient across K sign changes"] = across.where(~inside)
    drift = _length(
        optimal_attack(p.w1, p.y, p.epsilon, "linf") - optimal_attack(p.w2, p.y, p.epsilon, "linf")
    )
    exact = attack_bound(p.w1, p.w2, p.epsilon, "linf")
    whole = half_changes(p.w1, p.w2) == 0
    outcomes["linf", "attack map"] = _Tried(drift, exact, 4 * noise, p.kind, equality=True).where(whole)

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64, device=p.w1.device)

    zeroed = chance(*p.w1.shape) < 0.5
    wall = torch.where(zeroed, 0.0, p.w1)
    little = 10 ** (-10 + 8 * chance(len(wall), 1))
    aside = torch.where(wall == 0, torch.where(chance(*wall.shape) < 0.5, -little, little), 0.0)
    value, rounding, constant = differences("linf", wall + aside, wall - aside)
    jump = gradient_jump(wall, p.x, p.y, p.epsilon, "linf")
    outcomes["linf", "jump at K zeros of w"] = _Tried(
        (value - jump).abs(), constant * _length(2 * aside), rounding, p.kind
    )
    return [outcomes[norm, name] for norm, name, _ in CLAIMS]


def _claim(head: tuple[LinearNorm, str, str], found: Sequence[_Tried]) -> Claim:
    value, bound, rounding, kind = (
        torch.cat([getattr(t, name) for t in found]) for name in ("value", "bound", "rounding", "kind")
    )
    excess = value - bound
    failed = ~(excess <= rounding)
    if found[0].equality:
        failed |= ~(excess >= -rounding)
    clear = (rounding < 1e-6 * bound) & bound.isfinite()
    certain = value if found[0].equality else (value - rounding).clamp_min(0)
    ratios = (certain / bound)[clear]
    hardest = KINDS[int(kind[clear][ratios.argmax()])] if len(ratios) else ""
    highest, lowest = (float(ratios.max()), float(ratios.min())) if len(ratios) else (math.nan, math.nan)
    return Claim(*head, len(value), int(failed.sum()), highest, lowest, hardest)


# ---- the pictures in numbers ----


@dataclass(frozen=True)
class Illustration:
    """What a page on the linear theory draws; lists of numbers by name.

    path: t, walls (the t where a coordinate of w changes sign), and for each norm the attack's
    drift ‖δ*(t)−δ*(0)‖, the gradient's ‖∇(t)−∇(0)‖ and the loss, along a straight line of weights.
    step: ‖Δw‖ across one sign change, the ratio ‖Δ∇‖/‖Δw‖ and its bound by norm. distance: r = ‖w‖,
    the highest ratio of small turns at that distance and its bound by norm.
    """

    dimension: int
    epsilon: dict[str, float]
    path: dict[str, Any]
    step: dict[str, Any]
    distance: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def illustrate(
    *, dimension: int = 8, epsilon: float = 0.15, points: int = 400, seed: int = 1
) -> Illustration:
    """One line of weights that crosses every wall of the orthants, on which L∞ climbs a staircase
    and L2 does not.

    Matched strength: ε₂ = ε∞√d, so that the corners of the L∞ ball lie on the L2 ball. One random
    input, y = 1. Raises CurvactError for a dimension below 2 or an epsilon that is not above 0.

    >>> picture = illustrate(dimension=4, points=50)
    >>> len(picture.path["walls"])
    4
    """
    if dimension < 2 or points < 2 or not (math.isfinite(epsilon) and epsilon > 0):
        raise CurvactError(
            f"dimension={dimension}, points={points}, epsilon={epsilon} of illustrate: dimension and points >= 2, epsilon > 0"
        )
    random = generator(seed, "linear theory, picture")
    radii = {"linf": epsilon, "l2": epsilon * math.sqrt(dimension)}
    norms: tuple[LinearNorm, ...] = ("linf", "l2")
    y = torch.ones((), dtype=torch.float64)
    x = torch.randn(dimension, generator=random, dtype=torch.float64) / math.sqrt(dimension)
    size = 0.6 + torch.rand(dimension, generator=random, dtype=torch.float64)
    side = torch.where(torch.arange(dimension) % 2 == 0, 1.0, -1.0).double()
    walls = (torch.arange(dimension, dtype=torch.float64) + 0.7) / (dimension + 0.4)

    def weights(t: Tensor) -> Tensor:
        """(n, d): coordinate i passes through 0 at t = walls[i]."""
        return side * size * 2 * (walls - t[:, None])

    edge = 1e-9
    t = (
        torch.cat([torch.linspace(0, 1, points, dtype=torch.float64), walls - edge, walls + edge])
        .sort()
        .values
    )
    line = weights(t)
    path: dict[str, Any] = {"t": t.tolist(), "walls": walls.tolist()}
    for norm in norms:
        attack = optimal_attack(line, y, radii[norm], norm)
        slope = robust_gradient(line, x, y, radii[norm], norm)
        path[norm] = {
            "attack": _length(attack - attack[:1]).tolist(),
            "gradient": _length(slope - slope[:1]).tolist(),
            "loss": robust_loss(line, x, y, radii[norm], norm).tolist(),
        }

    lengths = torch.logspace(-4, 0, 33, dtype=torch.float64)
    wall = weights(walls[dimension // 2][None])[0]
    across = torch.zeros(dimension, dtype=torch.float64)
    across[dimension // 2] = 1.0
    ends = [wall + sign / 2 * lengths[:, None] * across for sign in (1, -1)]
    step: dict[str, Any] = {"step": lengths.tolist()}
    for norm in norms:
        step[norm] = _ratios(ends[0], ends[1], x, y, radii[norm], norm)

    radius = torch.logspace(-3, 1, 33, dtype=torch.float64)
    facing = _unit(wall + 0.3 * across)
    turns = torch.randn(64, dimension, generator=random, dtype=torch.float64)
    turns = _unit(turns - (turns @ facing)[:, None] * facing)
    first = (radius[:, None] * facing)[:, None, :].expand(-1, 64, -1)
    second = first + 1e-4 * radius[:, None, None] * turns
    distance: dict[str, Any] = {"distance": radius.tolist()}
    for norm in norms:
        found = _ratios(first, second, x, y, radii[norm], norm)
        distance[norm] = {
            "ratio": torch.tensor(found["ratio"]).amax(1).tolist(),
            "bound": torch.tensor(found["bound"]).amin(1).tolist(),
        }
    return Illustration(dimension, radii, path, step, distance)


def _ratios(w1: Tensor, w2: Tensor, x: Tensor, y: Tensor, epsilon: float, norm: LinearNorm) -> dict[str, Any]:
    step = _length(w1 - w2)
    difference = _length(robust_gradient(w1, x, y, epsilon, norm) - robust_gradient(w2, x, y, epsilon, norm))
    bound = gradient_bound(w1, w2, x, epsilon, norm)
    return {"ratio": (difference / step).tolist(), "bound": (bound / step).tolist()}


# ---- small things ----


def check_norm(norm: str, where: str = "the linear theory") -> None:
    """CurvactError for a norm that is neither "l2" nor "linf"."""
    if norm not in get_args(LinearNorm):
        raise CurvactError(
            f"norm={norm!r} of {where}: allowed are l2, linf{nearest(str(norm), get_args(LinearNorm))}"
        )


def _length(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v, dim=-1)
    return length


def _unit(v: Tensor) -> Tensor:
    """v/‖v‖, and 0 for 0."""
    length = _length(v)[..., None]
    return torch.where(length > 0, v / length.clamp_min(torch.finfo(v.dtype).tiny), torch.zeros_like(v))


def _column(v: Tensor) -> Tensor:
    return v[..., None]
