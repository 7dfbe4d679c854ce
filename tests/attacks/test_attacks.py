"""Attacks against closed forms on linear models, and what they promise on any model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.attacks import ThreatModel, check_images, evaluate, fgsm, frozen, mode, pgd
from curvact.errors import CurvactError


def _linear(classes: int = 3, size: int = 6) -> nn.Module:
    g = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).double()
    with torch.no_grad():
        model[1].weight.normal_(generator=g)
        model[1].bias.zero_()
    return model


def _binary(w: Tensor) -> nn.Module:
    """Logits ±wᵀx/2, so that the loss is log(1 + e^(−y wᵀx)) with y = ±1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(w), 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([w / 2, -w / 2]))
    return model


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_finds_the_worst_point_of_a_linear_model(norm: str) -> None:
    """The closed form: −ε·sign(w) for L∞, −ε·w/‖w‖ for L2, away from the box's walls."""
    w = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
    x = torch.full((2, 4), 0.5, dtype=torch.float64)
    y = torch.tensor([0, 1])
    epsilon = 0.1
    towards = w.sign() if norm == "linf" else w / w.norm()
    expected = x - epsilon * torch.tensor([[1.0], [-1.0]], dtype=torch.float64) * towards
    threat = ThreatModel(norm, epsilon)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    x_adv = pgd(_binary(w), x, y, threat, steps=40, step_size=0.02, generator=g)
    # L∞ lands exactly; L2 turns towards the optimum by a constant factor a step.
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12 if norm == "linf" else 1e-3)


def test_fgsm_is_one_signed_step() -> None:
    model, x = _linear(), torch.rand(5, 6, dtype=torch.float64) * 0.5 + 0.25
    y = torch.tensor([0, 1, 2, 0, 1])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, x, y, ThreatModel("linf", 0.1)), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(
    epsilon=st.sampled_from([0.0, 1e-3, 0.1, 0.5, 3.0]),
    steps=st.integers(0, 4),
    restarts=st.integers(1, 3),
    count=st.integers(0, 5),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_always_inside_the_threat_model(
    norm: str, epsilon: float, steps: int, restarts: int, count: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 2, 3, generator=g)
    x[:, :, 0, 0] = 0.0
    x[:, :, 1, 1] = 1.0
    y = torch.randint(3, (count,), generator=g)
    threat = ThreatModel(norm, epsilon)  # type: ignore[arg-type]
    x_adv = pgd(_linear().float(), x, y, threat, steps=steps, step_size=0.3, restarts=restarts, generator=g)
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    # One float32 rounding of numbers up to 1.
    assert bool((size <= epsilon + 2e-7 * (1 + epsilon)).all())
    assert bool(((x_adv >= 0) & (x_adv <= 1)).all())


def test_random_start_fills_the_ball() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.full((20_000, 3), 0.5)
    noise = ThreatModel("l2", 0.4).random_start(x, g) - x
    radius = noise.norm(dim=1)
    # Uniform in a 3-ball: P(r < ε/2) = 1/8, standard error 0.0023.
    assert float((radius < 0.2).float().mean()) == pytest.approx(1 / 8, abs=0.01)
    assert float(radius.max()) <= 0.4 + 1e-6
    flat = (ThreatModel("linf", 0.4).random_start(x, g) - x).flatten()
    assert float(flat.std()) == pytest.approx(0.8 / math.sqrt(12), abs=0.003)


class _Counting(torch.autograd.Function):
    """Linear map that notes whether a weight gradient was computed."""

    weight_gradients = 0

    @staticmethod
    def forward(ctx, x, w):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, w = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            _Counting.weight_gradients += 1
        return grad @ w.T, x.T @ grad if ctx.needs_input_grad[1] else None


def test_no_weight_gradients_and_flags_restored() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3))
            self.fixed = nn.Parameter(torch.randn(4, 3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return _Counting.apply(x, self.w) + x @ self.fixed  # type: ignore[no-any-return]

    model = Net()
    _Counting.weight_gradients = 0
    x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    pgd(model, x, y, ThreatModel("linf", 0.1), steps=3, step_size=0.05, restarts=2)
    assert _Counting.weight_gradients == 0
    assert (model.w.requires_grad, model.fixed.requires_grad) == (True, False)
    assert model.w.grad is None
    with pytest.raises(RuntimeError, match="stop"), frozen(model):
        raise RuntimeError("stop")
    assert model.w.requires_grad


def test_mode_is_restored_per_module() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
    model.train()
    model[1].eval()
    with mode(model, training=False):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, False, False]


def test_restarts_only_help() -> None:
    g = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.rand(64, 4, generator=g)
    y = model(x).argmax(1)

    def robust(restarts: int) -> float:
        random = torch.Generator().manual_seed(7)
        threat = ThreatModel("linf", 0.3)
        x_adv = pgd(model, x, y, threat, steps=2, step_size=0.1, restarts=restarts, generator=random)
        return float((model(x_adv).argmax(1) == y).float().mean())

    assert robust(8) <= robust(1)


def test_a_seed_repeats_and_another_differs() -> None:
    model, x, y = _linear(), torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])

    def attack(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return pgd(model, x, y, ThreatModel("l2", 0.3), steps=1, step_size=0.01, generator=g)

    assert torch.equal(attack(0), attack(0))
    assert not torch.equal(attack(0), attack(1))


def test_evaluate_counts() -> None:
    model = _linear(3, 6).float()
    model.train()
    x = torch.rand(10, 1, 2, 3)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 3
    result = evaluate(model, x, y, lambda m, a, b: 1 - a, batch_size=3)
    assert result.clean == pytest.approx(0.8)
    expected = ((model(1 - x).argmax(1) == y) & (model(x).argmax(1) == y)).float().mean()
    assert result.robust == pytest.approx(float(expected))
    assert torch.equal(result.x_adv, 1 - x)
    assert model.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ThreatModel("linf", -0.1), "epsilon=-0.1"),
        (lambda: ThreatModel("linf", math.nan), "epsilon=nan"),
        (lambda: ThreatModel("l7", 0.1), "norm='l7'"),  # type: ignore[arg-type]
        (lambda: check_images(torch.tensor([0.0, 1.5])), r"\[0, 1.5\]"),
        (lambda: check_images(torch.tensor([0.5, math.nan])), "nan"),
        (
            lambda: pgd(
                _linear(), torch.rand(1, 6), torch.tensor([0]), ThreatModel("l2", 1), steps=-1, step_size=1
            ),
            "steps=-1",
        ),
        (
            lambda: pgd(
                _linear(), torch.rand(1, 6), torch.tensor([0]), ThreatModel("l2", 1), steps=1, step_size=0
            ),
            "step_size=0",
        ),
    ],
)
def test_bad_input_is_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CurvactError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
