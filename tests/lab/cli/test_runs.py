"""`curvact runs`: list, show, export."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curvact.lab.run import execute
from curvact.lab.settings import check_settings
from curvact.lab.spec import RunSpec, read_spec

CONTENT: dict[str, Any] = {
    "data": {"name": "digits", "train": 40, "validation": 20, "test": 20},
    "model": {"name": "mlp", "width": 4},
    "training": {"epochs": 1, "batch_size": 20, "attack": "pgd-1"},
    "evaluation": {"attack": "pgd-2", "train_images": 20},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, and one with an evil name."""
    top = tmp_path_factory.mktemp("runs")
    for name, content in {
        "a": {"activation": "relu"},
        "b": {"activation": "rctaf(curvature=6)", "seed": 1},
    }.items():
        execute(check_settings(RunSpec, {**CONTENT, **content, "name": name}, name), top / name)
    record = json.loads((top / "a" / "record.json").read_text())
    record["spec"]["name"], record["run"], record["checksum"] = "evil\x1b[31m", "f" * 12, ""
    (top / "c").mkdir()
    (top / "c" / "record.json").write_text(json.dumps(record))
    return top


def test_ls(curvact: Callable[..., Any], folder: Path) -> None:
    code, out, err = curvact("runs", "ls", folder, folder / "a", "--sort", "-curvature", "--where", "name!=b")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0].split() == [
        "run",
        "name",
        "status",
        "κ",
        "activation",
        "robust",
        "%",
        "by",
        "seed",
        "s",
        "folder",
    ]
    assert len(lines) == 4  # a is listed once
    assert [line.split()[3] for line in lines[1:3]] == ["inf", "inf"]
    assert lines[-1].startswith("2 runs (2 done), ")
    code, out, _ = curvact("runs", "ls", folder, "--limit", "1")
    assert "… 2 more: --limit 0 shows all" in out
    code, out, _ = curvact("runs", "ls", folder, "--where", "curvature<7")
    (line,) = [line for line in out.splitlines() if "rctaf" in line]
    assert line.split()[1:4] == ["b", "done", "6"]
    assert line.endswith(str(folder / "b"))


def test_show(curvact: Callable[..., Any], folder: Path) -> None:
    record = json.loads((folder / "b" / "record.json").read_text())
    code, out, err = curvact("runs", "show", folder, record["run"][:6])
    assert (code, err) == (0, "")
    shown = dict(line.split(None, 1) for line in out.splitlines() if len(line.split(None, 1)) == 2)
    assert shown["run"] == record["run"]
    assert shown["training.attack"] == "pgd-1"
    assert float(shown["robust_accuracy"]) == pytest.approx(record["metrics"]["robust_accuracy"], abs=1e-3)
    assert f"{(folder / 'b' / 'record.json').stat().st_size:,}  record.json" in out
    command = out.splitlines()[-1].split()
    assert command[:2] == ["curvact", "train"]
    assert read_spec(command[2]).id == record["run"]
    assert curvact("runs", "show", folder / "b").out == out


def test_export(curvact: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    code, out, _ = curvact("runs", "export", folder, "--out", tmp_path / "r.csv", "--where", "seed=1")
    assert (code, out) == (0, f"1 runs: {tmp_path / 'r.csv'}\n")
    (row,) = csv.DictReader((tmp_path / "r.csv").read_text().splitlines())
    assert (row["name"], row["training.epochs"], float(row["curvature"])) == ("b", "1", 6.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "{}/none"], "there is no folder"),
        (["ls", "{}/empty"], "no run below"),
        (["ls", "{}", "--limit", "-1"], "--limit -1: must be >= 0"),
        (["ls", "{}", "--where", "curvature~4"], "write it as key=value"),
        (["show", "{}"], "holds 3 such runs"),
        (["show", "{}", "xyz"], "no run whose id begins with xyz"),
        (["show", "{}/empty"], "holds no run"),
        (["export", "{}", "--out", "{}/r.txt"], "must end in .csv, .json or .parquet"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, curvact: Callable[..., Any], folder: Path
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    code, out, err = curvact("runs", *(argument.format(folder) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_listing_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys\nsys.argv = ['curvact', 'runs', 'ls', sys.argv[1]]\nfrom curvact.lab.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
