"""Names: they round-trip, and what is wrong in one is said in one line."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from curvact.activations import Activation, activation, activation_names, as_factory, name_of, register
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


def test_a_users_own_subclass_is_as_good() -> None:
    class Bent(Activation):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x > 0, x + 0.5 * x**2, x)

    register("bent", Bent)
    act = activation("bent")
    assert isinstance(act, Activation)
    x = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    assert act.slope(x).tolist() == [1.0, 3.0]
    assert act.curvature(x).tolist() == [0.0, 1.0]
    assert activation(str(act)).max_curvature.value == pytest.approx(1.0, rel=1e-3)  # type: ignore[union-attr]
    with pytest.raises(CurvactError, match="taken"):
        register("bent", Bent)


def test_factories_and_modules() -> None:
    make = as_factory("rctaf(curvature=6)")
    assert make() is not make()
    shared = nn.ReLU()
    assert as_factory(shared)() is as_factory(shared)()
    assert as_factory(nn.Tanh)() is not as_factory(nn.Tanh)()
    assert name_of(nn.Tanh()) == "Tanh()"
    with pytest.raises(CurvactError, match="no activation"):
        as_factory(3)  # type: ignore[arg-type]
