"""A run that starts with a learned activation: frozen or not, kept in its folder, part of its id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from curvact.activations import Activation
from curvact.errors import CurvactError
from curvact.lab.layout import ACTIVATION_FILE
from curvact.lab.run import execute, settle
from curvact.lab.spec import RunSpec, read_spec
from curvact.models import build
from curvact.models.checkpoint import load_checkpoint
from curvact.models.learned import extract_activation, read_learned, write_learned
from curvact.random import generator

SMALL = [
    "data={name: digits, train: 80, validation: 20, test: 20}",
    "training.batch_size=20",
    "training.attack=pgd-1",
    "training.epochs=2",
    "evaluation={attack: pgd-2, train_images: 20}",
]


def _model(name: str, **arguments: Any) -> nn.Module:
    return build(name, **{"channels": 1, "size": 8, **arguments}, generator=generator(0, "test"))


def _stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move learned parameters, and statistics of batch norm inside, away from their initial values."""
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


def _learned_file(folder: Path, name: str, scope: str = "network", seed: int = 0) -> Path:
    file = folder / f"act{seed}.safetensors"
    source = _stir(_model("mini_resnet", activation=name, width=2, scope=scope), seed)
    write_learned(file, extract_activation(source))
    return file


def _spec(file: Path, *overrides: str, frozen: bool = True) -> RunSpec:
    origin = json.dumps({"path": str(file), "frozen": frozen})
    model = "model={name: mini_resnet, width: 2}"
    return read_spec("digits", [*SMALL, model, f"activation_from={origin}", *overrides])


@pytest.mark.parametrize(
    ("name", "scope", "overrides"),
    [
        ("pssilu(learnable=True)", "network", ["training.beta_penalty=10", "training.beta_clip=0.01"]),
        ("rctaf(curvature=6, learnable=True)", "network", ["training.decay_activations=false"]),
        ("sparta", "network", ["training.averaging=ema(decay=0.5)"]),
        ("sparta(variant=full, norm=True)", "layer", ["training.averaging=ema(decay=0.5)"]),
        ("psilu", "network", ["training.perturbation=awp(gamma=0.01)"]),
        ("sparta(variant=agnostic)", "network", ["training.perturbation=sam(rho=0.05)"]),
        ("sparta", "stage", ["training.optimizer=entropy-sgd(inner_steps=2)", "training.learning_rate=1.0"]),
    ],
)
def test_frozen_stays_bit_identical_and_the_checkpoint_reloads(
    name: str, scope: str, overrides: list[str], tmp_path: Path
) -> None:
    file = _learned_file(tmp_path, name, scope)
    execute(_spec(file, *overrides), tmp_path / "run")
    weights = load_file(tmp_path / "run" / "last.safetensors")
    model = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    before, after = read_learned(file), extract_activation(tmp_path / "run" / "last.safetensors")
    assert (after.scope, len(after.groups)) == (scope, len(before.groups))
    for a, b in zip(before.groups, after.groups, strict=True):
        assert a.tensors.keys() == b.tensors.keys()
        assert all(torch.equal(a.tensors[key], b.tensors[key]) for key in a.tensors)
    assert after.provenance["activation_from"] == {"frozen": True, "sha256": before.sha256}
    start = _model("mini_resnet", width=2)
    assert not torch.equal(start.linear.weight, model.linear.weight)


@pytest.mark.parametrize("name", ["pssilu(learnable=True)", "sparta"])
def test_a_warm_start_moves(name: str, tmp_path: Path) -> None:
    file = _learned_file(tmp_path, name)
    execute(_spec(file, frozen=False), tmp_path / "run")
    before, after = read_learned(file), extract_activation(tmp_path / "run" / "last.safetensors")
    for a, b in zip(before.groups, after.groups, strict=True):
        for key in set(a.tensors) - {"beta"}:
            assert not torch.equal(a.tensors[key], b.tensors[key])
            assert (
                a.tensors[key] - b.tensors[key]
            ).abs().max() < 1  # from there, not from the initial values
    about = json.loads((tmp_path / "run" / "last.json").read_text())
    assert about["activation_from"]["frozen"] is False


def test_the_id_follows_the_content_of_the_file_not_its_place(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    one, copy = _learned_file(tmp_path, "psilu"), _learned_file(tmp_path / "b", "psilu")
    other = _learned_file(tmp_path, "psilu", seed=1)

    def identity(file: Path, frozen: bool = True) -> str:
        return settle(_spec(file, frozen=frozen), tmp_path / "none")[0].id

    assert identity(one) == identity(copy)
    assert len({identity(one), identity(other), identity(one, frozen=False)}) == 3
    plain = read_spec("digits", SMALL)
    assert settle(plain, tmp_path) == (plain, None, "")


def test_a_run_keeps_its_activation_and_refuses_another(tmp_path: Path) -> None:
    file = _learned_file(tmp_path, "psilu")
    execute(_spec(file), tmp_path / "run")
    assert read_learned(tmp_path / "run" / ACTIVATION_FILE).sha256 == read_learned(file).sha256
    (tmp_path / "run" / "record.json").unlink()
    kept = read_spec(tmp_path / "run")
    assert kept.activation_from is not None
    assert kept.activation_from.sha256 == read_learned(file).sha256
    assert (kept.activation, kept.model.scope) == (read_learned(file).name, "network")
    file.unlink()
    assert execute(kept, tmp_path / "run").status == "done"  # without the file it came from
    other = _learned_file(tmp_path, "psilu", seed=1)
    with pytest.raises(CurvactError, match="holds a run of another spec"):
        execute(_spec(other), tmp_path / "run")
    write_learned(tmp_path / "run" / ACTIVATION_FILE, read_learned(other))
    (tmp_path / "run" / "record.json").unlink()
    with pytest.raises(CurvactError, match="holds another activation than the spec means"):
        execute(kept, tmp_path / "run")


def test_what_cannot_be_moved_writes_nothing(tmp_path: Path) -> None:
    file = _learned_file(tmp_path, "sparta")
    with pytest.raises(CurvactError, match=r"act has 3 channels"):
        execute(_spec(file, "model.width=3"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
