"""Every family against definitions, float64 autograd, a fine grid, numerical integration, and the
transforms of torch.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from curvact.activations import (
    ELU,
    GELU,
    RCRAF,
    RCTAF,
    Activation,
    Mish,
    PowerGate,
    ReLU,
    ScaledActivation,
    SiLU,
    Softplus,
    Squareplus,
    Swish,
    activation,
    max_curvature,
)
from curvact.activations.families.rct import remainder
from curvact.errors import CurvactError

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
import rct_slope

SMOOTH = [
    "rctaf(curvature=2, beta=0)",
    "rctaf(curvature=2, beta=1, centered=True)",
    "rctaf(curvature=2, beta=2)",
    "rctaf(curvature=2, beta=3)",
    "swish(curvature=2)",
    "squareplus(curvature=2, centered=True)",
    "powergate(curvature=2, n=1)",
    "powergate(curvature=2, n=3)",
    "gelu(curvature=2)",
    "mish(curvature=2)",
    "softplus(beta=3)",
    "silu",
    "gelu",
    "mish",
]
CTUS = ["ctu(beta=0.8)", "ctu(curvature=2, c=0.25, centered=True)"]
ALL = [
    *SMOOTH,
    *CTUS,
    "relu",
    "elu",
    "elu(alpha=0.5)",
    "rcraf(alpha=3)",
    "rcraf(alpha=3, gamma=2, centered=True)",
]
LEARNABLE = [name.replace(")", ", learnable=True)") for name in SMOOTH if "(" in name]
PARAMETRIC = [
    *("prelu(alpha=0.25)", "prelu(alpha=-0.5, learnable=False)", "pelu(alpha=0.7)", "prelu_plus(alpha=1.5)"),
    *("pelu(alpha=1.0, learnable=False)", "reblu(alpha=0.5)", "reblu(alpha=-0.25, learnable=False)"),
    *("psilu(alpha=-3)", "psilu(alpha=3, learnable=False)", "psoftplus(alpha=-2, centered=True)"),
    *("psoftplus(alpha=2, learnable=False)", "ssilu", "ssilu(beta=-0.5)", "pssilu_fixed(alpha=-2)"),
    *("pssilu_fixed(alpha=2, learnable=False)", "pssilu", "pssilu(alpha=-3, beta=0.3)", "pssilu(beta=0)"),
    *("pssilu(alpha=12, beta=-0.9)", "pssilu(alpha=2, beta=0.3, learnable=True)"),
]

DEFINITIONS = {
    "swish(beta=3)": lambda x: x / (1 + np.exp(-3 * x)),
    "squareplus(b=0.25)": lambda x: (x + np.sqrt(x**2 + 0.25)) / 2,
    "softplus(beta=3)": lambda x: np.logaddexp(0, 3 * x) / 3,
    "rcraf(alpha=3)": lambda x: np.logaddexp(0, 3 * x) / 3,
    "rcraf(alpha=3, gamma=2)": lambda x: np.minimum(np.logaddexp(0, 3 * x) / 3, 2),
    "gelu(alpha=2)": lambda x: np.array([t * (1 + math.erf(2 * t / math.sqrt(2))) / 2 for t in x]),
    "mish(alpha=2)": lambda x: x * np.tanh(np.logaddexp(0, 2 * x)),
    "elu(alpha=0.5)": lambda x: np.where(x > 0, x, 0.5 * np.expm1(x)),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "powergate(alpha=3, n=1)": lambda x: np.logaddexp(0, 3 * x) / 3,
    "ctu(beta=0.75, c=0.3)": lambda x: (
        0.3 * x / (1 + np.exp(-3 * x)) + 0.7 * 0.25 * np.logaddexp(0, x / 0.25)
    ),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_value_is_the_definition(name: str) -> None:
    x = torch.linspace(-6, 6, 301, dtype=torch.float64)
    # 1e-14: a few roundings of numbers up to 6.
    np.testing.assert_allclose(activation(name)(x).numpy(), DEFINITIONS[name](x.numpy()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("beta", range(4))
def test_rctaf_integrates_its_slope(beta: int) -> None:
    act = RCTAF(alpha=3.0, beta=beta)
    for x in (-4.0, -1.0, -0.1, 0.0, 0.3, 2.0, 7.0):
        t = torch.tensor(x, dtype=torch.float64)
        assert float(act.slope(t)) == pytest.approx(float(rct_slope.slope(x, 3.0, beta)), abs=1e-15)
        # Quadrature is good to 1e-15, the subtraction of R to a few roundings of 1/α.
        assert float(act(t)) == pytest.approx(float(rct_slope.value(x, 3.0, beta)), abs=2e-15, rel=1e-15)


@pytest.mark.parametrize("beta", range(1, 4))
def test_remainder_is_what_smoothstep_takes_off(beta: int) -> None:
    """R_β = ∫ (g_0 − g_β), an integral that knows nothing of the coefficients."""
    s = np.linspace(0, 0.5, 200_001)
    g = s.copy()
    for _ in range(beta):
        g = g**2 * (3 - 2 * g)
    with np.errstate(invalid="ignore"):
        integrand = np.where(s > 0, (s - g) / (s * (1 - s)), 1.0)
    integral = np.concatenate([[0], np.cumsum((integrand[1:] + integrand[:-1]) / 2) * (s[1] - s[0])])
    expected = torch.from_numpy(integral)
    got = remainder(torch.from_numpy(4 * s * (1 - s)), beta)
    # The trapezoid rule at a step of 2.5e-6 is good to 1e-11.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_power_gate_slope_is_a_power(n: int) -> None:
    act = PowerGate(alpha=2.5, n=n)
    x = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(act(x).sum(), x)
    torch.testing.assert_close(
        slope.detach(), (1 / (1 + torch.exp(-2.5 * x.detach()))) ** n, rtol=0, atol=1e-14
    )
    # σ(−∞) = 0 fixes the constant of integration.
    assert abs(float(act(torch.tensor(-30.0, dtype=torch.float64)))) < 1e-15
    harmonic = sum(1 / k for k in range(1, n))
    assert float(act(torch.tensor(30.0, dtype=torch.float64))) == pytest.approx(
        30 - harmonic / 2.5, abs=1e-13
    )


@pytest.mark.parametrize("name", ALL)
def test_slope_and_curvature_are_the_derivatives(name: str) -> None:
    act = activation(name)
    assert isinstance(act, Activation)
    # Off the kinks at 0 and at the clip.
    x = torch.linspace(-3, 3, 400, dtype=torch.float64, requires_grad=True)
    plain = act(x)
    (slope,) = torch.autograd.grad(plain.sum(), x, create_graph=True)
    torch.testing.assert_close(act.slope(x.detach()), slope.detach(), rtol=1e-12, atol=1e-13)
    if slope.requires_grad:
        (curvature,) = torch.autograd.grad(slope.sum(), x)
        torch.testing.assert_close(act.curvature(x.detach()), curvature, rtol=1e-11, atol=1e-12)
    h = 1e-5
    step = (act(x + h) - act(x - h)).detach() / (2 * h)
    kinks = {
        "rcraf(alpha=3, gamma=2, centered=True)": act.max_curvature.at,
        "elu(alpha=0.5)": 0.0,
        "relu": 0.0,
    }
    away = (x.detach() - kinks.get(name, math.inf)).abs() > 2 * h
    # Central differences: h²σ'''/6 + rounding/h, about 1e-8 at these curvatures.
    torch.testing.assert_close(act.slope(x.detach())[away], step[away], rtol=0, atol=2e-8)


@pytest.mark.parametrize("name", SMOOTH)
def test_closed_form_peak_against_a_fine_grid(name: str) -> None:
    act = activation(name)
    assert isinstance(act, ScaledActivation)
    peak = act.max_curvature
    x = torch.linspace(-5, 5, 1_000_001, dtype=torch.float64)
    h = 1e-5
    curvature = ((act.slope(x + h) - act.slope(x - h)) / (2 * h)).abs()
    best = int(curvature.argmax())
    # Grid step and difference step of 1e-5 cost at most the fourth derivative times h², 1e-8, and
    # rounding 1e-16/h = 1e-11; that
    # rounding hides the place within the square root of 1e-11.
    assert peak.value == pytest.approx(float(curvature[best]), abs=1e-7)
    assert peak.at == pytest.approx(float(x[best]), abs=1e-4)


@pytest.mark.parametrize(
    ("act", "value", "at"),
    [
        (Softplus(), 0.25, 0.0),
        (SiLU(), 0.5, 0.0),
        (Mish(), 0.6442, -0.0879),
        (GELU(), 0.7979, 0.0),
        (ELU(), 1.0, 0.0),
        (ReLU(), math.inf, 0.0),
        (ELU(0.5), math.inf, 0.0),
        (RCRAF(20), 5.0, 0.0),
    ],
)
def test_reference_curvatures(act: Activation, value: float, at: float) -> None:
    assert act.max_curvature.value == pytest.approx(value, abs=5e-5)
    assert act.max_curvature.at == pytest.approx(at, abs=5e-5)


FAMILIES = [
    lambda k: RCTAF.from_curvature(k, beta=0),
    lambda k: RCTAF.from_curvature(k, beta=1),
    lambda k: RCTAF.from_curvature(k, beta=2),
    lambda k: RCTAF.from_curvature(k, beta=3),
    Swish.from_curvature,
    Squareplus.from_curvature,
    lambda k: PowerGate.from_curvature(k, n=3),
    Softplus.from_curvature,
    GELU.from_curvature,
    Mish.from_curvature,
    RCRAF.from_curvature,
]


@pytest.mark.parametrize("family", FAMILIES)
@given(kappa=st.floats(1e-3, 1e4))
@settings(max_examples=25)
def test_any_curvature_is_met(family, kappa: float) -> None:  # type: ignore[no-untyped-def]
    act = family(kappa)
    assert act.max_curvature.value == pytest.approx(kappa, rel=1e-14)
    at = torch.tensor([act.max_curvature.at], dtype=torch.float64)
    assert float(act.curvature(at).abs()) == pytest.approx(kappa, rel=1e-9)


def test_rctaf_at_beta_zero_is_rcraf_and_softplus() -> None:
    x = torch.linspace(-8, 8, 201, dtype=torch.float64)
    assert torch.equal(RCTAF(5.0)(x), RCRAF(5.0)(x))
    assert torch.equal(RCTAF(5.0)(x), Softplus(5.0)(x))


@pytest.mark.parametrize("beta", range(4))
def test_remainder_over_relu_is_even_and_slope_rises(beta: int) -> None:
    act = RCTAF(4.0, beta)
    x = torch.linspace(0, 5, 1001, dtype=torch.float64)
    torch.testing.assert_close(act(x) - x, act(-x), rtol=0, atol=3e-15)
    # Rising but for one rounding.
    assert bool((act.slope(torch.linspace(-9, 9, 4001, dtype=torch.float64)).diff() >= -3e-16).all())


# ---- torch's transforms ----


def build(name: str) -> Activation:
    act = activation(name)
    assert isinstance(act, Activation)
    return act


@pytest.mark.parametrize("name", [*ALL, *LEARNABLE, *PARAMETRIC])
def test_gradcheck_and_gradgradcheck(name: str) -> None:
    act = build(name).double()
    x = torch.tensor([-2.1, -0.7, -0.05, 0.04, 0.3, 0.66, 1.7, 2.6], dtype=torch.float64, requires_grad=True)
    names = [key for key, _ in act.named_parameters()]
    inputs = (x, *(p.detach().clone().requires_grad_() for p in act.parameters()))

    def call(t: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(act, dict(zip(names, parameters, strict=True)), (t,))  # type: ignore[no-any-return]

    assert gradcheck(
        call, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", [*ALL, *PARAMETRIC])
def test_functional_transforms(name: str) -> None:
    act = build(name).double().requires_grad_(False)
    x = torch.tensor([-2.1, -0.7, 0.3, 0.66, 1.7], dtype=torch.float64)
    v = torch.linspace(1, 2, 5, dtype=torch.float64)
    hessian = torch.func.hessian(lambda t: act(t).sum())(x)
    torch.testing.assert_close(hessian, torch.diag(act.curvature(x)), rtol=1e-12, atol=1e-13)
    _, tangent = torch.func.jvp(act, (x,), (v,))
    torch.testing.assert_close(tangent, act.slope(x) * v, rtol=1e-12, atol=1e-13)
    _, second = torch.func.jvp(torch.func.grad(lambda t: act(t).sum()), (x,), (v,))
    torch.testing.assert_close(second, act.curvature(x) * v, rtol=1e-12, atol=1e-13)
    # Those with |α| take plain tensor code in place of the native kernel: a few roundings.
    tolerance = {"rtol": 1e-14, "atol": 1e-15} if name in PARAMETRIC else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(torch.vmap(act)(x.view(5, 1)).view(5), act(x), **tolerance)
    torch.testing.assert_close(torch.vmap(act, in_dims=1)(x.view(1, 5)).view(5), act(x), **tolerance)


@pytest.mark.parametrize(
    "name",
    [  # one of each formula
        *(
            "rctaf(curvature=2, beta=1, centered=True)",
            "rctaf(curvature=2, beta=3)",
            "swish(curvature=2)",
            "silu",
        ),
        *("squareplus(curvature=2, centered=True)", "powergate(curvature=2, n=3)", "gelu(curvature=2)"),
        *(
            "mish(curvature=2)",
            "rcraf(alpha=3, gamma=2, centered=True)",
            "elu(alpha=0.5)",
            "prelu(alpha=0.25)",
        ),
        *("pelu(alpha=0.7)", "prelu_plus(alpha=1.5)", "reblu(alpha=0.5)", "psilu(alpha=-3)", CTUS[0]),
        *(
            "psoftplus(alpha=-2, centered=True)",
            "ssilu(beta=-0.5)",
            "pssilu(alpha=2, beta=0.3, learnable=True)",
        ),
    ],
)
def test_compiles_as_one_graph(name: str) -> None:
    """Traced fully and differentiated through AOTAutograd; inductor itself is exercised on one
    family below.
    """
    torch._dynamo.reset()
    act = build(name).double()
    compiled = torch.compile(act, fullgraph=True, backend="aot_eager")
    x = torch.tensor([-30.0, -2.0, 0.0, 0.4, 3.0, 1e4], dtype=torch.float64, requires_grad=True)
    inputs = [x, *act.parameters()]
    y, want = compiled(x), act(x)
    # Where a polynomial stands for softplus, a few roundings.
    torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-14)
    gradients = torch.autograd.grad(y.sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(want.sum(), inputs), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], act.slope(x).detach(), rtol=0, atol=1e-13)


def test_vmap_over_alpha() -> None:
    act = RCTAF(1.0, 1, learnable=True)
    x = torch.linspace(-1, 1, 7)
    alphas = torch.tensor([0.5, 4.0, 30.0])
    together = torch.vmap(lambda a: torch.func.functional_call(act, {"alpha": a}, (x,)))(alphas)
    for row, alpha in zip(together, alphas, strict=True):
        torch.testing.assert_close(row, RCTAF(float(alpha), 1)(x), rtol=1e-6, atol=1e-7)
    per_sample = torch.vmap(
        torch.func.grad(lambda a, t: torch.func.functional_call(act, {"alpha": a}, (t,)).sum()),
        in_dims=(0, None),
    )(alphas, x)
    assert per_sample.shape == (3,)


def test_inductor_gradient_and_jvp_of_gradient() -> None:
    torch._dynamo.reset()
    act = RCTAF.from_curvature(6, beta=1)
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.compile(act, fullgraph=True)(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    # float32: a few units of rounding.
    torch.testing.assert_close(slope, act.slope(x.detach()), rtol=0, atol=1e-6)
    torch._dynamo.reset()

    def curvature(t, v):  # type: ignore[no-untyped-def]
        return torch.func.jvp(torch.func.grad(lambda s: act(s).sum()), (t,), (v,))[1]

    t = x.detach()
    got = torch.compile(curvature, fullgraph=True)(t, torch.ones_like(t))
    torch.testing.assert_close(got, act.curvature(t), rtol=1e-4, atol=1e-5)


# ---- numbers of every kind ----

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*ALL, *PARAMETRIC])
@given(x=st.lists(st.floats(-1e4, 1e4), max_size=8))
@settings(max_examples=5)
def test_any_finite_input(name: str, dtype: torch.dtype, x: list[float]) -> None:
    act = build(name)
    if dtype == torch.float64:
        act.double()
    t = torch.tensor([*x, -1e4, 0.0, 1e4], dtype=dtype, requires_grad=True)
    y = act(t)
    assert (y.dtype, y.shape) == (dtype, t.shape)
    gradients = torch.autograd.grad(y.sum(), [t, *act.parameters()])
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert bool(act.curvature(t.detach()).isfinite().all())
    exact = build(name).double()(t.detach().double()).detach()
    fits = exact.abs() < 6e4  # float16 ends at 65504
    assert bool(y[fits].isfinite().all())
    # Half precision rounds once (2⁻⁸ or 2⁻¹¹ relative); float32 computes to a few units of max(|σ|,
    # 1/α, 1e-4), and of the
    # terms up to |x| that the parametric families add.
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-15}[dtype]
    terms = exact.abs() + (1e-2 * t.detach().double().abs() if name in PARAMETRIC else 0.0)
    assert bool(((y.detach().double() - exact).abs() <= tolerance * terms + 1e-6)[fits].all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [n for n in ALL if "gamma" not in n and "centered" not in n])
def test_limits(name: str, dtype: torch.dtype) -> None:
    act = activation(name)
    assert isinstance(act, Activation)
    ends = torch.tensor([-math.inf, math.inf], dtype=dtype)
    low = {"elu": -1.0, "elu(alpha=0.5)": -0.5}.get(name, 0.0)
    assert act(ends).tolist() == [low, math.inf]
    assert act.slope(ends).tolist() == [0.0, 1.0]
    assert act.curvature(ends).tolist() == [0.0, 0.0]
    assert bool(act(torch.tensor(math.nan, dtype=dtype)).isnan())


@pytest.mark.parametrize("name", ALL)
def test_largest_floats_do_not_overflow(name: str) -> None:
    x = torch.tensor([-3e38, -1e30, 1e30, 3e38])
    assert bool(activation(name)(x).isfinite().all())


@pytest.mark.parametrize("name", [*ALL, *PARAMETRIC])
def test_memory_layouts(name: str) -> None:
    act = build(name)
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    expected = act(x)
    last = x.contiguous(memory_format=torch.channels_last)
    # Vector and scalar code of torch's own kernels may round the last bit differently.
    tolerance = {"rtol": 3e-7, "atol": 3e-7}
    torch.testing.assert_close(act(last), expected, **tolerance)
    assert act(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(act(x[:, ::2, 1:]), expected[:, ::2, 1:], **tolerance)
    torch.testing.assert_close(act(x.transpose(0, 3)), expected.transpose(0, 3), **tolerance)
    assert act(torch.tensor(1.0)).shape == ()
    empty = torch.empty(0, 4, 5, 6, requires_grad=True)
    assert act(empty).shape == (0, 4, 5, 6)
    act(empty).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in act.parameters())
    grads = []
    for t in (x.clone(), last.clone()):
        t.requires_grad_()
        grads.append(torch.autograd.grad((act(t) * x).sum(), t)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*SMOOTH, *PARAMETRIC])
def test_only_the_input_is_saved(name: str) -> None:
    saved: list[torch.Tensor] = []
    x = torch.randn(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        activation(name)(x)
    assert [t.data_ptr() for t in saved if t.numel() > 1] == [x.data_ptr()]


@pytest.mark.parametrize("name", ["rctaf", *PARAMETRIC])
def test_integers_are_refused(name: str) -> None:
    with pytest.raises(CurvactError, match="int64"):
        activation(name)(torch.arange(3))


@pytest.mark.parametrize("name", SMOOTH)
def test_large_tensors_equal_small_ones(name: str) -> None:
    """However large tensors are run, each element has the same bits as alone."""
    act = activation(name)
    x = torch.randn(200_003, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.randn(200_003, generator=torch.Generator().manual_seed(2))
    y = act(x)
    (grad,) = torch.autograd.grad((y * weight).sum(), x)
    part = x.detach()[131_000:131_900].clone().requires_grad_()
    y_part = act(part)
    (grad_part,) = torch.autograd.grad((y_part * weight[131_000:131_900]).sum(), part)
    # Vector and scalar code of torch's own kernels may round the last bit differently.
    torch.testing.assert_close(y[131_000:131_900], y_part, rtol=3e-7, atol=3e-8)
    torch.testing.assert_close(grad[131_000:131_900], grad_part, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["rctaf(curvature=2, beta=1)", "swish(curvature=2)"])
def test_batched_gradients_of_large_tensors(name: str) -> None:
    """vmap over the backward pass, on tensors large enough to be run in parts."""
    act = activation(name)
    x = torch.randn(150_000, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = act(x)
    weights = torch.stack([torch.ones_like(x), 2 * torch.ones_like(x)])
    (together,) = torch.autograd.grad(y, x, weights, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(together, torch.stack([one, 2 * one]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["rctaf(curvature=3, learnable=True)", "powergate(alpha=2, n=2, learnable=True)"]
)
def test_learnable_alpha_far_from_the_origin(name: str) -> None:
    """∂σ/∂α decays away from 0; in float32 it must not drown in the rounding of a large σ."""
    act = activation(name)
    assert isinstance(act, ScaledActivation)
    x = torch.tensor([-1e4, -10.0, 10.0]) if "powergate" in name else torch.tensor([-1e4, 1e4, 1e3])
    act(x).sum().backward()
    exact = activation(name).double()
    exact(x.double()).sum().backward()
    # Single accumulated roundings of numbers near 1; the cancellation it guards against would give
    # 1e-3.
    torch.testing.assert_close(act.alpha.grad.double(), exact.alpha.grad, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]


def test_autocast_keeps_the_input_dtype() -> None:
    act = RCTAF.from_curvature(6, beta=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.randn(10, dtype=dtype, requires_grad=True)
            y = act(x)
            y.sum().backward()
            assert y.dtype == dtype
            assert x.grad is not None
            assert x.grad.dtype == dtype


@pytest.mark.parametrize("name", ALL)
def test_centered_is_zero_at_zero_and_changes_nothing_else(name: str) -> None:
    plain = activation(name)
    centered = activation(
        name
        if "centered" in name
        else (f"{name[:-1]}, centered=True)" if "(" in name else f"{name}(centered=True)")
    )
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    assert float(centered(torch.zeros((), dtype=torch.float64))) == pytest.approx(0, abs=1e-16)
    assert isinstance(plain, Activation)
    assert isinstance(centered, Activation)
    torch.testing.assert_close(plain.slope(x), centered.slope(x), rtol=0, atol=0)


# ---- torch's own ----


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("tanh", torch.tanh),
        ("tanh(alpha=3)", lambda x: torch.tanh(3 * x) / 3),
        ("tanh(curvature=6)", None),
        ("celu", torch.nn.functional.celu),
        ("celu(alpha=0.25)", lambda x: torch.nn.functional.celu(x, 0.25)),
        ("celu(curvature=6)", None),
        ("selu", torch.nn.functional.selu),
        ("leaky_relu", torch.nn.functional.leaky_relu),
        ("leaky_relu(negative_slope=-0.5)", lambda x: torch.nn.functional.leaky_relu(x, -0.5)),
        ("leaky_relu(negative_slope=1)", lambda x: x),
        ("hardswish", torch.nn.functional.hardswish),
        ("elu", torch.nn.functional.elu),
        ("relu", torch.relu),
    ],
)
def test_torchs_own_against_torch_and_its_curvature_measured(name, theirs):
    act = activation(name)
    peak = act.max_curvature
    measured = max_curvature(theirs or (lambda x: act(x)))
    assert peak.value == pytest.approx(measured.value, rel=1e-6)
    assert abs(peak.at - measured.at) < 1e-6
    if "curvature" in name:
        assert peak.value == pytest.approx(6.0)
    x = torch.linspace(-7.01, 6.97, 401, dtype=torch.float64).requires_grad_()
    if theirs is not None:
        torch.testing.assert_close(act(x), theirs(x), rtol=1e-12, atol=1e-14)
        (slope,) = torch.autograd.grad(theirs(x).sum(), x, create_graph=True)
        torch.testing.assert_close(act.slope(x), slope, rtol=1e-12, atol=1e-12)
        if slope.requires_grad:
            (bend,) = torch.autograd.grad(slope.sum(), x, allow_unused=True)
            bend = torch.zeros_like(x) if bend is None else bend
            torch.testing.assert_close(act.curvature(x), bend, rtol=1e-10, atol=1e-12)
    half = x.detach().half()
    assert act(half).dtype is act.slope(half).dtype is act.curvature(half).dtype is torch.float16
