"""The unit of Curvature Tuning: κ against a search, its inverse, and the limits of β. Values and
derivatives are tested with all families.
"""

from __future__ import annotations

import math

import pytest
import torch

from curvact.activations import CTU, activation, max_curvature
from curvact.activations.functional import ctu
from curvact.errors import CurvactError


def by_hand(x: torch.Tensor, beta: float, c: float) -> torch.Tensor:
    """The paper's formula as it is printed."""
    b = beta / (1 - beta)
    return c * x * torch.sigmoid(b * x) + (1 - c) * (1 - beta) * torch.nn.functional.softplus(x / (1 - beta))


@pytest.mark.parametrize(
    ("beta", "c"), [(0.0, 0.5), (0.5, 0.5), (0.97, 0.5), (0.8, 0.0), (0.8, 1.0), (0.3, 0.9)]
)
def test_curvature_is_the_one_that_a_search_finds(beta: float, c: float) -> None:
    closed = CTU(beta, c).max_curvature
    assert closed.value == pytest.approx((2 * c * beta + 1 - c) / (4 * (1 - beta)), rel=1e-14)
    found = max_curvature(lambda x: by_hand(x, beta, c))
    assert found.value == pytest.approx(closed.value, rel=1e-6)
    assert found.at == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("kappa", [0.3, 1.0, 6.0, 400.0, 1e4])
@pytest.mark.parametrize("c", [0.0, 0.25, 0.5, 1.0])
def test_curvature_is_met_and_the_name_keeps_it(kappa: float, c: float) -> None:
    act = CTU.from_curvature(kappa, c)
    assert act.max_curvature.value == pytest.approx(kappa, rel=1e-9)
    again = activation(str(act))
    assert isinstance(again, CTU)
    assert (again.beta, again.c) == (act.beta, act.c)
    if c == 0.5:
        assert act.beta == pytest.approx((8 * kappa - 1) / (8 * kappa + 2), rel=1e-12)


def test_the_least_curvature_is_reached_and_none_below() -> None:
    assert CTU.from_curvature(0.125).beta == 0.0
    assert CTU.from_curvature(0.2, c=0.2).beta == pytest.approx(0.0, abs=1e-15)
    for name in ("ctu(curvature=0.1249)", "ctu(curvature=0.24, c=0)"):
        with pytest.raises(CurvactError, match=r"it must be >= 0\.(125|25)$"):
            activation(name)
    with pytest.raises(CurvactError, match="no β gives it"):
        activation("ctu(curvature=1e12)")


@pytest.mark.parametrize("name", ["ctu(beta=1)", "ctu(beta=-0.1)", "ctu(c=1.5)"])
def test_bad_parameters_are_one_line(name: str) -> None:
    with pytest.raises(CurvactError, match=r"in ctu: (beta|c) must be a number"):
        activation(name)


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0])
def test_it_tends_to_relu(c: float) -> None:
    for beta in (0.5, 0.9, 0.99, 0.9999):
        x = (1 - beta) * torch.linspace(-30, 30, 6001, dtype=torch.float64)
        gap = float((CTU(beta, c)(x) - x.relu()).abs().max())
        assert 0.2 * (1 - beta) < gap < 0.7 * (1 - beta)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_steep_members_are_stable(dtype: torch.dtype) -> None:
    act = CTU(0.9999)
    x = torch.tensor([-6e4, -3.0, -1e-3, -1e-4, 0.0, 1e-4, 1e-3, 3.0, 6e4], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(act(x).sum(), x)
    exact = x.detach().double().requires_grad_()
    value = by_hand(exact, 0.9999, 0.5)
    (want,) = torch.autograd.grad(value.sum(), exact)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(act(x).detach().double(), value.detach(), rtol=eps, atol=1e-7)
    # x·10⁴ is rounded to float32 before the sigmoid, whose slope times 10⁴ is below a half.
    torch.testing.assert_close(slope.double(), want, rtol=eps, atol=1e-5)


def test_without_swish_minus_infinity_is_zero() -> None:
    low = torch.tensor(-math.inf)
    assert [float(CTU(beta, c)(low)) for beta, c in ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5))] == [0.0, 0.0, 0.0]
    assert float(CTU(0.0)(low)) == -math.inf  # x/4 of β = 0


def test_gradients_of_beta_and_c() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    scales = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, 0.4)]
    assert torch.autograd.gradcheck(lambda beta, c: ctu(x, beta, c), scales)


@pytest.mark.parametrize("beta", [0.0, 1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_beta_is_right_down_to_zero(beta: float, dtype: torch.dtype) -> None:
    """∂σ/∂β by hand: that of x·s(bx) is x²s(1 − s)·b', with b' = 1/(1 − β)²; that of (1 − β)·softplus(x/(1 − β))
    is (x/(1 − β))·s(x/(1 − β)) − softplus(x/(1 − β)). In float64.
    """
    x, c, b = torch.linspace(-3, 3, 41, dtype=torch.float64), 0.25, torch.tensor(beta, dtype=torch.float64)
    scale = torch.tensor(beta, dtype=dtype, requires_grad=True)
    (found,) = torch.autograd.grad(ctu(x.to(dtype), scale, c).sum(), scale)
    s, u = torch.sigmoid(b / (1 - b) * x), x / (1 - b)
    swish = x**2 * s * (1 - s) / (1 - b) ** 2
    softplus = u * torch.sigmoid(u) - torch.nn.functional.softplus(u)
    want = (c * swish + (1 - c) * softplus).sum()
    # 41 terms of size up to 2, each to the accuracy of the dtype.
    torch.testing.assert_close(found.double(), want, rtol=0, atol=200 * torch.finfo(dtype).eps)


def test_a_tensor_beta_keeps_dtype_and_infinities() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert ctu(torch.randn(2, 3, 4, 4).to(dtype), torch.full((3, 1, 1), 0.5)).dtype == dtype
    x = torch.tensor([math.inf, 1e30, -1e30, -math.inf], requires_grad=True)
    (slope,) = torch.autograd.grad(ctu(x, torch.tensor(0.9)).sum(), x)
    assert slope.tolist() == [1, 1, 0, 0]
    assert ctu(x, torch.tensor(0.9)).tolist()[0::3] == [math.inf, 0]
    assert float(ctu(x.detach(), torch.tensor(0.0))[3]) == -math.inf
    with pytest.raises(CurvactError, match="int64"):
        ctu(torch.tensor([1, 2]), torch.tensor(0.5))
