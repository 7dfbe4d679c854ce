"""Every architecture: published sizes, independent forward passes, and what all of them promise."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from curvact.activations import Activation, swap_activations
from curvact.attacks import ThreatModel
from curvact.data import load
from curvact.errors import CurvactError
from curvact.models import (
    MODELS,
    VGG,
    ActivationSource,
    Common,
    PreActResNet,
    ResNet,
    SmallCNN,
    ViT,
    WideResNet,
    arguments_of,
    build,
    extract_activation,
    prepare,
    register_model,
)
from curvact.models.checkpoint import load_checkpoint, save_checkpoint
from curvact.models.registry import COMMON
from curvact.models.vit import TransformerBlock, attention
from curvact.random import generator
from curvact.training import Recipe, fit

TINY: dict[str, dict[str, Any]] = {
    "mini_resnet": {"width": 2},
    "small_cnn": {"width": 2, "hidden": 8},
    "resnet18": {"width": 2},
    "resnet34": {"width": 2},
    "preact_resnet18": {"width": 2, "bn_before_fc": True},
    "wide_resnet": {"depth": 10, "widen_factor": 1},
    "wrn-28-10": {"widen_factor": 1},
    "wrn-34-10": {"widen_factor": 1},
    "vgg16_bn": {"width": 2},
    "vit": {"width": 8, "depth": 2, "heads": 2},
}
PLACES = {
    "mini_resnet": (1, 2, 2),
    "small_cnn": (2, 2, 1),
    "resnet18": (1, 4, 4, 4, 4),
    "resnet34": (1, 6, 8, 12, 6),
    "preact_resnet18": (1, 4, 4, 4, 4),
    "wide_resnet": (1, 2, 2, 2),
    "wrn-28-10": (1, 8, 8, 8),
    "wrn-34-10": (1, 10, 10, 10),
    "vgg16_bn": (2, 2, 3, 3, 3),
    "vit": (1, 1),
}
"""Activations in each stage, counted by hand from the published figures."""

DISTINCT = [name for name in TINY if not name.startswith("wrn-")]
"""wrn-* are wide_resnet with other sizes."""
IDENTITY: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3}


def tiny(name: str, activation: Any = "rctaf(curvature=6, beta=1)", **more: Any) -> nn.Module:
    arguments = {"channels": 3, "classes": 5, "size": 8, "generator": generator(0, "initialization")}
    return build(name, activation=activation, **{**arguments, **TINY[name], **more})


def images(n: int, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=generator(1, "images"))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_tested() -> None:
    assert list(TINY) == list(PLACES) == list(MODELS)


# ---- against what is published ----


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("resnet18", {}, 11_173_962),
        ("resnet34", {}, 21_282_122),
        ("resnet18", {"classes": 1000, "size": 224}, 11_689_512),
        ("resnet34", {"classes": 1000, "stem": "imagenet"}, 21_797_672),
        ("preact_resnet18", {}, 11_171_146),
        ("preact_resnet18", {"bn_before_fc": True}, 11_172_170),
        ("wide_resnet", {}, 36_479_194),
        ("wrn-28-10", {}, 36_479_194),
        ("wrn-34-10", {}, 46_160_474),
        ("vgg16_bn", {}, 14_728_266),
        # DeiT-Ti is 12 blocks of width 192 with 3 heads and patches of 16: 5,717,416 with a class token and its position.
        ("vit", {"depth": 12, "classes": 1000, "size": 224}, 5_717_416 - 2 * 192),
    ],
)
def test_published_numbers_of_parameters(name: str, arguments: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        assert count(build(name, **arguments)) == parameters


MAPS: list[tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = [
    (
        "resnet18",
        {"size": 32, "width": 4},
        {
            "conv1": (4, 32, 32),
            "layer1": (4, 32, 32),
            "layer2": (8, 16, 16),
            "layer3": (16, 8, 8),
            "layer4": (32, 4, 4),
        },
    ),
    (
        "resnet34",
        {"size": 224, "width": 4},
        {
            "conv1": (4, 112, 112),
            "pool": (4, 56, 56),
            "layer1": (4, 56, 56),
            "layer2": (8, 28, 28),
            "layer3": (16, 14, 14),
            "layer4": (32, 7, 7),
        },
    ),
    (
        "preact_resnet18",
        {"size": 32, "width": 4},
        {"layer1": (4, 32, 32), "layer2": (8, 16, 16), "layer3": (16, 8, 8), "layer4": (32, 4, 4)},
    ),
    (
        "wide_resnet",
        {"size": 32, "depth": 10, "widen_factor": 2},
        {"conv1": (16, 32, 32), "block1": (32, 32, 32), "block2": (64, 16, 16), "block3": (128, 8, 8)},
    ),
    (
        "vgg16_bn",
        {"size": 32, "width": 4},
        {
            "features.3": (4, 32, 32),
            "features.6": (4, 16, 16),
            "features.13": (8, 8, 8),
            "features.23": (16, 4, 4),
            "features.33": (32, 2, 2),
            "features.43": (32, 1, 1),
        },
    ),
    (
        "vgg16_bn",
        {"size": 28, "width": 4},
        {"features.23": (16, 3, 3), "features.33": (32, 3, 3), "features.43": (32, 1, 1)},
    ),
    (
        "vgg16_bn",
        {"size": 8, "width": 4},
        {
            "features.6": (4, 4, 4),
            "features.13": (8, 2, 2),
            "features.33": (32, 2, 2),
            "features": (32, 1, 1),
        },
    ),
    ("vgg16_bn", {"size": 224, "width": 4}, {"features.0": (4, 224, 224), "features": (32, 7, 7)}),
    (
        "small_cnn",
        {"size": 28, "width": 4},
        {"conv1": (4, 28, 28), "conv2": (4, 14, 14), "conv3": (8, 14, 14), "conv4": (8, 7, 7)},
    ),
    ("vit", {"size": 32, "width": 6}, {"patch_embed": (6, 8, 8), "blocks.0": (64, 6)}),
    ("vit", {"size": 28, "width": 6}, {"patch_embed": (6, 7, 7)}),
    ("vit", {"size": 224, "width": 6}, {"patch_embed": (6, 14, 14)}),
    ("vit", {"size": 8, "width": 6}, {"patch_embed": (6, 4, 4)}),
]


@pytest.mark.parametrize(("name", "arguments", "shapes"), MAPS)
def test_feature_maps(name: str, arguments: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    model = build(name, **arguments).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for path in shapes:
        model.get_submodule(path).register_forward_hook(
            lambda module, given, out, path=path: seen.__setitem__(path, tuple(out.shape[1:]))
        )
    model(images(1, 3, arguments["size"]))
    assert seen == shapes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32, 64, 224])
@pytest.mark.parametrize("name", TINY)
def test_sizes_and_channels(name: str, size: int, channels: int) -> None:
    model = tiny(name, size=size, channels=channels).eval()
    logits = model(images(2, channels, size))
    assert logits.shape == (2, 5)
    assert bool(logits.isfinite().all())
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 31, 61, 97])
@pytest.mark.parametrize("name", DISTINCT)
def test_odd_sizes(name: str, size: int) -> None:
    assert tiny(name, size=size).eval()(images(1, 3, size)).shape == (1, 5)


# ---- against forward passes written out from the state dict ----


def shaken(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with norms that are not the identity."""
    model.double().eval()
    noise = generator(2, "shake")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=noise)
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=noise, dtype=torch.float64) * 0.2)
    return model


class Written:
    """Layers by the names in a state dict, as plain functions."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = model.state_dict()

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), stride, padding)

    def bn(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.weights[f"{name}.{part}"].view(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]


def written_resnet(w: Written, x: Tensor, act: Callable[[Tensor], Tensor], blocks: tuple[int, ...]) -> Tensor:
    x = act(w.bn(w.conv(x, "conv1"), "bn1"))
    for stage, number in enumerate(blocks, start=1):
        for index in range(number):
            at, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            out = act(w.bn(w.conv(x, f"{at}.conv1", stride), f"{at}.bn1"))
            out = w.bn(w.conv(out, f"{at}.conv2"), f"{at}.bn2")
            if stride == 2:
                x = w.bn(w.conv(x, f"{at}.shortcut.0", 2, 0), f"{at}.shortcut.1")
            x = act(out + x)
    return w.linear(F.avg_pool2d(x, 4).flatten(1), "linear")


def written_preact(
    w: Written, x: Tensor, act: Callable[[Tensor], Tensor], last: bool, out_shortcut: bool
) -> Tensor:
    x = w.conv(x, "conv1")
    for stage, index in itertools.product((1, 2, 3, 4), (0, 1)):
        at, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
        z = act(w.bn(x, f"{at}.bn1"))
        out = w.conv(act(w.bn(w.conv(z, f"{at}.conv1", stride), f"{at}.bn2")), f"{at}.conv2")
        if stride == 2:
            x = w.conv(z if out_shortcut else x, f"{at}.shortcut.0", 2, 0)
        x = out + x
    if last:
        x = act(w.bn(x, "bn"))
    return w.linear(F.avg_pool2d(x, 4).flatten(1), "linear")


def written_wide(w: Written, x: Tensor, act: Callable[[Tensor], Tensor], blocks: int) -> Tensor:
    x = w.conv(x, "conv1")
    for stage, index in itertools.product((1, 2, 3), range(blocks)):
        at, stride = f"block{stage}.layer.{index}", 2 if stage > 1 and index == 0 else 1
        z = act(w.bn(x, f"{at}.bn1"))
        out = w.conv(act(w.bn(w.conv(z, f"{at}.conv1", stride), f"{at}.bn2")), f"{at}.conv2")
        x = out + (w.conv(z, f"{at}.convShortcut", stride, 0) if index == 0 else x)
    return w.linear(F.avg_pool2d(act(w.bn(x, "bn1")), 8).flatten(1), "fc")


def written_vgg(w: Written, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    at = 0
    for layer in "CCMCCMCCCMCCCMCCCM":
        if layer == "M":
            x, at = F.max_pool2d(x, 2), at + 1
        else:
            x, at = act(w.bn(w.conv(x, f"features.{at}"), f"features.{at + 1}")), at + 3
    return w.linear(x.flatten(1), "classifier")


@pytest.mark.parametrize(
    ("model", "written"),
    [
        (ResNet("silu", width=3, **IDENTITY), lambda w, x: written_resnet(w, x, F.silu, (2, 2, 2, 2))),
        (
            ResNet("silu", depth=34, width=3, **IDENTITY),
            lambda w, x: written_resnet(w, x, F.silu, (3, 4, 6, 3)),
        ),
        (
            PreActResNet("silu", width=3, **IDENTITY),
            lambda w, x: written_preact(w, x, F.silu, False, False),
        ),
        (
            PreActResNet("silu", width=3, bn_before_fc=True, out_shortcut=True, **IDENTITY),
            lambda w, x: written_preact(w, x, F.silu, True, True),
        ),
        (
            WideResNet("silu", depth=16, widen_factor=2, **IDENTITY),
            lambda w, x: written_wide(w, x, F.silu, 2),
        ),
        (VGG("silu", width=3, **IDENTITY), lambda w, x: written_vgg(w, x, F.silu)),
    ],
    ids=["resnet18", "resnet34", "preact", "preact-with-both", "wide", "vgg"],
)
def test_forward_written_out(model: nn.Module, written: Callable[[Written, Tensor], Tensor]) -> None:
    shaken(model)
    x = images(2, 3, 32).double()
    # The same sums in another order: some 1e-16 relative to the largest intermediate value.
    torch.testing.assert_close(model(x), written(Written(model), x), rtol=1e-10, atol=1e-10)


def test_imagenet_stem_written_out() -> None:
    model = shaken(ResNet("silu", width=3, stem="imagenet", **IDENTITY))
    x = images(2, 3, 32).double()
    w = Written(model)
    expected = F.max_pool2d(
        F.pad(F.silu(w.bn(w.conv(x, "conv1", 2, 3), "bn1")), (1, 1, 1, 1), value=-1e9), 3, 2
    )
    seen: list[Tensor] = []
    model.layer1.register_forward_pre_hook(lambda module, given: seen.append(given[0]))  # type: ignore[operator, union-attr]
    model(x)
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=1e-12)


# ---- the transformer ----


def test_attention_is_scaled_dot_product_attention() -> None:
    q, k, v = (torch.randn(2, 3, 7, 5, dtype=torch.float64) * 2 for _ in range(3))
    torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_block_is_the_pre_norm_encoder_layer_of_torch() -> None:
    width, heads = 12, 3
    theirs = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, nn.GELU(), batch_first=True, norm_first=True, dtype=torch.float64
    )
    ours = TransformerBlock(width, heads, 4, ActivationSource("gelu", "layer"), 1).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    names = {
        "norm1": "norm1",
        "attn.qkv": "self_attn.in_proj_",
        "attn.proj": "self_attn.out_proj",
        "norm2": "norm2",
        "fc1": "linear1",
        "fc2": "linear2",
    }
    their_state = theirs.state_dict()
    state = {
        f"{mine}.{part}": their_state[f"{its}{part}" if its.endswith("_") else f"{its}.{part}"]
        for mine, its in names.items()
        for part in ("weight", "bias")
    }
    ours.load_state_dict(state)
    x = torch.randn(2, 9, width, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 9, width, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    (mine,) = torch.autograd.grad((ours(x) * y).sum(), x)
    (its,) = torch.autograd.grad((theirs(x) * y).sum(), x)
    torch.testing.assert_close(mine, its)


@pytest.mark.parametrize(("size", "patch"), [(8, 4), (9, 4), (11, 4)])
def test_patches_are_linear_maps_of_squares_of_the_padded_image(size: int, patch: int) -> None:
    model = ViT("silu", size=size, patch=patch, width=6, heads=2, depth=1, mean=[0.4] * 3).double().eval()
    x = images(2, 3, size).double()
    before, missing = (-size % patch) // 2, -size % patch
    canvas = torch.zeros(2, 3, size + missing, size + missing, dtype=torch.float64)
    canvas[:, :, before : before + size, before : before + size] = (x - 0.4) / 0.5
    side = (size + missing) // patch
    tokens = torch.stack(
        [
            canvas[:, :, patch * i : patch * (i + 1), patch * j : patch * (j + 1)].flatten(1)
            @ model.patch_embed.weight.flatten(1).T
            for i in range(side)
            for j in range(side)
        ],
        1,
    )
    out = model.norm(model.blocks(tokens + model.patch_embed.bias + model.pos_embed))
    # Normalize's mean and std are float32.
    torch.testing.assert_close(model(x), model.head(out.mean(1)), rtol=1e-5, atol=1e-7)


def test_initial_weights_of_the_transformer() -> None:
    model = ViT("relu", generator=generator(0, "initialization"))
    block = model.blocks[0]
    for weight, std in (
        (model.pos_embed, 0.5),
        (model.patch_embed.weight, (3 * 4 * 4) ** -0.5),
        (block.fc1.weight, 192**-0.5),  # type: ignore[union-attr]
        (block.fc2.weight, 768**-0.5),  # type: ignore[union-attr]
    ):
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.05)  # type: ignore[operator, union-attr]
    assert not model.head.bias.any()


# ---- what every model promises ----


@pytest.mark.parametrize("name", TINY)
def test_sharing_scopes(name: str) -> None:
    learnable = "rctaf(curvature=6, learnable=True)"
    stages = PLACES[name]
    for scope, modules in (("network", 1), ("stage", len(stages)), ("layer", sum(stages))):
        model = tiny(name, learnable, scope=scope)
        assert sum(isinstance(m, Activation) for m in model.modules()) == modules
        assert sum(n.endswith(".alpha") for n, _ in model.named_parameters()) == modules
        loss = model(images(2)).square().sum()
        assert all(p.grad is None for p in model.parameters())
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        if scope == "network" and name != "mini_resnet":
            (shared,) = (n for n, _ in model.named_parameters() if n.endswith(".alpha"))
            assert shared == "activation.alpha"


def test_preact_without_a_last_norm_has_no_idle_activation() -> None:
    for scope, modules in (("network", 1), ("stage", 4), ("layer", 16)):
        model = PreActResNet("rctaf(curvature=6, learnable=True)", width=2, scope=scope)  # type: ignore[arg-type]
        assert sum(isinstance(m, Activation) for m in model.modules()) == modules
        model(images(2)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_weights_come_from_the_generator_only(name: str) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(states))
        model = tiny(name, generator=generator(seed, "initialization"))
        states.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    drawn = [not torch.equal(a, c) for a, c in zip(states[0], states[2], strict=True) if a.dim() > 1]
    assert all(drawn)


@pytest.mark.parametrize("name", DISTINCT)
def test_an_activation_with_weights_keeps_them(name: str) -> None:
    gate = nn.PReLU()
    inner = nn.Sequential(gate, nn.Conv2d(1, 1, 1), nn.Linear(1, 1))

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner[0](x)  # type: ignore[no-any-return]

    before = [p.detach().clone() for p in inner.parameters()]
    model = tiny(name, Gated())
    assert model(images(2)).shape == (2, 5)
    assert all(torch.equal(a, b) for a, b in zip(before, inner.parameters(), strict=True))


@pytest.mark.parametrize(
    "name",
    [n if n in DISTINCT and n != "resnet34" else pytest.param(n, marks=pytest.mark.slow) for n in TINY],
)
def test_compiles_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    model = tiny(name).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = images(2)
    # The formulas inside torch.compile may be other, equally good ones.
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["small_cnn", "vit"])
def test_the_compiled_gradient(name: str) -> None:
    torch._dynamo.reset()
    model = tiny(name)
    x = images(2)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize("size", [8, 64])
def test_channels_last(name: str, size: int) -> None:
    model = tiny(name, size=size).eval().double()
    x = images(2, 3, size).double()
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    got = model(x.contiguous(memory_format=torch.channels_last))
    # Sums in another order: rounding of float64.
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", TINY)
def test_swapping_activations(name: str) -> None:
    x = images(2)
    model = tiny(name, "relu").eval()
    expected = tiny(name, "silu").eval()
    report = swap_activations(model, to="silu")
    assert len(report) == sum(PLACES[name])
    assert not report.functional
    torch.testing.assert_close(model(x), expected(x))
    shared = tiny(name, "relu", scope="network")
    swap_activations(shared, to="rctaf(curvature=6, learnable=True)")
    assert sum(n.endswith(".alpha") for n, _ in shared.named_parameters()) == 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", DISTINCT)
def test_hessian_vector_product_against_differences_of_the_gradient(name: str, training: bool) -> None:
    model = tiny(name, "rctaf(curvature=0.5, beta=1)").double().train(training)
    parameters = list(model.parameters())
    x, y = images(8).double(), torch.arange(8) % 5
    noise = generator(3, "direction")
    v = [torch.randn(p.shape, generator=noise, dtype=torch.float64) for p in parameters]

    def gradient(create_graph: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=create_graph)

    first = gradient(create_graph=True)
    hvp = torch.autograd.grad(sum((g * d).sum() for g, d in zip(first, v, strict=True)), parameters)  # type: ignore[arg-type]

    def at(step: float) -> tuple[Tensor, ...]:
        with torch.no_grad():
            for p, d in zip(parameters, v, strict=True):
                p += step * d
        out = gradient()
        with torch.no_grad():
            for p, d in zip(parameters, v, strict=True):
                p -= step * d
        return out

    step = 1e-5
    differences = [(a - b) / (2 * step) for a, b in zip(at(step), at(-step), strict=True)]
    error = torch.cat([(a - b).flatten() for a, b in zip(hvp, differences, strict=True)]).norm()
    norm = torch.cat([h.flatten() for h in hvp]).norm()
    # Truncation is of order step², rounding 1e-16/step = 1e-11 of the gradient.
    assert float(norm) > 1e-4
    assert float(error / norm) < 1e-5


@pytest.mark.parametrize("name", TINY)
def test_state_dicts_and_checkpoints_round_trip(name: str, tmp_path: Path) -> None:
    arguments = {"activation": "rctaf(curvature=6, learnable=True)", "classes": 5, "size": 8, **TINY[name]}
    model = build(name, **arguments)
    model(images(4))  # moves the running statistics
    model.eval()
    other = build(name, **arguments).eval()
    x = images(2)
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
    save_checkpoint(tmp_path / "model.safetensors", model, {"name": name, **arguments}, {})
    assert torch.equal(load_checkpoint(tmp_path / "model.safetensors")(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_no_images(name: str, training: bool) -> None:
    model = tiny(name).train(training)
    assert model(images(0)).shape == (0, 5)


@pytest.mark.parametrize("name", DISTINCT)
def test_one_image_does_not_depend_on_the_others_in_eval_mode(name: str) -> None:
    model = tiny(name).double().eval()
    x = images(4).double()
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), model(x))


def test_normalization_is_inside() -> None:
    for name in DISTINCT:
        a = tiny(name, mean=[0.1, 0.2, 0.3], std=[0.2, 0.3, 0.4]).eval().double()
        b = tiny(name, **IDENTITY).eval().double()
        x = images(2).double()
        mean, std = (torch.tensor(v).view(3, 1, 1).double() for v in ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]))
        # Normalize's own numbers are float32.
        torch.testing.assert_close(a(x), b((x - mean) / std), rtol=1e-5, atol=1e-6)


def test_dropout_of_the_wide_resnet() -> None:
    def model(dropout: float) -> nn.Module:
        return tiny("wide_resnet", dropout=dropout)

    x = images(2)
    with_, without = model(0.5), model(0.0)
    for a, b in zip(with_.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)
    first = with_(x)
    assert not torch.equal(first, without(x))
    assert torch.equal(model(0.5)(x), first)
    assert torch.equal(model(0.5).eval()(x), model(0.0).eval()(x))
    torch._dynamo.reset()
    compiled = torch.compile(with_, fullgraph=True, backend="eager")
    assert not torch.equal(compiled(x), compiled(x))


# ---- the table of models ----


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_the_common_arguments_and_its_own(name: str) -> None:
    own = arguments_of(name)
    assert not own.keys() & set(COMMON)
    parameters = list(inspect.signature(MODELS[name]).parameters.values())
    assert parameters[0].name == "activation"
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters[1:])
    common: dict[str, Any] = {
        "channels": 1,
        "classes": 3,
        "size": 16,
        "mean": [0.1],
        "std": [0.2],
        "scope": "layer",
    }
    assert {"activation", "generator", *common} == set(COMMON)
    with torch.device("meta"):
        assert count(build(name, **own)) == count(build(name))
    model = build(name, activation="silu", generator=generator(0, "x"), **{**common, **TINY[name]})
    assert model(images(2, 1, 16)).shape == (2, 3)


class Pointwise(nn.Module):
    """An architecture of somebody else."""

    def __init__(self, activation: Any = "relu", *, width: int = 4, **common: Unpack[Common]) -> None:
        super().__init__()
        frame = prepare("pointwise", activation, common, width=width)
        self.normalize = frame.normalize
        self.conv = nn.Conv2d(frame.channels, width, 1)
        self.act = frame.activations(1, width)
        self.linear = nn.Linear(width, frame.classes)
        frame.initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.act(self.conv(self.normalize(x))).mean((2, 3)))  # type: ignore[no-any-return]


def test_an_architecture_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One class and one call: it is built by name, trained, saved, loaded, and gives its activation."""
    monkeypatch.setattr("curvact.models.registry.MODELS", MODELS.copy())
    register_model("pointwise", Pointwise)
    assert arguments_of("pointwise") == {"width": 4}
    arguments = {"name": "pointwise", "activation": "psilu", "width": 3, "channels": 1}
    model = build(**arguments, generator=generator(0, "initialization"))
    again = build(**arguments, generator=generator(0, "initialization"))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    recipe = Recipe(epochs=1, batch_size=4, crop=0, flip=False)
    digits = load("digits", train=4, validation=2, test=2)
    fit(model, digits, recipe, ThreatModel("linf", 0.1), seed=0)
    assert not torch.equal(model.conv.weight, again.conv.weight)
    save_checkpoint(tmp_path / "a.safetensors", model.eval(), arguments, {})
    x = images(2, 1)
    assert torch.equal(load_checkpoint(tmp_path / "a.safetensors")(x), model(x))
    assert extract_activation(tmp_path / "a.safetensors").parameters == 1


def test_what_cannot_be_registered() -> None:
    for name, builder, message in (
        ("vit", Pointwise, "a model named 'vit' exists"),
        ("mine", lambda activation, channels: nn.Identity(), "'mine' does not take classes, size, mean, std"),
    ):
        with pytest.raises(CurvactError, match=message):
            register_model(name, builder)
    with pytest.raises(CurvactError, match="pointwise has no argument 'widht'; did you mean 'width'"):
        Pointwise(widht=3)  # type: ignore[call-arg]


def test_names_fix_their_depth() -> None:
    assert arguments_of("wide_resnet") == {"depth": 28, "widen_factor": 10, "dropout": 0.0}
    assert arguments_of("wrn-34-10") == {"widen_factor": 10, "dropout": 0.0}
    assert arguments_of("mini_resnet") == {"width": 8, "blocks": 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("resnet19"), "unknown model 'resnet19'; did you mean 'resnet18'"),
        (lambda: arguments_of("vti"), "unknown model 'vti'; did you mean 'vit'"),
        (
            lambda: build("resnet18", widht=4),
            "resnet18 has no argument 'widht'; did you mean 'width'\\?; allowed are activation, .*, width, stem$",
        ),
        (lambda: build("resnet18", depth=34), "resnet18 has no argument 'depth'"),
        (lambda: build("vit", widen_factor=2), "vit has no argument 'widen_factor'"),
        (lambda: ResNet(depth=50), "resnet got depth=50: allowed are 18, 34"),
        (lambda: ResNet(depth="18"), "depth='18'"),  # type: ignore[arg-type]
        (lambda: build("resnet34", width=0), "resnet34 got .*width=0"),
        (lambda: build("resnet18", stem="cifra"), "stem='cifra': allowed are cifar, imagenet and None"),
        (lambda: build("preact_resnet18", stem=7), "stem=7"),
        (lambda: WideResNet(depth=29), "depth=29: must be 6n \\+ 4"),
        (lambda: WideResNet(depth=4), "depth=4: must be"),
        (lambda: WideResNet(widen_factor=1.5), "widen_factor=1.5"),  # type: ignore[arg-type]
        (lambda: build("wrn-28-10", dropout=-0.1), "dropout=-0.1"),
        (lambda: ViT(width=10, heads=3), "width=10, heads=3: the width must be a multiple"),
        (lambda: ViT(size=8, patch=16), "patch=16 for size=8: the smallest size for it is 16"),
        (lambda: ViT(patch=0), "patch=0"),
        (
            lambda: ViT(size=28)(torch.rand(1, 3, 32, 32)),
            "this vit was built with size=28 and got images of 32",
        ),
        (lambda: VGG(width=2)(torch.rand(1, 3, 28, 28)), "this vgg16_bn was built with size=32"),
        (lambda: SmallCNN()(torch.rand(1, 3, 28, 28)), "this small_cnn was built with size=32"),
        (lambda: SmallCNN(hidden=0), "hidden=0"),
        *(
            (lambda name=name, key=key: build(name, **{key: 0}), f"{key}=0")
            for name in MODELS
            for key in ("channels", "classes", "size")
        ),
        *((lambda name=name: build(name, scope="channel"), "scope 'channel'") for name in MODELS),
        *((lambda name=name: build(name, activation="rleu"), "did you mean 'relu'") for name in MODELS),
        *((lambda name=name: build(name, mean=[0.5], std=[0.5]), "channels=3") for name in MODELS),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
