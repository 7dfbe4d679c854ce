"""PSSiLU against its definition; `test_paf` and `test_families` have the tests that it shares with
other families.
"""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvact.activations import PSSiLU, Swish, activation
from curvact.errors import CurvactError


def exact(x: float, alpha: float, beta: float) -> float:
    """The paper's formula with 60 digits."""
    with mpmath.workdps(60):
        a, b = abs(mpmath.mpf(alpha)), abs(mpmath.mpf(beta))
        gate = 1 / (1 + mpmath.exp(-a * x))
        return float(x * (gate - b) / (1 - b))


def definition(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """The paper's formula as plain tensor code."""
    return x * (torch.sigmoid(alpha.abs() * x) - beta.abs()) / (1 - beta.abs())


def build(name: str) -> PSSiLU:
    act = activation(name)
    assert isinstance(act, PSSiLU)
    return act


@given(
    x=st.floats(-50, 50),
    alpha=st.floats(0.01, 100).flatmap(lambda a: st.sampled_from([a, -a])),
    beta=st.one_of(st.floats(1e-10, 0.95), st.just(0.0)),
)
@settings(max_examples=25)
def test_value_is_the_definition(x: float, alpha: float, beta: float) -> None:
    got = float(PSSiLU(alpha, beta)(torch.tensor(x, dtype=torch.float64)))
    # Roundings of two terms up to |x|/(1 − β), and of αx inside the gate: |αx|·s(1−s)·|x| ≤ 0.3|x|.
    assert got == pytest.approx(exact(x, alpha, beta), rel=1e-14, abs=1e-15 * (1 + abs(x)) / (1 - beta))


def test_the_shift_survives_float32_far_below_its_rounding() -> None:
    """1 − 1e-8 is 1 in float32, yet σ(−1000) is +1e-5, not 0."""
    got = PSSiLU()(torch.tensor([-1000.0, -20.0, 20.0]))
    want = [exact(x, 1, 1e-8) for x in (-1000.0, -20.0, 20.0)]
    assert got[0] > 0
    torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=2e-6, atol=0)
    # The zero crossing of the docstring, here at −18.42.
    crossing = math.log(1e-8 / (1 - 1e-8))
    near = torch.tensor([crossing * 1.001, crossing * 0.999], dtype=torch.float64)
    assert PSSiLU()(near).sign().tolist() == [1.0, -1.0]


def test_special_members() -> None:
    x = torch.linspace(-9, 9, 101, dtype=torch.float64)
    assert torch.equal(PSSiLU(3.0, 0.0)(x), Swish(3.0)(x))
    assert torch.equal(PSSiLU(-3.0, -0.2)(x), PSSiLU(3.0, 0.2)(x))
    # 0.25 is a float32, 0.25/0.75 rounds alike in both.
    assert torch.equal(PSSiLU(3.0, 0.25, learnable=True).double()(x), PSSiLU(3.0, 0.25)(x))


@given(kappa=st.floats(1e-3, 1e4), beta=st.floats(-0.99, 0.99))
@settings(max_examples=25)
def test_any_curvature_is_met_and_names_round_trip(kappa: float, beta: float) -> None:
    act = PSSiLU.from_curvature(kappa, beta)
    assert act.max_curvature.value == pytest.approx(kappa, rel=1e-14)
    again = build(str(act))
    assert (again.alpha, again.beta) == (act.alpha, act.beta)
    assert build(f"pssilu(curvature={kappa!r}, beta={beta!r})").alpha == act.alpha


def test_names() -> None:
    assert str(PSSiLU()) == "pssilu(alpha=1.0, beta=1e-08)"
    act = build("pssilu(beta=0.25, learnable=True, centered=True)")
    assert str(act) == "pssilu(alpha=1.0, beta=0.25, learnable=True, centered=True)"
    assert [name for name, _ in act.named_parameters()] == ["alpha", "beta"]
    assert not list(PSSiLU().parameters())


def test_gradients_of_the_parameters_are_those_of_the_definition() -> None:
    """Also with negative parameters, where |·| turns the sign, and with x far out."""
    act = PSSiLU(-3.0, -0.3, learnable=True).double()
    x = torch.linspace(-30, 30, 500, dtype=torch.float64)
    weight = torch.linspace(-1, 2, 500, dtype=torch.float64)
    parameters = [torch.tensor([p], dtype=torch.float64, requires_grad=True) for p in (-3.0, -0.3)]
    act.load_state_dict(dict(zip(("alpha", "beta"), parameters, strict=True)))
    (act(x) * weight).sum().backward()
    want = torch.autograd.grad((definition(x, *parameters) * weight).sum(), parameters)
    for got, expected in zip(act.parameters(), want, strict=True):
        assert got.grad is not None
        assert got.grad.shape == (1,)
        torch.testing.assert_close(got.grad, expected, rtol=1e-11, atol=1e-12)


def test_limits() -> None:
    ends = torch.tensor([-math.inf, math.inf])
    assert PSSiLU(2, 0.3)(ends).tolist() == [math.inf, math.inf]
    assert PSSiLU(2, 0.0)(ends).tolist() == [0.0, math.inf]
    assert PSSiLU(2, 0.5).slope(ends).tolist() == [-1.0, 1.0]
    assert PSSiLU(2, 0.5).curvature(ends).tolist() == [0.0, 0.0]
    assert bool(PSSiLU()(torch.tensor(math.nan)).isnan())
    assert bool(PSSiLU(beta=0.3)(torch.tensor([-3e38, 3e38])).isfinite().all())


def test_a_ruined_parameter_has_no_curvature() -> None:
    act = PSSiLU(learnable=True)
    with torch.no_grad():
        act.beta.fill_(1.0)  # type: ignore[union-attr]
    with pytest.raises(CurvactError, match="has no κ"):
        _ = act.max_curvature
