"""Names: they round-trip, and what is wrong in one is said in one line."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
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
