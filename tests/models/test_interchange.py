"""RobustBench's own classes give the same outputs, every wrapping is read, every misfit is named.

The tests against RobustBench's classes need its wheel. Only its files of architectures are run:

    pip install --no-deps robustbench==1.1.1

which does not touch torch, or CURVACT_ROBUSTBENCH=/path/to/unpacked/wheel.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvact.activations import PSSiLU
from curvact.errors import CurvactError
from curvact.models import MiniResNet, Normalize, build
from curvact.models.interchange import (
    architecture_of,
    from_robustbench,
    model_from_robustbench,
    read_state_dict,
    to_robustbench,
    unwrap,
    write_state_dict,
)
from curvact.random import generator

PSSILU = "pssilu(learnable=True)"
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, running statistics and PSSiLU parameters unlike any default; float64, eval mode."""
    chance = generator(seed, "weights")
    for name, tensor in model.state_dict().items():
        if name.startswith("normalize") or not tensor.is_floating_point():
            continue
        tensor.normal_(0, 0.1, generator=chance)
        if name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            tensor.abs_().add_(0.5)
        elif tensor.dim() == 4:
            tensor.mul_(10 * (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith(".alpha"):
            tensor.fill_(1.7)
        elif name.endswith(".beta"):
            tensor.fill_(-0.2)
    return model.double().eval()


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=generator(1, "images"), dtype=torch.float64)


@torch.no_grad()
def same(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-10) -> None:
    """Equal outputs that are not constant. float64: a hundred roundings of 1e-16 in ten layers."""
    x = images()
    expected = theirs(x)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(ours(x), expected, rtol=tolerance, atol=tolerance)


def small(activation: str = PSSILU, **arguments: Any) -> nn.Module:
    arguments = {"mean": [0.0] * 3, "std": [1.0] * 3, "scope": "network", **arguments}
    return build("wide_resnet", depth=10, widen_factor=1, classes=5, activation=activation, **arguments)


KINDS: list[dict[str, Any]] = [
    {"name": "wide_resnet", "depth": 10, "widen_factor": 2},
    {"name": "resnet18", "width": 8},
    {"name": "resnet34", "width": 4},
    {"name": "preact_resnet18", "width": 8},
    {"name": "preact_resnet18", "width": 4, "bn_before_fc": True, "out_shortcut": True},
]


# ---- without RobustBench ----


@pytest.mark.parametrize("activation", ["relu", PSSILU])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_there_and_back(kind: dict[str, Any], activation: str, channels: int) -> None:
    kind = {**kind, "channels": channels, "classes": 7}
    constants = {"mean": MEAN[:channels], "std": STD[:channels]}
    model = randomize(build(**kind, activation=activation, scope="network", **constants))
    weights = to_robustbench(model)
    assert architecture_of(weights) == kind
    again = model_from_robustbench(weights).double()
    assert not again.training
    x = images()[:, :channels]
    assert torch.equal(again(x), model(x))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_what_leaves_no_trace_is_given() -> None:
    model = randomize(build("preact_resnet18", width=4, out_shortcut=True, mean=MEAN, std=STD))
    weights = to_robustbench(model)
    same(model_from_robustbench(weights, out_shortcut=True).double(), model, tolerance=0)
    with pytest.raises(AssertionError):
        same(model_from_robustbench(weights).double(), model)


def wrapped(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What training scripts and RobustBench's wrappers make of the same weights."""
    mean, std = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)
    wide = (1, 3, 1, 1)
    bare = {k: v for k, v in weights.items() if k not in ("mu", "sigma")}
    return {
        "plain": weights,
        "state_dict": {"state_dict": weights, "epoch": 7, "optimizer": {"state": {}}},
        "net": {"net": weights, "acc": 0.5},
        "model_state_dict": {"model_state_dict": weights},
        "nested": {"model": {"state_dict": weights}},
        "last, as RobustBench chooses": {"last": weights, "best": {k: v + 1 for k, v in weights.items()}},
        "DataParallel": {f"module.{k}": v for k, v in weights.items()},
        "normalize_model": {"normalize.mean": mean.view(wide), "normalize.std": std.view(wide)}
        | {f"model.{k}": v for k, v in bare.items()},
        "Sequential": {"0.mean": mean.view(wide), "0.std": std.view(wide)}
        | {f"1.{k}": v for k, v in bare.items()},
        "DataParallel inside": {"0.mu": mean, "0.sigma": std} | {f"1.module.{k}": v for k, v in bare.items()},
        "no batch counts": {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")},
        "what RobustBench drops": weights
        | {"model_preact_hl1.1.weight": torch.ones(3)}
        | {f"sub_{k}": torch.randn_like(v) for k, v in weights.items() if k.startswith("block1") and v.dim()},
    }


@pytest.mark.parametrize("form", wrapped({}))
def test_every_wrapping_is_read(form: str) -> None:
    model = randomize(small(mean=MEAN, std=STD))
    content = wrapped(to_robustbench(model))[form]
    same(model_from_robustbench(content).double(), model)


def test_what_torch_itself_wraps() -> None:
    model = randomize(small(mean=MEAN, std=STD))
    inner = randomize(small())
    inner.load_state_dict({k: v for k, v in model.state_dict().items() if "normalize" not in k}, strict=False)
    outer = nn.DataParallel(nn.Sequential(Normalize(MEAN, STD).double(), inner))
    # Two normalizations: the outer one, and the identity of the network. Which is meant is unknown.
    with pytest.raises(CurvactError, match="differs from another normalize"):
        model_from_robustbench(outer.state_dict())
    content = {k: v for k, v in outer.state_dict().items() if "1.normalize" not in k}
    same(model_from_robustbench(content).double(), model)


def test_a_file_without_normalization_means_none() -> None:
    weights = to_robustbench(randomize(small()))
    assert "mu" not in weights
    model = small(mean=MEAN, std=STD).double().eval()
    from_robustbench(weights, model)
    assert model.normalize.mean.flatten().tolist() == [0, 0, 0]
    assert model.normalize.std.flatten().tolist() == [1, 1, 1]
    from_robustbench(weights, model, mean=MEAN, std=STD)
    same(model, nn.Sequential(Normalize(MEAN, STD).double(), randomize(small())), tolerance=1e-6)
    with pytest.raises(CurvactError, match="each must be > 0"):
        from_robustbench(weights, model, mean=MEAN, std=[0.2, 0.0, 0.2])


def test_a_model_saved_by_us_is_read_too() -> None:
    model = randomize(small(mean=MEAN, std=STD))
    same(model_from_robustbench(model.state_dict()).double(), model, tolerance=0)


def test_one_precision_becomes_the_other() -> None:
    model = randomize(small())
    half = {k: v.half() if v.is_floating_point() else v for k, v in to_robustbench(model).items()}
    loaded = model_from_robustbench(half)
    assert loaded.fc.weight.dtype == torch.float32
    assert torch.equal(loaded.fc.weight.half(), half["fc.weight"])


def test_a_fixed_pssilu_goes_out_as_parameters() -> None:
    """Left out, it would come back as ReLU."""
    model = randomize(small("pssilu(alpha=2, beta=0.25)", scope="layer"))
    loaded = model_from_robustbench(to_robustbench(model)).double()
    assert isinstance(loaded.activation, PSSiLU)
    same(loaded, model)


def test_another_activation_is_given_by_the_user() -> None:
    """Weights of a network trained elsewhere with Swish, say, in RobustBench's names."""
    model = randomize(small("swish(beta=2)"))
    loaded = model_from_robustbench(model.state_dict(), "swish(beta=2)").double()
    same(loaded, model, tolerance=0)


BREAK: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda w: w.pop("fc.bias"), "weights do not fit this WideResNet: missing fc.bias$"),
    (lambda w: w.update({"fc.bias": torch.ones(6)}), r"wrong shape of fc.bias \(6,\), not \(5,\)"),
    (lambda w: w.update({"gate.weight": torch.ones(1)}), "unexpected gate.weight$"),
    (
        lambda w: [w.pop(k) for k in list(w) if k.startswith("block2")],
        r"missing block2\S+, block2\S+, block2\S+ and \d+ more$",
    ),
    (
        lambda w: w.update({f"a.{k}": v for k, v in w.items()}),
        "weights of 2 networks in one state dict, under '', 'a.': give",
    ),
    (
        lambda w: w.update({"block1.layer.0.activation.alpha": torch.tensor([3.0])}),
        "block1.layer.0.activation.alpha differs .* one activation must be shared by the whole network",
    ),
    (lambda w: w.update(epoch=3), "holds no state dict: epoch no tensor"),
    (lambda w: w.clear(), "it is empty"),
    (lambda w: w.update({"mu": torch.zeros(1), "sigma": torch.ones(1)}), "wrong shape of normalize.mean"),
    (
        lambda w: [w.pop(k) for k in list(w) if "activation." in k],
        "missing activation.alpha, activation.beta$",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BREAK)
def test_a_misfit_is_one_clear_line_and_changes_nothing(damage: Callable[..., Any], message: str) -> None:
    weights: dict[str, Any] = to_robustbench(randomize(small()))
    damage(weights)
    model = randomize(small(), seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CurvactError, match=message) as caught:
        from_robustbench(weights, model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_pssilu_weights_do_not_go_into_a_relu_network() -> None:
    weights = to_robustbench(randomize(small()))
    with pytest.raises(CurvactError, match=r"unexpected activation.alpha, activation.beta$"):
        from_robustbench(weights, small("relu"))
    with pytest.raises(CurvactError, match=r'several activations .* build it with scope="network"'):
        from_robustbench(weights, small(scope="layer"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: small("rctaf(curvature=6)"), "RobustBench computes rctaf"),
        (lambda: small(nn.Tanh), r"RobustBench computes Tanh\(\)"),
        (lambda: small(scope="layer"), "different activations"),
        (lambda: MiniResNet("relu"), "an unknown network"),
        (lambda: nn.Linear(2, 2), "no layer 'normalize'"),
    ],
)
def test_what_robustbench_has_no_class_for_is_not_written(
    model: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(CurvactError, match=message):
        to_robustbench(model())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["init_conv.weight", "layer.0.block.0.conv_0.weight"], r"an unknown network \(init_conv.weight"),
        (["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "linear.weight"], "an unknown network"),
        (["layer1.0.conv1.weight", "linear.weight"], "an unknown network"),
        (["conv1.weight", "block1.layer.0.conv1.weight", "fc.weight"], r"\[1, 0, 0\] blocks in its stages"),
        (["conv1.weight", *(f"block{k}.layer.0.conv1.weight" for k in (1, 2, 3))], "lack fc.weight"),
    ],
)
def test_an_unknown_architecture_is_one_clear_line(keys: list[str], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        architecture_of({key: torch.ones(16, 3, 3, 3) for key in keys})
    assert "\n" not in str(caught.value)


# ---- files ----


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_files_there_and_back(suffix: str, tmp_path: Path) -> None:
    model = randomize(small())
    file = tmp_path / f"model{suffix}"
    write_state_dict(file, to_robustbench(model))
    same(model_from_robustbench(file).double(), model, tolerance=0)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    if suffix != ".safetensors":  # what any script reads
        plain = torch.load(file, weights_only=True)
        assert plain.keys() == to_robustbench(model).keys()


def test_old_files_of_torch_are_read(tmp_path: Path) -> None:
    torch.save({"net": {"a": torch.ones(2)}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "old.pt")["a"].tolist() == [1, 1]


class _Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["CURVACT_TEST_TRAP"],)


def test_no_code_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    monkeypatch.setenv("CURVACT_TEST_TRAP", str(trap))
    for file, content in ((tmp_path / "zip.pt", None), (tmp_path / "raw.pt", pickle.dumps({"a": _Code()}))):
        if content is None:
            torch.save({"a": _Code()}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(CurvactError, match=r"refused|no file of torch.save") as caught:
            read_state_dict(file)
        assert "\n" not in str(caught.value)
        assert not trap.exists()


@pytest.mark.parametrize("part", [0, 1, 10, 5000, 0.3, 0.5, 0.8, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_a_truncated_file_is_one_clear_line(form: str, part: float, tmp_path: Path) -> None:
    file = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt")
    weights = {"conv1.weight": torch.randn(40, 40), "fc.bias": torch.ones(3)}
    if form == "safetensors":
        write_state_dict(file, weights)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=form == "zip")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole) if part < 1 else part)])
    with pytest.raises(CurvactError, match="truncated") as caught:
        read_state_dict(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_weights(tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match="no file of weights"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(CurvactError, match="no file of weights"):
        read_state_dict(tmp_path)
    page = tmp_path / "quota.pt"
    page.write_text("<!DOCTYPE html><html>Google Drive: quota exceeded</html>")
    with pytest.raises(CurvactError, match="is a web page, not a file of weights"):
        read_state_dict(page)
    page.write_text("quota exceeded")
    with pytest.raises(CurvactError, match=r"no file of torch\.save"):
        read_state_dict(page)
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=0.1)}, page)
    with pytest.raises(CurvactError, match=r"more than tensors \(argparse.Namespace\)"):
        read_state_dict(page)
    torch.save([1, 2], page)
    with pytest.raises(CurvactError, match=r"quota.pt holds a list"):
        read_state_dict(page)
    with pytest.raises(CurvactError, match=r"name has to end in .pt, .pth, .safetensors"):
        write_state_dict(tmp_path / "model.bin", {})
    with pytest.raises(CurvactError, match="cannot write"):
        write_state_dict(tmp_path / "nowhere" / "model.pt", {"a": torch.ones(1)})
    with pytest.raises(CurvactError, match="holds a Tensor"):
        unwrap(torch.ones(2))


# ---- against RobustBench's own classes ----


def architectures(name: str) -> ModuleType:
    """One of RobustBench's files, without the package, which needs torchvision and timm."""
    folder = os.environ.get("CURVACT_ROBUSTBENCH")
    if folder is not None:
        root = Path(folder) / "robustbench"
    else:
        spec = importlib.util.find_spec("robustbench")
        if spec is None or spec.origin is None:
            pytest.skip(
                "pip install --no-deps robustbench==1.1.1, or set CURVACT_ROBUSTBENCH to an unpacked wheel"
            )
        root = Path(spec.origin).parent
    file = root / "model_zoo" / "architectures" / f"{name}.py"
    found = importlib.util.spec_from_file_location(f"robustbench_{name}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def paf(depth: int, widen_factor: int) -> nn.Module:
    file = architectures("paf_wide_resnet")
    return file.PAF_WideResNet(file.PSSiLU(), depth=depth, widen_factor=widen_factor)  # type: ignore[no-any-return]


def preact(block: str, **arguments: bool) -> nn.Module:
    file = architectures("resnet")
    return file.PreActResNet(getattr(file, block), [2, 2, 2, 2], **arguments)  # type: ignore[no-any-return]


THEIRS: dict[str, Callable[[], nn.Module]] = {
    "WideResNet-10-2": lambda: architectures("wide_resnet").WideResNet(depth=10, widen_factor=2),
    "WideResNet-16-1, sub_block1": lambda: architectures("wide_resnet").WideResNet(
        depth=16, widen_factor=1, sub_block1=True
    ),
    "PAF_WideResNet-10-2": lambda: paf(10, 2),
    "PAF_WideResNet-16-1": lambda: paf(16, 1),
    "ResNet18": lambda: architectures("resnet").ResNet18(),
    "ResNet34": lambda: architectures("resnet").ResNet34(),
    "PreActResNet18": lambda: architectures("resnet").PreActResNet18(),
    "PreActResNet18, as Kireev2021Effectiveness": lambda: preact("PreActBlockV2", bn_before_fc=True),
    "PreActResNet18, as Rice2020Overfitting": lambda: preact(
        "PreActBlock", bn_before_fc=True, out_shortcut=True
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_weights_of_robustbench_give_its_outputs_here(name: str) -> None:
    theirs = randomize(THEIRS[name]())
    ours = model_from_robustbench(theirs.state_dict()).double()
    same(ours, theirs)


@pytest.mark.parametrize("name", [name for name in THEIRS if "sub_block1" not in name])
def test_our_weights_give_our_outputs_there(name: str) -> None:
    theirs = THEIRS[name]().double().eval()
    ours = model_from_robustbench(theirs.state_dict())
    randomize(ours, seed=2)
    theirs.load_state_dict(to_robustbench(ours), strict=True)
    same(ours, theirs)


def test_their_normalizing_wrapper() -> None:
    wrapper = architectures("utils_architectures").normalize_model
    theirs = randomize(wrapper(THEIRS["PAF_WideResNet-10-2"](), MEAN, STD))
    same(model_from_robustbench(theirs.state_dict()).double(), theirs)


def test_an_entry_with_mu_and_sigma() -> None:
    """As Rice2020Overfitting and others are built: buffers of the class itself."""
    theirs = randomize(THEIRS["WideResNet-10-2"]())
    for name, values in (("mu", MEAN), ("sigma", STD)):
        theirs.register_buffer(name, torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1))
    normalized = nn.Sequential(Normalize(MEAN, STD).double(), theirs)
    # Normalize holds its constants in float32.
    ours = model_from_robustbench(theirs.state_dict())
    same(ours.double(), normalized, tolerance=1e-6)
    back = to_robustbench(ours)
    assert back.keys() == theirs.state_dict().keys()
    assert back["mu"].shape == (1, 3, 1, 1)


def test_our_pssilu_is_theirs() -> None:
    theirs = architectures("paf_wide_resnet").PSSiLU().double()
    ours = PSSiLU(learnable=True).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.linspace(-40, 40, 801, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(-1, 2, 801, dtype=torch.float64)
    gradients = []
    for act in (ours, theirs):
        y = act(x)
        gradients.append([y.detach(), *torch.autograd.grad((y * weight).sum(), [x, act.alpha, act.beta])])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_the_full_pssilu_wrn_28_10() -> None:
    """The class of Dai2021Parameterizing."""
    theirs = randomize(architectures("paf_wide_resnet").pssilu_wrn_28_10(num_classes=10))
    ours = model_from_robustbench(theirs.state_dict()).double()
    kind = {"name": "wide_resnet", "depth": 28, "widen_factor": 10, "channels": 3, "classes": 10}
    assert architecture_of(theirs.state_dict()) == kind
    same(ours, theirs)
