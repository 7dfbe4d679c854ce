"""Records: whole or refused, hashed by content, and a leaderboard that never mixes AutoAttack with less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curvact.errors import CurvactError
from curvact.lab.record.leaderboard import (
    SkippedRecordWarning,
    boards,
    epsilon_text,
    export_boards,
    export_model_info,
    model_info,
    read_records,
)
from curvact.lab.record.record import EvaluationRecord, model_hash, read_record, write_record


def _record(**changes: Any) -> EvaluationRecord:
    content: dict[str, Any] = {
        "attack": "AutoAttack",
        "ensemble": True,
        "settings": {"version": "standard"},
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


def test_a_record_round_trips_and_is_named_by_what_was_asked(tmp_path: Path) -> None:
    record = _record()
    path = tmp_path / "deep" / "a.evaluation.json"
    write_record(record, path)
    assert read_record(path) == record
    assert _record(seconds=9.0, environment={"torch": "x"}).id == record.id
    same_weights = {"name": "net", "sha256": "ab", "parameters": 3, "architecture": {"name": "other"}}
    for change in (
        {"seed": 1},
        {"batch_size": 50},
        {"settings": {}},
        {"attack": "pgd-20"},
        {"model": same_weights},
        {"data": {"name": "cifar10/test", "sha256": "ce", "count": 4}},
        {"threat_model": {"norm": "linf", "epsilon": 0.03}},
    ):
        assert _record(**change).id != record.id
    assert record.standard_error == pytest.approx((0.5 * 0.5 / 4) ** 0.5)


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
        ({"schema_version": 3}, "schema_version: "),
    ],
)
def test_records_that_do_not_hold_together(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.evaluation.json"
    path.write_text(json.dumps({**_record().model_dump(mode="json"), **change}))
    with pytest.raises(CurvactError, match=message) as caught:
        read_record(path)
    assert "bad.evaluation.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_records_of_the_first_schema_are_read(tmp_path: Path) -> None:
    """As `curvact evaluate` wrote them: no notes, no versions."""
    content = _record(schema_version=1).model_dump(mode="json")
    for key in ("notes", "versions"):
        del content[key]
    (tmp_path / "old.evaluation.json").write_text(json.dumps(content))
    (record,) = read_records(tmp_path)
    assert (record.schema_version, record.notes, record.versions) == (1, [], {})
    assert record.robust_accuracy == 0.5
    assert _record().schema_version == 2


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


def test_autoattack_and_less_never_share_a_table() -> None:
    whole = [
        _record(),
        _record(model={"name": "better", "sha256": "x", "parameters": 1}, robust_accuracy=0.75),
    ]
    less = _record(attack="pgd-20", ensemble=False)
    other = _record(threat_model={"norm": "l2", "epsilon": 0.5})
    tables = boards([less, *whole, other])
    assert [(t.norm, t.ensemble, len(t.records)) for t in tables] == [
        ("l2", True, 1),
        ("linf", True, 2),
        ("linf", False, 1),
    ]
    assert tables[1].records[0].model.name == "better"
    assert "Less than AutoAttack" in tables[2].title
    assert "8/255" in tables[1].title


def test_export_has_robustbench_keys(tmp_path: Path) -> None:
    """The keys and kinds are those that robustbench 1.1.1 documents in leaderboard/template.py."""
    path = export_model_info(_record(), tmp_path, {"link": "https://example.org", "additional_data": True})
    assert path == tmp_path / "cifar10" / "Linf" / "net.json"
    info = json.loads(path.read_text())
    documented = {
        "link",
        "name",
        "authors",
        "additional_data",
        "number_forward_passes",
        "dataset",
        "venue",
        "architecture",
        "eps",
        "clean_acc",
        "reported",
        "autoattack_acc",
    }
    assert documented <= set(info)
    assert (info["clean_acc"], info["autoattack_acc"], info["eps"]) == ("75.00", "50.00", "8/255")
    assert info["additional_data"] is True
    assert _findings_make_it_unreliable()


def _findings_make_it_unreliable() -> bool:
    return bool(model_info(_record(findings=["zero gradients"]))["unreliable"])


def test_every_version_of_autoattack_has_its_table() -> None:
    names = ("AutoAttack (rand)", "AutoAttack", "AutoAttack (plus)")
    tables = boards([*(_record(attack=name) for name in names), _record(attack="pgd-20", ensemble=False)])
    assert [(t.version, t.records[0].attack) for t in tables] == [
        ("standard", "AutoAttack"),
        ("plus", "AutoAttack (plus)"),
        ("rand", "AutoAttack (rand)"),
        (None, "pgd-20"),
    ]
    assert len({t.title for t in tables}) == 4
    assert "8/255: AutoAttack (rand): APGD alone" in tables[2].title


def test_an_export_never_leaves_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c" / "d" / "info"
    for k, name in enumerate(("../../../../escaped", str(tmp_path / "escaped"), "..", "a\\..\\b", "org/net")):
        record = _record(
            model={"name": name, "sha256": "x", "parameters": 1},
            data={"name": f"{name}/test", "sha256": "cd", "count": 4},
            seed=k,
        )
        path = export_model_info(record, folder)
        assert path.parent.parent.parent == folder
        assert path.resolve().is_relative_to(folder.resolve())
        assert json.loads(path.read_text())["name"] == name
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 5


def test_an_export_has_a_file_for_every_record(tmp_path: Path) -> None:
    """Three of one model, one of them twice; another model keeps its plain name; what is no standard AutoAttack is left out."""
    first, second = _record(), _record(threat_model={"norm": "linf", "epsilon": 0.1})
    other = _record(model={"name": "other", "sha256": "x", "parameters": 1})
    less = [_record(attack="AutoAttack (rand)"), _record(attack="pgd-20", ensemble=False)]
    paths = export_boards(boards([first, first, second, other, *less]), tmp_path)
    assert sorted(path.name for path in paths) == sorted(
        [f"net-{first.id}.json", f"net-{first.id}-2.json", f"net-{second.id}.json", "other.json"]
    )
    assert set(paths) == set(tmp_path.rglob("*.json"))
    assert {json.loads(path.read_text())["eps"] for path in paths} == {"8/255", "0.1"}


def test_an_export_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cifar10").write_text("a file")
    with pytest.raises(CurvactError, match=r"cannot write .*net\.json"):
        export_model_info(_record(), tmp_path)


def test_what_cannot_be_exported() -> None:
    for version in ("rand", "plus"):
        with pytest.raises(CurvactError, match=rf"AutoAttack \({version}\) under linf cannot be exported"):
            model_info(_record(attack=f"AutoAttack ({version})"))
    assert "AutoAttack (fast mode) on 4 images" in model_info(_record(settings={"mode": "fast"}))["footnote"]
    with pytest.raises(CurvactError, match="pgd-20 under linf cannot be exported"):
        model_info(_record(attack="pgd-20", ensemble=False))
    with pytest.raises(CurvactError, match="AutoAttack under l1 cannot be exported"):
        model_info(_record(threat_model={"norm": "l1", "epsilon": 12}))
    for key in ("lnk", "autoattack_acc"):
        with pytest.raises(CurvactError, match=f"'{key}' cannot be given"):
            model_info(_record(), {key: "99"})


def test_epsilon_text_is_exact() -> None:
    assert epsilon_text(0.03137254901960784) == "8/255"
    assert epsilon_text(0.0314) == "0.0314"
    assert epsilon_text(0) == "0"
