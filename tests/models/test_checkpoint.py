"""A network from its weights and description; a wrong description is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curvact.errors import CurvactError
from curvact.models import build
from curvact.models.checkpoint import (
    load_checkpoint,
    read_sidecar,
    read_tensors,
    rebuild,
    save_checkpoint,
    state_of,
)

ARGUMENTS: dict[str, Any] = {"name": "mini_resnet", "activation": "sparta", "width": 2, "channels": 1}


def test_a_network_and_back() -> None:
    model = build(**ARGUMENTS).eval()
    tensors = state_of(model)
    again = rebuild(ARGUMENTS, tensors, "here")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again(x), model(x))
    with torch.no_grad():
        model.conv.weight.zero_()
    assert tensors["conv.weight"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "here: the architecture lacks its name"),
        ({"name": ["mini_resnet"]}, "here: the architecture lacks its name"),
        ({"name": "mini_resnet2"}, "here: unknown model 'mini_resnet2'; did you mean 'mini_resnet'?"),
        ({"depth": 3}, "here: mini_resnet has no argument 'depth'"),
        ({"width": 3}, "here does not fit its architecture: .*size mismatch"),
        ({"width": "2"}, "here: mini_resnet got .*width='2'"),
        ({"activation": "sparrta"}, "here: unknown activation 'sparrta'"),
        ({"activation": None}, "here: None is no activation"),
        ({"scope": ["network"]}, "here: activation scope"),
        ({"mean": ["a"]}, "here does not fit its architecture"),
        ({"generator": 3}, "here does not fit its architecture"),
        ({"classes": 10**12}, "here does not fit its architecture"),
        ({"classes": 10**30}, "here does not fit its architecture"),
    ],
)
def test_a_description_that_is_wrong_is_one_line(changes: dict[str, Any], message: str) -> None:
    tensors = state_of(build(**ARGUMENTS))
    with pytest.raises(CurvactError, match=f"^{message}") as error:
        rebuild({**ARGUMENTS, **changes}, tensors, "here")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_long_list_of_misfits_is_cut() -> None:
    with pytest.raises(CurvactError, match=r"…$"):
        rebuild({**ARGUMENTS, "blocks": 9}, {}, "here")


def test_files_that_are_not_there_or_something_else(tmp_path: Path) -> None:
    for content in ("{", "[]", "{}", '{"architecture": 3}'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(CurvactError, match="not readable JSON with an 'architecture'"):
            read_sidecar(tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CurvactError, match="not readable JSON"):
        read_sidecar(tmp_path / "a.safetensors")
    with pytest.raises(CurvactError, match=r"no checkpoint file .*b\.json"):
        read_sidecar(tmp_path / "b.safetensors")
    with pytest.raises(CurvactError, match=r"cannot read .*No such file"):
        read_tensors(tmp_path / "b.safetensors")
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "c.safetensors")  # a pickle
    with pytest.raises(CurvactError, match="truncated or damaged"):
        read_tensors(tmp_path / "c.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_are_kept_on_demand(dtype: torch.dtype) -> None:
    tensors = state_of(build(**ARGUMENTS).to(dtype))
    assert {p.dtype for p in rebuild(ARGUMENTS, tensors, "here").parameters()} == {torch.float32}
    kept = rebuild(ARGUMENTS, tensors, "here", keep_types=True)
    assert {p.dtype for p in kept.parameters()} == {dtype}
    assert all(torch.equal(value, tensors[name]) for name, value in kept.state_dict().items())


def test_a_run_folder_is_its_best_weights(tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match=r"no checkpoint file .*best\.safetensors"):
        load_checkpoint(tmp_path)
    for name in ("model", "last", "best"):
        save_checkpoint(tmp_path / f"{name}.safetensors", build(**ARGUMENTS), ARGUMENTS, {})
        wanted = load_checkpoint(tmp_path / f"{'model' if name == 'last' else name}.safetensors")
        assert torch.equal(load_checkpoint(tmp_path).conv.weight, wanted.conv.weight)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = build(**ARGUMENTS)
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, model, ARGUMENTS, {"note": "x"})
    again = load_checkpoint(file)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(x), model.eval()(x))
    assert not again.training
    assert json.loads(file.with_suffix(".json").read_text())["note"] == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_bad_checkpoints_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(CurvactError, match="no checkpoint file"):
        load_checkpoint(file)
    save_checkpoint(file, build(**ARGUMENTS), ARGUMENTS, {})
    whole = file.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(CurvactError, match="truncated or damaged") as caught:
            load_checkpoint(file)
        assert "\n" not in str(caught.value)
    save_checkpoint(file, build(**ARGUMENTS), {**ARGUMENTS, "width": 3}, {})
    with pytest.raises(CurvactError, match="does not fit its architecture") as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)
    file.with_suffix(".json").write_text("{")
    with pytest.raises(CurvactError, match="not readable JSON"):
        load_checkpoint(file)
