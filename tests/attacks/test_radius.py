"""The minimum radius against closed forms on linear models."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from curvact.attacks import PGD, Norm, minimum_radius
from curvact.errors import CurvactError

W = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)


def _binary(x: Tensor) -> Tensor:
    score = x @ W - 0.6
    return torch.stack([score, -score], 1)


def _images(count: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = 0.4 + 0.2 * torch.rand(count, 4, generator=g, dtype=torch.float64)
    return x, _binary(x).argmax(1)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", math.inf)])
def test_a_linear_model_s_distance_is_its_margin_over_the_dual_norm(norm: Norm, dual: float) -> None:
    x, y = _images()
    exact = (x @ W - 0.6).abs() / torch.linalg.vector_norm(W, ord=dual)
    assert float(exact.max()) < 0.4  # no wall of [0, 1] in the way
    for start in ("none", "uniform"):
        g = torch.Generator().manual_seed(0)
        radius = minimum_radius(
            _binary,
            x,
            y,
            norm=norm,
            high=0.5,
            halvings=14,
            attack=PGD(20, step=0.125, start=start),
            generator=g,
        )
        assert bool((radius >= exact - 1e-12).all())
        # The halvings leave 0.5·2⁻¹⁴. An l2 start on the far side leaves an angle after 20 steps,
        # which costs its cosine.
        slack = 0.05 if start == "uniform" and norm == "l2" else 1e-9
        torch.testing.assert_close(radius, exact, rtol=slack, atol=1e-4)


def test_walls_lengthen_the_way() -> None:
    """L∞ with walls: the score falls by Σ |w_i|·min(ε, room_i), a root to be found."""
    x = torch.tensor([[0.05, 0.98, 0.9, 0.5]], dtype=torch.float64)
    score = float((x @ W)[0] - 0.6)
    sign = math.copysign(1, score)
    room = [float(v if sign * w > 0 else 1 - v) for v, w in zip(x[0], W, strict=True)]
    exact = brentq(
        lambda e: sum(abs(float(w)) * min(e, r) for w, r in zip(W, room, strict=True)) - abs(score), 0, 1
    )
    assert exact > abs(score) / float(W.abs().sum()) + 1e-3
    g = torch.Generator().manual_seed(0)
    radius = minimum_radius(_binary, x, _binary(x).argmax(1), high=1.0, halvings=16, generator=g)
    assert float(radius) == pytest.approx(exact, abs=1e-4)


def test_zero_where_misclassified_and_infinity_out_of_reach() -> None:
    x, y = _images()
    y[:3] = 1 - y[:3]
    exact = (x @ W - 0.6).abs() / W.abs().sum()
    high = float(exact[3:].median())
    g = torch.Generator().manual_seed(0)
    radius = minimum_radius(_binary, x, y, high=high, generator=g)
    assert bool((radius[:3] == 0).all())
    assert torch.equal(radius[3:].isinf(), exact[3:] > high + 1e-9) or float(radius[3:].isinf().sum()) in (
        4,
        5,
    )
    assert bool((radius[radius.isfinite()] <= high + 1e-15).all())  # x + δ − x rounds
    assert minimum_radius(_binary, x[:3], y[:3], high=high).tolist() == [0, 0, 0]
    assert minimum_radius(_binary, x[3:], y[3:], high=1e-6).isinf().all()
    assert minimum_radius(_binary, x[:0], y[:0], high=1.0).shape == (0,)


@pytest.mark.parametrize("early_stop", [False, True])
def test_every_radius_is_reached_and_more_halvings_help(early_stop: bool) -> None:
    g = torch.Generator().manual_seed(4)
    first, second = torch.randn(6, 32, generator=g), torch.randn(32, 4, generator=g)
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        if not x.requires_grad:
            seen.append(x.detach())
        return torch.tanh(x @ first) @ second

    x = torch.rand(10, 6, generator=g)
    y = model(x).argmax(1)
    radius = {
        steps: minimum_radius(
            model,
            x,
            y,
            norm="l2",
            high=2.0,
            halvings=steps,
            early_stop=early_stop,
            generator=torch.Generator().manual_seed(0),
        )
        for steps in (0, 9)
    }
    assert bool(radius[9].isfinite().all())
    assert bool((radius[9] <= radius[0] + 1e-6).all())
    assert float(radius[9].mean()) < 0.6 * float(radius[0].mean())
    for row in range(len(x)):
        at = [p for batch in seen for p in batch if abs(float((p - x[row]).norm() - radius[9][row])) < 1e-5]
        assert any(int(model(p[None]).argmax()) != int(y[row]) for p in at)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"high": 0.0}, "high=0.0"),
        ({"high": math.inf}, "high=inf"),
        ({"high": 1.0, "halvings": -1}, "halvings=-1"),
        ({"high": 1.0, "attack": PGD(0)}, "attack=pgd-0"),
        ({"high": 1.0, "attack": PGD(20, loss="dlr")}, "needs 3 classes"),
        ({"high": 1.0, "norm": "l0"}, "norm='l0'"),
    ],
)
def test_bad_input_is_one_line(settings: dict[str, object], message: str) -> None:
    x, y = _images(2)
    with pytest.raises(CurvactError, match=message):
        minimum_radius(_binary, x, y, **settings)  # type: ignore[arg-type]
