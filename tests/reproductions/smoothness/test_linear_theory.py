from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Literal

import linear_theory
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from linear_theory import (
    CLAIMS,
    KINDS,
    Pairs,
    attack_bound,
    check_theory,
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
from torch import Tensor

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


@settings(max_examples=25)
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
        # One square root, which a vectorized one of torch may round otherwise in its last bit.
        assert attack_bound(w, flipped, 0.5, "linf").item() == pytest.approx(math.sqrt(k), rel=4e-16)


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
