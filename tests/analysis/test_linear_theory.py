from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import Tensor

from curvact.analysis import linear_theory
from curvact.analysis.linear_theory import (
    CLAIMS,
    KINDS,
    Pairs,
    attack_bound,
    attack_sensitivity,
    check_theory,
    danskin_constant,
    danskin_gap,
    gradient_bound,
    gradient_jump,
    half_changes,
    illustrate,
    optimal_attack,
    pairs,
    robust_gradient,
    robust_loss,
    robust_margin,
    sign_changes,
)
from curvact.errors import CurvactError

Norm = Literal["l2", "linf"]
NORMS: tuple[Norm, ...] = ("l2", "linf")


def tensor(values: object) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def made(count: int, dimension: int, seed: int = 0) -> Pairs:
    return pairs(count, dimension, torch.Generator().manual_seed(seed))


# ---- the model ----


@pytest.mark.parametrize("norm", NORMS)
def test_no_perturbation_is_worse_than_the_closed_form(norm: Norm) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        w, x = rng.normal(size=(2, 4))
        y, epsilon = rng.choice([-1.0, 1.0]), rng.uniform(0.05, 1.0)
        deltas = rng.normal(size=(2000, 4))
        if norm == "l2":
            deltas *= (epsilon * rng.uniform(size=2000) ** 0.25 / np.linalg.norm(deltas, axis=1))[:, None]
        else:
            corners = epsilon * np.array(list(itertools.product((-1, 1), repeat=4)))
            deltas = np.concatenate([rng.uniform(-epsilon, epsilon, size=(2000, 4)), corners])
        losses = np.log1p(np.exp(-y * (x + deltas) @ w))
        best = robust_loss(tensor(w), tensor(x), tensor(y), epsilon, norm).item()
        delta = optimal_attack(tensor(w), tensor(y), epsilon, norm).numpy()
        size = np.linalg.norm(delta) if norm == "l2" else np.abs(delta).max()
        assert size == pytest.approx(epsilon, rel=1e-14)
        assert best >= losses.max() - 1e-14
        assert best == pytest.approx(np.log1p(np.exp(-y * (x + delta) @ w)), rel=1e-13)
        if norm == "linf":
            assert best == pytest.approx(losses.max(), rel=1e-13)  # a linear function is largest in a corner


@pytest.mark.parametrize("norm", NORMS)
def test_the_gradient_is_that_of_autograd(norm: Norm) -> None:
    p = made(400, 5)
    usual = (p.w1.abs() > 1e-12).all(1)
    w = p.w1.clone().requires_grad_()
    (expected,) = torch.autograd.grad(robust_loss(w, p.x, p.y, p.epsilon, norm).sum(), w)
    found = robust_gradient(p.w1, p.x, p.y, p.epsilon, norm)
    # Both are some ten float64 operations on terms as large as |x| + ρ.
    scale = p.x.norm(dim=1) + p.epsilon * math.sqrt(5)
    assert ((found - expected).norm(dim=1) <= 1e-12 * scale)[usual].all()


def test_far_margins_do_not_overflow() -> None:
    w, x, y = tensor([1e3, 0]), tensor([1e3, 0]), tensor(-1.0)
    assert robust_loss(w, x, y, 0.1, "l2").item() == pytest.approx(1e6 + 100)
    assert robust_loss(w, x, -y, 0.1, "l2").item() == 0
    assert robust_margin(w, x, y, 0.1, "linf").item() == pytest.approx(-1e6 - 100)


@pytest.mark.parametrize("norm", NORMS)
def test_the_jump_is_the_limit_of_the_difference(norm: Norm) -> None:
    x, y, epsilon = tensor([0.3, -1.2, 0.4]), tensor(1.0), 0.25
    wall = tensor([0.0, 2.0, 0.0]) if norm == "linf" else torch.zeros(3, dtype=torch.float64)
    side = tensor([1.0, 0.0, -0.5]) if norm == "linf" else tensor([1.0, 2.0, -0.5])
    for step in (1e-4, 1e-7):
        ends = [robust_gradient(wall + s * step * side, x, y, epsilon, norm) for s in (1, -1)]
        jump = gradient_jump(wall, x, y, epsilon, norm).item()
        # Each side bends by at most A ≈ 1 times its length.
        assert (ends[0] - ends[1]).norm().item() == pytest.approx(jump, abs=4 * step)
    expected = 0.25 * 2 * math.sqrt(2) / (1 + math.exp(-1.2 * 2 - 0.25 * 2)) if norm == "linf" else 0.25
    assert jump == pytest.approx(expected, rel=1e-12)
    assert gradient_jump(tensor([1.0, 2.0, 3.0]), x, y, epsilon, norm).item() == 0


# ---- the bounds ----


def test_no_violation_on_1e5_pairs_and_every_bound_is_nearly_reached() -> None:
    seen: list[tuple[int, int | None]] = []
    check = check_theory(100_000, on_progress=lambda done, total: seen.append((done, total)))
    assert check.violations == 0
    assert [claim.violations for claim in check.claims] == [0] * len(CLAIMS)
    assert [(claim.norm, claim.name) for claim in check.claims] == [claim[:2] for claim in CLAIMS]
    assert sum(claim.pairs for claim in check.claims if claim.name.startswith("gradient ")) == 100_000
    assert all(claim.pairs > 40_000 for claim in check.claims)
    assert all(0.9999 < claim.tightness < 1 + 1e-14 for claim in check.claims)
    exact = check.claims[-1]
    # ‖Δδ*‖ is one square root of a sum of up to 50 equal squares: a few units in the last place.
    assert abs(exact.tightness - 1) < 1e-14
    assert abs(exact.least - 1) < 1e-14
    assert seen == [(n, 5) for n in range(1, 6)]
    assert json.loads(json.dumps(check.as_dict(), allow_nan=False))["violations"] == 0


@pytest.mark.parametrize(
    ("function", "factor"),
    [("gradient_bound", 0.99), ("attack_bound", 0.99), ("curvature_constant", 0.99), ("gradient_jump", 0.9)],
)
def test_the_check_finds_a_bound_that_is_too_low(
    function: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(linear_theory, function)
    monkeypatch.setattr(linear_theory, function, lambda *arguments: factor * right(*arguments))
    assert check_theory(10_000, dimensions=(3,)).violations > 0


def test_the_bounds_are_those_of_plain_numpy() -> None:
    p = made(1100, 6, seed=3)
    w1, w2, x, epsilon = (t.numpy() for t in (p.w1, p.w2, p.x, p.epsilon))
    step = np.linalg.norm(w1 - w2, axis=1)
    nearest = np.minimum(np.linalg.norm(w1, axis=1), np.linalg.norm(w2, axis=1))
    with np.errstate(divide="ignore"):
        l2 = ((np.linalg.norm(x, axis=1) + epsilon) ** 2 / 4 + epsilon / nearest) * step
    changes = (np.sign(w1) != np.sign(w2)).sum(1)
    linf = (np.linalg.norm(x, axis=1) + epsilon * 6**0.5) ** 2 / 4 * step + 2 * epsilon * changes**0.5
    np.testing.assert_allclose(gradient_bound(p.w1, p.w2, p.x, p.epsilon, "l2"), l2, rtol=1e-13)
    np.testing.assert_allclose(gradient_bound(p.w1, p.w2, p.x, p.epsilon, "linf"), linf, rtol=1e-13)


VECTORS = st_numpy.arrays(np.float64, (3,), elements=st.floats(-4, 4, allow_subnormal=False, width=32))


@settings(max_examples=25, deadline=None)
@given(w1=VECTORS, w2=VECTORS, x=VECTORS, epsilon=st.floats(0.01, 2), y=st.sampled_from([-1.0, 1.0]))
def test_bounds_hold_wherever_hypothesis_looks(
    w1: np.ndarray, w2: np.ndarray, x: np.ndarray, epsilon: float, y: float
) -> None:
    for norm in NORMS:
        slopes = [robust_gradient(tensor(w), tensor(x), tensor(y), epsilon, norm) for w in (w1, w2)]
        bound = gradient_bound(tensor(w1), tensor(w2), tensor(x), epsilon, norm).item()
        # Gradients are below 12 in size, so their rounding is far below 1e-13.
        assert (slopes[0] - slopes[1]).norm().item() <= bound + 1e-13
        moves = [optimal_attack(tensor(w), tensor(y), epsilon, norm) for w in (w1, w2)]
        assert (moves[0] - moves[1]).norm().item() <= attack_bound(
            tensor(w1), tensor(w2), epsilon, norm
        ).item() + 1e-13


def test_an_attack_that_flips_k_signs_moves_by_exactly_two_epsilon_root_k() -> None:
    w = tensor([[1.0, -2.0, 3.0, 4.0, 5.0]])
    for k in range(6):
        flipped = w * tensor([-1.0] * k + [1.0] * (5 - k))
        move = optimal_attack(w, tensor([1.0]), 0.5, "linf") - optimal_attack(
            flipped, tensor([1.0]), 0.5, "linf"
        )
        assert (move**2).sum().item() == k  # (2·0.5·√k)², exactly
        assert attack_bound(w, flipped, 0.5, "linf").item() == math.sqrt(k)


def test_the_pairs_are_what_their_kinds_say() -> None:
    p = made(11_000, 7)
    one = {name: p.kind == number for number, name in enumerate(KINDS)}
    length1, length2 = p.w1.norm(dim=1), p.w2.norm(dim=1)
    cosine = (p.w1 * p.w2).sum(1) / (length1 * length2)
    for name in ("sign flips", "misclassified flip"):
        assert (sign_changes(p.w1, p.w2)[one[name]] >= 1).all()
        same = p.w1[one[name]].abs() == p.w2[one[name]].abs()
        assert same.all()
    assert (length1[one["near zero"]] <= 0.1).all()
    assert length1[one["near zero"]].min() < 1e-6
    assert (cosine[one["through zero"]] < -1 + 1e-12).all()
    assert (cosine[one["collinear"]] > 1 - 1e-12).all()
    torch.testing.assert_close(length1[one["equal norm"]], length2[one["equal norm"]], rtol=1e-12, atol=0)
    margins = robust_margin(p.w1, p.x, p.y, p.epsilon, "linf")[one["misclassified flip"]]
    assert (margins < 0).all()
    assert (
        margins < -1
    ).double().mean() > 0.7  # all but those so near to 0 that no input of bounded size is lost
    assert (half_changes(p.w1, p.w2)[one["zero coordinates"]] > 0).float().mean() > 0.5
    assert (sign_changes(p.w1, p.w2)[one["worst input, linf"]] == 0).all()
    assert all(t.isfinite().all() for t in (p.w1, p.w2, p.x, p.epsilon))
    assert set(p.y.tolist()) == {-1.0, 1.0}


def test_one_seed_one_check() -> None:
    assert check_theory(1100, dimensions=(2, 3)).as_dict() == check_theory(1100, dimensions=(2, 3)).as_dict()
    assert check_theory(1100, dimensions=(2,), seed=1) != check_theory(1100, dimensions=(2,))


def test_the_picture_is_a_staircase_and_a_curve() -> None:
    picture = illustrate(dimension=6, epsilon=0.2, points=200)
    t, walls = np.array(picture.path["t"]), np.array(picture.path["walls"])
    crossed = (t[:, None] > walls).sum(1)
    np.testing.assert_allclose(picture.path["linf"]["attack"], 2 * 0.2 * np.sqrt(crossed), atol=1e-12)
    assert picture.epsilon["l2"] == pytest.approx(0.2 * 6**0.5)
    leap = {norm: np.abs(np.diff(picture.path[norm]["gradient"])).max() for norm in NORMS}
    assert leap["linf"] > 5 * leap["l2"]
    step = picture.step
    assert step["linf"]["ratio"][0] / step["linf"]["ratio"][8] == pytest.approx(10, rel=1e-3)  # as 1/‖Δw‖
    assert step["l2"]["ratio"][0] == pytest.approx(step["l2"]["ratio"][8], rel=1e-3)
    for where in (picture.step, picture.distance):
        for norm in NORMS:
            assert (np.array(where[norm]["ratio"]) <= np.array(where[norm]["bound"]) * (1 + 1e-6)).all()
    json.dumps(picture.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimal_attack(torch.ones(2), torch.ones(()), 0.1, "l3"), "norm='l3' of the linear theory"),  # type: ignore[arg-type]
        (lambda: pairs(0, 2, torch.Generator()), "count=0, dimension=2 of pairs"),
        (lambda: check_theory(100, dimensions=()), "over 0 dimensions"),
        (lambda: check_theory(20, dimensions=(2, 3)), "at least 11 a dimension"),
        (lambda: illustrate(dimension=1), "dimension=1"),
        (lambda: illustrate(epsilon=math.nan), "epsilon=nan"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---- any inner problem ----


def quadratic(
    seed: int, top: float
) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor, Tensor, Tensor]:
    """f = ½δᵀAδ + δᵀ(b + Cθ) + ½θᵀDθ with top eigenvalue of A as given; n = 4, p = 3."""
    random = torch.Generator().manual_seed(seed)
    a, d = (torch.randn(n, n, generator=random, dtype=torch.float64) for n in (4, 3))
    a, d = (a + a.T) / 2, (d + d.T) / 2
    a = a + (top - torch.linalg.eigvalsh(a)[-1]) * torch.eye(4, dtype=torch.float64)
    b = torch.randn(4, generator=random, dtype=torch.float64)
    c = torch.randn(4, 3, generator=random, dtype=torch.float64)

    def inner(theta: Tensor, delta: Tensor) -> Tensor:
        return delta @ a @ delta / 2 + delta @ (b + c @ theta) + theta @ d @ theta / 2

    return inner, a, b, c, d


def on_the_sphere(a: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """The maximiser of ½δᵀAδ + gᵀδ on ‖δ‖ = ε, by bisection for the multiplier ν > λ(A): ‖(ν − A)⁻¹g‖ = ε."""
    values, vectors = np.linalg.eigh(a.numpy())
    low, high = max(values[-1], 0) + 1e-12, max(values[-1], 0) + 1e6
    parts = vectors.T @ g.numpy()
    for _ in range(200):
        nu = (low + high) / 2
        low, high = (nu, high) if np.linalg.norm(parts / (nu - values)) > epsilon else (low, nu)
    return tensor(vectors @ (parts / (nu - values)))


def in_the_box(a: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """The maximiser of a concave ½δᵀAδ + gᵀδ on |δ_i| ≤ ε: the best of all 3ⁿ faces' stationary points that lie inside."""
    best, where = -math.inf, g
    matrix, slope = a.numpy(), g.numpy()
    for choice in itertools.product((-1, 0, 1), repeat=len(g)):
        delta = epsilon * np.array(choice, dtype=float)
        free = np.array(choice) == 0
        if free.any():
            right = slope[free] + matrix[np.ix_(free, ~free)] @ delta[~free]
            delta[free] = np.linalg.solve(-matrix[np.ix_(free, free)], right)
        if np.abs(delta).max() <= epsilon * (1 + 1e-12):
            value = delta @ matrix @ delta / 2 + slope @ delta
            if value > best:
                best, where = value, tensor(delta)
    return where


@pytest.mark.parametrize("seed", range(5))
def test_an_interior_maximiser_of_a_quadratic(seed: int) -> None:
    inner, a, b, c, d = quadratic(seed, top=-0.7)
    theta = torch.ones(3, dtype=torch.float64)
    delta = torch.linalg.solve(-a, b + c @ theta)
    found = attack_sensitivity(inner, theta, delta, norm="l2", epsilon=100.0)
    assert found.case == "interior"
    # Known answers: dδ*/dθ = −A⁻¹C, ∇²L = D − CᵀA⁻¹C, μ = 0.7; float64 solves of well-conditioned 4×4 systems.
    torch.testing.assert_close(found.jacobian, torch.linalg.solve(-a, c), rtol=1e-10, atol=1e-12)
    assert found.gap == pytest.approx(0.7, rel=1e-10)
    assert found.lipschitz == pytest.approx(
        float(torch.linalg.matrix_norm(d - c.T @ torch.linalg.solve(a, c), 2)), rel=1e-10
    )
    c_norm, d_norm = (float(torch.linalg.matrix_norm(m, 2)) for m in (c, d))
    assert found.bound == pytest.approx(c_norm / 0.7)
    assert found.lipschitz_bound == pytest.approx(d_norm + c_norm**2 / 0.7)
    assert found.exact <= found.bound
    assert found.lipschitz <= found.lipschitz_bound


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top", [-0.5, 0.8])
def test_a_maximiser_on_the_sphere(seed: int, top: float) -> None:
    inner, a, b, c, _ = quadratic(seed, top)
    theta, epsilon = torch.full((3,), 0.5, dtype=torch.float64), 0.3
    delta = on_the_sphere(a, b + c @ theta, epsilon)
    found = attack_sensitivity(inner, theta, delta, norm="l2", epsilon=epsilon)
    assert found.case == "l2 boundary"
    h = 1e-6
    moved = [
        (
            on_the_sphere(a, b + c @ (theta + h * e), epsilon)
            - on_the_sphere(a, b + c @ (theta - h * e), epsilon)
        )
        / (2 * h)
        for e in torch.eye(3, dtype=torch.float64)
    ]
    # Central differences of step 1e-6 on a maximiser known to 1e-14: some 1e-8.
    torch.testing.assert_close(found.jacobian, torch.stack(moved, 1), rtol=1e-6, atol=1e-7)
    slope = a @ delta + b + c @ theta
    tangent = torch.linalg.svd(delta[None])[2][1:]
    expected = slope.norm().item() / epsilon - torch.linalg.eigvalsh(tangent @ a @ tangent.T)[-1].item()
    assert found.gap == pytest.approx(expected, rel=1e-9)
    assert found.exact <= found.bound * (1 + 1e-12)
    assert found.lipschitz <= found.lipschitz_bound * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_a_maximiser_in_the_box(seed: int) -> None:
    inner, a, b, c, _ = quadratic(seed, top=-0.5)
    theta, cases = torch.full((3,), 0.5, dtype=torch.float64), set()
    for epsilon in (0.05, 0.4, 50.0):
        delta = in_the_box(a, b + c @ theta, epsilon)
        found = attack_sensitivity(inner, theta, delta, norm="linf", epsilon=epsilon)
        cases.add(found.case)
        h = 1e-6
        moved = [
            (
                in_the_box(a, b + c @ (theta + h * e), epsilon)
                - in_the_box(a, b + c @ (theta - h * e), epsilon)
            )
            / (2 * h)
            for e in torch.eye(3, dtype=torch.float64)
        ]
        torch.testing.assert_close(found.jacobian, torch.stack(moved, 1), rtol=1e-6, atol=1e-7)
        assert found.exact <= found.bound * (1 + 1e-12)
        free = (delta.abs() < epsilon * (1 - 1e-9)).nonzero()[:, 0]
        if len(free):
            mu = -torch.linalg.eigvalsh(a[free][:, free])[-1].item()
            assert found.bound == pytest.approx(float(torch.linalg.matrix_norm(c[free], 2)) / mu, rel=1e-6)
        else:
            assert (found.exact, found.bound, found.gap) == (0.0, 0.0, math.inf)
            assert found.as_dict()["gap"] is None
    assert "interior" in cases


@pytest.mark.parametrize("norm", NORMS)
def test_the_bounds_hold_on_a_small_network(norm: Norm) -> None:
    """The attack on a network of 3 inputs, re-optimised by brute force; the drift and the gradient follow the derivatives."""
    random = torch.Generator().manual_seed(4)
    theta = torch.randn(5 * 3 + 5, generator=random, dtype=torch.float64)
    x, epsilon = torch.rand(3, generator=random, dtype=torch.float64), 0.05 if norm == "l2" else 0.002

    def inner(theta: Tensor, delta: Tensor) -> Tensor:
        hidden = torch.tanh(theta[:15].view(5, 3) @ (x + delta))
        return torch.nn.functional.softplus(-theta[15:] @ hidden)

    def attack(theta: Tensor) -> Tensor:
        """δ = εg/‖g‖ or ε·sign(g), iterated: a contraction for a small ball."""
        delta = torch.zeros(3, dtype=torch.float64)
        for _ in range(200):
            point = delta.requires_grad_()
            (g,) = torch.autograd.grad(inner(theta, point), point)
            delta = epsilon * (g.sign() if norm == "linf" else g / g.norm())
        return delta.detach()

    def slope(theta: Tensor) -> Tensor:
        point = theta.clone().requires_grad_()
        return torch.autograd.grad(inner(point, attack(theta)), point)[0]

    found = attack_sensitivity(inner, theta, attack(theta), norm=norm, epsilon=epsilon)
    assert found.case == ("linf vertex" if norm == "linf" else "l2 boundary")
    for k in range(5):
        side = torch.randn(20, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        side = 1e-5 * side / side.norm()
        drift = (attack(theta + side) - attack(theta - side)) / 2e-5
        # Central differences of length 1e-5: errors of order 1e-10 relative to third derivatives of order 1.
        torch.testing.assert_close(drift, found.jacobian @ side / 1e-5, rtol=1e-5, atol=1e-8)
        bend = (slope(theta + side) - slope(theta - side)).norm().item() / 2e-5
        assert bend <= found.lipschitz * (1 + 1e-6) + 1e-8
        bound = danskin_gap(found.theta, found.cross, torch.tensor(2e-5), drift.norm() * 2e-5).item()
        assert bend * 2e-5 <= bound * (1 + 1e-6) + 1e-12
    assert found.exact <= found.bound
    assert found.lipschitz <= found.lipschitz_bound


def test_flatter_in_the_input_is_worse() -> None:
    bounds = []
    for top in (-4.0, -1.0, -0.1):
        inner, a, b, _, _ = quadratic(1, top)
        theta = torch.zeros(3, dtype=torch.float64)
        bounds.append(
            attack_sensitivity(
                inner, theta, torch.linalg.solve(-a, b), norm="l2", epsilon=1e3
            ).lipschitz_bound
        )
    assert bounds == sorted(bounds)
    assert danskin_constant(1.5, math.inf, 0.0) == 1.5


@pytest.mark.parametrize(
    ("delta", "epsilon", "norm", "message"),
    [
        ([0.5, 0.0], 0.4, "l2", r"‖δ‖ = 0.5 .* outside the ball of 0.4"),
        ([0.1, 0.0], 0.4, "l2", "gradient along the interior is 0.1"),
        ([0.0, 0.0], 0.4, "linf", r"maximiser is not strict \(gap -1 in the interior case\)"),
        ([0.4, 0.0], 0.4, "l2", r"maximiser is not strict \(gap 0"),  # any direction is as good: ties
        ([[0.0]], 0.4, "l2", "two vectors"),
        ([0.0, 0.0], 0.0, "l2", "a radius > 0"),
    ],
)
def test_what_is_no_strict_maximiser_is_refused(
    delta: object, epsilon: float, norm: Norm, message: str
) -> None:
    with pytest.raises(CurvactError, match=message):
        attack_sensitivity(
            lambda theta, d: (d @ d) / 2 + 0 * theta.sum(),
            torch.zeros(1).double(),
            tensor(delta),
            norm=norm,
            epsilon=epsilon,
        )


def test_a_point_on_the_wrong_side_is_refused() -> None:
    with pytest.raises(CurvactError, match="points inwards"):
        attack_sensitivity(
            lambda theta, d: -d @ d + 0 * theta.sum(),
            torch.zeros(1).double(),
            tensor([0.4, 0.0]),
            norm="l2",
            epsilon=0.4,
        )
