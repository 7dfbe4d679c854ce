"""Balls, projections and steps of each norm against linear programs and closed forms; what is said
of a suspect model.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from curvact.attacks import ThreatModel, check_images, check_model, distance, radius_text
from curvact.attacks.threat import ball
from curvact.errors import CurvactError

NORMS = ["linf", "l2", "l1"]


def _points(count: int, size: int, seed: int, spread: float) -> tuple[Tensor, Tensor]:
    """Images, some of whose coordinates lie on a wall, and points around them, some with ties."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, size, generator=g, dtype=torch.float64)
    x[:, ::3] = x[:, ::3].round()
    z = x + spread * torch.randn(count, size, generator=g, dtype=torch.float64)
    if size > 2:
        z[:, 1] = x[:, 1] + (z[:, 0] - x[:, 0]).abs()
    return z, x


def _support(direction: np.ndarray, x: np.ndarray, epsilon: float) -> float:
    """max ⟨direction, q⟩ over ‖q − x‖₁ ≤ ε, 0 ≤ q ≤ 1, by linear programming on q = x + u − v."""
    size = len(x)
    bounds = [(0, 1 - value) for value in x] + [(0, value) for value in x]
    result = linprog(
        -np.concatenate([direction, -direction]), A_ub=np.ones((1, 2 * size)), b_ub=[epsilon], bounds=bounds
    )
    assert result.success
    return float(direction @ x - result.fun)


@given(
    size=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    epsilon=st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.5, 50.0]),
    spread=st.sampled_from([0.05, 1.0, 5.0]),
)
@settings(max_examples=25)
def test_l1_projection_is_the_nearest_point(size: int, seed: int, epsilon: float, spread: float) -> None:
    """p is the projection of z onto a convex set exactly if it lies in it and no q of it has ⟨z −
    p, q − p⟩ > 0.
    """
    z, x = _points(3, size, seed, spread)
    p = ThreatModel("l1", epsilon).project(z, x)
    assert float(p.min()) >= 0
    assert float(p.max()) <= 1
    assert bool(((p - x).abs().sum(1) <= epsilon + 1e-12).all())
    for row in range(len(z)):
        normal = (z - p)[row].numpy()
        # The solver's own tolerance is 1e-7, relative to costs up to `spread`.
        assert _support(normal, x[row].numpy(), epsilon) - normal @ p[row].numpy() < 1e-6 * (1 + spread)


def test_l1_projection_at_the_size_of_cifar_in_float32() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 32, 32, generator=g)
    z = x + 0.3 * torch.randn(x.shape, generator=g)
    p = ThreatModel("l1", 12.0).project(z, x)
    exact = ThreatModel("l1", 12.0).project(z.double(), x.double())
    # x + δ rounds by 6e-8 in each of the few hundred coordinates that move.
    torch.testing.assert_close(p, exact.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(distance(p, x, "l1"), torch.full((8,), 12.0), rtol=1e-5, atol=0)


def test_linf_projection_is_the_nearest_point() -> None:
    z, x = _points(5, 7, 0, 1.0)
    low, high = (x - 0.3).clamp_min(0), (x + 0.3).clamp_max(1)
    expected = torch.where(z < low, low, torch.where(z > high, high, z))
    assert torch.equal(ThreatModel("linf", 0.3).project(z, x), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_one_radius_for_each_image(norm: str) -> None:
    z, x = _points(4, 6, 1, 0.6)
    epsilon = torch.tensor([0.0, 0.1, 0.5, 2.0], dtype=torch.float64)
    threat = ball(norm, 9.0)  # type: ignore[arg-type]
    alone = [
        ball(norm, float(e)).project(z[i : i + 1], x[i : i + 1])  # type: ignore[arg-type]
        for i, e in enumerate(epsilon)
    ]
    torch.testing.assert_close(threat.project(z, x, epsilon), torch.cat(alone), rtol=0, atol=1e-15)
    start = threat.random_start(x, torch.Generator().manual_seed(0), epsilon)
    assert bool((distance(start, x, norm) <= epsilon + 1e-12).all())  # type: ignore[arg-type]
    assert float(distance(start, x, norm)[3]) > 0.1  # type: ignore[arg-type]


def test_l1_random_start_is_uniform_in_the_ball() -> None:
    x = torch.full((20_000, 3), 0.5)
    noise = ThreatModel("l1", 0.4).random_start(x, torch.Generator().manual_seed(0)) - x
    radius = noise.abs().sum(1)
    # P(r < ε/2) = 1/8, standard error 0.0023; each coordinate has mean 0 and E|δ| = ε/4 · (3/3) =
    # ε·3/(4·3).
    assert float((radius < 0.2).float().mean()) == pytest.approx(1 / 8, abs=0.01)
    assert float(radius.max()) <= 0.4 + 1e-6
    assert float(noise.abs().mean()) == pytest.approx(0.1, abs=0.002)
    assert float(noise.mean()) == pytest.approx(0, abs=0.003)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_has_its_length_and_climbs(norm: str) -> None:
    g = torch.Generator().manual_seed(2)
    x = 0.25 + 0.5 * torch.rand(5, 1, 4, 5, generator=g, dtype=torch.float64)
    gradient = torch.randn(x.shape, generator=g, dtype=torch.float64)
    step = torch.tensor([0.1, 0.2, 0.0, 0.4, 1.0], dtype=torch.float64)
    moved = ThreatModel(norm, 0.9).ascend(x, gradient, step)  # type: ignore[arg-type]
    torch.testing.assert_close(distance(moved, x, norm), step)  # type: ignore[arg-type]
    # Steepest: no perturbation of this length gains more than step · (dual norm of the gradient).
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    gain = ((moved - x) * gradient).flatten(1).sum(1)
    best = step * torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1)
    torch.testing.assert_close(gain, best)  # 5 % of 20 coordinates: l1 moves one


def test_l1_steps_go_along_the_largest_free_coordinates() -> None:
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5, 0.5, 0.5]])
    gradient = torch.tensor([[-9.0, 8.0, -3.0, 2.0, 1.0, 0.0]])  # the two largest push against walls
    threat = ThreatModel("l1", 1.0)
    for sparsity in (0.5, torch.tensor([0.5])):
        moved = threat.ascend(x, gradient, 0.3, sparsity=sparsity) - x
        torch.testing.assert_close(moved, torch.tensor([[0.0, 0.0, -0.1, 0.1, 0.1, 0.0]]))
    torch.testing.assert_close(
        threat.ascend(x, gradient, 0.3, sparsity=1e-9) - x, torch.tensor([[0.0, 0.0, -0.3, 0.0, 0.0, 0.0]])
    )
    assert torch.equal(threat.ascend(x, torch.zeros_like(x), 0.3), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ThreatModel("l11", 1.0), "norm='l11'.*did you mean 'l1'"),  # type: ignore[arg-type]
        (lambda x: ThreatModel("linf", -0.1), "epsilon=-0.1"),
        (lambda x: ThreatModel("linf", math.nan), "epsilon=nan"),
        (lambda x: check_images(torch.tensor([[0.0, 1.5]])), r"\[0, 1.5\]"),
        (lambda x: check_images(torch.tensor([[0.5, math.nan]])), "NaN"),
        (lambda x: ThreatModel("l1", 1.0).project(x, x, torch.ones(3)), r"epsilon has shape \(3,\)"),
        (lambda x: ThreatModel("l1", 1.0).project(x, x, torch.ones(2, 1)), r"epsilon has shape \(2, 1\)"),
    ],
)
def test_bad_input_is_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CurvactError, match=message) as caught:
        call(torch.rand(2, 4))
    assert "\n" not in str(caught.value)


def test_a_radius_is_a_number_or_its_text() -> None:
    assert ThreatModel("linf", np.float32(0.25)) == ThreatModel("linf", 0.25)
    written = ThreatModel("linf", "8/255")
    assert written == ThreatModel("linf", 8 / 255)
    assert hash(written) == hash(ThreatModel("linf", 8 / 255))
    assert written.epsilon == 8 / 255
    assert (str(written), str(ThreatModel("l2", 0.5))) == ("linf ε = 8/255", "l2 ε = 0.5")
    for bad in ("8/0", "8 of 255", "", "nan", "-1/255", True, None, [0.1], math.inf, 10**400):
        with pytest.raises(CurvactError, match="epsilon=") as caught:
            ThreatModel("l2", bad)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("epsilon", "meant"), [(8, "8/255"), (1, "1/255"), ("16", "16/255"), (300, "")])
def test_a_radius_in_bytes_is_refused_with_its_likely_meaning(epsilon: object, meant: str) -> None:
    with pytest.raises(CurvactError, match="below 1 in linf") as caught:
        ThreatModel("linf", epsilon)  # type: ignore[arg-type]
    assert ("did you mean " + meant in str(caught.value)) == bool(meant)
    ThreatModel("l2", epsilon)  # type: ignore[arg-type]


def test_radius_text_is_exact() -> None:
    assert radius_text(0.03137254901960784) == "8/255"
    assert radius_text(0.0314) == "0.0314"
    assert radius_text(0) == "0"


def test_check_model_names_what_is_suspect() -> None:
    x, linear = torch.rand(6, 4), nn.Linear(4, 3)
    assert check_model(linear.eval(), x) == []
    assert check_model(lambda x: x, x) == []
    cases = {
        "'Linear' in training mode": nn.Linear(4, 3).train(),
        "'0' and 2 more in training mode": _training_inside(),
        "probabilities": lambda x: linear(x).softmax(1),
        r"2 of 6 rows of logits hold NaN": lambda x: linear(x).index_fill(0, torch.tensor([0, 4]), math.nan),
        r"shape \(6,\).*6×classes": lambda x: linear(x)[:, 0],
        r"shape \(6, 1\)": lambda x: linear(x)[:, :1],
        r"shape \(5, 3\)": lambda x: linear(x)[1:],
        "returns tuple": lambda x: (linear(x), x),
    }
    for message, model in cases.items():
        (line,) = check_model(model, x)  # type: ignore[arg-type]
        assert re.search(message, line), line
    half = check_model(lambda x: linear(x).softmax(1).half(), x)
    assert "probabilities" in half[0]


def _training_inside() -> nn.Module:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), nn.Linear(4, 3))
    model.eval()
    model[0].train()
    return model
