"""`curvact transfer`: out of a checkpoint, into another network; bad input is one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from curvact.models import build
from curvact.models.checkpoint import load_checkpoint, save_checkpoint
from curvact.models.learned import extract_activation, read_learned

SMALL = [
    "data={name: digits, train: 80, validation: 20, test: 20}",
    "training.batch_size=20",
    "training.attack=pgd-1",
    "training.epochs=1",
    "evaluation.attack=pgd-2",
]


Run = Callable[..., Any]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A ResNet-18 of width 2 with Sparta, as a run leaves it."""
    arguments = {
        "name": "resnet18",
        "activation": "sparta",
        "width": 2,
        "channels": 1,
        "size": 8,
        "scope": "network",
    }
    model = build(**arguments)
    with torch.no_grad():
        model.activation.weight.add_(0.125)
    run = tmp_path / "run"
    run.mkdir()
    save_checkpoint(run / "best.safetensors", model, arguments, {"run": "abc", "data": {"name": "digits"}})
    record = {
        "spec": {"evaluation": {"attack": "pgd-20"}},
        "metrics": {"best_clean_accuracy": 0.75, "best_robust_accuracy": 0.5},
        "files": {
            "best.safetensors": hashlib.sha256((run / "best.safetensors").read_bytes()).hexdigest(),
            "last.safetensors": "",
        },
        "test_images": 40,
        "data_sha256": {},
    }
    (run / "environment.json").write_text("{}")
    (run / "record.json").write_text(json.dumps(record))
    return run / "best.safetensors"


def test_extract_show_train(curvact: Run, checkpoint: Path, tmp_path: Path) -> None:
    act, out = tmp_path / "act.safetensors", tmp_path / "out"
    code, shown, errors = curvact("transfer", "extract", checkpoint.parent, "--out", act)
    assert (code, errors) == (0, "")
    assert "layer4.0.act1 and 3 more" in shown
    provenance = read_learned(act).provenance
    assert provenance["checkpoint"] == "best.safetensors"
    assert provenance["architecture"]["name"] == "resnet18"
    assert (provenance["robust_accuracy"], provenance["attack"]) == (0.5, "pgd-20")
    assert act.stat().st_size < 10_000
    code, shown, _ = curvact("transfer", "show", act)
    assert code == 0
    for text in (
        "sparta(variant=depthwise, beta=1.0)",
        "network, 4 modules",
        "270",
        "resnet18",
        "50.00% under pgd-20",
    ):
        assert text in shown
    train = ["transfer", "train", act, "digits", *SMALL, "model={name: resnet34, width: 2}", "--out", out]
    code, shown, errors = curvact(*train)
    assert code == 0, errors
    assert json.loads((out / "record.json").read_text())["spec"]["activation_from"]["frozen"] is True
    assert len(load_checkpoint(out / "best.safetensors").layer3) == 6
    a, b = read_learned(act), extract_activation(out / "best.safetensors")
    for one, two in zip(a.groups, b.groups, strict=True):
        assert torch.equal(one.tensors["weight"], two.tensors["weight"])
    code, _, errors = curvact(*train)
    assert code == 2
    assert "--resume goes on with it" in errors
    code, _, errors = curvact(*train, "--resume")
    assert code == 0
    assert "has run to its end" in errors
    code, _, errors = curvact(*train, "--resume", "--warm-start")
    assert code == 2
    assert "holds a run of another spec" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("extract", "nowhere.safetensors", "--out", "a.safetensors"),
            "no checkpoint file nowhere.safetensors",
        ),
        (
            ("extract", "CHECKPOINT", "--out", "a.pt"),
            "a.pt: the name of a learned activation's file must end in",
        ),
        (("extract", "CHECKPOINT", "--out", "CHECKPOINT"), "exists already: give another --out"),
        (
            ("extract", "CHECKPOINT", "--out", "no/folder/a.safetensors"),
            "cannot write no/folder/a.safetensors",
        ),
        (("show", "nowhere.safetensors"), "no learned activation nowhere.safetensors"),
        (("show", "CHECKPOINT"), "is no learned activation"),
        (("train", "CHECKPOINT", "digits", "--out", "o"), "is no learned activation"),
        (("train", "ACT", "digitz", "--out", "o"), "did you mean 'digits'"),
        (("train", "ACT", ".", "--out", "o"), "goes on by `curvact train .`"),
        (
            ("train", "ACT", "digits", "activation=relu", "--out", "o"),
            "the file of the learned activation decides that",
        ),
        (
            ("train", "ACT", "digits", "model.scope=layer", "--out", "o"),
            "the file of the learned activation decides that",
        ),
        (
            ("train", "ACT", "digits", "model={name: mini_resnet, width: 3}", "--out", "o"),
            "act has 3 channels",
        ),
        (("train", "ACT", "digits", "model={name: vit}", "--out", "o"), "sequence of tokens"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_no_files(
    arguments: tuple[str, ...],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    curvact: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    act = tmp_path / "act.safetensors"
    assert curvact("transfer", "extract", checkpoint, "--out", act)[0] == 0
    place = tmp_path / "cwd"
    place.mkdir()
    monkeypatch.chdir(place)
    before = checkpoint.read_bytes()
    texts = [a.replace("CHECKPOINT", str(checkpoint)).replace("ACT", str(act)) for a in arguments]
    code, out, errors = curvact("transfer", *texts)
    assert (code, out) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(place.iterdir())
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("of", "damage", "message"),
    [
        ("ACT", lambda b, j: (b[:-5], j), "truncated or damaged"),
        ("ACT", lambda b, j: (b[:-1] + bytes([b[-1] ^ 1]), j), "another sha256"),
        ("ACT", lambda b, j: (b, {**j, "activation": "spartaa"}), "did you mean 'sparta'?"),
        ("ACT", lambda b, j: (b, {**j, "scope": "layer"}), "another sha256"),
        ("CHECKPOINT", lambda b, j: (b[:-5], j), "truncated or damaged"),
        ("CHECKPOINT", lambda b, j: (b, {"architecture": {"width": 2}}), "the architecture lacks its name"),
        (
            "CHECKPOINT",
            lambda b, j: (b, {"architecture": {**j["architecture"], "width": 3}}),
            "wrong shape of",
        ),
        (
            "CHECKPOINT",
            lambda b, j: (b, {"architecture": {**j["architecture"], "activation": "relu"}}),
            "does not fit its architecture",
        ),
    ],
)
def test_damaged_files_are_one_line_exit_2_and_no_files(
    of: str,
    damage: Any,
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    curvact: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    act = tmp_path / "act.safetensors"
    assert curvact("transfer", "extract", checkpoint, "--out", act)[0] == 0
    file = {"ACT": act, "CHECKPOINT": checkpoint}[of]
    whole, told = damage(file.read_bytes(), json.loads(file.with_suffix(".json").read_text()))
    file.write_bytes(whole)
    file.with_suffix(".json").write_text(json.dumps({**told, "checksum": ""}))
    place = tmp_path / "cwd"
    place.mkdir()
    monkeypatch.chdir(place)
    calls = [("show", act), ("train", act, "digits", *SMALL, "--out", "o")]
    for call in calls if of == "ACT" else [("extract", checkpoint, "--out", "a.safetensors")]:
        code, out, errors = curvact("transfer", *call)
        assert (code, out) == (2, "")
        assert message in errors
        assert errors.count("\n") == 1
        assert not list(place.iterdir())


def test_show_measures_the_curvature_itself(curvact: Run, tmp_path: Path) -> None:
    """κ is that of the values in the file, whatever the provenance says.

    A checkpoint need not say its scope.
    """
    for name, kappa in (("psilu(alpha=3)", "1.5"), ("prelu", "∞"), ("sparta", "–")):
        arguments = {"name": "mini_resnet", "activation": name, "width": 2, "channels": 1}
        file, act = tmp_path / f"{name}.safetensors", tmp_path / f"act-{name}.safetensors"
        save_checkpoint(file, build(**arguments), arguments, {})
        assert curvact("transfer", "extract", file, "--out", act)[0] == 0
        content = json.loads(act.with_suffix(".json").read_text())
        assert content["scope"] == "network"
        content["provenance"] = {"curvature": 5, "architecture": 5, "data": 5, "robust_accuracy": "all"}
        act.with_suffix(".json").write_text(json.dumps(content))
        code, out, _ = curvact("transfer", "show", act)
        assert code == 0
        row = next(line for line in out.splitlines() if line.startswith("act"))
        assert kappa in row.split()
