"""Who shares an activation: counted for every architecture and scope, and per channel against a dense computation."""

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
from curvact.models import MODELS, ActivationSource, build
from curvact.random import generator

TINY: dict[str, dict[str, Any]] = {
    "mini_resnet": {"width": 2},
    "small_cnn": {"width": 2, "hidden": 7},
    "resnet18": {"width": 2},
    "resnet34": {"width": 2},
    "preact_resnet18": {"width": 2},
    "wide_resnet": {"depth": 10, "widen_factor": 2},
    "wrn-28-10": {"widen_factor": 1},
    "wrn-34-10": {"widen_factor": 1},
    "vgg16_bn": {"width": 2},
    "vit": {"width": 6, "depth": 2, "heads": 2},
}
LAYERS = {
    "mini_resnet": [2, 2, 2, 4, 4],
    "small_cnn": [2, 2, 4, 4, 7],
    "resnet18": [2] * 5 + [4] * 4 + [8] * 4 + [16] * 4,
    "resnet34": [2] * 7 + [4] * 8 + [8] * 12 + [16] * 6,
    "preact_resnet18": [2] * 4 + [2, 4, 4, 4] + [4, 8, 8, 8] + [8, 16, 16, 16],
    "wide_resnet": [16, 32, 32, 64, 64, 128, 128],
    "wrn-28-10": [16] * 8 + [16] + [32] * 7 + [32] + [64] * 7 + [64],
    "wrn-34-10": [16] * 10 + [16] + [32] * 9 + [32] + [64] * 9 + [64],
    "vgg16_bn": [2] * 2 + [4] * 2 + [8] * 3 + [16] * 6,
    "vit": [24, 24],
}
"""Channels at every place of an activation, counted by hand from the published figures."""
STAGES = {"mini_resnet": 3, "small_cnn": 3, "preact_resnet18": 4, "vgg16_bn": 5, "vit": 2}
"""Stages that have activations; 5 in ResNets (the stem is one) and 4 in wide ones (the last activation is one)."""


def made(name: str, activation: Any, **more: Any) -> nn.Module:
    return build(
        name, **{"activation": activation, "size": 8, **TINY[name], **more}, generator=generator(0, "weights")
    )


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=generator(0, "images"))


def extra(model: nn.Module) -> int:
    return sum(p.numel() for p in activation_parameters(model))


def test_every_model_is_here() -> None:
    assert list(TINY) == list(LAYERS) == list(MODELS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("form", "each"), [("psilu", 1), ("pssilu(beta=0.2, learnable=True)", 2)])
def test_extra_parameters_of_every_scope(name: str, form: str, each: int) -> None:
    plain = sum(p.numel() for p in made(name, "silu").parameters())
    stages = STAGES.get(name, 4 if name.startswith("w") else 5)
    counts = {
        "network": 1,
        "stage": stages,
        "layer": len(LAYERS[name]),
        "channel": sum(LAYERS[name]),
        None: 1,
    }
    for scope, count in counts.items():
        model = made(name, form, scope=scope)
        assert sum(p.numel() for p in model.parameters()) == plain + each * count
        assert extra(model) == each * count
        model(images()).square().sum().backward()
        assert all(p.grad is not None for p in activation_parameters(model))


@pytest.mark.parametrize("name", MODELS)
def test_scopes_do_not_change_what_a_network_computes(name: str) -> None:
    """At equal parameters, up to the rounding of a kernel for one α against tensor operations for many."""
    form = "pssilu(alpha=2, beta=0.2, learnable=True)"
    want = made(name, form, scope="network").double().eval()(images().double())
    for scope in ("stage", "layer", "channel"):
        got = made(name, form, scope=scope).double().eval()(images().double())
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mini_resnet", "small_cnn", "vit", "wide_resnet"])
def test_channels_are_the_channels(name: str) -> None:
    """The gradient of a channel's α is that of a copy with the α of that channel alone scaled: finite differences, by channel."""
    model = made(name, "psilu(alpha=1.5)", scope="channel").double().eval()
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
            # Central differences at 1e-5: an error of 1e-10 of the third derivative, and rounding of 1e-16/1e-5.
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(
                p.grad.view(-1)[channel].item(), rel=1e-5, abs=1e-7
            )


def test_channels_move_apart_in_training_and_are_logged() -> None:
    model = made("mini_resnet", "psilu", scope="channel")
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
def test_a_shared_activation_is_logged_once_under_its_first_name(name: str) -> None:
    model = made(name, "pssilu(learnable=True)")
    assert list(current_parameters(model)) == ["activation.alpha", "activation.beta"]
    assert current_curvature(model) == {"activation": pytest.approx(0.5)}


def test_a_users_own_activation_by_channel() -> None:
    class Bent(Activation):
        def __init__(self) -> None:
            super().__init__()
            self.strength = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return x.relu() + self.strength * torch.tanh(x)

    model = made("resnet18", Bent, scope="channel")
    assert extra(model) == sum(LAYERS["resnet18"])
    assert extra(made("resnet18", Bent)) == len(LAYERS["resnet18"])
    model(images()).sum().backward()


def test_scopes_unless_told_otherwise() -> None:
    assert ActivationSource("relu").scope == "layer"
    assert ActivationSource("psilu").scope == "network"
    assert ActivationSource(PSiLU).scope == "network"
    assert ActivationSource(lambda: activation("psilu")).scope == "layer"
    assert ActivationSource("sparta(variant=full, norm=True)").scope == "layer"
    assert ActivationSource("psilu", "stage").scope == "stage"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["relu", "psilu(learnable=False)", "ssilu", "rctaf(curvature=6)"])
def test_nothing_to_learn_by_channel_is_one_clear_line(name: str, form: str) -> None:
    with pytest.raises(
        CurvactError, match=r"scope 'channel' gives every channel parameters of its own, and .* has none"
    ) as e:
        made(name, form, scope="channel")
    assert "\n" not in str(e.value)


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
