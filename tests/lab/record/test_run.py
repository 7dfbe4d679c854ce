"""Evaluations: the record says what happened, image by image; the command finds everything in the checkpoint."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from curvact.attacks import Finding, MaskingReport, Progress, SuspectModelWarning, ThreatModel, masking_report
from curvact.attacks.masking import LIMITS, RATES
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab.cli.evaluate import CHECKS, parse_epsilon
from curvact.lab.cli.main import app
from curvact.lab.record import (
    EvaluationRecord,
    evaluate_model,
    model_hash,
    open_model,
    read_record,
    write_record,
)
from curvact.models import MiniResNet, build
from curvact.models.checkpoint import save_checkpoint
from curvact.models.interchange import to_robustbench, write_state_dict
from curvact.random import generator
from curvact.training import Recipe, fit

THREAT = ThreatModel("linf", 0.1)
assert len(RATES) + len(LIMITS) == CHECKS


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
        model, test, THREAT, attack="pgd-5", architecture=known["architecture"], masking="none"
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
        model, test, THREAT, attack="pgd-5", architecture=known["architecture"], masking="none"
    )
    assert again.robust_correct == record.robust_correct
    assert again.id == record.id
    assert evaluate_model(model, test, THREAT, attack="fgsm", masking="none").settings == {}


@pytest.mark.parametrize(("attack", "restarts", "steps"), [("pgd-4", 1, 4), ("pgd-3", 2, 6), ("fgsm", 1, 0)])
def test_progress_of_a_quick_attack(checkpoint: Path, attack: str, restarts: int, steps: int) -> None:
    """One call a step and one a batch: images and accuracy of whole batches, time left from the steps of the one at work."""
    model, _ = open_model(checkpoint)
    test = load("digits").test.first(25)
    told: list[Progress] = []
    asked = {"attack": attack, "restarts": restarts, "batch_size": 10, "masking": "none"}
    record = evaluate_model(model, test, THREAT, on_progress=told.append, **asked)  # type: ignore[arg-type]
    plain = evaluate_model(model, test, THREAT, **asked)  # type: ignore[arg-type]
    assert plain.robust_correct == record.robust_correct
    assert len(told) == 3 * (steps + 1)
    ends = told[steps :: steps + 1]
    assert [p.points_done for p in ends] == [10, 20, 25]
    assert [(p.shards_done, p.shards) for p in ends] == [(1, 3), (2, 3), (3, 3)]
    for progress in ends:
        so_far = record.robust_correct[: progress.points_done]
        assert progress.robust_accuracy == pytest.approx(so_far.count("1") / len(so_far))
    assert ends[-1].robust_accuracy == record.robust_accuracy
    assert ends[-1].seconds_left == 0
    assert all(math.isfinite(p.seconds_left) for p in told)
    if steps:
        # Half way through the first batch of three: 5 of 25 images' work.
        half = told[steps // 2 - 1]
        assert math.isnan(half.robust_accuracy)
        assert half.seconds_left == pytest.approx(half.seconds * 4)


def test_the_checklist_uses_what_the_evaluation_found(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def report(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, **settings: Any) -> MaskingReport:
        calls.append({"x": x, "y": y, **settings})
        return masking_report(model, x, y, threat, **settings)

    monkeypatch.setattr("curvact.lab.record.evaluate.masking_report", report)
    model, _ = open_model(checkpoint)
    test = load("digits").test.first(90)
    found: list[Finding] = []
    for attack, masking in (("pgd-10", "quick"), ("pgd-9", "quick"), ("pgd-10", "full"), ("fgsm", "none")):
        record = evaluate_model(model, test, THREAT, attack=attack, masking=masking, on_check=found.append)  # type: ignore[arg-type]
        assert record.masking == masking
        assert len(found) == (0 if masking == "none" else CHECKS)
        assert record.findings == [f"{f.name}: {f.sentence}" for f in found if f.alarm]
        found.clear()
    with torch.no_grad():
        right = model(test.inputs()).argmax(1) == test.labels
    quick, weak, full = calls
    assert torch.equal(quick["x"], test.inputs()[right][:64])
    assert torch.equal(quick["y"], test.labels[right][:64])
    assert quick["attacked"].shape == quick["x"].shape
    assert 0 < float((quick["attacked"] - quick["x"]).abs().max()) <= 0.1 + 1e-6
    assert weak["attacked"] is None, "nine steps are too few to take the place of the checklist's own PGD"
    assert (quick["steps"], quick["queries"]) == (10, 50)
    assert (full["steps"], full["queries"]) == (20, 200)
    assert len(full["x"]) == int(right.sum())


def test_a_checklist_that_cannot_run_is_a_finding(checkpoint: Path) -> None:
    model, _ = open_model(checkpoint)
    record = evaluate_model(model, load("digits").test.first(5), ThreatModel("linf", 0.0), attack="fgsm")
    assert len(record.findings) == 1
    assert record.findings[0].startswith("gradient masking was not checked: masking_report got epsilon=0")


class _Black(nn.Module):
    """Sees black and white only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x > 0.5).float())  # type: ignore[no-any-return]


@pytest.mark.parametrize("attack", ["fgsm", "pgd-5", "apgd-ce", "apgd-ce+square"])
def test_a_model_that_cuts_the_graph_is_on_record_with_its_alarms(checkpoint: Path, attack: str) -> None:
    model = _Black(open_model(checkpoint)[0]).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SuspectModelWarning)
        record = evaluate_model(model, load("digits").test.first(20), THREAT, attack=attack)
    assert record.clean_accuracy > 0.5
    assert any("do not depend on" in finding for finding in record.findings)
    for alarm in ("zero gradients", "finite differences"):
        assert any(finding.startswith(f"{alarm}:") for finding in record.findings), alarm


def test_probabilities_are_a_finding(checkpoint: Path) -> None:
    model, _ = open_model(checkpoint)
    soft = torch.nn.Sequential(model, torch.nn.Softmax(1)).eval()
    record = evaluate_model(soft, load("digits").test.first(20), THREAT, attack="pgd-2", masking="none")
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


def test_the_command_prints_the_checklist(checkpoint: Path, tmp_path: Path) -> None:
    ask = ["evaluate", checkpoint, "--attack", "pgd-10", "--n", 20, "--out", tmp_path]
    output = _curvact(*ask)
    assert "gradient masking (quick): no sign" in output
    assert sum(line.startswith(("  ok", "  ALARM")) for line in output.splitlines()) == CHECKS
    for option in (["--no-masking"], ["--masking", "none"], ["--resume"]):
        assert "gradient masking" not in _curvact(*ask, *option)
    assert "gradient masking (full): no sign" in _curvact(*ask, "--masking", "full")


def test_resuming_with_other_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    ask = ["evaluate", checkpoint, "--attack", "fgsm", "--n", 10, "--out", tmp_path, "--no-masking"]
    _curvact(*ask)
    (path,) = tmp_path.glob("*.evaluation.json")
    content = json.loads(path.read_text())
    content["model"]["sha256"] = "other"
    path.write_text(json.dumps(content))
    for again in (ask, [*ask, "--resume"]):
        before = path.read_text()
        with pytest.raises(
            CurvactError, match=r"holds another evaluation: model is other there and \w{12}… here"
        ):
            _curvact(*again)
        assert path.read_text() == before


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
        (["--batch-size", "0"], "--batch-size 0: must be >= 1"),
        (["--seed", "-1"], "seed=-1"),
        (["--attack", "pgd[/x]"], r"unknown attack 'pgd\[/x\]'"),
        (["--attack", "apgd-ce+../../[/x]"], r"unknown attack '\.\./\.\./\[/x\]'"),
        (["--masking", "quik"], r"--masking quik; did you mean 'quick'\?; allowed are quick, full, none"),
        (["--data", "digit"], "unknown data set 'digit'"),
        (["--attack", "pgd-3", "--fast"], "--fast: for AutoAttack and its parts, not for pgd-3"),
        (["--attack", "fgsm", "--workers", "2"], "--workers 2: for AutoAttack and its parts, not for fgsm"),
        (["--attack", "apgd-ce", "--restarts", "3"], "--restarts 3: for pgd-STEPS, not for apgd-ce"),
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
        model.linear.bias.copy_(2 * (torch.arange(10) == (int(test.labels[0]) + 1) % 10))
    wrong = test.first(1)
    record = evaluate_model(model, wrong, THREAT, attack="fgsm", masking="quick")
    assert record.clean_accuracy == 0
    assert record.findings == ["gradient masking was not checked: no image is classified correctly"]
    assert evaluate_model(model, wrong, THREAT, attack="fgsm", masking="none").findings == []


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
        "--no-masking",
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
        load_model(checkpoint), load("digits").test.first(3), THREAT, attack="apgd-ce+square", masking="none"
    )
    assert (part.attack, part.ensemble) == ("apgd-ce + square", False)
    path.unlink()
    (tmp_path / f"{path.name.removesuffix('-masking-none.evaluation.json')}.shards").mkdir()
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
