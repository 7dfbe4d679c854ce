"""Evaluations: the record says what happened, image by image; the command finds everything in the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from curvact.attacks import ThreatModel
from curvact.cli import app
from curvact.cli_evaluation import parse_epsilon
from curvact.data import load
from curvact.errors import CurvactError
from curvact.evaluation import (
    EvaluationRecord,
    evaluate_model,
    model_hash,
    open_model,
    read_record,
    write_record,
)
from curvact.models import MiniResNet, build
from curvact.models.interchange import to_robustbench, write_state_dict
from curvact.random import generator
from curvact.training import Recipe, fit, save_checkpoint

THREAT = ThreatModel("linf", 0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trial") / "model.safetensors"
    arguments = {"name": "mini_resnet", "activation": "silu", "channels": 1, "width": 4}
    model = build(**arguments, generator=generator(0, "initialization"))
    fit(model, load("digits"), Recipe(objective="standard", epochs=2), THREAT, seed=0)
    about = {"data": {"name": "digits", "size": None}, "threat_model": {"norm": "linf", "epsilon": 0.1}}
    save_checkpoint(path, model, arguments, about)
    return path


def test_flags_accuracies_and_hashes_belong_together(checkpoint: Path) -> None:
    model, known = open_model(checkpoint)
    test = load("digits").test.first(60)
    record = evaluate_model(
        model, test, THREAT, attack="pgd-5", architecture=known["architecture"], checks=False
    )
    with torch.no_grad():
        right = model(test.inputs()).argmax(1) == test.labels
    assert record.clean_correct == "".join("01"[int(r)] for r in right)
    assert record.clean_accuracy == pytest.approx(float(right.double().mean()))
    assert 0 < record.robust_accuracy < record.clean_accuracy
    for clean, robust, broken in zip(
        record.clean_correct, record.robust_correct, record.broken_by, strict=True
    ):
        assert broken == {"00": "clean", "10": "pgd-5", "11": ""}[clean + robust]
    assert record.model.sha256 == model_hash(model)
    assert record.data.sha256 == test.sha256
    assert not record.ensemble
    again = evaluate_model(
        model, test, THREAT, attack="pgd-5", architecture=known["architecture"], checks=False
    )
    assert again.robust_correct == record.robust_correct
    assert again.id == record.id
    assert evaluate_model(model, test, THREAT, attack="fgsm", checks=False).settings == {}


def test_probabilities_are_a_finding(checkpoint: Path) -> None:
    model, _ = open_model(checkpoint)
    soft = torch.nn.Sequential(model, torch.nn.Softmax(1)).eval()
    record = evaluate_model(soft, load("digits").test.first(20), THREAT, attack="pgd-2", checks=False)
    assert any("probabilities" in finding for finding in record.findings)


def _curvact(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_and_the_leaderboard(checkpoint: Path, tmp_path: Path) -> None:
    ask = ["evaluate", checkpoint, "--attack", "pgd-3", "--n", 40, "--out", tmp_path]
    output = _curvact(*ask)
    assert "digits/test, first 40 images: clean" in output
    (path,) = tmp_path.glob("*.evaluation.json")
    record = read_record(path)
    assert (record.data.count, record.threat_model.epsilon, record.settings["steps"]) == (40, 0.1, 3)
    before = path.stat().st_mtime_ns
    said = [line for line in output.splitlines() if line.startswith("digits/test")]
    assert said[0] in _curvact(*ask, "--resume")
    assert path.stat().st_mtime_ns == before
    board = _curvact("leaderboard", tmp_path)
    assert "Less than AutoAttack" in board
    assert "pgd-3" in board


def test_resuming_with_other_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    ask = ["evaluate", checkpoint, "--attack", "fgsm", "--n", 10, "--out", tmp_path, "--no-checks"]
    _curvact(*ask)
    (path,) = tmp_path.glob("*.evaluation.json")
    content = json.loads(path.read_text())
    content["model"]["sha256"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(CurvactError, match="is of other weights or images"):
        _curvact(*ask, "--resume")


def test_weights_of_others(tmp_path: Path) -> None:
    model = build("wide_resnet", depth=10, widen_factor=1, mean=[0] * 3, std=[1] * 3).eval()
    write_state_dict(tmp_path / "foreign.pt", to_robustbench(model))
    opened, known = open_model(tmp_path / "foreign.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(opened(x), model(x))
    assert known == {}
    with pytest.raises(CurvactError, match=r"foreign\.pt does not say what it was trained on: give --data"):
        _curvact("evaluate", tmp_path / "foreign.pt")
    with pytest.raises(CurvactError, match=r"does not say its threat model: give --epsilon"):
        _curvact("evaluate", tmp_path / "foreign.pt", "--data", "digits")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack", "pgd"], "unknown attack 'pgd'; allowed are"),
        (["--attack", "pgd-0"], "unknown attack 'pgd-0'"),
        (["--epsilon", "8/0"], "--epsilon 8/0: a number >= 0"),
        (["--epsilon", "-1"], "--epsilon -1: a number >= 0"),
        (["--norm", "l7"], "norm='l7'"),
        (["--split", "tests"], "--split tests: allowed are"),
        (["--n", "0"], "--n 0: must be >= 1"),
        (["--data", "digit"], "unknown data set 'digit'"),
    ],
)
def test_bad_input_is_one_line(checkpoint: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        _curvact("evaluate", checkpoint, "--out", tmp_path, *options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match="no checkpoint file"):
        _curvact("evaluate", tmp_path / "none.safetensors")
    with pytest.raises(CurvactError, match="no folder of records"):
        _curvact("leaderboard", tmp_path / "none")
    with pytest.raises(CurvactError, match="holds no records"):
        _curvact("leaderboard", tmp_path)
    assert parse_epsilon("0.5") == 0.5


def test_untrained_models_are_evaluated_too() -> None:
    """A model that is always wrong has nothing to check for masking, and is no error."""
    test = load("digits").test.first(4)
    model = MiniResNet(channels=1, width=1)
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.copy_(torch.arange(10) == (int(test.labels[0]) + 1) % 10)
    wrong = test.first(1)
    assert evaluate_model(model, wrong, THREAT, attack="fgsm").clean_accuracy == 0


def test_autoattack_on_record_and_resumed(checkpoint: Path, tmp_path: Path) -> None:
    """A whole AutoAttack is an ensemble; its parts are not; what was begun is not begun again without being told."""
    ask = [
        "evaluate",
        checkpoint,
        "--n",
        6,
        "--batch-size",
        3,
        "--epsilon",
        0.5,
        "--out",
        tmp_path,
        "--no-checks",
    ]
    output = _curvact(*ask)
    assert "AutoAttack, linf ε = 0.5" in output
    (path,) = tmp_path.glob("*.evaluation.json")
    record = read_record(path)
    assert record.ensemble
    assert record.attack == "AutoAttack"
    assert record.settings == {"mode": "plain"}
    assert record.accuracy_after["square"] == record.robust_accuracy
    assert set(record.broken_by) <= {"clean", "apgd-ce", "apgd-t", "fab-t", "square", ""}
    assert not list(tmp_path.glob("*.shards")), "the shards go when the record is there"
    part = evaluate_model(
        load_model(checkpoint), load("digits").test.first(3), THREAT, attack="apgd-ce+square", checks=False
    )
    assert (part.attack, part.ensemble) == ("apgd-ce + square", False)
    path.unlink()
    (path.with_suffix(".shards")).mkdir()
    with pytest.raises(CurvactError, match="holds an evaluation that was begun: --resume goes on"):
        _curvact(*ask)
    board = _curvact("leaderboard", _written(tmp_path / "all", record), "--export", tmp_path / "info")
    assert "AutoAttack" in board
    assert (tmp_path / "info" / "digits" / "Linf").is_dir()


def load_model(checkpoint: Path) -> torch.nn.Module:
    return open_model(checkpoint)[0]


def _written(folder: Path, record: EvaluationRecord) -> Path:
    write_record(record, folder / "a.evaluation.json")
    return folder
