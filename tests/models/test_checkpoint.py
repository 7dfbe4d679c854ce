"""A network from its weights and description; a wrong description is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curvact.activations import Activation, register, registry, swap_activations
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
        (
            {"width": 3},
            r"here does not fit its architecture: wrong shape of .*\(2, 1, 3, 3\), not \(3, 1, 3, 3\)",
        ),
        (
            {"classes": 7},
            r"here does not fit its architecture: wrong shape of linear.weight \(10, \d+\), not \(7, \d+\)",
        ),
        ({"width": 10000}, "here does not fit its architecture: wrong shape of"),
        ({"blocks": 60004}, "here: blocks=60004 for 45 tensors of weights"),
        ({"name": "wide_resnet", "depth": 60004, "width": 2}, "here: depth=60004 for "),
        ({"width": "2"}, "here: mini_resnet got .*width='2'"),
        ({"activation": "sparrta"}, "here: unknown activation 'sparrta'"),
        ({"activation": None}, "here: None is no activation"),
        ({"scope": ["network"]}, "here: activation scope"),
        ({"mean": ["a"]}, r"here: mean=\['a'\]: finite numbers, one for each channel"),
        ({"generator": 3}, r"here: mini_resnet got generator=3: a torch\.Generator or None"),
        ({"classes": 10**12}, "here: mini_resnet got classes=1000000000000: the largest is 1048576"),
        ({"classes": 10**30}, "here: mini_resnet got classes="),
    ],
)
def test_a_description_that_is_wrong_is_one_line(changes: dict[str, Any], message: str) -> None:
    tensors = state_of(build(**ARGUMENTS))
    with pytest.raises(CurvactError, match=f"^{message}") as error:
        rebuild({**ARGUMENTS, **changes}, tensors, "here")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_long_list_of_misfits_is_cut() -> None:
    with pytest.raises(CurvactError, match=r"missing .* and 42 more; unexpected a$"):
        rebuild(ARGUMENTS, {"a": torch.ones(1)}, "here")


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
    save_checkpoint(file, build(**ARGUMENTS), ARGUMENTS, {})
    file.with_suffix(".json").write_text(json.dumps({"architecture": {**ARGUMENTS, "width": 3}}))
    with pytest.raises(CurvactError, match="does not fit its architecture") as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)
    for text in ("{", "[" * 200_000):
        file.with_suffix(".json").write_text(text)
        with pytest.raises(CurvactError, match="not readable JSON"):
            load_checkpoint(file)


# ---- what could not be loaded is not saved ----


class Scaled(Activation):
    """An activation from outside with an argument."""

    def __init__(self, k: float = 2.0) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.k * x)


def test_the_arguments_of_an_activation_from_outside_survive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curvact.activations.registry._REGISTRY", dict(registry._REGISTRY))
    register("scaled_k", Scaled)
    file, act = tmp_path / "a.safetensors", Scaled(5.0)
    assert str(act) == "scaled_k(k=5.0)"
    arguments = {"name": "mini_resnet", "width": 2, "channels": 1}
    model = build(**arguments, activation=act).eval()
    with pytest.raises(
        CurvactError, match=r"act is scaled_k\(k=5.0\) and its architecture gives scaled_k there"
    ):
        save_checkpoint(file, model, {**arguments, "activation": "scaled_k"}, {})
    with pytest.raises(CurvactError, match=r"activation=scaled_k\(k=5.0\) is no text"):
        save_checkpoint(file, model, {**arguments, "activation": act}, {})
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(file, model, {**arguments, "activation": str(act)}, {})
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(load_checkpoint(file)(x), model(x))


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    file, model = tmp_path / "a.safetensors", build(**ARGUMENTS)
    for architecture, message in (
        ({"name": "theirs"}, "no architecture is named 'theirs'; give its class a name by register_model"),
        ({}, "no architecture is named None"),
        ({**ARGUMENTS, "width": 3}, "its weights are not those of its architecture: wrong shape of"),
        ({**ARGUMENTS, "activation": "relu"}, "unexpected act.weight"),
    ):
        with pytest.raises(CurvactError, match=message) as error:
            save_checkpoint(file, model, architecture, {})
        assert "\n" not in str(error.value)
    arguments = {**ARGUMENTS, "activation": "relu"}
    swapped = swap_activations(build(**arguments), to="rctaf(curvature=6)").model
    with pytest.raises(CurvactError, match="act is a RCTAF and its architecture gives a ReLU there"):
        save_checkpoint(file, swapped, arguments, {})
    assert list(tmp_path.iterdir()) == []


def test_saving_draws_no_random_numbers(tmp_path: Path) -> None:
    model, before = build(**ARGUMENTS), torch.get_rng_state()
    save_checkpoint(tmp_path / "a.safetensors", model, ARGUMENTS, {})
    assert torch.equal(torch.get_rng_state(), before)


# ---- into a network of the caller ----


class Theirs(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body, self.bn, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.bn(self.body(x)))
        return out


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_go_into_a_network_of_the_caller(tmp_path: Path, prefix: str, wrapped: bool) -> None:
    source, file = Theirs().eval(), tmp_path / "a.pt"
    weights: dict[str, Any] = {prefix + name: value for name, value in source.state_dict().items()}
    if prefix:
        weights["criterion.weight"] = torch.ones(3)  # as in files of Lightning
    torch.save({"epoch": 3, "state_dict": weights, "callbacks": {}} if wrapped else weights, file)
    mine = Theirs()
    assert load_checkpoint(file, model=mine) is mine
    assert not mine.training
    x = torch.rand(6, 4)
    assert torch.equal(mine(x), source(x))


def test_weights_that_do_not_fit_a_network_change_nothing(tmp_path: Path) -> None:
    file, mine = tmp_path / "a.pt", Theirs(7)
    torch.save(Theirs().state_dict(), file)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with pytest.raises(
        CurvactError, match=r"do not fit this Theirs: wrong shape of head.weight \(3, 5\), not \(7, 5\)"
    ):
        load_checkpoint(file, model=mine)
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    with pytest.raises(CurvactError, match=r"give an nn\.Module"):
        load_checkpoint(file, model="mine")  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "page", ["<!DOCTYPE html>\n<html>Sign in</html>", "version https://git-lfs.github.com/spec/v1\n"]
)
def test_what_a_failed_download_leaves_is_named(tmp_path: Path, suffix: str, page: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_text(page)
    with pytest.raises(CurvactError, match=r"a (web page|pointer of Git LFS)") as error:
        load_checkpoint(file, model=Theirs())
    assert "\n" not in str(error.value)
