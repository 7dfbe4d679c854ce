"""Checkpoints as files: whole, or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from curvact.errors import CurvactError
from curvact.models import build
from curvact.models.checkpoint import load_checkpoint, save_checkpoint

ARCHITECTURE = {"name": "mini_resnet", "activation": "rctaf(curvature=6, beta=1)", "width": 2, "channels": 1}


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = build(**ARCHITECTURE)
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, model, ARCHITECTURE, {"note": "x"})
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
    save_checkpoint(file, build(**ARCHITECTURE), ARCHITECTURE, {})
    whole = file.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(CurvactError, match="truncated or damaged") as caught:
            load_checkpoint(file)
        assert "\n" not in str(caught.value)
    save_checkpoint(file, build(**ARCHITECTURE), {**ARCHITECTURE, "width": 3}, {})
    with pytest.raises(CurvactError, match="does not fit its architecture") as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)
    file.with_suffix(".json").write_text("{")
    with pytest.raises(CurvactError, match="not readable JSON"):
        load_checkpoint(file)
