"""`curvact steer`: the table, the files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_the_command(tmp_path: Path, save: Callable[..., Path], curvact: Callable[..., Any]) -> None:
    checkpoint = save(tmp_path / "run" / "best.safetensors", architecture={"activation": "relu"})
    few = ("--n", 8, "--attack", "pgd-2", "--seed", 1)
    code, out, err = curvact("steer", checkpoint.parent, "--beta", "0.8,0.9", *few)
    assert code == 0, err
    assert "as it is" in out
    assert "β" in out
    folder = checkpoint.parent / "analysis"
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["steer-run-best.json", "steer-run-best.png", "steer-run-best.svg"]
    record = json.loads((folder / "steer-run-best.json").read_text())
    found = record["result"]
    assert [row["beta"] for row in found["validation"]] == [None, 0.8, 0.9]
    assert found["verdict"] in " ".join(out.split())
    assert record["threat_model"] == {"norm": "linf", "epsilon": 0.1}
    for options, message in (
        (("--beta", "1.2"), "--beta 1.2: two numbers"),
        (("--steps", 1), "--steps 1: must be >= 2"),
        (("--split", "validation"), "--split validation of steer: β is judged on test images"),
        (("--split", "train"), "--split train of steer: β is judged on test images"),
        (("--c", 2), "c=2.0 in ctu: c must be a number from 0 to 1"),
        (("--from", "gelu"), "the network has no gelu to steer"),
        (("--epsilon", "0"), "epsilon 0 in curvact steer"),
    ):
        code, out, err = curvact("steer", checkpoint.parent, *few, *options, "--out", tmp_path / "no")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err
        assert not (tmp_path / "no").exists()
