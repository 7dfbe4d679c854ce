"""What the architectures share: initialization, normalization, activation sources, dropout."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from curvact.activations import RCTAF
from curvact.errors import CurvactError
from curvact.models import build
from curvact.models.layers import (
    ActivationSource,
    Dropout,
    initialize,
    normalization,
    require_sizes,
    require_square,
)
from curvact.random import generator


def test_initialization_of_each_kind() -> None:
    conv, linear = nn.Conv2d(8, 64, 3, bias=True), nn.Linear(400, 300)
    batch, layer = nn.BatchNorm2d(5), nn.LayerNorm(5)
    for norm in (batch, layer):
        nn.init.constant_(norm.weight, 7.0)
        nn.init.constant_(norm.bias, 7.0)
    initialize(nn.Sequential(conv, linear, batch, layer), generator(0, "initialization"))
    # Sample deviations of n draws are off by 1/√(2n): 4608 draws, 5 of these are 5 %.
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert conv.bias is not None
    assert not conv.bias.any()
    assert float(linear.weight.detach().abs().max()) == pytest.approx(1 / 20, rel=0.01)
    assert float(linear.weight.detach().abs().max()) <= 1 / 20
    assert float(linear.weight.detach().std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    for norm in (batch, layer):
        assert torch.equal(norm.weight, torch.ones(5))
        assert not norm.bias.any()


def test_initialization_by_fan_in_and_of_transformers() -> None:
    conv = nn.Conv2d(8, 64, 3)
    initialize(conv, generator(0, "initialization"), fan="fan_in")
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (9 * 8)) ** 0.5, rel=0.05)
    layers = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Linear(100, 80))
    initialize(layers, generator(0, "initialization"), lecun=True)
    for layer, inputs in zip(layers, (72, 100), strict=True):
        assert float(layer.weight.detach().std()) == pytest.approx(inputs**-0.5, rel=0.05)
        assert not layer.bias.any()  # type: ignore[union-attr]


def test_initialization_depends_on_the_generator_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        layer = nn.Linear(3, 3)
        initialize(layer, generator(seed, "initialization"))
        return layer.weight.detach().clone()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    torch.manual_seed(5)
    a = nn.Linear(3, 3)
    torch.manual_seed(5)
    initialize(a, None)
    torch.manual_seed(5)
    b = torch.empty(3, 3).uniform_(-(3**-0.5), 3**-0.5)
    assert torch.equal(a.weight, b)


def test_initialization_leaves_activations_alone() -> None:
    gate = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))
    for parameter in gate.parameters():
        nn.init.constant_(parameter, 0.25)
    source = ActivationSource(gate, "layer")
    model = nn.Sequential(nn.Conv2d(1, 1, 3), source(1), source(2))
    nn.init.constant_(model[0].weight, 0.25)  # type: ignore[arg-type]
    initialize(model, generator(0, "initialization"), activations=source.made)
    assert all(bool((p == 0.25).all()) for p in gate.parameters())
    assert not bool((model[0].weight == 0.25).any())  # type: ignore[operator]
    assert source.made == [gate]


@pytest.mark.parametrize(
    ("scope", "distinct"), [("network", 1), ("stage", 2), ("layer", 4)], ids=lambda v: str(v)
)
def test_what_a_source_makes(scope: str, distinct: int) -> None:
    source = ActivationSource("rctaf(curvature=6)", scope)  # type: ignore[arg-type]
    given_out = [source(0), source(0), source(1), source(1)]
    assert len({id(m) for m in given_out}) == distinct
    assert [id(m) for m in source.made] == list(dict.fromkeys(id(m) for m in given_out))
    assert all(isinstance(m, RCTAF) for m in given_out)


def test_normalization_has_one_mean_and_std_a_channel() -> None:
    x = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(normalization(3, None, None)(x), 2 * x - 1)
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    out = normalization(3, mean, std)(x)
    for c in range(3):
        torch.testing.assert_close(out[:, c], (x[:, c] - mean[c]) / std[c])


@settings(max_examples=20)
@given(rate=st.floats(0.05, 0.95), seed=st.integers(0, 2**62 - 1))
def test_dropout_keeps_the_mean_and_repeats(rate: float, seed: int) -> None:
    x = torch.full((20000,), 3.0, dtype=torch.float64)
    before = torch.get_rng_state()
    layer, twin = Dropout(rate, seed), Dropout(rate, seed)
    out = layer(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(out, twin(x))
    assert not torch.equal(layer(x), out)
    kept = out != 0
    torch.testing.assert_close(out[kept], x[kept] / (1 - rate))
    # The share of n = 20000 has the standard deviation √(r(1−r)/n); 6 of these.
    assert abs(float(kept.double().mean()) - (1 - rate)) < 6 * (rate * (1 - rate) / 20000) ** 0.5
    assert layer.eval()(x) is x


def test_dropout_is_copied_with_its_state_and_scales_the_gradient_like_the_output() -> None:
    layer = Dropout(0.5)
    layer(torch.ones(10))
    twin = copy.deepcopy(layer)
    x = torch.ones(100, requires_grad=True)
    out = layer(x)
    assert torch.equal(out, twin(x))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, out)


def test_dropout_inside_a_compiled_graph() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Dropout(0.5), fullgraph=True, backend="eager")
    x = torch.ones(64)
    assert not torch.equal(compiled(x), compiled(x))


def test_dropout_seeds_are_drawn_last() -> None:
    def made(rate: float) -> nn.Sequential:
        model = nn.Sequential(Dropout(rate), nn.Linear(3, 3), Dropout(rate))
        initialize(model, generator(0, "initialization"))
        return model

    a, b = made(0.0), made(0.5)
    assert torch.equal(a[1].weight, b[1].weight)  # type: ignore[arg-type]
    assert b[0].seed != b[2].seed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: require_sizes("vit", width=8, depth=0), "^vit got width=8, depth=0: each must be"),
        (lambda: require_sizes("vit", width=8.5), "width=8.5"),
        (lambda: require_sizes("vit", width=True), "width=True"),
        (lambda: require_sizes("vit", width="8"), "width='8'"),
        (lambda: require_sizes("vit", width=None), "width=None"),
        (lambda: require_square("vit", torch.rand(1, 3, 8, 9), 8), "size=8 and got images of 8×9"),
        (lambda: normalization(3, [0.5], [0.5]), "channels=3: one of each per channel"),
        (lambda: normalization(1, None, [0.5, 0.5]), r"std=\[0.5, 0.5\] for channels=1"),
        (lambda: normalization(1, [0.5], [-1.0]), "std > 0"),
        (lambda: Dropout(1.0), "dropout=1.0: must be a number in"),
        (lambda: Dropout("half"), "dropout='half'"),  # type: ignore[arg-type]
        (lambda: Dropout(float("nan")), "dropout=nan"),
        (lambda: ActivationSource(lambda: 3, "layer")(0), "made a int: it must make an nn.Module"),  # type: ignore[arg-type, return-value]
        (lambda: ActivationSource("relu", "block"), "scope 'block': allowed are network, stage, layer"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CurvactError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_images_of_other_channels_are_refused_not_broadcast() -> None:
    with pytest.raises(
        CurvactError, match=r"images of shape \(2, 1, 8, 8\) for a network of 3 channels: give N×3×H×W"
    ):
        build("mini_resnet", width=2, channels=3)(torch.rand(2, 1, 8, 8))
