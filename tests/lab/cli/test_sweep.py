"""`curvact study`: one line with exit code 2 for every kind of bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.yaml"), "cannot read nowhere.yaml"),
        (("report", "nowhere"), "nowhere holds no study"),
        (("run", "STUDY", "--workers", "0", "--out", "out"), "--workers 0: must be >= 1"),
        (("run", "STUDY", "--set", "training.batchsize=3"), "did you mean 'batch_size'"),
        (("run", "STUDY", "--set", "threat_model.epsilon=-1"), "threat_model.epsilon=-1"),
        (("run", "STUDY", "--set", "factors.curvature=[0]"), "curvature must be a finite number > 0"),
        (("run", "STUDY", "--out", "/proc/x"), "cannot write the study folder /proc/x"),
    ],
)
def test_bad_input_is_one_line(
    curvact: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    study = str(ROOT / "studies" / "digits.yaml")
    done = curvact("study", *(study if word == "STUDY" else word for word in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
