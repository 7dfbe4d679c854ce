"""Learned activations moved from one network to another: bit for bit, or a clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.activations import Activation, activation_parameters
from curvact.errors import CurvactError
from curvact.models import build
from curvact.models.checkpoint import save_checkpoint
from curvact.models.learned import (
    extract_activation,
    insert_activation,
    read_learned,
    write_learned,
)
from curvact.random import generator
from curvact.training import Recipe

NAMES = [
    "pssilu(learnable=True)",
    "rctaf(curvature=6, beta=1, learnable=True)",
    "psilu",
    "psoftplus",
    "pssilu_fixed",
    "prelu",
    "reblu",
    "swish(learnable=True)",
    "softplus(learnable=True)",
    "sparta",
    "sparta(variant=full)",
    "sparta(variant=agnostic)",
]


def _model(name: str, **arguments: Any) -> nn.Module:
    return build(name, **{"channels": 1, "size": 8, **arguments}, generator=generator(0, "test"))


def _stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move learned parameters, and statistics of batch norm inside, away from their start."""
    random = generator(seed, "stir")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Activation):
                for p in dict.fromkeys(module.parameters()):
                    p.add_(0.1 * torch.rand(p.shape, generator=random))
                for buffer in module.buffers():
                    if buffer.is_floating_point():
                        buffer.add_(torch.rand(buffer.shape, generator=random))
    return model


def _values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in activation_parameters(model)]


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_from_resnet18_to_file_to_resnet34(name: str, tmp_path: Path) -> None:
    source = _stir(_model("resnet18", activation=name, width=2, scope="network"))
    learned = extract_activation(source)
    assert learned.scope == "network"
    file = tmp_path / "act.safetensors"
    write_learned(file, learned)
    again = read_learned(file)
    assert again.sha256 == learned.sha256
    assert (again.name, again.parameters) == (learned.name, sum(p.numel() for p in _values(source)))
    target = insert_activation(_model("resnet34", width=2), again)
    assert _equal(_values(source), _values(target))
    assert target.layer3[5].act1 is target.layer3[0].act2
    maps = torch.randn(2, 16, 3, 3, generator=generator(0, "maps"))
    assert torch.equal(source.layer4[1].act2(maps), target.layer4[2].act1(maps))
    bare = sum(p.numel() for p in _model("resnet34", width=2).parameters())
    assert sum(p.numel() for p in target.parameters()) == bare + again.parameters
    same = _model("resnet34", activation=learned.name, width=2, scope="network")
    same.load_state_dict(target.state_dict())  # what it is kept as fits what its name builds
    assert _equal(_values(same), _values(target))


def test_extra_parameters_are_what_the_papers_count() -> None:
    """PSSiLU adds 2 [paper]; Sparta 9 for each channel of each width, its agnostic variant 19."""
    counts = {}
    for name in (
        "pssilu(learnable=True)",
        "psilu",
        "sparta",
        "sparta(variant=full)",
        "sparta(variant=agnostic)",
    ):
        counts[name] = extract_activation(
            _model("resnet18", activation=name, width=2, scope="network")
        ).parameters
    assert list(counts.values()) == [2, 1, 9 * (2 + 4 + 8 + 16), 9 * (4 + 16 + 64 + 256), 19]


@pytest.mark.parametrize(
    "target", ["resnet34", "preact_resnet18", "wide_resnet", "mini_resnet", "small_cnn", "vgg16_bn", "vit"]
)
def test_what_has_no_width_goes_anywhere(target: str) -> None:
    learned = extract_activation(_stir(_model("resnet18", activation="psilu", width=2, scope="network")))
    own: dict[str, Any] = {"wide_resnet": {"depth": 10, "widen_factor": 1}, "mini_resnet": {"width": 3}}.get(
        target, {}
    )
    size = {"vgg16_bn": 32}.get(target, 8)
    model = insert_activation(
        _model(target, activation=learned.name, scope="network", size=size, **own), learned
    )
    assert _equal(_values(model), [learned.groups[0].tensors["alpha"]])
    relu = insert_activation(_model(target, size=size, **own), learned)
    x = torch.rand(2, 1, size, size, generator=generator(0, "images"))
    assert torch.equal(relu.eval()(x), model.eval()(x))


def test_the_agnostic_sparta_goes_to_other_widths() -> None:
    learned = extract_activation(_stir(_model("resnet18", activation="sparta(variant=agnostic)", width=2)))
    for target in (
        _model("resnet34", width=3),
        _model("wide_resnet", depth=10, widen_factor=1),
        _model("mini_resnet", width=5),
        _model("small_cnn", width=3),
    ):
        assert sum(p.numel() for p in _values(insert_activation(target, learned))) == 19


@pytest.mark.parametrize("variant", ["depthwise", "full"])
def test_other_widths_are_an_error_that_names_the_layer_and_both(variant: str) -> None:
    learned = extract_activation(_model("resnet18", activation=f"sparta(variant={variant})", width=2))
    target = _model("mini_resnet", width=4, blocks=1)
    insert_activation(target, learned)  # 4 is among 2, 4, 8, 16
    for target in (_model("resnet34", width=4), _model("wide_resnet", depth=10, widen_factor=1)):
        before = [str(module) for module in target.modules()]
        with pytest.raises(CurvactError) as error:
            insert_activation(target, learned)
        assert "\n" not in str(error.value)
        assert "learned for 2, 4, 8, 16" in str(error.value)
        assert "variant=agnostic" in str(error.value)
        assert [str(module) for module in target.modules()] == before
    with pytest.raises(CurvactError, match=r"^layer4\.0\.act1 has 32 channels"):
        insert_activation(_model("resnet34", width=4), learned)


@pytest.mark.parametrize("name", ["psilu", "sparta", "rctaf(learnable=True)"])
def test_stages_go_to_the_same_stages(name: str) -> None:
    source = _stir(_model("resnet18", activation=name, width=2, scope="stage"))
    learned = extract_activation(source)
    assert (learned.scope, len(learned.groups)) == ("stage", 5)
    target = insert_activation(_model("resnet34", width=2, activation=name, scope="stage"), learned)
    assert _equal(_values(source), _values(target))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        a, b = getattr(source, stage)[0].act1, getattr(target, stage)[2].act2
        assert _equal(list(a.parameters()), list(b.parameters()))
    with pytest.raises(
        CurvactError, match=r"in 5 groups, and this network has 33 \(layer\d\.\d\.act\d is in group 6\)"
    ):
        insert_activation(_model("resnet34", width=2), learned)
    wider = _model("resnet34", width=3, activation=name, scope="stage")
    if name == "sparta":
        with pytest.raises(CurvactError, match=r"^activation has 3 channels, .* learned there for 2"):
            insert_activation(wider, learned)
    else:
        assert _equal(_values(insert_activation(wider, learned)), _values(source))


@pytest.mark.parametrize(
    ("name", "scope"),
    [("psilu", "layer"), ("sparta(variant=full, norm=True)", "layer"), ("psilu", "channel")],
)
def test_layers_and_channels_go_to_the_same_architecture_only(name: str, scope: str) -> None:
    source = _stir(_model("mini_resnet", activation=name, width=2, scope=scope))
    learned = extract_activation(source)
    assert learned.scope == scope
    target = insert_activation(_model("mini_resnet", width=2, channels=3), learned)
    assert _equal(_values(source), _values(target))
    maps = torch.randn(2, 4, 3, 3, generator=generator(0, "maps"))
    assert torch.equal(source.eval().stages[1].act2(maps), target.eval().stages[1].act2(maps))
    with pytest.raises(
        CurvactError, match=r"none was learned for stages\.2\.act1: only the same architecture"
    ):
        insert_activation(_model("mini_resnet", width=2, blocks=3), learned)
    with pytest.raises(CurvactError, match=r"stages\.1\.act1 is not in this network"):
        insert_activation(_model("mini_resnet", width=2, blocks=1), learned)
    if not (name == "psilu" and scope == "layer"):
        with pytest.raises(CurvactError, match=r"^act has 3 channels, .* learned there for 2"):
            insert_activation(_model("mini_resnet", width=3), learned)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: None, r"act is relu, which has learned nothing"),
        (
            lambda m: setattr(m, "act", nn.PReLU()),
            r"act is PReLU\(num_parameters=1\), which has learned nothing",
        ),
    ],
)
def test_nothing_learned_is_an_error(change: Any, message: str) -> None:
    model = _model("mini_resnet", width=2)
    change(model)
    with pytest.raises(CurvactError, match=message):
        extract_activation(model)


def test_two_kinds_or_a_value_that_diverged_are_an_error() -> None:
    model = _model("mini_resnet", activation="psilu", width=2, scope="layer")
    model.act = _model("mini_resnet", activation="pssilu(learnable=True)", width=2).act
    with pytest.raises(CurvactError, match=r"^stages\.0\.act1 is psilu.* and act is pssilu"):
        extract_activation(model)
    other = _model("mini_resnet", activation="rctaf(beta=1, learnable=True)", width=2, scope="layer")
    other.act = _model("mini_resnet", activation="rctaf(beta=2, learnable=True)", width=2).act
    with pytest.raises(CurvactError, match=r"only a network with one kind of activation"):
        extract_activation(other)
    broken = _model("mini_resnet", activation="psilu", width=2)
    broken.act.alpha.data.fill_(torch.nan)
    with pytest.raises(CurvactError, match=r"act\.alpha is not finite"):
        extract_activation(broken)
    with pytest.raises(CurvactError, match=r"Sequential has no activation modules"):
        extract_activation(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(CurvactError, match=r"give it a batch as inputs="):
        extract_activation(nn.Sequential(nn.Linear(2, 2), broken.act))


def test_any_network_with_images_of_its_own() -> None:
    act = _model("mini_resnet", activation="sparta", width=2).act
    source = nn.Sequential(nn.Conv2d(5, 2, 3), act)
    learned = extract_activation(source, inputs=torch.rand(1, 5, 6, 6))
    target = insert_activation(
        nn.Sequential(nn.Conv2d(5, 2, 3), nn.SiLU()), learned, inputs=torch.rand(1, 5, 6, 6)
    )
    assert torch.equal(target[1].weight, act.weight)
    assert target[1] is not act


def test_extraction_and_a_failed_insertion_leave_the_model_alone() -> None:
    model = _stir(_model("mini_resnet", activation="sparta", width=2, scope="layer")).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = list(model.modules())
    extract_activation(model)
    assert model.training
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


@settings(max_examples=20)
@given(
    alpha=st.floats(-(2.0**20), 2.0**20, width=32).filter(lambda a: abs(a) > 1e-6),
    beta=st.floats(2.0**-126, 0.96875, width=32),
)
def test_every_value_survives_bit_for_bit(
    alpha: float, beta: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = _model("mini_resnet", activation="pssilu(learnable=True)", width=1, blocks=1, scope="network")
    model.act.alpha.data.fill_(alpha)
    model.act.beta.data.fill_(beta)
    file = tmp_path_factory.mktemp("act") / "act.safetensors"
    write_learned(file, extract_activation(model))
    learned = read_learned(file)
    assert _equal([learned.groups[0].tensors[k] for k in ("alpha", "beta")], _values(model))
    built = build("mini_resnet", activation=learned.name, width=1, blocks=1, scope="network")
    assert _equal(_values(built), _values(model))  # of one module, the name alone says it all


def _damages() -> list[Any]:
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))

    def edit(key: str, value: Any) -> Any:
        def act(path: Path) -> None:
            sidecar = path.with_suffix(".json")
            sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), key: value}))

        return act

    return [
        (lambda p: p.unlink(), "no learned activation"),
        (lambda p: p.with_suffix(".json").unlink(), "the two files go together"),
        (lambda p: p.with_suffix(".json").write_text("{"), "is no learned activation"),
        (lambda p: p.with_suffix(".json").write_text("[]"), "is no learned activation"),
        (cut, "truncated or damaged"),
        (change, "another sha256"),
        (edit("kind", "something"), "is no learned activation"),
        (edit("activation", "psillu"), "did you mean 'psilu'"),
        (edit("activation", "sparta(variant=full)"), "cannot be used: the parameters of"),
        (edit("activation", "nn"), "unknown activation 'nn'"),
        (edit("scope", "world"), "allowed are network, stage, layer, channel"),
        (edit("groups", []), "another sha256"),
        (edit("groups", 3), "is damaged"),
        (edit("groups", [{"places": ["act"], "widths": [2], "channels": 10**9, "maps": True}]), "is damaged"),
        (edit("provenance", 3), "is damaged"),
    ]


@pytest.mark.parametrize(("damage", "message"), _damages())
def test_damaged_and_foreign_files(damage: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "act.safetensors"
    write_learned(file, extract_activation(_model("mini_resnet", activation="sparta", width=2)))
    damage(file)
    with pytest.raises(CurvactError, match=message) as error:
        read_learned(file)
    assert "\n" not in str(error.value)


def test_a_checkpoint_is_no_learned_activation_and_the_reverse(tmp_path: Path) -> None:
    arguments = {"name": "mini_resnet", "activation": "psilu", "width": 2, "channels": 1}
    save_checkpoint(tmp_path / "model.safetensors", build(**arguments), arguments, {})
    with pytest.raises(CurvactError, match=r"model\.safetensors is no learned activation"):
        read_learned(tmp_path / "model.safetensors")
    write_learned(tmp_path / "act.safetensors", extract_activation(tmp_path / "model.safetensors"))
    with pytest.raises(CurvactError, match="'architecture'"):
        extract_activation(tmp_path / "act.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CurvactError, match=r"no checkpoint file .*best\.safetensors"):
        extract_activation(tmp_path / "empty")
    with pytest.raises(CurvactError, match=r"must end in \.safetensors"):
        write_learned(tmp_path / "act.pt", read_learned(tmp_path / "act.safetensors"))


def test_a_checkpoint_that_names_images_too_large_for_any_machine(tmp_path: Path) -> None:
    file, arguments = tmp_path / "a.safetensors", {"name": "mini_resnet", "activation": "psilu", "width": 2}
    save_checkpoint(file, build(**arguments), {**arguments, "size": 2**20}, {})
    with pytest.raises(CurvactError, match=r"does not run on images of shape \(1, 3, 1048576, 1048576\)"):
        extract_activation(file)


def test_frozen_parameters_are_not_the_optimizers() -> None:
    from curvact.training.step import make_optimizer

    learned = extract_activation(_model("mini_resnet", activation="psilu", width=2))
    for freeze in (True, False):
        model = insert_activation(_model("mini_resnet", width=2), learned, freeze=freeze)
        groups = make_optimizer(model, Recipe(), generator(0, "x")).param_groups
        held = {id(p) for group in groups for p in group["params"]}
        assert (id(model.act.alpha) in held) is not freeze
