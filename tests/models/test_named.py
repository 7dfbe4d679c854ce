"""Networks of others by name: arguments, activations, normalization, and one line for what does not fit."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from curvact.activations import Activation, swap_activations
from curvact.errors import CurvactError
from curvact.models import MODELS, arguments_of, build
from curvact.models.checkpoint import load_checkpoint, save_checkpoint
from curvact.models.named import FILES


class Swapped(nn.Module):
    """Takes no activation."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, width: int = 4, layer: Any = nn.ReLU
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, width, 3), layer(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))  # type: ignore[no-any-return]


class ByName(Swapped):
    def __init__(self, activation: str = "relu", *, channels: int, classes: int) -> None:
        from curvact.activations import activation as made

        super().__init__(classes, channels, layer=lambda: made(activation))


class ByFactory(Swapped):
    def __init__(self, num_classes: int, in_chans: int = 3, act_layer: Any = nn.GELU) -> None:
        super().__init__(num_classes, in_chans, layer=act_layer)


class Calls(nn.Module):
    """Calls a function where a module could be."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.fc(x.mean((2, 3))))


def rewritten(num_classes: int = 10, in_channels: int = 3, activation: str = "relu") -> nn.Module:
    """Calls a function, and its call is swapped by the graph."""
    return swap_activations(Calls(num_classes, in_channels), "ReLU", activation, functional="rewrite").model


class TheirGELU(nn.Module):
    """A class of a library, which calls the function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x)


class TheirGate(TheirGELU):
    """Not an activation: it looks at other elements too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x - x.mean())


class TheirModules(Swapped):
    def __init__(self, num_classes: int = 10, in_channels: int = 3, gate: bool = False) -> None:
        super().__init__(num_classes, in_channels, layer=TheirGate if gate else TheirGELU)


class Fixed(nn.Module):
    """Always ten classes."""

    def __init__(self, must: int) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(must, 10), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.fc(x.mean((2, 3))))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _file() -> Iterator[None]:
    module = types.ModuleType(__name__)  # functions count where they are at home
    for kind in (Swapped, ByName, ByFactory, TheirModules, Calls, rewritten, Fixed):
        setattr(module, kind.__name__, kind)
    module.system = os.system  # type: ignore[attr-defined]
    FILES["nets.py"] = module
    yield
    del FILES["nets.py"]


COMMON: dict[str, Any] = {"channels": 1, "classes": 7, "size": 8, "mean": [0.3], "std": [0.2]}


@pytest.mark.parametrize("name", ["Swapped", "ByName", "ByFactory", "TheirModules", "rewritten"])
def test_the_activation_gets_into_the_network(name: str, tmp_path: Path) -> None:
    arguments = {"name": f"nets.py:{name}", "activation": "rctaf(curvature=6)", **COMMON}
    model = build(**arguments, generator=torch.Generator().manual_seed(1))
    assert model.training
    acts = [m for m in model.modules() if isinstance(m, Activation)]
    assert [round(a.max_curvature.value, 6) for a in acts] == [6]
    x = torch.rand(3, 1, 8, 8)
    inner = model.model
    assert isinstance(inner, nn.Module)
    assert torch.equal(model.eval()(x), inner((x - 0.3) / 0.2))
    save_checkpoint(tmp_path / "m.safetensors", model, arguments, {})
    assert torch.equal(load_checkpoint(tmp_path / "m.safetensors")(x), model(x))


def test_a_graph_of_another_forward_is_not_saved(tmp_path: Path) -> None:
    arguments = {"name": "nets.py:rewritten", "activation": "rctaf(curvature=6)", **COMMON}
    model = build(**arguments)
    with pytest.raises(CurvactError, match=r"rctaf.* and its architecture gives rctaf"):
        save_checkpoint(
            tmp_path / "m.safetensors", model, arguments | {"activation": "rctaf(curvature=4)"}, {}
        )
    inner = model.model
    assert isinstance(inner, torch.fx.GraphModule)
    output = next(node for node in inner.graph.nodes if node.op == "output")
    with inner.graph.inserting_before(output):
        doubled = inner.graph.call_function(torch.mul, (output.args[0], 2))
    output.args = (doubled,)
    inner.recompile()
    with pytest.raises(CurvactError, match="is a Calls and its architecture gives another Calls there"):
        save_checkpoint(tmp_path / "m.safetensors", model, arguments, {})
    assert not list(tmp_path.iterdir())


def test_the_seed_decides_the_weights_and_nothing_else_changes() -> None:
    before = torch.random.get_rng_state()
    a, b, c = (
        build("nets.py:Swapped", **COMMON, generator=torch.Generator().manual_seed(s)).state_dict()
        for s in (1, 1, 2)
    )
    assert torch.equal(a["model.fc.weight"], b["model.fc.weight"])
    assert not torch.equal(a["model.fc.weight"], c["model.fc.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_own_arguments() -> None:
    assert arguments_of("nets.py:Swapped") == {"width": 4, "layer": None}
    assert build("nets.py:Swapped", width=9, **COMMON).model.fc.in_features == 9  # type: ignore[union-attr]
    assert build("nets.py:Swapped", activation=None).model.body[1].__class__ is nn.ReLU  # type: ignore[union-attr, index]
    assert "nets.py:Swapped" in MODELS
    assert "nets.py" not in MODELS


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "nets.py:Swaped"}, "no network 'Swaped'; did you mean 'Swapped'"),
        ({"name": "nets.py:system", "command": "true"}, "no network 'system'"),
        ({"name": "other.py:Net"}, r"other\.py was not imported"),
        ({"name": "nets.py:Swapped", "widht": 3}, "no argument 'widht'; did you mean 'width'"),
        ({"name": "nets.py:Swapped", "width": -1}, r"nets\.py:Swapped cannot be built: RuntimeError"),
        ({"name": "nets.py:Swapped", "size": 2}, "does not take images of 1×2×2"),
        ({"name": "nets.py:Swapped", "scope": "stage"}, "scope='stage' is not for it"),
        ({"name": "nets.py:ByName", "scope": "layer"}, "leave out scope"),
        ({"name": "nets.py:Calls"}, "relu in forward, which cannot be swapped"),
        ({"name": "nets.py:TheirModules", "gate": True}, "body.1: gelu in forward"),
        ({"name": "nets.py:Fixed"}, "needs its argument 'must'"),
        ({"name": "nets.py:Fixed", "must": 1}, r"outputs of shape \(2, 10\) .*, not \(2, 7\)"),
        ({"name": "timm:resnet50"}, r"timm cannot be imported .*pip install 'curvact\[timm\]'"),
        ({"name": "hf:owner/name"}, r"pip install 'curvact\[huggingface\]'"),
    ],
)
def test_what_does_not_fit(arguments: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("timm", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CurvactError, match=problem) as caught:
        build(**{**COMMON, **arguments})
    assert "\n" not in str(caught.value)


def test_a_library_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the place of timm: `create_model` gets classes, channels and further arguments."""
    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["tiny"]  # type: ignore[attr-defined]
    timm.create_model = lambda name, num_classes, in_chans, **more: Swapped(  # type: ignore[attr-defined]
        num_classes, in_chans, **more
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    model = build("timm:tiny", activation="silu", width=5, **COMMON)
    assert model.model.fc.weight.shape == (7, 5)  # type: ignore[union-attr]
    assert str(model.model.body[1]) == "swish(beta=1.0)"  # type: ignore[union-attr, index]
    with pytest.raises(CurvactError, match="timm has no model 'tinny'; did you mean 'tiny'"):
        build("timm:tinny", **COMMON)
    with pytest.raises(CurvactError, match="does not take 'pretrained': put weights into a file"):
        build("timm:tiny", pretrained=True, **COMMON)
    with pytest.raises(CurvactError, match="timm:tiny cannot be built: TypeError"):
        build("timm:tiny", depth=5, **COMMON)
