"""Every public function of activations and models, given every kind of wrong input: one line, or an
answer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from curvact import activations, models
from curvact.activations import functional
from curvact.errors import CurvactError

WRONG: list[Any] = [
    *(
        None,
        3,
        -1.5,
        True,
        math.nan,
        math.inf,
        10**400,
        "",
        "zz",
        "relu(",
        b"x",
        [],
        {},
        (1, 2),
        object(),
        int,
    ),
    *(lambda: 3, torch.ones(2, 3), torch.ones(2, dtype=torch.long), nn.Linear(2, 2), Path("/nowhere")),
]

SMALL: dict[str, dict[str, Any]] = {
    "WideResNet": {"depth": 10, "widen_factor": 1},
    "ViT": {"width": 6, "depth": 1},
    "VGG": {"width": 2},
    **{name: {"width": 2} for name in ("ResNet", "PreActResNet", "MiniResNet", "SmallCNN")},
}
LEFT_OUT = {
    # values, types and errors; and parts that architectures are written with
    *("Peak", "Replacement", "SwapReport", "SwapWarning", "ActivationLike", "ScaledActivation", "Activation"),
    *("Common", "Frame", "Group", "LearnedActivation", "Foreign", "SelectedOutputs", "initialize", "prepare"),
    *("ActivationSource", "stage", "Elementwise"),
    # they change what is registered
    *("register", "register_model"),
}


def _doors(home: ModuleType) -> list[tuple[str, Callable[..., Any]]]:
    names = getattr(home, "__all__", [name for name in vars(home) if not name.startswith("_")])
    found = [(name, getattr(home, name)) for name in names]
    return [(n, f) for n, f in found if callable(f) and not isinstance(f, ModuleType) and n not in LEFT_OUT]


def _valid(name: str, parameter: inspect.Parameter, folder: Path) -> Any:
    """A right value of a required argument."""
    return {
        "x": torch.zeros(2),
        "path": folder / "a.safetensors",
        "folder": folder / "model",
        "source": models.build("mini_resnet", width=2) if name != "from_pretrained" else folder,
        "name": "mini_resnet",
        "architecture": {"name": "mini_resnet", "width": 2},
        "about": {},
        "mean": [0.5],
        "std": [0.5],
        "outputs": [0, 1],
        "learned": None,
        "state_dict": {},
        "mode": "auto",
        "f": torch.tanh,
        "activation_like": "relu",
        "rate": 0.1,
    }.get(parameter.name, nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


@pytest.mark.parametrize(
    "home", [activations, models, functional], ids=["activations", "models", "functional"]
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_arguments_are_one_line(home: ModuleType, tmp_path: Path) -> None:
    odd = []
    for name, function in _doors(home):
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            continue
        plain = [p for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        required = {p.name: _valid(name, p, tmp_path) for p in plain if p.default is p.empty}
        for parameter in plain:
            for wrong in WRONG:
                if name in SMALL and parameter.name == "activation" and isinstance(wrong, nn.Module):
                    continue  # right
                if isinstance(wrong, torch.Tensor) and home is functional and parameter.name != "x":
                    continue  # a parameter may be a tensor; torch says which shapes fit
                try:
                    function(**{**SMALL.get(name, {}), **required, parameter.name: wrong})
                except CurvactError as error:
                    if "\n" in str(error) or len(str(error)) > 900:
                        odd.append((name, parameter.name, wrong, str(error)))
                except Exception as error:
                    odd.append((name, parameter.name, wrong, repr(error)))
    activations.set_fusion("auto")
    assert not odd, "\n".join(f"{n}({p}={w!r:.30}): {e[:150]}" for n, p, w, e in odd[:20])
