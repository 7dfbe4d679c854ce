"""max_curvature against closed forms, scipy and functions whose peak is put where we know it."""

from __future__ import annotations

import math
import time
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.activations.curvature import Peak, max_curvature
from curvact.activations.curvature.function import ScalarFunction
from curvact.errors import CurvactError

TANH = 4 / (3 * math.sqrt(3))
PLACES = st.floats(-9990, 9990).filter(lambda x: abs(x) > 1e-3)


def close(peak: Peak, kappa: float, at: float | None = None, *, slack: float = 1e-3) -> None:
    """The stated error holds, is small (below `slack` of κ), and the place is right to a part of
    the peak's width, about 1/κ.
    """
    rounding = 1e-14 * kappa  # of the closed forms themselves
    assert abs(peak.value - kappa) <= peak.error + rounding, (peak, kappa)
    assert peak.error <= slack * kappa
    if at is not None:
        assert abs(peak.at - at) <= 1e-3 / kappa + 1e-9 * abs(at), (peak, at)


def mish_kappa() -> tuple[float, float]:
    """κ of Mish and its place from scipy, by the derivatives of tanh(softplus) written out with
    numpy.
    """

    def bend(x: float) -> float:
        s, t = 1 / (1 + math.exp(-x)), math.tanh(math.log1p(math.exp(x)))
        dt = s * (1 - t * t)
        ddt = s * (1 - s) * (1 - t * t) - 2 * t * dt * s
        return 2 * dt + x * ddt

    found = scipy.optimize.minimize_scalar(lambda x: -abs(bend(x)), bounds=(-1, 1), options={"xatol": 1e-12})
    return -found.fun, found.x


@pytest.mark.parametrize(
    ("f", "kappa", "at"),
    [
        (nn.Softplus(), 0.25, 0.0),
        (nn.SiLU(), 0.5, 0.0),
        (nn.Mish(), *mish_kappa()),
        (nn.GELU(), math.sqrt(2 / math.pi), 0.0),
        (nn.ELU(), 1.0, 0.0),
        (nn.CELU(), 1.0, 0.0),
        (nn.Identity(), 0.0, 0.0),
        (torch.tanh, TANH, math.atanh(1 / math.sqrt(3))),
        (nn.Sigmoid(), TANH / 8, 2 * math.atanh(1 / math.sqrt(3))),
        (nn.Softsign(), 2.0, 0.0),
        (nn.LogSigmoid(), 0.25, 0.0),
        (torch.square, 2.0, 0.0),
        (torch.sin, 1.0, math.pi / 2),
        (lambda x: x**3, 6e4, 1e4),
        (lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))), *mish_kappa()),  # the backward pass overflows
    ],
)
def test_closed_forms(f, kappa, at):
    peak = max_curvature(f)
    if kappa == 0:
        assert peak == Peak(0.0, 0.0, 0.0)
    else:
        close(peak, kappa, at)


@pytest.mark.parametrize(
    ("f", "places"),
    [
        (nn.ReLU(), [0]),
        (nn.ReLU(inplace=True), [0]),
        (nn.LeakyReLU(), [0]),
        (nn.LeakyReLU(1 - 2e-6), [0]),  # twice the resolution
        (nn.PReLU(), [0]),
        (nn.ELU(0.5), [0]),
        (nn.SELU(), [0]),
        (nn.ReLU6(), [0]),
        (nn.Hardtanh(), [1]),
        (nn.Hardsigmoid(), [3]),
        (nn.Hardswish(), [3]),
        (nn.Hardshrink(0.5), [0.5]),
        (nn.Threshold(0.3, 2.0), [0.3]),
        (torch.abs, [0]),
        (lambda x: torch.sqrt(x * x), [0]),  # its autograd slope is NaN at the kink
        (torch.round, [0.5]),
        (torch.sign, [0]),
        (lambda x: x.abs() ** 1.5, [0]),  # no jump, but σ'' grows without bound
        (lambda x: F.relu(x - 1234.5678), [1234.5678]),
        (lambda x: F.silu(x) + 1e-5 * F.relu(x + 9876.5), [-9876.5]),
    ],
)
def test_kinks_are_infinite(f, places):
    assert max_curvature(f) == Peak(math.inf, places[0], 0.0)


def test_a_step_below_the_resolution_is_no_kink():
    def f(x):
        return F.softplus(x) + 1e-7 * F.relu(x - 1)

    assert max_curvature(f).value == pytest.approx(0.25, abs=1e-6)
    assert max_curvature(f, resolution=1e-8) == Peak(math.inf, 1.0, 0.0)


@given(log_kappa=st.floats(-3, 4), family=st.sampled_from(["softplus", "swish", "squareplus"]))
@settings(max_examples=25)
def test_families_at_any_curvature(log_kappa, family):
    kappa = 10**log_kappa
    if family == "softplus":
        f = nn.Softplus(beta=4 * kappa)
    elif family == "swish":
        f = lambda x: x * torch.sigmoid(2 * kappa * x)  # noqa: E731
    else:
        b = 1 / (4 * kappa**2)
        f = lambda x: (x + torch.sqrt(x * x + b)) / 2  # noqa: E731
    close(max_curvature(f), kappa, 0.0, slack=1e-6)


@given(place=PLACES, sign=st.sampled_from([-1, 1]))
@settings(max_examples=50)
def test_a_narrow_peak_anywhere(place, sign):
    """κ = 1e4 and width 1e-4, beside a smooth activation that bends at 0."""
    alpha = 4e4

    def f(x):
        return F.silu(x) + sign * F.softplus(alpha * (x - place)) / alpha

    # silu'' at the place is in the truth as well.
    t = torch.tensor(place, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.silu(t), t, create_graph=True)
    (bend,) = torch.autograd.grad(slope, t)
    peak = max_curvature(f)
    # Where silu bends too, the sum's peak moves by a width times the ratio of third derivatives:
    # 1e-8 of κ at most.
    assert abs(peak.value - (1e4 + sign * bend.item())) <= peak.error + 1e-4
    assert peak.error <= 0.1
    assert abs(peak.at - place) <= 1e-7


@given(
    wide=st.floats(-100, 100),
    narrow=PLACES,
    log_ratio=st.floats(0.01, 4),
)
@settings(max_examples=25)
def test_of_two_peaks_the_taller_wins(wide, narrow, log_ratio):
    low, high = 1.0, 10**log_ratio

    def softplus(x, kappa, place):
        return F.softplus(4 * kappa * (x - place)) / (4 * kappa)

    def f(x):
        return softplus(x, low, wide) + softplus(x, high, narrow)

    def bend(x):  # in numpy, by the closed form κ sech²
        return sum(
            k / np.cosh(np.clip(2 * k * (x - p), -300, 300)) ** 2 for k, p in ((low, wide), (high, narrow))
        )

    grid = narrow + np.linspace(-1, 1, 20001) / high
    peak = max_curvature(f)
    truth = max(float(bend(grid).max()), float(bend(wide + np.linspace(-1, 1, 20001)).max()))
    # The grid's own error: step² σ''''/8 with step 1e-4/κ and σ'''' = 8κ³.
    assert abs(peak.value - truth) <= peak.error + 1e-7 * truth


@given(
    place=PLACES,
    log_width=st.floats(-4, -1),
    log_height=st.floats(-4, 0),
    sign=st.sampled_from([-1, 1]),
)
@settings(max_examples=40)
def test_a_bump_of_the_slope_that_comes_back(place, log_width, log_height, sign):
    """Slope 1 + a·exp(−((x−p)/w)²): no net change of the slope, κ = a/w·√(2/e)."""
    width, height = 10**log_width, sign * 10**log_height

    def f(x):
        return x + height * width * math.sqrt(math.pi) / 2 * torch.erf((x - place) / width)

    peak = max_curvature(f)
    kappa = abs(height) / width * math.sqrt(2 / math.e)
    close(peak, kappa, slack=1e-4)
    assert abs(abs(peak.at - place) - width / math.sqrt(2)) <= 1e-3 * width


@given(place=PLACES, log_jump=st.floats(-5.5, 1), sign=st.sampled_from([-1, 1]), smooth=st.booleans())
@settings(max_examples=50)
def test_a_kink_anywhere(place, log_jump, sign, smooth):
    jump = sign * 10**log_jump

    def f(x):
        return (F.silu(x) if smooth else 0 * x) + jump * F.relu(x - place)

    # silu's slope reaches 1.1, and above 1 the resolution is relative to it: 10^-5.5 is over it in
    # any case.
    peak = max_curvature(f)
    assert peak.value == math.inf
    assert abs(peak.at - place) <= 1e-10 * max(1, abs(place))


@given(first=PLACES, second=PLACES, gap=st.floats(1e-4, 1))
@settings(max_examples=25)
def test_of_several_kinks_the_nearest_to_zero(first, second, gap):
    def f(x):
        return F.relu(x - first) - F.relu(x - first - gap) + F.hardtanh(x - second)

    kinks = [first, first + gap, second - 1, second + 1]
    assert abs(max_curvature(f).at) == pytest.approx(min(map(abs, kinks)), rel=1e-9, abs=1e-10)


def test_equal_peaks_nearest_to_zero_then_positive():
    def bumps(*places):
        return lambda x: sum(F.softplus(x - p) for p in places)

    assert max_curvature(bumps(-40.0, 300.0)).at == pytest.approx(-40, abs=1e-5)
    assert max_curvature(bumps(-40.0, 40.0)).at == pytest.approx(40, abs=1e-5)
    assert max_curvature(torch.cos, domain=(-100, 50)).at == 0.0


@pytest.mark.parametrize(
    ("f", "kappa", "at"),
    [
        (math.tanh, TANH, math.atanh(1 / math.sqrt(3))),
        (np.tanh, TANH, math.atanh(1 / math.sqrt(3))),
        (lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))), 0.25, 0.0),
        (lambda x: x if x > 0 else math.expm1(x), 1.0, 0.0),
        (lambda x: np.logaddexp(0, 400 * (x - 7.5)) / 400, 100.0, 7.5),
        (torch.no_grad()(F.silu), 0.5, 0.0),
        (lambda x: x.detach().sigmoid() * x.detach(), 0.5, 0.0),
    ],
)
def test_without_autograd(f, kappa, at):
    peak = max_curvature(f)
    close(peak, kappa, slack=1e-3)
    assert abs(peak.at - at) <= 1e-4


def test_without_autograd_kinks_and_constants():
    assert max_curvature(lambda x: max(x, 0.0)) == Peak(math.inf, 0.0, 0.0)
    assert max_curvature(lambda x: 3.0).value == 0.0
    # ln on [0.1, 5]: −1/x², largest at the end of the domain.
    close(max_curvature(math.log, domain=(0.1, 5.0)), 100.0, 0.1)


class _Rounded(torch.autograd.Function):
    """A straight-through estimator: autograd says slope 1, the values are steps."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class _Opaque(torch.autograd.Function):
    """SiLU whose backward pass autograd cannot see: its second derivative comes out as 0."""

    @staticmethod
    def forward(ctx, x):
        s = torch.sigmoid(x)
        ctx.slope = s * (1 + x * (1 - s))
        return x * s

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope


class _Once(_Opaque):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.slope


@pytest.mark.parametrize("function", [_Opaque, _Once])
def test_a_wrong_or_missing_second_derivative(function):
    close(max_curvature(function.apply), 0.5, 0.0)


def test_straight_through_estimators_are_measured_by_their_values():
    assert max_curvature(_Rounded.apply) == Peak(math.inf, 0.5, 0.0)


class _Liar(nn.Module):
    """Says one slope and curvature, and is another function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def slope(self, x: Tensor) -> Tensor:
        return 7 * x

    def curvature(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 7.0)


def test_claims_of_the_module_are_not_believed():
    close(max_curvature(_Liar()), 0.5, 0.0)


@pytest.mark.parametrize(
    ("f", "kappa", "slack"),
    [
        (lambda x: F.silu(x.float()), 0.5, 1e-3),
        (lambda x: F.mish(x.float()), mish_kappa()[0], 1e-2),
        (lambda x: F.silu(x.float()).double(), 0.5, 1e-3),
        (lambda x: F.silu(x.to(torch.bfloat16)), 0.5, 2.0),
    ],
)
def test_lower_precision_has_a_larger_error(f, kappa, slack):
    peak = max_curvature(f)
    close(peak, kappa, slack=slack)
    assert peak.error > 1e-8


class _Learnable(nn.Module):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.rand_like(x)
        return x * torch.sigmoid(self.beta * x)


def test_a_float32_module_in_train_mode_is_left_as_it_was():
    module = _Learnable(3.0).train()
    with torch.no_grad():
        peak = max_curvature(module)
    close(peak, 1.5, 0.0, slack=1e-9)
    assert module.training
    assert module.beta.dtype is torch.float32
    assert module.beta.grad is None
    with torch.inference_mode():
        assert max_curvature(module) == peak


def test_a_module_with_dropout_counts_as_in_eval_mode():
    close(max_curvature(nn.Sequential(nn.SiLU(), nn.Dropout(0.5))), 0.5, 0.0)


@pytest.mark.parametrize(
    ("f", "options", "says"),
    [
        (torch.exp, {}, r"exp is inf at x = \d+.*smaller domain"),
        (math.exp, {}, r"exp is nan at x = \d+.*smaller domain"),
        (torch.log, {}, r"log is (nan|-inf) at x = .*smaller domain"),
        (nn.Softmax(0), {}, "not elementwise: its value at a point depends on the other points"),
        (lambda x: F.dropout(x, 0.5), {}, "differs from call to call"),
        (torch.sum, {}, r"shape \(257,\) in, \(\) out"),
        (nn.Linear(3, 3), {}, "cannot call Linear"),
        (np.cumsum, {}, "not elementwise: its value"),
        (nn.SiLU(), {"domain": (1, 1)}, "domain="),
        (nn.SiLU(), {"domain": (-math.inf, 1)}, "domain="),
        (nn.SiLU(), {"domain": "wide"}, "domain="),
        (nn.SiLU(), {"resolution": 0}, "resolution="),
        (nn.SiLU(), {"resolution": "fine"}, "resolution='fine'"),
        (nn.SiLU(), {"max_evaluations": 0}, "max_evaluations=0"),
        (nn.SiLU(), {"domain": (-(10**400), 1)}, "domain="),
        (lambda x: torch.sin(1e5 * x), {"max_evaluations": 100_000}, "bends in too many places"),
        (3.0, {}, "takes a module or a function"),
    ],
)
def test_bad_input_is_one_clear_line(f, options, says):
    with pytest.raises(CurvactError, match=says) as caught:
        max_curvature(f, **options)
    assert "\n" not in str(caught.value)


def test_a_function_that_takes_one_tensor_number_at_a_time():
    call = ScalarFunction.of(lambda x: F.silu(x) if float(x) < 1e9 else x, (-3.0, 3.0), 10**6)
    x = np.linspace(-3, 3, 11)
    np.testing.assert_allclose(call.values(x), x / (1 + np.exp(-x)), rtol=1e-14, atol=0)
    assert not call.differentiable


def test_a_smaller_domain():
    # cosh on [−2, 3]: largest at the right end.
    close(max_curvature(torch.cosh, domain=(-2, 3)), math.cosh(3), 3.0)
    close(max_curvature(torch.exp, domain=(-600, 600)), math.exp(600))
    close(max_curvature(lambda x: x + torch.sin(x) ** 2, domain=(-30, 30)), 2.0, 0.0)
    assert max_curvature(nn.ReLU(), domain=(0.5, 2)).value == 0.0


def test_a_logarithmic_singularity_has_no_finite_error():
    """x² ln|x|: the slope is continuous, σ'' = 2 ln|x| + 3 grows without bound, and slowly."""
    peak = max_curvature(lambda x: torch.where(x == 0, 0 * x, x * x * torch.log(x.abs())), domain=(-1, 1))
    assert peak.error == math.inf
    assert peak.at == 0.0


def test_warnings_of_the_function_do_not_escape_the_attempts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        max_curvature(np.tanh)
        max_curvature(math.tanh)


# ---- what a search can miss ----


def bend(place: float, width: float, jump: float):
    """σ' = jump·sigmoid((x − place)/width), with κ = jump/(4·width) at the place."""

    def value(x):
        z = (x - place) / width
        return -jump * width * F.logsigmoid(-z)

    return value


class _BySlope(torch.autograd.Function):
    """A bend that gives its slope and no more: autograd takes the slope for a constant."""

    @staticmethod
    def forward(ctx, x, place, width, jump):
        ctx.save_for_backward(x)
        ctx.settings = place, width, jump
        return bend(place, width, jump)(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        place, width, jump = ctx.settings
        return grad * jump * torch.sigmoid((ctx.saved_tensors[0] - place) / width), None, None, None


BENDS = [(-2.826, 5.75e-7, 0.03), (-1023.8, 3.06e-5, 4.6e-4), (0.65, 1 / 240, 1.0), (12.3, 1e-6, 1e-3)]


@pytest.mark.parametrize(("place", "width", "jump"), BENDS)
@pytest.mark.parametrize("by_slope", [False, True])
def test_a_narrow_bend_given_by_its_values_or_its_slope(place, width, jump, by_slope):
    f = (lambda x: _BySlope.apply(x, place, width, jump)) if by_slope else bend(place, width, jump)
    close(max_curvature(f), jump / (4 * width), place, slack=1e-4)


@given(
    place=PLACES,
    log_width=st.floats(-7, -3),
    log_jump=st.floats(-3.5, 0.5),
    by_slope=st.booleans(),
    gaussian=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_random_bends_are_within_the_stated_error(place, log_width, log_jump, by_slope, gaussian):
    """Widths from the narrowest that float64 resolves at |x| = 1e4, by the slope or by the values."""
    width, jump = max(10**log_width, 1e-10 * abs(place)), 10**log_jump
    kappa = jump / (4 * width)
    f = (lambda x: _BySlope.apply(x, place, width, jump)) if by_slope else bend(place, width, jump)
    if gaussian and not by_slope:
        kappa = jump / (width * math.sqrt(2 * math.pi))

        def f(x):
            z = (x - place) / width
            density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            return jump * width * (z * (1 + torch.erf(z / math.sqrt(2))) / 2 + density)

    peak = max_curvature(f)
    assert abs(peak.value - kappa) <= peak.error + 1e-9 * kappa, (peak, kappa)
    # Some of the narrowest, within a factor 10 of what float64 resolves, have an infinite error: 2 of 60.
    if width > 1e-9 * abs(place):
        assert peak.error <= 0.05 * kappa


@pytest.mark.parametrize("place", [-50.0, 3.0, 777.0])
def test_a_bump_of_the_value_between_the_samples(place):
    """exp(−((x − p)/w)²): nothing of it is left a few widths away; κ = 2/w² at its top."""
    width = 1e-3 * abs(place) / 2
    close(max_curvature(lambda x: torch.exp(-(((x - place) / width) ** 2))), 2 / width**2, place)


def test_what_is_not_covered_is_said():
    peak = max_curvature(lambda x: torch.exp(-(((x + 50) / 1e-6) ** 2)))
    assert peak.value == 0  # too narrow to see
    assert 1e-6 / 50 < peak.unseen < 2e-3
    from curvact.activations import RCTAF

    assert RCTAF().max_curvature.unseen == 0


def test_a_jump_of_the_curvature_has_a_finite_error():
    """SmoothReLU, x − log(1 + αx)/α for x > 0: κ = α, a supremum approached at 0 from above."""
    for alpha in (0.5, 2.0, 30.0):
        peak = max_curvature(lambda x, a=alpha: F.relu(x) - torch.log1p(F.relu(x) * a) / a)
        close(peak, alpha, 0.0, slack=1e-6)


@pytest.mark.parametrize(
    "f",
    [lambda x: torch.sin(1e5 * x), lambda x: torch.sin(100 * x), math.sin, np.sin, torch.sin],
)
def test_an_answer_or_a_refusal_soon(f):
    """In processor time: a search ends after about a second, whatever the function."""
    start = time.process_time()
    try:
        peak = max_curvature(f)
    except CurvactError:
        peak = None
    assert peak is None or abs(peak.value - 1) <= peak.error
    assert time.process_time() - start < 10  # ten times what it takes here
