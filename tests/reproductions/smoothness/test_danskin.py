from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from danskin import attack_sensitivity, danskin_constant, danskin_gap
from torch import Tensor

from curvact.errors import CurvactError

Norm = Literal["l2", "linf"]
NORMS: tuple[Norm, ...] = ("l2", "linf")


def tensor(values: object) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


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
    """The maximiser of ½δᵀAδ + gᵀδ on ‖δ‖ = ε, by bisection for the multiplier ν > λ(A): ‖(ν −
    A)⁻¹g‖ = ε.
    """
    values, vectors = np.linalg.eigh(a.numpy())
    low, high = max(values[-1], 0) + 1e-12, max(values[-1], 0) + 1e6
    parts = vectors.T @ g.numpy()
    for _ in range(200):
        nu = (low + high) / 2
        low, high = (nu, high) if np.linalg.norm(parts / (nu - values)) > epsilon else (low, nu)
    return tensor(vectors @ (parts / (nu - values)))


def in_the_box(a: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """The maximiser of a concave ½δᵀAδ + gᵀδ on |δ_i| ≤ ε: the best of all 3ⁿ faces' stationary
    points that lie inside.
    """
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
    # Known answers: dδ*/dθ = −A⁻¹C, ∇²L = D − CᵀA⁻¹C, μ = 0.7; float64 solves of well-conditioned
    # 4×4 systems.
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
    """The attack on a network of 3 inputs, re-optimised by brute force; the drift and the gradient
    follow the derivatives.
    """
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
        # Central differences of length 1e-5: errors of order 1e-10 relative to third derivatives of
        # order 1.
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
        ([math.nan, 0.0], 0.4, "l2", "derivatives of inner in attack_sensitivity are not finite"),
        ([0.0, 0.0], 0.4, "l1", "norm='l1' of attack_sensitivity: allowed are l2, linf"),
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
