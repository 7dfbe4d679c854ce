"""mini-resnet: shapes, sharing scopes, weights from a generator, normalization inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvact.activations import Activation
from curvact.errors import CurvactError
from curvact.models import ActivationSource, MiniResNet, Normalize, build
from curvact.random import generator


@pytest.mark.parametrize(("channels", "size", "blocks"), [(1, 8, 2), (3, 32, 3), (1, 28, 2), (3, 9, 1)])
def test_shapes(channels: int, size: int, blocks: int) -> None:
    model = MiniResNet("relu", channels=channels, classes=7, width=4, blocks=blocks)
    assert model(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_size_changes_nothing() -> None:
    a, b = (
        MiniResNet("relu", channels=1, size=size, generator=generator(0, "initialization"))
        for size in (8, 28)
    )
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(a(x), b(x))


def test_stored_results_still_hold() -> None:
    """Recorded with the first version of this model: weights, order of initialization and forward pass may not change."""
    model = MiniResNet(
        "rctaf(curvature=6, learnable=True)",
        channels=1,
        scope="stage",
        generator=generator(0, "initialization"),
    )
    names = [name for name, _ in model.named_parameters()]
    assert names[:5] == ["conv.weight", "bn.weight", "bn.bias", "act.alpha", "stages.0.conv1.weight"]
    assert names[-4:] == [
        "stages.1.shortcut.1.weight",
        "stages.1.shortcut.1.bias",
        "linear.weight",
        "linear.bias",
    ]
    weights = [-0.0679191202, 0.1545986831, -0.3402400613, -0.0866721123]
    torch.testing.assert_close(model.conv.weight.flatten()[:4], torch.tensor(weights))
    bias = [0.0366915762, -0.0096668154, 0.0233066082]
    torch.testing.assert_close(model.linear.bias[:3], torch.tensor(bias))
    logits = model(torch.rand(4, 1, 8, 8, generator=generator(1, "x")))[0, :5]
    expected = [0.0105431899, -0.2771632075, -0.4055442810, 0.5978402495, -0.2051432878]
    # float32 sums on another machine.
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_parameter_count_by_hand() -> None:
    w = 8
    stem = 9 * 1 * w + 2 * w
    first = 2 * (9 * w * w + 2 * w)
    second = 9 * w * 2 * w + 9 * 2 * w * 2 * w + 2 * 2 * 2 * w + (w * 2 * w + 2 * 2 * w)
    linear = 2 * w * 16 * 10 + 10
    model = MiniResNet("rctaf(curvature=6)", channels=1, width=w)
    assert sum(p.numel() for p in model.parameters()) == stem + first + second + linear


@pytest.mark.parametrize(("scope", "count"), [("network", 1), ("stage", 3), ("layer", 5)])
def test_sharing_scope(scope: str, count: int) -> None:
    model = MiniResNet("rctaf(curvature=6, learnable=True)", channels=1, scope=scope)  # type: ignore[arg-type]
    assert sum(isinstance(m, Activation) for m in model.modules()) == count
    assert sum(name.endswith("alpha") for name, _ in model.named_parameters()) == count


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_each_stage_after_the_first_halves_the_size_and_doubles_the_width(blocks: int) -> None:
    model = MiniResNet("relu", channels=1, width=3, blocks=blocks)
    x = model.stages(torch.rand(1, 3, 32, 32))
    assert x.shape == (1, 3 * 2 ** (blocks - 1), 64 // 2**blocks, 64 // 2**blocks)


def test_any_callable_is_an_activation() -> None:
    model = MiniResNet(nn.Tanh, channels=1)
    assert sum(isinstance(m, nn.Tanh) for m in model.modules()) == 5
    assert model(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_weights_come_from_the_generator_only() -> None:
    torch.manual_seed(1)
    a = MiniResNet("relu", channels=1, generator=generator(0, "initialization")).state_dict()
    torch.manual_seed(2)
    b = MiniResNet("relu", channels=1, generator=generator(0, "initialization")).state_dict()
    c = MiniResNet("relu", channels=1, generator=generator(1, "initialization")).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["conv.weight"], c["conv.weight"])
    # He-normal with fan out 9·8: the standard deviation of 72 draws is within a quarter of √(2/72).
    assert float(a["conv.weight"].std()) == pytest.approx((2 / 72) ** 0.5, rel=0.25)


def test_normalization_is_a_layer_and_a_buffer() -> None:
    model = MiniResNet("relu", channels=1, mean=[0.3], std=[0.2])
    assert "normalize.mean" in model.state_dict()
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(model.normalize(x), (x - 0.3) / 0.2)
    with pytest.raises(CurvactError, match="std > 0"):
        Normalize([0.5], [0.0])


def test_compiles_as_one_graph_with_our_activation() -> None:
    torch._dynamo.reset()
    model = MiniResNet("rctaf(curvature=6, beta=1)", channels=1, width=2).eval()
    x = torch.rand(2, 1, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("mini_resent"), "unknown model 'mini_resent'; did you mean 'mini_resnet'"),
        (lambda: MiniResNet("relu", width=0), "width=0"),
        (lambda: MiniResNet("rleu"), "did you mean 'relu'"),
        (lambda: ActivationSource("relu", "channels"), "scope 'channels'"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CurvactError, match=message):
        call()
