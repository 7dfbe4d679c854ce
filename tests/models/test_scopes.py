"""Which places share an activation: counted for each architecture and scope, and by channel."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvact.activations import (
    Activation,
    PSiLU,
    activation,
    activation_parameters,
    current_curvature,
    current_parameters,
)
from curvact.errors import CurvactError
from curvact.models import ActivationSource
from curvact.random import generator

LAYERS = {
    "mlp": [5, 5],
    "mini_resnet": [2, 2, 2, 4, 4],
    "small_cnn": [2, 2, 4, 4, 7],
    "resnet18": [2] * 5 + [4] * 4 + [8] * 4 + [16] * 4,
    "resnet34": [2] * 7 + [4] * 8 + [8] * 12 + [16] * 6,
    "preact_resnet18": [2] * 4 + [2, 4, 4, 4] + [4, 8, 8, 8] + [8, 16, 16, 16],
    "wide_resnet": [16, 16, 16, 32, 32, 64, 64],
    "vgg16_bn": [2] * 2 + [4] * 2 + [8] * 3 + [16] * 6,
    "vit": [24, 24],
}
"""Channels at every place of an activation, counted by hand from the published figures."""
STAGES = {"mlp": 2, "mini_resnet": 3, "small_cnn": 3, "preact_resnet18": 4, "wide_resnet": 4, "vit": 2}
"""Stages that have activations. The others have 5."""


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=generator(0, "images"))


def extra(model: nn.Module) -> int:
    return sum(p.numel() for p in activation_parameters(model))


@pytest.mark.parametrize("name", LAYERS)
def test_extra_parameters_of_every_scope(tiny: Any, name: str) -> None:
    layers = LAYERS[name]
    counts = {
        "network": 1,
        "stage": STAGES.get(name, 5),
        "layer": len(layers),
        "channel": sum(layers),
        None: 1,
    }
    plain = sum(p.numel() for p in tiny(name, "silu").parameters())
    for scope, count in counts.items():
        for form, each in (("psilu", 1), ("pssilu(beta=0.2, learnable=True)", 2)):
            model = tiny(name, form, scope=scope)
            assert sum(p.numel() for p in model.parameters()) == plain + each * count
            assert extra(model) == each * count
        model(images()).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_scopes_do_not_change_what_a_network_computes(tiny: Any, name: str) -> None:
    """At equal parameters, up to rounding: one α has a kernel, many have tensor operations."""
    form = "pssilu(alpha=2, beta=0.2, learnable=True)"
    want = tiny(name, form, scope="network").double().eval()(images().double())
    for scope in ("stage", "layer", "channel"):
        got = tiny(name, form, scope=scope).double().eval()(images().double())
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mini_resnet", "small_cnn", "vit", "wide_resnet"])
def test_channels_are_the_channels(tiny: Any, name: str) -> None:
    """The gradient of a channel's α against finite differences of that α alone."""
    model = tiny(name, "psilu(alpha=1.5)", scope="channel").double().eval()
    x = images().double()

    def loss() -> Tensor:
        return model(x).square().sum()  # type: ignore[no-any-return]

    loss().backward()
    alphas = activation_parameters(model)
    for p in alphas[:: max(1, len(alphas) // 3)]:
        assert p.grad is not None
        flat, step = p.data.view(-1), 1e-5
        for channel in (0, len(flat) - 1):
            start = flat[channel].item()
            values = []
            for sign in (1, -1):
                flat[channel] = start + sign * step
                with torch.no_grad():
                    values.append(loss().item())
            flat[channel] = start
            # Central differences at 1e-5: truncation 1e-10 of the third derivative, rounding 1e-11.
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(
                p.grad.view(-1)[channel].item(), rel=1e-5, abs=1e-7
            )


def test_channels_move_apart_in_training_and_are_logged(tiny: Any) -> None:
    model = tiny("mini_resnet", "psilu", scope="channel")
    model(images(8)).square().sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer.step()
    logged = current_parameters(model)
    assert list(logged)[:3] == ["act.alpha.min", "act.alpha.mean", "act.alpha.max"]
    assert logged["act.alpha.min"] < logged["act.alpha.mean"] < logged["act.alpha.max"]
    largest = max(abs(logged["act.alpha.min"]), abs(logged["act.alpha.max"]))
    assert current_curvature(model)["act"] == pytest.approx(largest / 2)
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert current_parameters(twin) == logged


@pytest.mark.parametrize(
    "name", ["resnet18", "vit", "vgg16_bn", "wide_resnet", "small_cnn", "preact_resnet18"]
)
def test_a_shared_activation_is_logged_once_under_its_first_name(tiny: Any, name: str) -> None:
    model = tiny(name, "pssilu(learnable=True)")
    assert list(current_parameters(model)) == ["activation.alpha", "activation.beta"]
    assert current_curvature(model) == {"activation": pytest.approx(0.5)}


def test_a_users_own_activation_by_channel(tiny: Any) -> None:
    class Bent(Activation):
        def __init__(self) -> None:
            super().__init__()
            self.strength = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return x.relu() + self.strength * torch.tanh(x)

    model = tiny("resnet18", Bent, scope="channel")
    assert extra(model) == sum(LAYERS["resnet18"])
    assert extra(tiny("resnet18", Bent)) == len(LAYERS["resnet18"])
    model(images()).sum().backward()


def test_scopes_unless_told_otherwise() -> None:
    assert ActivationSource("relu").scope == "layer"
    assert ActivationSource("psilu").scope == "network"
    assert ActivationSource(PSiLU).scope == "network"
    assert ActivationSource(lambda: activation("psilu")).scope == "layer"
    assert ActivationSource("sparta(variant=full, norm=True)").scope == "layer"
    assert ActivationSource("psilu", "stage").scope == "stage"


@pytest.mark.parametrize("form", ["relu", "psilu(learnable=False)", "ssilu", "rctaf(curvature=6)"])
def test_nothing_to_learn_by_channel_is_one_clear_line(tiny: Any, form: str) -> None:
    message = r"scope 'channel' gives every channel parameters of its own, and .* has none"
    with pytest.raises(CurvactError, match=message) as error:
        tiny("mini_resnet", form, scope="channel")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ActivationSource("psilu", "channels"),
            "scope 'channels': allowed are network, stage, layer, channel",
        ),  # type: ignore[arg-type]
        (lambda: ActivationSource("psilu", "channel")(1), "scope 'channel' needs the number of channels"),
        (
            lambda: ActivationSource(nn.PReLU, "channel")(1, 8),
            "needs a subclass of curvact's Activation, at PReLU",
        ),
        (
            lambda: ActivationSource(PSiLU(), "channel"),
            "needs a name or a factory of activations, not one module",
        ),
    ],
)
def test_bad_input_is_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CurvactError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
