"""The command line in this process, in a new process, and checkpoints to call it on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from curvact.lab.cli.main import main
from curvact.models import build
from curvact.models.checkpoint import save_checkpoint
from curvact.random import generator

ARCHITECTURE = {"name": "mini_resnet", "activation": "silu", "channels": 1, "width": 2}
ABOUT: dict[str, Any] = {
    "data": {"name": "digits", "size": None},
    "threat_model": {"norm": "linf", "epsilon": 0.1},
}


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def curvact(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process; a new process takes seconds to start."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["curvact", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def curvact_process() -> Callable[..., Done]:
    """The command in a new process."""

    def run(*arguments: object) -> Done:
        command = [sys.executable, "-m", "curvact", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def save() -> Callable[..., Path]:
    """Writes an untrained checkpoint that says its data and threat model.

    about: keys of its JSON that differ; None leaves one out. architecture: arguments that differ.
    """

    def write(path: Path, *, seed: int = 0, architecture: dict[str, Any] | None = None, **about: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        arguments = {**ARCHITECTURE, **(architecture or {})}
        known = {key: value for key, value in {**ABOUT, **about}.items() if value is not None}
        save_checkpoint(
            path, build(**arguments, generator=generator(seed, "initialization")), arguments, known
        )
        return path

    return write
