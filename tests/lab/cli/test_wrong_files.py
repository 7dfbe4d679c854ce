"""Every command with every wrong kind of file: exit code 2, one line, no traceback."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning_fabric  # noqa: F401  its import is not what is timed
import pytest

SWEEP = Path(__file__).parents[3] / "src/curvact/lab/sweeps/digits.yaml"
KINDS = (
    "empty",
    "folder",
    "binary",
    "fifo",
    "page",
    "cut.safetensors",
    "page.pt",
    "none",
    "x" * 300,
    "/dev/full",
)
READS = [
    ["train", "F"],
    ["train", "digits", "--import", "F"],
    ["train", "digits", "init_from=F"],
    ["train", "digits", "training.objective=hat", "helper=F"],
    ["train", "digits", "data.extra=F"],
    ["sweep", "run", "F"],
    ["sweep", "report", "F"],
    ["evaluate", "F"],
    ["evaluate", "F", "--model", "mini_resnet"],
    ["evaluate", "good.safetensors", "--import", "F"],
    ["analyze", "hessian", "F"],
    ["analyze", "landscape", "F"],
    ["analyze", "flatness", "F"],
    ["analyze", "smoothness", "F"],
    ["analyze", "curvature", "F"],
    ["transfer", "extract", "F", "--out", "learned.safetensors"],
    ["transfer", "show", "F"],
    ["transfer", "train", "F", "digits"],
    ["leaderboard", "F"],
]
WRITES = [["train", "digits", "--out", "F"], ["sweep", "run", str(SWEEP), "--out", "F"]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path]) -> Iterator[Path]:
    """A folder with one file of each kind. A command that waits for a FIFO is ended."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "good.safetensors")
    save(tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 20)
    for name in ("page", "page.pt"):
        (tmp_path / name).write_text("<!DOCTYPE html><html><body>404</body></html>")
    os.mkfifo(tmp_path / "fifo")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _runs(command: list[str], kind: str) -> bool:
    """Whether the file is a right one for this command: an empty file is Python, too."""
    return (kind == "empty" and "--import" in command) or (kind == "folder" and command[0] == "leaderboard")


@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_a_wrong_file_to_read(command: list[str], place: Path, curvact: Callable[..., Any]) -> None:
    before = {path.name for path in place.iterdir()}
    for kind in KINDS:
        if _runs(command, kind):
            continue
        signal.alarm(20)
        done = curvact(*(part.replace("F", kind) if part.endswith("F") else part for part in command))
        assert done.code == 2, kind
        assert done.err.startswith("curvact: "), kind
        assert done.err.count("\n") == 1, kind
        assert len(done.err) < 800, kind
    assert {path.name for path in place.iterdir()} == before


@pytest.mark.parametrize("command", WRITES, ids=["train", "sweep run"])
def test_a_wrong_place_to_write(command: list[str], place: Path, curvact: Callable[..., Any]) -> None:
    """It is found before the data are read."""
    for kind in ("empty", "binary", "fifo", "/dev/full", "x" * 300, "empty/below", "/proc/none"):
        signal.alarm(20)
        done = curvact(*(part.replace("F", kind) if part == "F" else part for part in command))
        assert done.code == 2, kind
        assert done.err.startswith("curvact: "), kind
        assert done.err.count("\n") == 1, kind
