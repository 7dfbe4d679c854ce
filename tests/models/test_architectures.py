"""Architectures against published sizes, and against forward passes written out by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations import Activation
from curvact.models import (
    VGG,
    ActivationSource,
    MiniResNet,
    PreActResNet,
    ResNet,
    ViT,
    WideResNet,
    build,
)
from curvact.models.vit import TransformerBlock, attention
from curvact.random import generator

IDENTITY: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3}


def images(n: int, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=generator(1, "images"))


# ---- published numbers ----


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
        # DeiT-Ti, with a class token and its position, has 5,717,416.
        ("vit", {"depth": 12, "classes": 1000, "size": 224}, 5_717_416 - 2 * 192),
        # By hand: stem, first block, second block with its shortcut, linear layer.
        (
            "mini_resnet",
            {"channels": 1},
            (9 * 8 + 16)
            + 2 * (9 * 64 + 16)
            + (9 * 8 * 16 + 9 * 16 * 16 + 2 * 32 + 8 * 16 + 32)
            + (16 * 16 * 10 + 10),
        ),
    ],
)
def test_published_numbers_of_parameters(name: str, arguments: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name, **arguments).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "arguments", "shapes"),
    [
        ("resnet18", {"size": 32, "width": 4}, "conv1 4,32,32 layer1 4,32,32 layer2 8,16,16 layer4 32,4,4"),
        ("resnet34", {"size": 224, "width": 4}, "conv1 4,112,112 pool 4,56,56 layer2 8,28,28 layer4 32,7,7"),
        (
            "preact_resnet18",
            {"size": 32, "width": 4},
            "layer1 4,32,32 layer2 8,16,16 layer3 16,8,8 layer4 32,4,4",
        ),
        (
            "wide_resnet",
            {"size": 32, "depth": 10, "widen_factor": 2},
            "conv1 16,32,32 block1 32,32,32 block2 64,16,16 block3 128,8,8",
        ),
        (
            "vgg16_bn",
            {"size": 32, "width": 4},
            "features.3 4,32,32 features.6 4,16,16 features.13 8,8,8 features.33 32,2,2 features.43 32,1,1",
        ),
        ("vgg16_bn", {"size": 28, "width": 4}, "features.23 16,3,3 features.33 32,3,3 features.43 32,1,1"),
        (
            "vgg16_bn",
            {"size": 8, "width": 4},
            "features.6 4,4,4 features.13 8,2,2 features.33 32,2,2 features 32,1,1",
        ),
        ("vgg16_bn", {"size": 224, "width": 4}, "features.0 4,224,224 features 32,7,7"),
        ("small_cnn", {"size": 28, "width": 4}, "conv1 4,28,28 conv2 4,14,14 conv3 8,14,14 conv4 8,7,7"),
        ("vit", {"size": 32, "width": 6}, "patch_embed 6,8,8 blocks.0 64,6"),
        ("vit", {"size": 28, "width": 6}, "patch_embed 6,7,7"),
        ("vit", {"size": 224, "width": 6}, "patch_embed 6,14,14"),
        ("vit", {"size": 8, "width": 6}, "patch_embed 6,4,4"),
        ("mlp", {"size": 8, "width": 6, "depth": 3}, "hidden.1 6 hidden.7 6 linear 10"),
        ("mini_resnet", {"size": 32, "width": 3, "blocks": 1}, "stages 3,32,32"),
        (
            "mini_resnet",
            {"size": 32, "width": 3, "blocks": 4},
            "stages.0 3,32,32 stages.2 12,8,8 stages 24,4,4",
        ),
    ],
)
def test_feature_maps(name: str, arguments: dict[str, Any], shapes: str) -> None:
    model = build(name, **arguments).eval()
    paths, expected = shapes.split()[::2], shapes.split()[1::2]
    seen: dict[str, str] = {}
    for path in paths:
        model.get_submodule(path).register_forward_hook(
            lambda module, given, out, path=path: seen.__setitem__(path, ",".join(map(str, out.shape[1:])))
        )
    model(images(1, 3, arguments["size"]))
    assert seen == dict(zip(paths, expected, strict=True))


def test_mlp_is_linear_norm_activation_twice() -> None:
    """Against the same network written by hand, in float64."""
    model = build("mlp", activation="swish(beta=2)", channels=1, size=4, width=5).double().train()
    x = images(6, 1, 4).double()
    h = (x.flatten(1) - 0.5) / 0.5
    for linear, norm in ((model.hidden[0], model.hidden[1]), (model.hidden[3], model.hidden[4])):
        a = h @ linear.weight.T
        a = (a - a.mean(0)) / (a.var(0, unbiased=False) + norm.eps).sqrt()
        h = a * torch.sigmoid(2 * a)
    torch.testing.assert_close(model(x), h @ model.linear.weight.T + model.linear.bias)


def test_stored_results_of_mini_resnet_still_hold() -> None:
    """From its first version: weights, order of the draws and forward pass may not change."""
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


def test_size_changes_nothing() -> None:
    a, b = (
        MiniResNet("relu", channels=1, size=size, generator=generator(0, "initialization"))
        for size in (8, 28)
    )
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(a(x), b(x))


@pytest.mark.parametrize("last", [False, True])
def test_preact_resnet_has_no_unused_activation(last: bool) -> None:
    for scope, modules in (("network", 1), ("stage", 4 + last), ("layer", 16 + last)):
        act = "rctaf(curvature=6, learnable=True)"
        model = PreActResNet(act, width=2, bn_before_fc=last, scope=scope)  # type: ignore[arg-type]
        assert sum(isinstance(m, Activation) for m in model.modules()) == modules
        model(images(2)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


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
