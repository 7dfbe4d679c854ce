"""Runs that are killed and resumed, damaged files, and folders of another run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvact.attacks import (
    ThreatModel,
    ensemble,
)
from curvact.attacks.autoattack.store import config_hash, hash_network, read_unit, write_unit
from curvact.errors import CurvactError

ALL = ["apgd-ce", "apgd-t", "fab-t", "square"]
SMALL: dict[str, Any] = {"attacks": ALL, "steps": 8, "queries": 40}
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 2.0}
KILLED = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from curvact.data import load
from curvact.attacks import ThreatModel, ensemble
model = torch.load(sys.argv[3], weights_only=False)
test = load("digits").test
x, y = test.inputs(slice(0, 20)), test.labels[:20]
def tell(progress):
    print(progress.attack, flush=True)
ensemble(model, x, y, ThreatModel("linf", 0.1), attacks=["apgd-ce", "apgd-t", "fab-t", "square"], steps=8, queries=40,
    shard_size=6, seed=2, folder=sys.argv[1], on_progress=tell)
"""


@pytest.fixture
def begun(tmp_path: Path, net: Any, images: Any) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished run, and its arguments."""
    model, (x, y) = net(), images(8)
    arguments = {
        "model": model,
        "x": x,
        "y": y,
        "threat_model": ThreatModel("linf", 0.15),
        "attacks": ["apgd-ce", "apgd-t"],
        "steps": 4,
        "shard_size": 4,
        "folder": tmp_path / "run",
    }
    ensemble(**arguments)
    return tmp_path / "run", arguments


def _python(code: str, *arguments: object, tmp_path: Path) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def test_killed_and_resumed_is_as_if_never_killed(net: Any, images: Any, same: Any, tmp_path: Path) -> None:
    model, (x, y) = net(), images()
    settings: dict[str, Any] = {**SMALL, "shard_size": 6, "seed": 2}
    whole = ensemble(model, x, y, ThreatModel("linf", 0.1), **settings)
    saved, folder = tmp_path / "model.pt", tmp_path / "run"
    torch.save(model, saved)
    process = _python(KILLED, folder, tmp_path, saved, tmp_path=tmp_path)
    assert process.stdout is not None
    for _ in range(7):
        assert process.stdout.readline(), process.communicate()[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    stored = len(list(folder.glob("*.safetensors")))
    assert 7 <= stored < 20
    resumed = ensemble(model, x, y, ThreatModel("linf", 0.1), **settings, folder=folder)
    same(whole, resumed)
    assert resumed.units_resumed == stored
    assert resumed.gradient_evaluations == whole.gradient_evaluations
    again = ensemble(model, x, y, ThreatModel("linf", 0.1), **settings, folder=folder)
    same(whole, again)
    assert again.units_resumed == 20
    told = json.loads((folder / "result.json").read_text())
    assert told["robust_accuracy"] == whole.robust_accuracy
    assert told["name"] == whole.name
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "swapped"])
def test_a_damaged_file_is_run_again(same: Any, begun: Any, damage: str) -> None:
    folder, arguments = begun
    before = ensemble(**arguments)
    assert before.units_resumed == 6
    file = folder / "shard-00001.apgd-ce.safetensors"
    data = file.read_bytes()
    spoilt = {
        "truncated": data[:-7],
        "flipped": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        "empty": b"",
        "swapped": (folder / "shard-00000.apgd-ce.safetensors").read_bytes(),
    }[damage]
    file.write_bytes(spoilt)
    after = ensemble(**arguments)
    same(before, after)
    assert after.units_resumed == 4
    assert after.notes[0] == "shard-00001.apgd-ce.safetensors was damaged and is run again"
    assert file.read_bytes() != spoilt


def test_a_stored_success_is_checked_too(same: Any, begun: Any) -> None:
    """A file that claims, with a right checksum, what does not hold."""
    folder, arguments = begun
    before = ensemble(**arguments)
    run = config_hash(json.loads((folder / "autoattack.json").read_text())["config"])
    file = folder / "shard-00000.apgd-ce.safetensors"
    unit = read_unit(file.read_bytes(), run, 0, "apgd-ce")
    assert unit is not None
    robust = before.robust[:4].nonzero().squeeze(1)[:1]
    clean = arguments["x"][robust]
    for lie in (clean, 1 - clean, clean * math.nan):
        forged = replace(unit, index=robust, x_adv=lie, y_adv=torch.tensor([1]))
        file.write_bytes(write_unit(forged, run))
        after = ensemble(**arguments)
        same(before, after)
        assert "damaged" in after.notes[0]


def test_an_address_in_the_printed_form_is_no_other_network() -> None:
    class Printed(nn.Module):
        def __init__(self, what: object) -> None:
            super().__init__()
            self.what = what

        def extra_repr(self) -> str:
            return f"what={self.what}"

    one, other = Printed(lambda: 0), Printed(lambda: 0)
    assert str(one) != str(other)
    assert hash_network(one) == hash_network(other) != hash_network(Printed(3))


def test_another_run_in_the_folder_is_said(begun: Any, net: Any, tmp_path: Path) -> None:
    folder, arguments = begun
    x = arguments["x"].clone()
    x[0, 0, 0, 0] = 0.5
    changed = net("rctaf(curvature=6)")
    for change, words in (
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"threat_model": ThreatModel("linf", 0.2)}, "epsilon is 0.15 there and 0.2 here"),
        ({"attacks": ["apgd-ce"]}, "attacks is "),
        ({"shard_size": 2}, "shard_size is 4 there and 2 here"),
        ({"batch_size": 2}, "batch_size is null there and 2 here"),
        ({"mode": "fast"}, "mode is plain there and fast here"),
        ({"x": x}, "data is "),
        ({"model": changed}, "model is "),
    ):
        with pytest.raises(CurvactError, match=words) as caught:
            ensemble(**{**arguments, **change})
        assert "\n" not in str(caught.value)
    hidden = net().__class__(*net())  # same weights and print; the forward pass is not seen in either

    def doubled(x: Tensor) -> Tensor:
        return 2 * type(hidden).forward(hidden, x)

    hidden.forward = doubled  # type: ignore[method-assign]
    with pytest.raises(CurvactError, match="same weights, but other logits"):
        ensemble(**{**arguments, "model": hidden.eval()})
    (folder / "autoattack.json").write_text("{")
    with pytest.raises(CurvactError, match="damaged"):
        ensemble(**arguments)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(CurvactError, match="not empty"):
        ensemble(**{**arguments, "folder": other})
    with pytest.raises(CurvactError, match="cannot use"):
        ensemble(**{**arguments, "folder": other / "thesis.tex" / "run"})
    with pytest.raises(CurvactError, match=r"an nn\.Module"):
        ensemble(**{**arguments, "model": lambda x: net()(x), "folder": tmp_path / "third"})
