"""zoo:NAME in the place of a checkpoint, and the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curvact.models import ZOO


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_has_every_network(
    columns: int, monkeypatch: pytest.MonkeyPatch, curvact: Callable[..., Any]
) -> None:
    """No name and no number is cut, however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = curvact("zoo")
    assert (code, err) == (0, "")
    for entry in ZOO.values():
        found = "".join(line for line in out.splitlines() if line.startswith(f"{entry.name} "))
        assert f"{100 * entry.robust:.1f}" in found
        assert entry.activation in found


def test_commands_take_a_network_of_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curvact: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "digits-resnet-relu"
    code, out, err = curvact("evaluate", f"zoo:{name}", "--n", 20, "--attack", "pgd-2", "--no-masking")
    assert code == 0, err
    assert "digits/test, first 20 images" in out
    assert any(path.name.startswith(name) for path in (tmp_path / "runs" / "evaluations").iterdir())
    code, out, err = curvact("steer", f"zoo:{name}", "--n", 8, "--beta", "0.8,0.9", "--attack", "pgd-1")
    assert code == 0, err
    assert (tmp_path / "runs" / "zoo" / name / "analysis" / f"steer-{name}.json").is_file()
    code, out, err = curvact("evaluate", "zoo:digits", "--attack", "pgd-2")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the zoo has no network 'digits'" in err
    code, out, err = curvact("transfer", "extract", f"zoo:{name}", "--out", tmp_path / "x.safetensors")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "learned" in err
