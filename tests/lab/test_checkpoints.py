"""A model from a run folder or a file, and what is known of its training; bad JSON is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from curvact.attacks import ThreatModel
from curvact.errors import CurvactError
from curvact.lab.checkpoints import checkpoint_name, open_checkpoint
from curvact.models import build
from curvact.models.checkpoint import save_checkpoint
from curvact.models.interchange import to_robustbench, write_state_dict

ARCHITECTURE = {"name": "mini_resnet", "activation": "silu", "channels": 1, "width": 2}


def _save(path: Path, **about: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, build(**ARCHITECTURE), ARCHITECTURE, about)
    return path


def test_a_run_folder_and_its_files(tmp_path: Path) -> None:
    best, last = (_save(tmp_path / "run" / f"{name}.safetensors", epoch=name) for name in ("best", "last"))
    assert open_checkpoint(tmp_path / "run").sidecar["epoch"] == "best"
    assert open_checkpoint(tmp_path / "run", "last").path == last
    opened = open_checkpoint(best)
    assert (opened.name, opened.architecture, opened.model.training) == ("run-best", ARCHITECTURE, False)
    assert (opened.data, opened.threat_model) == (None, None)


def test_what_is_known_of_the_training(tmp_path: Path) -> None:
    data = {"name": "digits", "size": 8, "train": 100, "extra": "more.npz", "unknown": 1}
    path = _save(tmp_path / "best.safetensors", data=data, threat_model={"norm": "l2", "epsilon": 1})
    opened = open_checkpoint(path)
    assert opened.threat_model == ThreatModel("l2", 1)
    assert opened.data is not None
    assert (opened.data.name, opened.data.size, opened.data.train) == ("digits", 8, 100)
    assert opened.data.extra is None


def test_weights_of_others(tmp_path: Path) -> None:
    model = build("wide_resnet", depth=10, widen_factor=1, mean=[0] * 3, std=[1] * 3).eval()
    write_state_dict(tmp_path / "foreign.pt", to_robustbench(model))
    opened = open_checkpoint(tmp_path / "foreign.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(opened.model(x), model(x))
    assert (opened.sidecar, opened.data, opened.threat_model) == ({}, None, None)


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match="no checkpoint file"):
        open_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CurvactError, match=r"no checkpoint file .*last\.safetensors"):
        open_checkpoint(tmp_path, "last")
    with pytest.raises(CurvactError, match=r"no checkpoint file .*typo"):
        open_checkpoint(tmp_path / "typo", "last")


@pytest.mark.parametrize("weights", ["best", "last"])
def test_the_folder_of_a_sweep_names_a_run(weights: Literal["best", "last"], tmp_path: Path) -> None:
    for run in ("b", "a"):
        _save(tmp_path / "runs" / run / "best.safetensors")
    with pytest.raises(CurvactError, match=r"no checkpoint file .*; there are 2 below, such as .*runs.a$"):
        open_checkpoint(tmp_path, weights)


@pytest.mark.parametrize("path", ["zoo:digits-resnet-relu", "run/best.safetensors"])
def test_last_weights_are_those_of_a_run_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _save(tmp_path / "run" / "best.safetensors")
    with pytest.raises(CurvactError, match=f"weights last of {path}: only a run folder has"):
        open_checkpoint(path, "last")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"threat_model": {"epsilon": "8/25x"}}, 'threat_model={"epsilon": "8/25x"}: epsilon=\'8/25x\''),
        ({"threat_model": {"epsilon": True}}, "epsilon=True of a threat model"),
        ({"threat_model": {"epsilon": -0.1}}, "epsilon=-0.1 of a threat model"),
        ({"threat_model": {"epsilon": float("nan")}}, "epsilon=nan of a threat model"),
        ({"threat_model": {"epsilon": None}}, "epsilon=None of a threat model"),
        ({"threat_model": {"epsilon": 10**400}}, 'threat_model={"epsilon": 1000'),
        ({"threat_model": {"epsilon": 0.1, "norm": ["linf"]}}, "norm=['linf'] of a threat model"),
        ({"threat_model": {"epsilon": 0.1, "norm": "l7"}}, "norm='l7' of a threat model: allowed are linf"),
        ({"threat_model": {"norm": "linf"}}, 'threat_model={"norm": "linf"}: expected such as'),
        ({"threat_model": "linf"}, 'threat_model="linf": expected such as'),
        ({"data": "digits"}, 'data="digits": expected such as'),
        ({"data": {}}, "data={}: expected such as"),
        ({"data": {"name": 3}}, 'data={"name": 3}: expected such as'),
        ({"data": {"name": "digits", "size": "big"}}, "size='big'"),
        ({"data": {"name": "digits", "size": 0}}, "size=0"),
        ({"data": {"name": "digots"}}, "did you mean 'digits'"),
    ],
)
def test_wrong_json_is_one_line(tmp_path: Path, about: dict[str, Any], message: str) -> None:
    opened = open_checkpoint(_save(tmp_path / "best.safetensors", **about))
    with pytest.raises(CurvactError) as caught:
        getattr(opened, next(iter(about)))
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert text.startswith(str(tmp_path / "best.json"))
    assert "correct it or give --" in text


def test_names_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has a `best`: its folder's name comes first, however the path is written."""
    for stem in ("best", "last", "model", "epoch-0012"):
        assert checkpoint_name(tmp_path / "run" / f"{stem}.safetensors") == f"run-{stem}"
    assert checkpoint_name(tmp_path / "run" / "resnet.safetensors") == "resnet"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in ("best.safetensors", "./best.safetensors", "../here/best.safetensors"):
        assert checkpoint_name(Path(path)) == "here-best"
    assert checkpoint_name(Path("../best.safetensors")) == f"{tmp_path.name}-best"
