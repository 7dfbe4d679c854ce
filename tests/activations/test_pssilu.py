"""PSSiLU against its definition in mpmath, float64 autograd, the transforms of torch, and its traps."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from curvact.activations import Activation, PSSiLU, Swish, activation, max_curvature
from curvact.errors import CurvactError

FORMS = [
    "pssilu",
    "pssilu(alpha=-3, beta=0.3)",
    "pssilu(alpha=12, beta=-0.9)",
    "pssilu(beta=0)",
    "pssilu(alpha=2, beta=0.3, learnable=True)",
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


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


def learned(act: PSSiLU, x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(act, {"alpha": alpha, "beta": beta}, (x,))  # type: ignore[no-any-return]


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


@pytest.mark.parametrize("name", FORMS)
def test_slope_and_curvature_are_the_derivatives(name: str) -> None:
    act = build(name).double()
    alpha, beta = (torch.as_tensor(p, dtype=torch.float64).detach() for p in (act.alpha, act.beta))
    x = torch.linspace(-6, 6, 401, dtype=torch.float64, requires_grad=True)
    want = definition(x, alpha, beta)
    (slope,) = torch.autograd.grad(want.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    # Each is a few roundings of terms up to α/(1 − β) = 120.
    torch.testing.assert_close(act.slope(x).detach(), slope.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(act.curvature(x).detach(), curvature, rtol=1e-11, atol=1e-12)
    y = act(x)
    (own,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(own, slope, rtol=1e-12, atol=1e-13)
    (second,) = torch.autograd.grad(own.sum(), x)
    torch.testing.assert_close(second, curvature, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_peak_against_the_search_of_a_plain_function(name: str) -> None:
    act = build(name).double()
    alpha, beta = (torch.as_tensor(p, dtype=torch.float64).detach() for p in (act.alpha, act.beta))
    found = max_curvature(lambda x: definition(x, alpha, beta))
    assert act.max_curvature.at == 0
    assert act.max_curvature.value == pytest.approx(found.value, rel=1e-6)
    at_zero = act.curvature(torch.zeros((), dtype=torch.float64)).detach()
    assert float(at_zero.abs()) == pytest.approx(act.max_curvature.value, rel=1e-14)


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


@pytest.mark.parametrize("name", FORMS)
def test_gradcheck_and_gradgradcheck(name: str) -> None:
    act = build(name).double()
    x = torch.tensor([-2.1, -0.7, -0.05, 0.3, 1.7], dtype=torch.float64, requires_grad=True)
    if act.learnable:
        parameters = [p.detach().clone().requires_grad_() for p in act.parameters()]
        call, inputs = (lambda x, a, b: learned(act, x, a, b)), (x, *parameters)
    else:
        call, inputs = act, (x,)  # type: ignore[assignment]
    assert gradcheck(
        call, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True)


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


@pytest.mark.parametrize("name", FORMS)
def test_functional_transforms(name: str) -> None:
    act = build(name).double()
    x = torch.tensor([-2.1, -0.7, 0.3, 0.66, 1.7], dtype=torch.float64)
    v = torch.linspace(1, 2, 5, dtype=torch.float64)
    slope, curvature = act.slope(x).detach(), act.curvature(x).detach()
    hessian = torch.func.hessian(lambda t: act(t).sum())(x)
    torch.testing.assert_close(hessian.detach(), torch.diag(curvature), rtol=1e-12, atol=1e-13)
    _, tangent = torch.func.jvp(act, (x,), (v,))
    torch.testing.assert_close(tangent.detach(), slope * v, rtol=1e-12, atol=1e-13)
    _, second = torch.func.jvp(torch.func.grad(lambda t: act(t).sum()), (x,), (v,))
    torch.testing.assert_close(second.detach(), curvature * v, rtol=1e-12, atol=1e-13)
    for dim in (0, 1):
        mapped = torch.vmap(act, in_dims=dim)(x.view(1, 5) if dim else x.view(5, 1))
        torch.testing.assert_close(mapped.view(5), act(x), rtol=0, atol=0)


def test_vmap_over_parameters_and_their_gradients_per_sample() -> None:
    act = PSSiLU(learnable=True)
    x = torch.linspace(-1, 1, 7)
    alphas, betas = torch.tensor([[0.5], [4.0]]), torch.tensor([[0.1], [0.6]])
    together = torch.vmap(lambda a, b: learned(act, x, a, b))(alphas, betas)
    gradients = torch.vmap(torch.func.grad(lambda a, b: learned(act, x, a, b).sum(), argnums=(0, 1)))(
        alphas, betas
    )
    for row, a, b in zip(range(2), alphas, betas, strict=True):
        one = [t.clone().requires_grad_() for t in (a, b)]
        alone = definition(x, *one)
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-6)
        want = torch.autograd.grad(alone.sum(), one)
        torch.testing.assert_close([g[row] for g in gradients], list(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_compiles_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    act = build(name).double()
    compiled = torch.compile(act, fullgraph=True, backend="aot_eager")
    x = torch.tensor([-30.0, -2.0, 0.0, 0.4, 3.0, 1e4], dtype=torch.float64, requires_grad=True)
    inputs = [x, *act.parameters()]
    y, want = compiled(x), act(x)
    torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(want.sum(), inputs), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMS)
@given(x=st.lists(st.floats(-1e4, 1e4), min_size=0, max_size=8))
@settings(max_examples=10)
def test_any_finite_input(name: str, dtype: torch.dtype, x: list[float]) -> None:
    act = build(name)
    if dtype == torch.float64:
        act.double()
    t = torch.tensor([*x, -1e4, 1e4], dtype=dtype, requires_grad=True)
    y = act(t)
    assert (y.dtype, y.shape) == (dtype, t.shape)
    gradients = torch.autograd.grad(y.sum(), [t, *act.parameters()])
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert bool(act.curvature(t.detach()).isfinite().all())
    wide = build(name).double()(t.detach().double())
    # Half precision rounds once (2⁻⁸ or 2⁻¹¹ relative), and float16 ends at 65504; float32 takes a few units of |x|.
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-15}[dtype]
    fits = wide.abs() < 6e4
    assert bool(y[fits].isfinite().all())
    error = (y.double() - wide).abs()[fits]
    assert bool((error <= tolerance * wide.abs()[fits] + 1e-6).all())


def test_limits() -> None:
    ends = torch.tensor([-math.inf, math.inf])
    assert PSSiLU(2, 0.3)(ends).tolist() == [math.inf, math.inf]
    assert PSSiLU(2, 0.0)(ends).tolist() == [0.0, math.inf]
    assert PSSiLU(2, 0.5).slope(ends).tolist() == [-1.0, 1.0]
    assert PSSiLU(2, 0.5).curvature(ends).tolist() == [0.0, 0.0]
    assert bool(PSSiLU()(torch.tensor(math.nan)).isnan())
    assert bool(PSSiLU(beta=0.3)(torch.tensor([-3e38, 3e38])).isfinite().all())


@pytest.mark.parametrize("name", FORMS)
def test_only_the_input_is_saved(name: str) -> None:
    saved: list[torch.Tensor] = []
    x = torch.randn(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        build(name)(x)
    assert {t.data_ptr() for t in saved if t.numel() > 1} == {x.data_ptr()}


def test_zero_parameters_would_never_move() -> None:
    """Why they are refused: d|β| = 0 at β = 0, so gradient descent leaves it there whatever the loss."""
    act = PSSiLU(learnable=True)
    with torch.no_grad():
        act.beta.zero_()  # type: ignore[union-attr]
    act(torch.linspace(-3, 3, 20)).sum().backward()
    assert act.beta.grad == 0  # type: ignore[union-attr]
    assert act.alpha.grad != 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pssilu(alpha=0)", r"alpha=0 in pssilu: alpha must not be 0"),
        ("pssilu(alpha=1e999)", "alpha=inf in pssilu"),
        ("pssilu(alpha=True)", "alpha=True in pssilu"),
        ("pssilu(beta=1)", r"beta=1 in pssilu: beta must be a number with \|beta\| < 1"),
        ("pssilu(beta=-1.5)", "beta=-1.5 in pssilu"),
        ("pssilu(beta=0, learnable=True)", "beta=0 in a learnable pssilu"),
        ("pssilu(curvature=0)", "curvature=0 in pssilu"),
        ("pssilu(curvature=4, beta=2)", "beta=2 in pssilu"),
        ("pssilu(curvature=4, alpha=2)", "unknown parameter 'alpha'|alpha"),
    ],
)
def test_bad_parameters_are_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        activation(name)
    assert "\n" not in str(caught.value)


def test_a_ruined_parameter_has_no_curvature() -> None:
    act = PSSiLU(learnable=True)
    with torch.no_grad():
        act.beta.fill_(1.0)  # type: ignore[union-attr]
    with pytest.raises(CurvactError, match="has no κ"):
        _ = act.max_curvature


def test_integers_are_refused() -> None:
    with pytest.raises(CurvactError, match="int64"):
        PSSiLU()(torch.arange(3))


def test_it_is_an_activation() -> None:
    assert isinstance(PSSiLU(), Activation)
