"""Records: whole or refused, identified by a key, in files that no two evaluations share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from curvact.attacks import ThreatModel
from curvact.errors import CurvactError
from curvact.lab.record.leaderboard import SkippedRecordWarning, read_records
from curvact.lab.record.record import (
    EvaluationRecord,
    RecordKey,
    existing_record,
    file_name,
    model_hash,
    read_record,
    record_paths,
    write_record,
)
from curvact.lab.statistics.interval import proportion


def _record(**changes: Any) -> EvaluationRecord:
    content: dict[str, Any] = {
        "attack": "AutoAttack",
        "ensemble": True,
        "mode": "plain",
        "masking": "none",
        "seed": 0,
        "batch_size": 100,
        "threat_model": {"norm": "linf", "epsilon": 8 / 255},
        "model": {"name": "net", "sha256": "ab", "parameters": 3, "architecture": {"name": "resnet18"}},
        "data": {"name": "cifar10/test", "sha256": "cd", "count": 4},
        "clean_accuracy": 0.75,
        "robust_accuracy": 0.5,
        "clean_correct": "1110",
        "robust_correct": "1100",
        "broken_by": ["", "", "apgd-ce", "clean"],
        "seconds": 1.5,
    }
    return EvaluationRecord.model_validate({**content, **changes})


def test_a_record_round_trips_and_is_has_a_key(tmp_path: Path) -> None:
    record = _record()
    path = tmp_path / "deep" / "a.evaluation.json"
    write_record(record, path)
    assert read_record(path) == record
    assert _record(seconds=9.0, environment={"torch": "x"}).key == record.key
    same_weights = {"name": "net", "sha256": "ab", "parameters": 3, "architecture": {"name": "other"}}
    for change in (
        {"seed": 1},
        {"batch_size": 50},
        {"mode": "fast"},
        {"attack": "pgd-20"},
        {"model": same_weights},
        {"data": {"name": "cifar10/test", "sha256": "ce", "count": 4}},
        {"threat_model": {"norm": "linf", "epsilon": 0.03}},
    ):
        assert _record(**change).key.id != record.key.id
    assert record.robust == proportion(2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"robust_accuracy": 0.75}, r"robust_accuracy=0.75 of 4 images, but its flags hold 2 of 4"),
        ({"clean_correct": "111"}, r"clean_accuracy=0.75 of 4 images, but its flags hold 3 of 3"),
        ({"robust_accuracy": 1.5}, "robust_accuracy: "),
        ({"extra": 1}, "extra: "),
        ({"threat_model": {"norm": "l7", "epsilon": 1}}, r"threat_model.norm: "),
        ({"attack": "pgd-20"}, r"ensemble=true does not fit attack='pgd-20': it is true for AutoAttack, "),
        ({"attack": "apgd-ce + square"}, r"ensemble=true does not fit attack='apgd-ce \+ square'"),
        ({"ensemble": False}, r"ensemble=false does not fit attack='AutoAttack'"),
        ({"broken_by": ["", "", "apgd-ce"]}, "broken_by has 3 entries for 4 images"),
        (
            {"broken_by": ["", "square", "apgd-ce", "clean"]},
            "image 1 is broken by 'square', but its flags are",
        ),
        ({"broken_by": ["", "", "apgd-ce", ""]}, "image 3 is broken by '', but its flags are"),
        (
            {"by_class": [{"name": "cat", "count": 3, "clean_correct": 3, "robust_correct": 2}]},
            "by_class holds count = 3",
        ),
        ({"checksum": "ab"}, "is damaged: its checksum is not that of its content; evaluate again"),
        ({}, "is damaged: its checksum is not that of its content; evaluate again"),
        ({"schema_version": 2}, "has schema_version 2, this version reads 3 and 4: evaluate again"),
    ],
)
def test_records_that_do_not_hold_together(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.evaluation.json"
    path.write_text(json.dumps({**_record().model_dump(mode="json"), **change}))
    with pytest.raises(CurvactError, match=message) as caught:
        read_record(path)
    assert "bad.evaluation.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_damage_is_read_as_a_record(tmp_path: Path) -> None:
    """Each digit, letter and sign between the quotes changed alone."""
    path = tmp_path / "a.evaluation.json"
    write_record(_record(), path)
    whole = path.read_text()
    places = [i for i, c in enumerate(whole) if c.isalnum() or c in ".-"]
    for i in places[::7]:
        changed = "1" if whole[i] != "1" else "0"
        path.write_text(whole[:i] + changed + whole[i + 1 :])
        with pytest.raises(CurvactError, match=r"a\.evaluation\.json") as caught:
            read_record(path)
        assert "\n" not in str(caught.value)


def test_records_of_schema_3_are_read(tmp_path: Path) -> None:
    old = _record().model_dump(mode="json")
    for key in ("checksum", "rounded_accuracy", "by_class"):
        del old[key]
    path = tmp_path / "old.evaluation.json"
    path.write_text(json.dumps({**old, "schema_version": 3}))
    assert read_record(path).robust_accuracy == 0.5


def test_truncated_and_missing_records(tmp_path: Path) -> None:
    path = tmp_path / "cut.evaluation.json"
    write_record(_record(), path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(CurvactError, match=r"cut\.evaluation\.json is no evaluation record"):
        read_record(path)
    with pytest.raises(CurvactError, match="No such file"):
        read_record(tmp_path / "none.json")
    with pytest.warns(SkippedRecordWarning, match="cut"):
        assert read_records(tmp_path) == []
    with pytest.raises(CurvactError, match="no folder of records"):
        read_records(tmp_path / "nowhere")


def test_the_model_hash_sees_names_types_and_values_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    base = model_hash(model)
    assert model_hash({k: v.clone() for k, v in reversed(model.state_dict().items())}) == base
    assert model_hash(model.to(memory_format=torch.channels_last)) == base  # type: ignore[call-overload]
    model[1].running_mean += 1e-6
    assert model_hash(model) != base
    assert model_hash({"a": torch.zeros(2)}) != model_hash({"b": torch.zeros(2)})
    assert model_hash({"a": torch.zeros(2)}) != model_hash({"a": torch.zeros(1, 2)})
    assert model_hash({"a": torch.zeros(2)}) != model_hash({"a": torch.zeros(2, dtype=torch.int32)})


# ---- where records lie ----

KEY: dict[str, Any] = {
    "model": "ab" * 32,
    "architecture": {"name": "resnet18", "activation": "relu"},
    "data": "cd" * 32,
    "threat_model": ThreatModel("linf", 8 / 255),
    "attack": "pgd(steps=20, step=0.25)",
    "mode": None,
    "seed": 0,
    "batch_size": 250,
}


def _paths(folder: Path, masking: Any = "quick", **changes: Any) -> tuple[Path, Path]:
    key = RecordKey(**{**KEY, **changes})
    return record_paths(folder, key, masking, ("run-best", "pgd-20", "digits/test40"))


def test_a_file_differs_with_each_part_of_the_key(tmp_path: Path) -> None:
    record, shards = _paths(tmp_path)
    assert record.name.startswith("run-best-pgd-20-linf-0.0313725-digits-test40-seed0-")
    assert record.name.endswith("-masking-quick.evaluation.json")
    assert _paths(tmp_path) == (record, shards)
    changes: list[dict[str, Any]] = [
        {"model": "ac" * 32},
        {"architecture": {"name": "resnet18", "activation": "swish"}},
        {"data": "ce" * 32},
        {"threat_model": ThreatModel("l2", 8 / 255)},
        # Six digits are not all of a radius.
        {"threat_model": ThreatModel("linf", 8 / 255 + 1e-12)},
        {"attack": "pgd(steps=20, step=0.25, restarts=5)"},
        {"mode": "fast"},
        {"seed": 1},
        {"batch_size": 100},
    ]
    assert {key for change in changes for key in change} == set(KEY)
    others = [_paths(tmp_path, **change) for change in changes]
    assert len({record, *(path for path, _ in others)}) == 1 + len(changes)
    assert len({shards, *(path for _, path in others)}) == 1 + len(changes)
    deeper = _paths(tmp_path, masking="full")
    assert deeper[0] != record
    assert deeper[1] == shards, "the attack is the same: an unfinished one goes on"


@given(st.text(max_size=300))
@settings(max_examples=25)
def test_any_text_makes_a_plain_file_name(text: str) -> None:
    name = file_name(text)
    assert Path(name).name == name
    assert name not in ("", ".", "..")
    assert 0 < len(name) <= 60
    assert not set(name) & set('/\\:*?"<>|\0\n')
    assert file_name(name) == name


def test_another_record_is_not_taken_for_this_one(tmp_path: Path) -> None:
    path, record = tmp_path / "a.evaluation.json", _record()
    assert existing_record(path, record.key, "none") is None
    write_record(record, path)
    assert existing_record(path, record.key, "none") == record
    with pytest.raises(CurvactError, match=r"masking is none there and full here\. Move it away"):
        existing_record(path, record.key, "full")
    with pytest.raises(CurvactError, match="holds another evaluation: seed is 0 there and 1 here"):
        existing_record(path, _record(seed=1).key, "none")
    path.write_text("{}")
    with pytest.raises(CurvactError, match="is no evaluation record"):
        existing_record(path, record.key, "none")
