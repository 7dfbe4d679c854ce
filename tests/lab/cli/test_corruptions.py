"""`curvact corruptions`: the table, the file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curvact.attacks import corruption_accuracy
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab.cli.main import app
from curvact.models import build, load_checkpoint, save_checkpoint

ARCHITECTURE = {"name": "mini_resnet", "activation": "silu", "width": 2, "channels": 1}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, build(**ARCHITECTURE), ARCHITECTURE, {"data": {"name": "digits"}})
    return path


def test_the_table_and_the_file(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    options = ["--corruptions", "fog,contrast", "--severities", "1,5", "--n", "50", "--out", str(out)]
    result = CliRunner().invoke(app, ["corruptions", str(checkpoint), *options])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    wanted = corruption_accuracy(
        load_checkpoint(checkpoint),
        load("digits").test.first(50),
        corruptions=["fog", "contrast"],
        severities=[1, 5],
    )
    assert found["accuracy"] == {name: list(row) for name, row in wanted.by.items()}
    assert found["mean_accuracy"] == wanted.mean
    assert f"{100 * wanted.mean:.2f} %" in result.output
    assert f"{100 * wanted.by['fog'][1]:.2f}" in result.output


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--severities", "6"], "--severities 6"),
        (["--corruptions", "fogg"], "did you mean 'fog'"),
        (["--folder", "nowhere"], "no labels.npy"),
        (["--out", "x.txt"], "--out x.txt"),
    ],
)
def test_bad_options(checkpoint: Path, options: list[str], part: str) -> None:
    result = CliRunner().invoke(app, ["corruptions", str(checkpoint), *options])
    assert isinstance(result.exception, CurvactError)
    assert part in str(result.exception)
