"""Names of records: readable, safe as files, and never the same for two evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvact.errors import CurvactError
from curvact.lab.record.place import checkpoint_name, evaluation_paths, file_name, record_there
from curvact.lab.record.record import question

ASKED: dict[str, Any] = {
    "model": "ab" * 32,
    "architecture": {"name": "resnet18", "activation": "relu"},
    "data": "cd" * 32,
    "norm": "linf",
    "epsilon": 8 / 255,
    "attack": "pgd-20",
    "settings": {"steps": 20, "restarts": 1},
    "seed": 0,
    "batch_size": 250,
}


def _paths(folder: Path, masking: str = "quick", **changes: Any) -> tuple[Path, Path]:
    asked = question(**{**ASKED, **changes})
    return evaluation_paths(folder, "run-best", asked["attack"], "digits/test", 40, asked, masking)


def test_a_checkpoint_of_a_run_is_called_after_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stem in ("best", "last", "model", "epoch-0012"):
        assert checkpoint_name(tmp_path / "run" / f"{stem}.safetensors") == f"run-{stem}"
    assert checkpoint_name(tmp_path / "run" / "resnet.safetensors") == "resnet"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in ("best.safetensors", "./best.safetensors", "../here/best.safetensors"):
        assert checkpoint_name(Path(path)) == "here-best"
    assert checkpoint_name(Path("../best.safetensors")) == f"{tmp_path.name}-best"


def test_a_name_says_what_was_asked_and_differs_with_each_part(tmp_path: Path) -> None:
    record, shards = _paths(tmp_path)
    assert record.name.startswith("run-best-pgd-20-linf-0.0313725-digits-test40-seed0-")
    assert record.name.endswith("-masking-quick.evaluation.json")
    assert _paths(tmp_path) == (record, shards)
    changes: list[dict[str, Any]] = [
        {"model": "ac" * 32},
        {"architecture": {"name": "resnet18", "activation": "swish"}},
        {"data": "ce" * 32},
        {"norm": "l2"},
        # Six digits are not all of a radius.
        {"epsilon": 8 / 255 + 1e-12},
        {"attack": "pgd-21"},
        {"settings": {"steps": 20, "restarts": 5}},
        {"seed": 1},
        {"batch_size": 100},
    ]
    assert {key for change in changes for key in change} == set(ASKED)
    others = [_paths(tmp_path, **change) for change in changes]
    assert len({record, *(path for path, _ in others)}) == 1 + len(changes)
    assert len({shards, *(path for _, path in others)}) == 1 + len(changes)
    deeper = _paths(tmp_path, masking="full")
    assert deeper[0] != record
    assert deeper[1] == shards, "the attack is the same: what was begun goes on"


@given(st.text(max_size=300))
@settings(max_examples=25)
def test_any_text_makes_a_plain_file_name(text: str) -> None:
    name = file_name(text)
    assert Path(name).name == name
    assert name not in ("", ".", "..")
    assert 0 < len(name) <= 60
    assert not set(name) & set('/\\:*?"<>|\0\n')
    assert file_name(name) == name


def test_what_is_no_record_is_not_overwritten(tmp_path: Path) -> None:
    path, _ = _paths(tmp_path)
    assert record_there(path, question(**ASKED), "quick") is None
    path.write_text("{}")
    with pytest.raises(CurvactError, match="is no evaluation record"):
        record_there(path, question(**ASKED), "quick")
