"""The leaderboard never mixes AutoAttack with weaker attacks; exports for RobustBench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curvact.errors import CurvactError
from curvact.lab.record.leaderboard import (
    boards,
    export_boards,
    export_model_info,
    model_info,
)
from curvact.lab.record.record import EvaluationRecord


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
    assert model_info(_record(findings=["zero gradients"]))["unreliable"] is True


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
    """Three of one model, one of them twice; another model keeps its plain name."""
    first, second = _record(), _record(threat_model={"norm": "linf", "epsilon": 0.1})
    other = _record(model={"name": "other", "sha256": "x", "parameters": 1})
    less = [_record(attack="AutoAttack (rand)"), _record(attack="pgd-20", ensemble=False)]
    paths = export_boards(boards([first, first, second, other, *less]), tmp_path)
    assert sorted(path.name for path in paths) == sorted(
        [f"net-{first.key.id}.json", f"net-{first.key.id}-2.json", f"net-{second.key.id}.json", "other.json"]
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
    assert "AutoAttack (fast mode) on 4 images" in model_info(_record(mode="fast"))["footnote"]
    with pytest.raises(CurvactError, match="pgd-20 under linf cannot be exported"):
        model_info(_record(attack="pgd-20", ensemble=False))
    with pytest.raises(CurvactError, match="AutoAttack under l1 cannot be exported"):
        model_info(_record(threat_model={"norm": "l1", "epsilon": 12}))
    for key in ("lnk", "autoattack_acc"):
        with pytest.raises(CurvactError, match=f"'{key}' cannot be given"):
            model_info(_record(), {key: "99"})
