"""What every architecture promises: sizes, gradients, weights from a generator; and adding one."""

from __future__ import annotations

import copy
import inspect
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
    Common,
    ResNet,
    SmallCNN,
    ViT,
    WideResNet,
    arguments_of,
    build,
    extract_activation,
    load_checkpoint,
    prepare,
    register_model,
    save_checkpoint,
)
from curvact.models.registry import COMMON
from curvact.random import generator
from curvact.training import Recipe, fit

DISTINCT = [name for name in MODELS if not name.startswith("wrn-")]
"""wrn-* are wide_resnet with other sizes."""


def images(n: int, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=generator(1, "images"))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_tested(tiny: Any) -> None:
    assert list(tiny.sizes) == list(MODELS)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 28, 31, 32, 61, 64, 97, 224])
@pytest.mark.parametrize("name", DISTINCT)
def test_sizes_and_channels(tiny: Any, name: str, size: int) -> None:
    channels = 1 if size in (5, 28, 61, 64) else 3
    logits = tiny(name, size=size, channels=channels).eval()(images(2, channels, size))
    assert logits.shape == (2, 5)
    assert bool(logits.isfinite().all())
    assert size < 8 or not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_from_the_generator_only(tiny: Any, name: str) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(states))
        model = tiny(name, generator=generator(seed, "initialization"))
        states.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    drawn = [not torch.equal(a, c) for a, c in zip(states[0], states[2], strict=True) if a.dim() > 1]
    assert all(drawn)


@pytest.mark.parametrize("name", DISTINCT)
def test_an_activation_with_weights_keeps_them(tiny: Any, name: str) -> None:
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
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "resnet34" else n for n in DISTINCT]
)
def test_compiles_as_one_graph(tiny: Any, name: str) -> None:
    torch._dynamo.reset()
    # Tracing our formulas takes seconds in a deep network: only two shallow ones have them.
    act = "rctaf(curvature=6, beta=1)" if name in ("mini_resnet", "vit") else nn.SiLU
    model = tiny(name, act).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = images(2)
    # Inside torch.compile other, equally good formulas may be used.
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["small_cnn", "vit"])
def test_the_compiled_gradient(tiny: Any, name: str) -> None:
    torch._dynamo.reset()
    model = tiny(name, scope="network", **({"depth": 1} if name == "vit" else {}))
    x = images(2)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", DISTINCT)
def test_channels_last(tiny: Any, name: str) -> None:
    size = 16
    model = tiny(name, size=size).eval().double()
    x = images(2, 3, size).double()
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    got = model(x.contiguous(memory_format=torch.channels_last))
    # Sums in another order: rounding of float64.
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", DISTINCT)
def test_swapping_activations(tiny: Any, name: str) -> None:
    x = images(2)
    model = tiny(name, "relu").eval()
    expected = tiny(name, "silu").eval()
    report = swap_activations(model, to="silu")
    places = sum(isinstance(m, Activation) for m in tiny(name, scope="layer").modules())
    assert len(report) == places
    assert not report.functional
    torch.testing.assert_close(model(x), expected(x))
    shared = tiny(name, "relu", scope="network")
    swap_activations(shared, to="rctaf(curvature=6, learnable=True)")
    assert sum(n.endswith(".alpha") for n, _ in shared.named_parameters()) == 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [name for name in DISTINCT if name != "resnet34"])
def test_hessian_vector_product_against_differences_of_the_gradient(
    tiny: Any, name: str, training: bool
) -> None:
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


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_and_checkpoints_round_trip(tiny: Any, name: str, tmp_path: Path) -> None:
    arguments = {
        "activation": "rctaf(curvature=6, learnable=True)",
        "classes": 5,
        "size": 8,
        **tiny.sizes[name],
    }
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


@pytest.mark.parametrize("name", DISTINCT)
def test_no_images(tiny: Any, name: str) -> None:
    for training in (False, True):
        assert tiny(name).train(training)(images(0)).shape == (0, 5)


@pytest.mark.parametrize("name", DISTINCT)
def test_one_image_does_not_depend_on_the_others_in_eval_mode(tiny: Any, name: str) -> None:
    model = tiny(name).double().eval()
    x = images(4).double()
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), model(x))


def test_normalization_is_inside(tiny: Any) -> None:
    for name in DISTINCT:
        a = tiny(name, mean=[0.1, 0.2, 0.3], std=[0.2, 0.3, 0.4]).eval().double()
        b = tiny(name, mean=[0.0] * 3, std=[1.0] * 3).eval().double()
        x = images(2).double()
        mean, std = (torch.tensor(v).view(3, 1, 1).double() for v in ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]))
        # Normalize's own numbers are float32.
        torch.testing.assert_close(a(x), b((x - mean) / std), rtol=1e-5, atol=1e-6)


def test_dropout_of_the_wide_resnet(tiny: Any) -> None:
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


# ---- the table of models ----


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_the_common_arguments_and_its_own(tiny: Any, name: str) -> None:
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
    model = build(name, activation="silu", generator=generator(0, "x"), **{**common, **tiny.sizes[name]})
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
    """It is built by name, trained, saved and loaded, and gives its activation."""
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
        ("mine", nn.Linear(2, 2), "the builder of 'mine' is Linear"),
        ("", Pointwise, "name='' of an architecture"),
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
        (lambda: build("mini_resent"), "unknown model 'mini_resent'; did you mean 'mini_resnet'"),
        *(
            (lambda name=name, given=given: build(name, **given), message)
            for name in DISTINCT
            for given, message in (
                ({"channels": 0}, "channels=0"),
                ({"classes": 0}, "classes=0"),
                ({"size": 0}, "size=0"),
                ({"scope": "channel"}, "scope 'channel'"),
                ({"activation": "rleu"}, "did you mean 'relu'"),
                ({"mean": [0.5], "std": [0.5]}, "channels=3"),
            )
        ),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


class TheirNet(nn.Module):
    """A class of a user, which knows nothing of curvact."""

    def __init__(self, num_classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.body, self.act, self.head = nn.Conv2d(3, width, 3), nn.ReLU(), nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.act(self.body(x)).mean((-2, -1)))
        return out


def test_a_class_of_a_user_by_name_is_saved_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curvact.models.registry.MODELS", copy.copy(MODELS))
    register_model("their_net", TheirNet)
    arguments = {"name": "their_net", "activation": "rctaf(curvature=6)", "width": 5, "classes": 7, "size": 8}
    model = build(**arguments, mean=[0.5] * 3, std=[0.25] * 3).eval()
    file = tmp_path / "a.safetensors"
    save_checkpoint(file, model, {**arguments, "mean": [0.5] * 3, "std": [0.25] * 3}, {})
    x = images(2, 3)
    assert model(x).shape == (2, 7)
    assert torch.equal(load_checkpoint(file)(x), model(x))
    with pytest.raises(CurvactError, match="is a RCTAF and its architecture gives a ReLU there"):
        save_checkpoint(
            file, model, {**arguments, "activation": "relu", "mean": [0.5] * 3, "std": [0.25] * 3}, {}
        )
