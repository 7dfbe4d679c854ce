"""The parametric activations of arXiv 2110.05626 against their definitions, and what training uses
of learned activations.
"""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from curvact.activations import (
    RCTAF,
    Activation,
    FixedPSSiLU,
    PReLU,
    PSiLU,
    PSSiLU,
    SSiLU,
    activation,
    activation_parameters,
    clip_beta_gradient,
    constrain_,
    current_curvature,
    current_parameters,
    default_scope,
    known_curvature,
    max_curvature,
    penalty,
)
from curvact.errors import CurvactError
from curvact.models import MODELS, build

INFINITE = math.inf


def _gate(u: object) -> object:
    return 1 / (1 + mpmath.exp(-u))


# The table of the paper (arXiv 2110.05626) in mpmath: name → (σ(x, α, β), κ(α,
# β)).
TABLE = {
    "prelu": (lambda x, a, b: x if x > 0 else a * x, lambda a, b: 0 if a == 1 else INFINITE),
    "pelu": (lambda x, a, b: x if x > 0 else a * mpmath.expm1(x), lambda a, b: 1 if a == 1 else INFINITE),
    "prelu_plus": (lambda x, a, b: a * x if x > 0 else 0, lambda a, b: 0 if a == 0 else INFINITE),
    "reblu": (lambda x, a, b: a * (mpmath.sqrt(x * x + 1) - 1) + x if x > 0 else 0, lambda a, b: INFINITE),
    "psilu": (lambda x, a, b: x * _gate(abs(a) * x), lambda a, b: abs(a) / 2),
    "psoftplus": (lambda x, a, b: mpmath.log1p(mpmath.exp(abs(a) * x)) / abs(a), lambda a, b: abs(a) / 4),
    "ssilu": (lambda x, a, b: x * (_gate(x) - b) / (1 - b), lambda a, b: 1 / (2 * abs(1 - b))),
    "pssilu_fixed": (
        lambda x, a, b: x * (_gate(abs(a) * x) - b) / (1 - b),
        lambda a, b: abs(a) / (2 * abs(1 - b)),
    ),
    "pssilu": (
        lambda x, a, b: x * (_gate(abs(a) * x) - abs(b)) / (1 - abs(b)),
        lambda a, b: abs(a) / (2 * abs(1 - abs(b))),
    ),
}
PUBLISHED = {
    "prelu": {"alpha": 0.0},
    "pelu": {"alpha": 1.0},
    "prelu_plus": {"alpha": 1.0},
    "reblu": {"alpha": 0.0},
    "psilu": {"alpha": 1.0},
    "psoftplus": {"alpha": 1.0},
    "ssilu": {"beta": 0.1},
    "pssilu_fixed": {"alpha": 1.0, "beta": 0.3},
    "pssilu": {"alpha": 1.0, "beta": 1e-8},
}
FORMS = [
    "prelu(alpha=0.25)",
    "prelu(alpha=-0.5, learnable=False)",
    "pelu(alpha=0.7)",
    "pelu(alpha=1.0, learnable=False)",
    "prelu_plus(alpha=1.5)",
    "reblu(alpha=0.5)",
    "reblu(alpha=-0.25, learnable=False)",
    "psilu(alpha=-3)",
    "psilu(alpha=3, learnable=False)",
    "psoftplus(alpha=-2, centered=True)",
    "psoftplus(alpha=2, learnable=False)",
    "ssilu",
    "ssilu(beta=-0.5)",
    "pssilu_fixed(alpha=-2)",
    "pssilu_fixed(alpha=2, learnable=False)",
    "pssilu",
    "pssilu(alpha=-3, beta=0.3)",
    "pssilu(alpha=12, beta=-0.9)",
    "pssilu(beta=0)",
    "pssilu(alpha=2, beta=0.3, learnable=True)",
]
LEARNED = [
    *(name for name in FORMS if list(activation(name).parameters())),
    "rctaf(alpha=3, beta=1, learnable=True)",
]


def build_act(name: str) -> Activation:
    act = activation(name)
    assert isinstance(act, Activation)
    return act


def numbers(act: Activation) -> tuple[float, float]:
    """α and β as numbers; 1 and 0 where the family has none."""
    alpha, beta = (getattr(act, key, other) for key, other in (("alpha", 1.0), ("beta", 0.0)))
    return (alpha.item() if isinstance(alpha, Tensor) else alpha), (
        beta.item() if isinstance(beta, Tensor) else beta
    )


def with_parameters(act: Activation, x: Tensor, *parameters: Tensor) -> Tensor:
    names = [name for name, _ in act.named_parameters()]
    return torch.func.functional_call(act, dict(zip(names, parameters, strict=True)), (x,))  # type: ignore[no-any-return]


# ---- against the table ----


@pytest.mark.parametrize("family", TABLE)
def test_published_initial_values(family: str) -> None:
    act = build_act(f"{family}(learnable=True)" if family == "pssilu" else family)
    # float32 parameters: 1e-8 and 0.3 are rounded.
    got = {key: float(torch.as_tensor(getattr(act, key)).detach()) for key in PUBLISHED[family]}
    assert got == pytest.approx(PUBLISHED[family], rel=1e-7)
    learned = [name for name, _ in act.named_parameters()]
    assert learned == {"ssilu": [], "pssilu": ["alpha", "beta"]}.get(family, ["alpha"])
    assert build_act(family).extra_repr().count("learnable") == 0


@pytest.mark.parametrize("family", TABLE)
@given(
    x=st.floats(-30, 30),
    alpha=st.floats(0.05, 20).flatmap(lambda a: st.sampled_from([a, -a])),
    beta=st.floats(-0.9, 0.9),
)
@settings(max_examples=25)
def test_value_and_curvature_are_the_table(family: str, x: float, alpha: float, beta: float) -> None:
    keys = PUBLISHED[family]
    given_ = {key: {"alpha": alpha, "beta": beta}[key] for key in keys}
    fixed = "" if family in ("ssilu", "pssilu") else ", learnable=False"
    act = build_act(f"{family}({', '.join(f'{k}={v!r}' for k, v in given_.items())}{fixed})")
    value, kappa = TABLE[family]
    with mpmath.workdps(50):
        want = float(value(mpmath.mpf(x), mpmath.mpf(alpha), mpmath.mpf(beta)))
    got = float(act(torch.tensor(x, dtype=torch.float64)))
    # A few roundings of terms up to |αx| or |x|/(1 − β), and of ln 2/α.
    size = (1 + abs(x)) * (1 + abs(alpha)) / (1 - abs(beta)) + 1 / abs(alpha)
    assert got == pytest.approx(want, rel=1e-13, abs=1e-15 * size)
    assert act.max_curvature.value == pytest.approx(kappa(alpha, beta), rel=1e-13)


@pytest.mark.parametrize("name", FORMS)
def test_peak_against_the_measured_one(name: str) -> None:
    act = build_act(name).double()
    found = max_curvature(lambda x: act(x).detach() if not x.requires_grad else act(x))
    # The search finds a closed κ to 1e-9, or says that it is a kink. PELU at α = 1 is a supremum at
    # a jump of σ''.
    assert act.max_curvature.value == pytest.approx(found.value, rel=1e-6)
    assert act.max_curvature.at == 0


SMOOTH = {
    "psilu": lambda x, a, b: x * torch.sigmoid(abs(a) * x),
    "psoftplus": lambda x, a, b: torch.nn.functional.softplus(abs(a) * x) / abs(a),
    "ssilu": lambda x, a, b: x * (torch.sigmoid(x) - b) / (1 - b),
    "pssilu_fixed": lambda x, a, b: x * (torch.sigmoid(abs(a) * x) - b) / (1 - b),
    "pssilu": lambda x, a, b: x * (torch.sigmoid(abs(a) * x) - abs(b)) / (1 - abs(b)),
}
"""The smooth ones of the table as plain tensor code."""


@pytest.mark.parametrize("family", SMOOTH)
@given(
    alpha=st.floats(0.0625, 20, width=32).flatmap(lambda a: st.sampled_from([a, -a])),
    beta=st.floats(-0.875, 0.875, width=32),
)
@settings(max_examples=10)
def test_curvature_of_the_current_parameters_against_a_grid(family: str, alpha: float, beta: float) -> None:
    """κ is the largest |σ″| by float64 autograd of the formula, on a grid of αx that has 0 and
    reaches far.
    """
    keys = PUBLISHED[family]
    act = build_act(
        {"ssilu": f"ssilu(beta={beta!r})", "pssilu": "pssilu(learnable=True)"}.get(family, family)
    )
    with torch.no_grad():
        for name, p in act.named_parameters():
            p.fill_({"alpha": alpha, "beta": beta}[name])
    b = {"pssilu_fixed": 0.3}.get(family, beta)
    a = alpha if "alpha" in keys else 1.0
    far = torch.logspace(-4, 1.5, 400, dtype=torch.float64)
    x = (torch.cat([-far, torch.zeros(1, dtype=torch.float64), far]) / abs(a)).requires_grad_()
    (slope,) = torch.autograd.grad(SMOOTH[family](x, a, b).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    # Roundings of a sum of terms up to α/(1 − β).
    assert act.max_curvature.value == pytest.approx(float(curvature.abs().max()), rel=1e-12)


def test_kinks_that_vanish() -> None:
    assert [build_act(f"prelu(alpha={a})").max_curvature.value for a in (1, 0)] == [0.0, INFINITE]
    assert [build_act(f"prelu_plus(alpha={a})").max_curvature.value for a in (0, 1)] == [0.0, INFINITE]
    assert [build_act(f"pelu(alpha={a})").max_curvature.value for a in (1, 0.9)] == [1.0, INFINITE]


def test_reblu_away_from_the_kink_bends_by_at_most_alpha() -> None:
    x = torch.logspace(-6, 3, 2000, dtype=torch.float64)
    curvature = build_act("reblu(alpha=-0.7, learnable=False)").curvature(x).abs()
    assert float(curvature.max()) == pytest.approx(0.7, rel=1e-9)
    assert float(curvature.max()) <= 0.7


@given(kappa=st.floats(1e-3, 1e4))
@settings(max_examples=25)
def test_any_curvature_is_met_and_held(kappa: float) -> None:
    for family in ("psilu", "psoftplus", "pssilu_fixed"):
        act = build_act(f"{family}(curvature={kappa!r})")
        assert act.max_curvature.value == pytest.approx(kappa, rel=1e-14)
        assert not list(act.parameters())
        assert str(activation(str(act))) == str(act)
        assert list(build_act(f"{family}(curvature={kappa!r}, learnable=True)").parameters())


@pytest.mark.parametrize("name", [*FORMS, *TABLE])
def test_names_round_trip(name: str) -> None:
    act = build_act(name)
    again = build_act(str(act))
    assert (type(again), str(again)) == (type(act), str(act))
    assert [p.tolist() for p in again.parameters()] == [p.tolist() for p in act.parameters()]


def test_names() -> None:
    assert str(PSiLU()) == "psilu(alpha=1.0)"
    assert str(build_act("PReLU_Plus(alpha=2)")) == "prelu_plus(alpha=2.0)"
    assert str(FixedPSSiLU(learnable=False)) == "pssilu_fixed(alpha=1.0, beta=0.3, learnable=False)"


# ---- derivatives ----


@pytest.mark.parametrize("name", FORMS)
def test_slope_and_curvature_are_the_derivatives_of_the_table(name: str) -> None:
    act = build_act(name).double()
    value = TABLE[name.partition("(")[0]][0]
    alpha, beta = numbers(act)
    for x in (-4.0, -0.6, -0.01, 0.02, 0.8, 3.0):
        with mpmath.workdps(40):
            want = [float(mpmath.diff(lambda t: value(t, alpha, beta), x, k, h=1e-12)) for k in (1, 2)]
        t = torch.tensor(x, dtype=torch.float64)
        # Central differences at a step of 1e-12 with 40 digits are good to 1e-14; the rest is
        # rounding
        # of terms up to α/(1 − β) = 120.
        assert act.slope(t).item() == pytest.approx(want[0], rel=1e-12, abs=1e-13)
        assert act.curvature(t).item() == pytest.approx(want[1], rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("name", LEARNED)
def test_vmap_over_parameters_and_their_gradients_per_sample(name: str) -> None:
    act = build_act(name).double()
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    sets = [torch.stack([p.detach(), 1.5 * p.detach()]) for p in act.parameters()]
    places = tuple(range(len(sets)))
    together = torch.vmap(lambda *p: with_parameters(act, x, *p))(*sets)
    gradients = torch.vmap(torch.func.grad(lambda *p: with_parameters(act, x, *p).sum(), argnums=places))(
        *sets
    )
    for row in (0, 1):
        one = [p[row].clone().requires_grad_() for p in sets]
        alone = with_parameters(act, x, *one)
        torch.testing.assert_close(together[row], alone, rtol=1e-13, atol=1e-14)
        want = torch.autograd.grad(alone.sum(), one)
        torch.testing.assert_close([g[row] for g in gradients], list(want), rtol=1e-12, atol=1e-13)


def test_gradients_of_half_precision_inputs_are_summed_in_float32() -> None:
    """The sums are beyond 65504, where float16 ends."""
    for name in ("prelu", "psilu(alpha=4)", "rctaf(alpha=4, learnable=True)"):
        act = build_act(name)
        x = torch.linspace(-3, 3, 100_000).half()
        (100 * act(x).float()).sum().backward()
        wide = build_act(name)
        (100 * wide(x.float())).sum().backward()
        for p, q in zip(act.parameters(), wide.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert abs(q.grad) > 65504
            assert float(p.grad) == pytest.approx(float(q.grad), rel=1e-3)


# ---- channels ----


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("name", LEARNED)
def test_channels_with_parameters_of_their_own(name: str, maps: bool) -> None:
    """A channel's output and gradients are those of a scalar activation with its parameters."""
    act = build_act(name).double()
    act.per_channel_(3, maps=maps)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in act.parameters():
            p.mul_(torch.linspace(0.8, 1.3, 3, dtype=torch.float64).view(p.shape))
    x = torch.randn(*((4, 3, 5, 2) if maps else (4, 6, 3)), generator=generator, dtype=torch.float64)
    x.requires_grad_()
    weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y = act(x)
    gradients = torch.autograd.grad((y * weight).sum(), [x, *act.parameters()])
    peaks = []
    for channel in range(3):
        one = build_act(name).double()
        own = [
            p.detach().flatten()[channel].view(q.shape)
            for p, q in zip(act.parameters(), one.parameters(), strict=True)
        ]
        one.load_state_dict(dict(zip((n for n, _ in one.named_parameters()), own, strict=True)))
        dim = 1 if maps else -1
        part = x.detach().select(dim, channel).clone().requires_grad_()
        alone = one(part)
        torch.testing.assert_close(y.select(dim, channel), alone, rtol=1e-13, atol=1e-14)
        want = torch.autograd.grad((alone * weight.select(dim, channel)).sum(), [part, *one.parameters()])
        torch.testing.assert_close(gradients[0].select(dim, channel), want[0], rtol=1e-12, atol=1e-13)
        for got, expected in zip(gradients[1:], want[1:], strict=True):
            torch.testing.assert_close(got.flatten()[channel], expected.reshape(()), rtol=1e-11, atol=1e-12)
        peaks.append(one.max_curvature.value)
    assert act.max_curvature.value == pytest.approx(max(peaks), rel=1e-13)
    assert str(act).endswith("channels=3)")


@pytest.mark.parametrize("name", LEARNED)
def test_channels_under_checks_and_transforms(name: str) -> None:
    act = build_act(name).double()
    act.per_channel_(2)
    with torch.no_grad():
        for p in act.parameters():
            p.mul_(torch.tensor([0.7, 1.2], dtype=torch.float64).view(2, 1, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 2, 1, generator=generator, dtype=torch.float64).requires_grad_()
    inputs = (x, *(p.detach().clone().requires_grad_() for p in act.parameters()))

    def call(*t: Tensor) -> Tensor:
        return with_parameters(act, *t)

    assert gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, inputs)
    want = act(x).detach()
    for dim in (0, 2, 3):  # one image, one row, one column at a time: C×1×1 meets the last three dimensions
        if dim == 0:
            mapped = torch.vmap(act)(x)
        else:
            mapped = torch.vmap(lambda t, d=dim: act(t.unsqueeze(d)).squeeze(d), in_dims=dim, out_dims=dim)(x)
        torch.testing.assert_close(mapped.detach(), want, rtol=1e-13, atol=1e-14)
    last = torch.vmap(act, in_dims=-1, out_dims=-1)(x.movedim(0, -1))
    torch.testing.assert_close(last.movedim(-1, 0).detach(), want, rtol=1e-13, atol=1e-14)
    per_sample = torch.vmap(torch.func.grad(lambda t: act(t).sum()))(x)
    torch.testing.assert_close(per_sample.detach(), act.slope(x).detach(), rtol=1e-12, atol=1e-13)


def test_compiled_channels() -> None:
    torch._dynamo.reset()
    for name in ("pssilu(beta=0.2, learnable=True)", "psoftplus(alpha=2)", "pelu"):
        act = build_act(name).double()
        act.per_channel_(3)
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        inputs = [x, *act.parameters()]
        y, want = torch.compile(act, fullgraph=True, backend="aot_eager")(x), act(x)
        torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(
            torch.autograd.grad(y.sum(), inputs),
            torch.autograd.grad(want.sum(), inputs),
            rtol=1e-12,
            atol=1e-12,
        )


def test_channels_need_scalar_parameters() -> None:
    for act in (build_act("relu"), build_act("rctaf"), SSiLU()):
        with pytest.raises(CurvactError, match="scope 'channel' gives every channel parameters of its own"):
            act.per_channel_(4)
    twice = PSiLU()
    twice.per_channel_(4)
    with pytest.raises(CurvactError, match="needs scalar parameters"):
        twice.per_channel_(4)
    with pytest.raises(CurvactError, match="unknown parameter 'channels'"):
        activation(str(twice))


# ---- traps and constraints ----


@pytest.mark.parametrize("family", [f for f in TABLE if f != "ssilu"])
def test_default_values_do_not_fall_into_the_trap(family: str) -> None:
    """Every learned parameter moves from its published initial value; PReLU and ReBLU start at 0
    and move, too.
    """
    act = build_act(f"{family}(learnable=True)")
    x = torch.linspace(-3, 4, 50)
    (act(x) - 1).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs() > 1e-3) for p in act.parameters())


@pytest.mark.parametrize("family", ["psilu", "pssilu_fixed", "pssilu"])
def test_a_size_of_exactly_zero_never_moves(family: str) -> None:
    """d|α| = 0 at α = 0, and d|β| = 0 at β = 0: gradient descent stays there, whatever the loss and
    the weight decay.
    """
    act = build_act(f"{family}(learnable=True)")
    with torch.no_grad():
        for p in act.parameters():
            p.zero_()
    optimizer = torch.optim.SGD(act.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (act(torch.linspace(-3, 4, 50)) - 1).square().sum() + penalty(act)
        loss.backward()
        optimizer.step()
    assert all(bool(p == 0) for p in act.parameters())
    with pytest.raises(CurvactError, match="κ"):
        _ = act.max_curvature
    # The loop's constrain_ leads α, not β, out of it.
    constrain_(act)
    act.alpha.grad = None  # type: ignore[union-attr]
    (act(torch.linspace(-3, 4, 50)) - 1).square().sum().backward()
    assert act.alpha.grad != 0  # type: ignore[union-attr]


def test_beta_stays_below_one() -> None:
    for value in (1.7, 1.0, -1.0, -30.0):
        act = PSSiLU(beta=0.5, learnable=True)
        with torch.no_grad():
            act.beta.fill_(value)  # type: ignore[union-attr]
        constrain_(nn.Sequential(nn.Linear(1, 1), act))
        assert float(act.beta.detach()) == math.copysign(1 - 2**-10, value)
        assert math.isfinite(act.max_curvature.value)
    inside = PSSiLU(beta=-0.9, learnable=True)
    constrain_(inside)
    assert float(inside.beta.detach()) == pytest.approx(-0.9)
    ruined = PSSiLU(learnable=True)
    with torch.no_grad():
        ruined.beta.fill_(math.nan)  # type: ignore[union-attr]
    constrain_(ruined)
    assert math.isnan(ruined.beta.detach())  # type: ignore[arg-type]


def test_scales_stay_away_from_zero() -> None:
    """RCT-AF's α would turn the function over below 0: it is reflected. |α| families keep their
    sign.
    """
    for act, start, end in (
        (RCTAF(learnable=True), -0.5, 0.5),
        (RCTAF(learnable=True), 0.0, 1e-6),
        (PSiLU(), -0.5, -0.5),
        (PSiLU(), -1e-9, -1e-6),
        (FixedPSSiLU(), 0.0, 1e-6),
        (PReLU(), 0.0, 0.0),
    ):
        with torch.no_grad():
            act.alpha.fill_(start)  # type: ignore[operator, union-attr]
        constrain_(act)
        assert float(act.alpha.detach()) == pytest.approx(end)  # type: ignore[arg-type]


# ---- what training uses ----


class Net(nn.Module):
    """Two PSSiLU with learned β, one of them in two places; a fixed one; PReLU of torch's; a fixed
    β with a learned α.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a = PSSiLU(1.0, -0.25, learnable=True)
        self.again = self.a
        self.b = PSSiLU(2.0, 0.5, learnable=True)
        self.fixed = PSSiLU(1.0, 0.9)
        self.part = FixedPSSiLU()
        self.torch = nn.PReLU()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for act in (self.a, self.again, self.b, self.fixed, self.part, self.torch):
            x = act(self.linear(x))
        return x


def test_penalty_counts_each_learned_beta_once() -> None:
    net = Net()
    assert penalty(net).item() == pytest.approx(10 * 0.75)
    assert penalty(net, 2.0).item() == pytest.approx(1.5)
    penalty(net).backward()
    assert (float(net.a.beta.grad), float(net.b.beta.grad)) == (-10.0, 10.0)  # type: ignore[union-attr, arg-type]
    assert net.a.alpha.grad is None or not net.a.alpha.grad  # type: ignore[union-attr]
    assert penalty(nn.Linear(2, 2)).shape == ()
    assert penalty(nn.ReLU()).item() == 0
    channels = PSSiLU(beta=0.5, learnable=True)
    channels.per_channel_(4)
    assert penalty(channels).item() == pytest.approx(20)
    net.a.beta.requires_grad_(False)  # type: ignore[union-attr]
    assert penalty(net).item() == pytest.approx(5)


def test_clipping_is_torchs_for_one_beta() -> None:
    net = Net()
    (net(torch.ones(4, 3)).square().sum() * 100 + penalty(net)).backward()
    others = {
        n: p.grad.clone() for n, p in net.named_parameters() if not n.endswith("beta") and p.grad is not None
    }
    twin = net.a.beta.detach().clone()  # type: ignore[union-attr]
    twin.grad = net.a.beta.grad.clone()  # type: ignore[union-attr]
    torch.nn.utils.clip_grad_norm_([twin], 0.01)
    clip_beta_gradient(net, 0.01)
    # torch divides by the norm + 1e-6.
    torch.testing.assert_close(net.a.beta.grad, twin.grad, rtol=1e-4, atol=0)  # type: ignore[union-attr]
    assert float(net.b.beta.grad.norm()) == pytest.approx(0.01)  # type: ignore[union-attr]
    assert all(torch.equal(dict(net.named_parameters())[n].grad, g) for n, g in others.items())  # type: ignore[arg-type]
    small = net.a.beta.grad.mul_(0.1).clone()  # type: ignore[union-attr]
    clip_beta_gradient(net, 0.01)
    assert torch.equal(net.a.beta.grad, small)  # type: ignore[union-attr]
    for g in (0.0, math.nan):
        net.a.beta.grad.fill_(g)  # type: ignore[union-attr]
        clip_beta_gradient(net, 0.01)
        assert net.a.beta.grad == 0 or math.isnan(net.a.beta.grad)  # type: ignore[union-attr, arg-type]
    for bad in (0.0, -1.0, math.inf):
        with pytest.raises(CurvactError, match="norm="):
            clip_beta_gradient(net, bad)


def test_activation_parameters_are_those_of_activations_once() -> None:
    net = Net()
    found = activation_parameters(net)
    want = [net.a.alpha, net.a.beta, net.b.alpha, net.b.beta, net.part.alpha, net.torch.weight]
    assert [id(p) for p in found] == [id(p) for p in want]


class Foreign(nn.Module):
    """Somebody's own activation: no subclass, but with a slope and a curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x

    def slope(self, x: Tensor) -> Tensor:
        return self.gain + 0 * x

    def curvature(self, x: Tensor) -> Tensor:
        return 0 * x


def test_activations_of_somebody_else_have_activation_parameters_too() -> None:
    act = Foreign()
    assert activation_parameters(nn.Sequential(nn.Conv2d(1, 8, 3), act)) == [act.gain]


def test_current_parameters_and_curvature() -> None:
    net = Net()
    parameters, curvature = current_parameters(net), current_curvature(net)
    assert parameters == pytest.approx(
        {"a.alpha": 1, "a.beta": -0.25, "b.alpha": 2, "b.beta": 0.5, "part.alpha": 1}
    )
    assert curvature == pytest.approx({"a": 1 / 1.5, "b": 2.0, "part": 1 / 1.4})
    channels = PSSiLU(2.0, 0.5, learnable=True)
    channels.per_channel_(3)
    with torch.no_grad():
        channels.alpha.copy_(torch.tensor([1.0, -4.0, 2.0]).view(3, 1, 1))  # type: ignore[union-attr]
        channels.beta.copy_(torch.tensor([0.8, 0.1, 0.5]).view(3, 1, 1))  # type: ignore[union-attr]
    model = nn.Sequential(channels)
    assert current_parameters(model) == pytest.approx(
        {
            "0.alpha.min": -4,
            "0.alpha.mean": -1 / 3,
            "0.alpha.max": 2,
            "0.beta.min": 0.1,
            "0.beta.mean": 1.4 / 3,
            "0.beta.max": 0.8,
        }
    )
    # max over channels of |α|/(2(1 − |β|)) = max(2.5, 2.22, 2); not that of the largest |α| with
    # the largest |β|.
    assert current_curvature(model) == pytest.approx({"0": 2.5})
    assert current_curvature(PReLU()) == {"activation": INFINITE}
    with torch.no_grad():
        channels.beta.fill_(1.5)  # type: ignore[union-attr]
    assert math.isnan(current_curvature(model)["0"])
    assert current_parameters(nn.ReLU()) == current_curvature(nn.ReLU()) == {}


def test_known_curvature() -> None:
    assert known_curvature(activation("psilu")) == 0.5
    assert known_curvature(nn.SiLU()) == pytest.approx(0.5)
    assert known_curvature(activation("sparta(variant=full)")) is None


def test_default_scopes() -> None:
    network = [f for f in TABLE if f not in ("ssilu", "pssilu")]
    assert {default_scope(f) for f in [*network, "pssilu(learnable=True)", PReLU, PReLU()]} == {"network"}
    assert {default_scope(f) for f in ["relu", "pssilu", "ssilu", "rctaf(learnable=True)", nn.ReLU]} == {
        "layer"
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_network_has_exactly_one_or_two_parameters_more(name: str) -> None:
    sizes = {"width": 2, "size": 8} if name != "vit" else {"width": 6, "depth": 2, "size": 8}
    if name.startswith(("w",)):
        sizes = {"widen_factor": 1} | ({"depth": 10} if name == "wide_resnet" else {})
    plain = sum(p.numel() for p in build(name, activation="relu", **sizes).parameters())
    for activation_name, extra in (
        *((f, 1) for f in TABLE if f not in ("ssilu", "pssilu")),
        ("ssilu", 0),
        ("pssilu(learnable=True)", 2),
    ):
        for scope in ({}, {"scope": "network"}):
            model = build(name, activation=activation_name, **sizes, **scope)
            assert sum(p.numel() for p in model.parameters()) == plain + extra
            assert sum(p.numel() for p in activation_parameters(model)) == extra


# ---- bad input ----


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("psilu(alpha=0)", "alpha=0 in psilu: alpha must not be 0"),
        ("psoftplus(alpha=0)", "alpha=0 in psoftplus: alpha must not be 0"),
        ("pssilu_fixed(alpha=0)", "alpha=0 in pssilu_fixed"),
        ("pssilu_fixed(beta=1)", r"beta=1 in pssilu_fixed: beta must be a number with \|beta\| < 1"),
        ("ssilu(beta=-1)", "beta=-1 in ssilu"),
        ("ssilu(learnable=True)", "unknown parameter 'learnable'"),
        ("prelu(alpha=1e999)", "alpha=inf in prelu: alpha must be a finite number"),
        ("pelu(alpha=True)", "alpha=True in pelu"),
        ("reblu(beta=1)", "unknown parameter 'beta'"),
        ("prelu(curvature=1)", "'prelu' has no curvature to choose"),
        ("psilu(learnable=false)", "cannot read a parameter"),
        ("psilu(curvature=-1)", "curvature=-1 in psilu"),
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
