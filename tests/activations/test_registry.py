"""Names: they round-trip, and what is wrong in one is said in one line."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from curvact.activations import (
    RCTAF,
    Activation,
    Elementwise,
    act_layer,
    activation,
    activation_names,
    as_factory,
    max_curvature,
    name_of,
    register,
    registry,
    swap_activations,
)
from curvact.errors import CurvactError


@pytest.mark.parametrize("name", [name for name in activation_names() if name != "sparta"])
@pytest.mark.parametrize("extra", ["", "centered=True", "learnable=True", "learnable=True, centered=True"])
def test_defaults_round_trip(name: str, extra: str) -> None:
    try:
        act = activation(f"{name}({extra})")
    except CurvactError as error:
        assert "learnable" in str(error)  # noqa: PT017 - ReLU, ELU and RCR-AF have nothing to learn
        return
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    # From its name, and from the pickle that the worker processes of attacks get.
    for again in (activation(str(act)), pickle.loads(pickle.dumps(act))):
        assert type(again) is type(act)
        assert str(again) == str(act)
        assert torch.equal(again.double()(x), act.double()(x))


@given(kappa=st.floats(1e-3, 1e5), beta=st.integers(0, 3))
def test_any_parameter_round_trips_exactly(kappa: float, beta: int) -> None:
    act = activation(f"rctaf(curvature={kappa!r}, beta={beta})")
    again = activation(str(act))
    assert again.alpha == act.alpha  # type: ignore[union-attr]
    for family in ("swish", "squareplus", "powergate", "gelu"):
        act = activation(f"{family}(curvature={kappa!r})")
        assert activation(str(act)).alpha == act.alpha  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtcaf", "unknown activation 'rtcaf'; did you mean 'rctaf'?"),
        ("rctaf(curvature=0)", "curvature=0 in rctaf: curvature must be a finite number > 0"),
        ("rctaf(curvature=-6)", "curvature=-6"),
        ("rctaf(curvature=1e999)", "curvature=inf"),
        ("rctaf(alpha=0)", "alpha=0 in rctaf"),
        ("rctaf(beta=4)", "beta=4 in rctaf: beta must be a whole number from 0 to 3"),
        ("rctaf(beta=-1)", "beta=-1"),
        ("rctaf(beta=0.5)", "beta=0.5"),
        (
            "rctaf(curvture=6)",
            "unknown parameter 'curvture' in 'rctaf(curvture=6)'.*did you mean 'curvature'",
        ),
        ("rctaf(6)", "cannot read the activation"),
        ("rctaf(curvature=six)", "cannot read a parameter"),
        ("rctaf(curvature='6')", "cannot read a parameter"),
        ("rctaf(curvature=6", "cannot read the activation"),
        ("", "cannot read the activation"),
        ("__import__('os')", "cannot read the activation|unknown activation"),
        ("relu(curvature=6)", "'relu' has no curvature to choose"),
        ("powergate(n=0)", "n=0 in powergate: n must be a whole number from 1 to 16"),
        ("squareplus(b=-1)", "b=-1 in squareplus"),
    ],
)
def test_bad_names_are_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(
        CurvactError, match=message.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")
    ) as caught:
        activation(name)
    assert "\n" not in str(caught.value)


class Bent(Activation):
    """A family from outside the package: softplus with κ = scale."""

    def __init__(self, scale: float = 1.0, *, centered: bool = False) -> None:
        super().__init__()
        self.scale, self.centered = scale, centered

    @classmethod
    def from_curvature(cls, curvature: float, *, centered: bool = False) -> Bent:
        return cls(curvature, centered=centered)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(x, 4 * self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}" + ", centered=True" * self.centered


def test_a_family_from_outside_is_a_class_and_a_name() -> None:
    register("bent", Bent)
    act = activation("bent(curvature=3)")
    assert isinstance(act, Bent)
    assert str(act) == "bent(scale=3)"
    again = activation(str(act))
    assert (type(again), str(again)) == (Bent, str(act))
    assert max_curvature(act).value == pytest.approx(3.0, rel=1e-6)
    zero = torch.zeros(1, dtype=torch.float64)
    assert (act.slope(zero).item(), act.curvature(zero).item()) == (0.5, 3.0)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.GELU())
    assert len(swap_activations(model, to="bent(scale=2)")) == 2
    assert [str(m) for m in model[1:]] == ["bent(scale=2)"] * 2
    assert str(act_layer("bent(curvature=3)")(inplace=True)) == "bent(scale=3)"
    assert isinstance(Bent(inplace=True), Bent)
    with pytest.raises(CurvactError, match="unknown parameter 'inplace'"):
        activation("bent(inplace=True)")
    with pytest.raises(CurvactError, match="taken"):
        register("bent", Bent)


# ---- act_layer, and inplace ----


@pytest.mark.parametrize("name", activation_names())
def test_every_constructor_takes_and_ignores_inplace(name: str) -> None:
    factory = registry._REGISTRY[name]
    for value in (True, False):
        assert str(factory(inplace=value)) == str(factory())
    if hasattr(factory, "from_curvature"):
        assert str(factory.from_curvature(3.0, inplace=True)) == str(factory.from_curvature(3.0))
    assert "inplace" not in str(factory(inplace=True))


def test_elementwise_takes_inplace_too() -> None:
    assert str(Elementwise(torch.tanh, inplace=True)) == "tanh"  # type: ignore[call-arg]


class TimmBlock(nn.Module):
    """Two activations made as timm makes them."""

    def __init__(self, act_layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first, self.act1 = nn.Linear(3, 3), act_layer(inplace=True)
        self.second, self.act2 = nn.Linear(3, 3), act_layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act2(self.second(self.act1(self.first(x))))
        return out


@pytest.mark.parametrize(
    "given_",
    [
        "rctaf(curvature=6)",
        "psilu",
        "sparta(variant=agnostic)",
        nn.Tanh,
        RCTAF,
        activation("swish(beta=3, learnable=True)"),
    ],
)
def test_act_layer_makes_a_fresh_module_at_each_call(given_: str | type[nn.Module] | nn.Module) -> None:
    block = TimmBlock(act_layer(given_))
    assert block.act1 is not block.act2
    assert str(block.act1) == str(block.act2)
    shared = [p for p in block.act1.parameters() if any(p is q for q in block.act2.parameters())]
    assert shared == []
    x = torch.randn(2, 3)
    before = x.clone()
    block(x).sum().backward()
    assert torch.equal(x, before)
    assert all(p.grad is not None for p in block.parameters())


def test_act_layer_is_a_partial_that_can_be_pickled() -> None:
    layer = act_layer("rctaf(curvature=6)")
    assert isinstance(layer, partial)  # timm asserts a type, a string, a function or a partial
    assert str(pickle.loads(pickle.dumps(layer))(inplace=True)) == "rctaf(alpha=24.0, beta=0)"
    with pytest.raises(CurvactError, match="did you mean 'rctaf'"):
        act_layer("rtcaf")
    with pytest.raises(CurvactError, match="'sparta' in act_layer needs the number of channels"):
        act_layer("sparta")


def test_importing_activations_loads_no_heavy_package() -> None:
    code = "import sys, curvact.activations; print([m for m in ('scipy', 'matplotlib', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_factories_and_modules() -> None:
    make = as_factory("rctaf(curvature=6)")
    assert make() is not make()
    shared = nn.ReLU()
    assert as_factory(shared)() is as_factory(shared)()
    assert as_factory(nn.Tanh)() is not as_factory(nn.Tanh)()
    assert name_of(nn.Tanh()) == "Tanh()"
    with pytest.raises(CurvactError, match="no activation"):
        as_factory(3)  # type: ignore[arg-type]


# ---- anything as an activation, and any text ----


class Args(Activation):
    """A class from outside with arguments of every kind."""

    def __init__(
        self, k: float = 2.0, *, kind: str = "soft", hard: bool = False, most: float | None = None
    ) -> None:
        super().__init__()
        self.k, self.kind, self.hard, self.most = k, kind, hard, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.k * x)


class Forgetful(Activation):
    def __init__(self, k: float = 2.0) -> None:
        super().__init__()
        self.factor = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.factor * x)


class Needs(Forgetful):
    def __init__(self, k: float) -> None:
        super().__init__(k)


def half(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.mark.usefixtures("own_registry")
def test_the_name_of_a_class_from_outside_has_its_arguments() -> None:
    register("with_args", Args)
    for act, text in (
        (Args(), "with_args"),
        (Args(5.0), "with_args(k=5.0)"),
        (Args(5, kind="hard", hard=True, most=3.5), "with_args(k=5, kind='hard', hard=True, most=3.5)"),
    ):
        assert str(act) == text
        again = activation(text)
        assert isinstance(again, Args)
        assert vars(again).items() >= {k: getattr(act, k) for k in ("k", "kind", "hard", "most")}.items()
    for act in (Args(most=[1]), Args(float("inf"))):  # type: ignore[arg-type]
        with pytest.raises(
            CurvactError, match=r"with_args has no name that parses back: its argument '(most|k)' is"
        ):
            str(act)
        assert repr(act) == "with_args(...)"
    with pytest.raises(
        CurvactError, match=r"cannot register 'forgetful': `str` of a Forgetful .* argument 'k'"
    ):
        register("forgetful", Forgetful)
    register("needs", Needs)
    with pytest.raises(
        CurvactError, match=r"needs has no name that parses back: its argument 'k' is no attribute"
    ):
        str(activation("needs(k=3)"))


def test_a_notebook_shows_a_drawing_and_kappa() -> None:
    shown = activation("rctaf(curvature=6)")._repr_html_()  # type: ignore[operator]
    assert shown.count("<polyline") == 2
    assert "κ = 6 at x = 0" in shown
    assert "κ = ∞" in activation("relu")._repr_html_()  # type: ignore[operator]
    assert "has no κ" in activation("sparta")._repr_html_()  # type: ignore[operator]
    assert "<svg" in Elementwise(lambda x: x.tanh())._repr_html_()
    assert "&lt;lambda&gt;" in Elementwise(lambda x: x.tanh())._repr_html_()
    act = activation("pssilu(learnable=True)")
    assert "<svg" in act._repr_html_()  # type: ignore[operator]
    assert act.training


@pytest.mark.usefixtures("own_registry")
def test_a_function_by_name() -> None:
    register("halved", half)
    act = activation("halved")
    assert str(act) == "halved"
    register("tanh_of", lambda a=2.0, kind="soft": Elementwise(lambda x: torch.tanh(a * x)))
    for text in ("tanh_of", "tanh_of(a=3)", "tanh_of(a=0.5, kind=hard)"):
        assert str(activation(text)) == text
        assert str(activation(str(activation(text)))) == text
    assert torch.equal(act(torch.ones(2)), torch.full((2,), 0.5))
    with pytest.raises(CurvactError, match="not elementwise"):
        register("softmax", lambda x: torch.softmax(x, -1))


LIKE = [
    torch.tanh,
    nn.functional.silu,
    half,
    lambda x: x.sin(),
    partial(nn.functional.leaky_relu, negative_slope=0.3),
    nn.GELU,
    partial(nn.Softplus, beta=3),
    lambda: nn.Tanh(),
    RCTAF,
    nn.ELU(),
    "rctaf(curvature=6)",
]


@pytest.mark.parametrize("like", LIKE)
def test_whatever_is_an_activation_is_one_at_every_door(like: object) -> None:
    from curvact.activations.describe import describe
    from curvact.analysis.shape import activation_shape
    from curvact.models import build

    x = torch.linspace(-2, 2, 12).view(2, 6)
    made = activation(like)  # type: ignore[arg-type]
    want = made(x)
    assert isinstance(made, nn.Module)
    assert torch.equal(act_layer(like)(inplace=True)(x), want)  # type: ignore[arg-type]
    assert torch.equal(as_factory(like)()(x), want)  # type: ignore[arg-type]
    net = nn.Sequential(nn.ReLU())
    swap_activations(net, "ReLU", like)  # type: ignore[arg-type]
    assert torch.equal(net(x), want)
    assert torch.equal(build("mini_resnet", activation=like, width=2).act(x), want)
    kappa = max_curvature(made).value
    for again in (describe(like).max_curvature.value, activation_shape(like).max_curvature):  # type: ignore[arg-type]
        assert again == pytest.approx(kappa, rel=1e-6)


@pytest.mark.parametrize(
    ("like", "says"),
    [
        (3, "3 is no activation"),
        (None, "None is no activation"),
        (int, "is no activation"),
        (lambda x: torch.softmax(x, 0), "it is not elementwise"),
        (lambda x: x.sum(), "it is not elementwise"),
        (torch.dropout, "given a tensor it fails"),
        (lambda x, y: x + y, "given a tensor it fails"),
        (lambda: 3, "made a int: it must make an nn.Module"),
        (lambda: 1 / 0, "fails: division by zero"),
        (b"relu", "is no activation"),
    ],
)
def test_what_is_no_activation_is_one_line(like: object, says: str) -> None:
    for door in (
        activation,
        lambda f: act_layer(f)(),
        lambda f: swap_activations(nn.Sequential(nn.ReLU()), to=f),
    ):
        with pytest.raises(CurvactError) as caught:
            door(like)  # type: ignore[operator]
        assert "\n" not in str(caught.value)
    with pytest.raises(CurvactError, match=says):
        activation(like)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "rctaf(beta=1e400)",
        "squareplus(curvature=1e308)",
        "squareplus(curvature=1e-320)",
        "rctaf(curvature=1e308)",
        "rctaf(alpha={{}})",
        "rctaf(alpha=[1])",
        "rctaf(alpha=1j)",
        "rctaf(beta=1, beta=2)",
        "rctaf(**x)",
        "rctaf(alpha=" + "-" * 900 + "1)",
        "rctaf(alpha=" + "-" * 3000 + "1)",
        "rctaf(alpha=" + "(" * 400 + "1" + ")" * 400 + ")" * 2,
        "sparta(channels=1000000000)",
        "sparta(channels=5000, variant=full)",
        "pelu(centered=1.5)",
        "pelu(centered=1000000000)",
        "rctaf(learnable=1)",
        "rctaf(alpha=1e300, learnable=True)",
        "squareplus(b=1e-300, learnable=True)",
        "pssilu(beta=0.9999999999, learnable=True)",
        "rctaf(alpha=\x00)",
        "relu\n",
        "\ud800",
        "rctaf(alpha=9" + "9" * 700 + ")",
    ],
)
def test_a_name_out_of_bounds_is_one_short_line_at_once(text: str) -> None:
    start = time.perf_counter()
    if text == "relu\n":
        assert str(activation(text)) == "relu"
    else:
        with pytest.raises(CurvactError) as caught:
            activation(text)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    assert time.perf_counter() - start < 1.0


_VALUE = st.one_of(
    st.floats().map(repr),
    st.integers(-5, 5).map(str),
    st.sampled_from(
        ["True", "False", "None", "full", "depthwise", "1e999", "-1e308", "''", "[]", "{{}}", "1j", "x"]
    ),
)


@given(
    st.one_of(
        st.text(max_size=60),
        st.builds(
            lambda name, given: f"{name}({', '.join(f'{k}={v}' for k, v in given.items())})",
            st.sampled_from(activation_names()),
            st.dictionaries(
                st.sampled_from(
                    [
                        "alpha",
                        "beta",
                        "b",
                        "n",
                        "gamma",
                        "curvature",
                        "learnable",
                        "centered",
                        "channels",
                        "variant",
                        "norm",
                    ]
                ),
                _VALUE,
                max_size=3,
            ),
        ),
    )
)
@settings(max_examples=300, deadline=1000)
def test_any_text_is_an_activation_that_parses_back_or_one_line(text: str) -> None:
    said = []
    try:
        act = activation(text)
    except CurvactError as error:
        said = str(error).splitlines()
    assert len(said) == 1 or str(activation(str(act))) == str(act)


def test_kappa_is_called_curvature() -> None:
    with pytest.raises(CurvactError, match=r"unknown parameter 'kappa' in .*did you mean 'curvature'"):
        activation("rctaf(kappa=6)")
