"""Evaluations: the record says what happened, image by image, and what the checks found."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvact.attacks import (
    CLEAN,
    PGD,
    AutoAttack,
    AutoAttackResult,
    Finding,
    MaskingReport,
    Progress,
    SuspectModelWarning,
    ThreatModel,
    masking_report,
    pgd,
    register_attack,
)
from curvact.attacks.adaptive import NAMES
from curvact.attacks.masking import LIMITS, RATES
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab.record import evaluate, model_hash
from curvact.models import MiniResNet, build
from curvact.random import generator
from curvact.training import Recipe, fit

THREAT = ThreatModel("linf", 0.1)
ARCHITECTURE = {"name": "mini_resnet", "activation": "silu", "channels": 1, "width": 4}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model = build(**ARCHITECTURE, generator=generator(0, "initialization"))
    fit(model, load("digits"), Recipe(objective="standard", epochs=2), THREAT, seed=0)
    return model.eval()


def test_flags_accuracies_and_hashes_belong_together(model: nn.Module) -> None:
    test = load("digits").test.first(60)
    record = evaluate(model, test, THREAT, attack="pgd-5", architecture=ARCHITECTURE, masking="none")
    with torch.no_grad():
        right = model(test.inputs()).argmax(1) == test.labels
    assert record.clean_correct == "".join("01"[int(r)] for r in right)
    assert record.clean_accuracy == pytest.approx(float(right.double().mean()))
    assert 0 < record.robust_accuracy < record.clean_accuracy
    for clean, robust, broken in zip(
        record.clean_correct, record.robust_correct, record.broken_by, strict=True
    ):
        assert broken == {"00": "clean", "10": "pgd-5", "11": ""}[clean + robust]
    assert record.rounded_accuracy is not None
    for number, entry in enumerate(record.by_class):
        own = [i for i, label in enumerate(test.labels.tolist()) if label == number]
        assert (entry.name, entry.count) == (str(number), len(own))
        assert entry.clean_correct == sum(record.clean_correct[i] == "1" for i in own)
        assert entry.robust_correct == sum(record.robust_correct[i] == "1" for i in own)
    assert (record.model.sha256, record.data.sha256) == (model_hash(model), test.sha256)
    assert (record.attack, record.ensemble, record.mode) == ("pgd(steps=5, step=0.5)", False, None)
    again = evaluate(model, test, THREAT, attack=PGD(5, step=0.5), architecture=ARCHITECTURE, masking="none")
    assert again.robust_correct == record.robust_correct
    assert again.key == record.key


def test_an_adaptive_attack_says_what_broke_each_image(model: nn.Module) -> None:
    test, seen = load("digits").test.first(30), []
    record = evaluate(
        model,
        test,
        THREAT,
        attack="adaptive(steps=4)",
        batch_size=20,
        masking="none",
        on_progress=seen.append,
    )
    assert (record.attack, record.ensemble, record.findings) == ("adaptive(steps=4)", False, [])
    assert set(record.broken_by) <= {"", CLEAN, *NAMES}
    assert "pgd-ce" in record.broken_by
    for flags, none in ((record.clean_correct, (CLEAN,)), (record.robust_correct, (CLEAN, *NAMES))):
        assert flags == "".join("01"[by not in none] for by in record.broken_by)
    assert set(record.accuracy_after) == {CLEAN, *NAMES}
    assert min(record.accuracy_after.values()) == record.robust_accuracy
    assert seen[-1].points_done == 30
    again = evaluate(model, test, THREAT, attack="adaptive(steps=4)", batch_size=20, masking="none")
    assert (again.broken_by, again.key) == (record.broken_by, record.key)


def test_the_attack_is_pgd_with_the_settings_of_its_name(model: nn.Module) -> None:
    """Against `pgd` itself, from the random stream of an evaluation."""
    test = load("digits").test.first(30)
    name = "pgd(steps=3, step=0.1, restarts=2)"
    record = evaluate(model, test, THREAT, attack=name, seed=7, batch_size=30, masking="none")
    random = generator(7, "evaluation/pgd-3")
    x, y = test.inputs(), test.labels
    x_adv = pgd(model, x, y, THREAT, steps=3, step=0.1, restarts=2, generator=random)
    with torch.no_grad():
        robust = (model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)
    assert record.robust_correct == "".join("01"[int(r)] for r in robust)
    assert record.attack == name
    assert evaluate(model, test, THREAT, attack="fgsm", masking="none").attack == "fgsm"


def test_an_attack_from_outside_can_be_on_record(model: nn.Module) -> None:
    class Nothing:
        def __call__(self, model: Any, x: Tensor, y: Tensor, threat_model: ThreatModel, **_: Any) -> Tensor:
            return x

        def __str__(self) -> str:
            return "nothing-at-all"

    register_attack("nothing-at-all", Nothing)
    record = evaluate(model, load("digits").test.first(20), THREAT, attack="nothing-at-all", masking="none")
    assert record.attack == "nothing-at-all"
    assert record.robust_accuracy == record.clean_accuracy


@pytest.mark.parametrize(("attack", "steps"), [("pgd-4", 4), ("pgd(steps=3, restarts=2)", 6), ("fgsm", 1)])
def test_progress_of_a_simple_attack(model: nn.Module, attack: str, steps: int) -> None:
    """One call a step and one a batch. The time left counts the steps of the batch at work."""
    test = load("digits").test.first(25)
    seen: list[Progress] = []
    record = evaluate(
        model, test, THREAT, attack=attack, batch_size=10, masking="none", on_progress=seen.append
    )
    plain = evaluate(model, test, THREAT, attack=attack, batch_size=10, masking="none")
    assert plain.robust_correct == record.robust_correct
    assert len(seen) == 3 * (steps + 1)
    ends = seen[steps :: steps + 1]
    assert [p.points_done for p in ends] == [10, 20, 25]
    assert [(p.shards_done, p.shards) for p in ends] == [(1, 3), (2, 3), (3, 3)]
    for progress in ends:
        so_far = record.robust_correct[: progress.points_done]
        assert progress.robust_accuracy == pytest.approx(so_far.count("1") / len(so_far))
    assert ends[-1].robust_accuracy == record.robust_accuracy
    assert ends[-1].seconds_left == 0
    assert all(math.isfinite(p.seconds_left) for p in seen)
    if steps > 1:
        # Half way through the first batch of three: 5 of 25 images' work.
        half = seen[steps // 2 - 1]
        assert math.isnan(half.robust_accuracy)
        assert half.seconds_left == pytest.approx(half.seconds * 4)


def test_the_checks_use_what_the_evaluation_found(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def report(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, **settings: Any) -> MaskingReport:
        calls.append({"x": x, "y": y, **settings})
        return masking_report(model, x, y, threat, **settings)

    monkeypatch.setattr("curvact.lab.record.evaluation.masking_report", report)
    test = load("digits").test.first(90)
    found: list[Finding] = []
    for attack, masking in (("pgd-10", "quick"), ("pgd-9", "quick"), ("pgd-10", "full"), ("fgsm", "none")):
        record = evaluate(model, test, THREAT, attack=attack, masking=masking, on_check=found.append)  # type: ignore[arg-type]
        assert record.masking == masking
        assert len(found) == (0 if masking == "none" else len(RATES) + len(LIMITS))
        assert record.findings == [f"{f.name}: {f.sentence}" for f in found if f.alarm]
        found.clear()
    with torch.no_grad():
        right = model(test.inputs()).argmax(1) == test.labels
    quick, weak, full = calls
    assert torch.equal(quick["x"], test.inputs()[right][:64])
    assert torch.equal(quick["y"], test.labels[right][:64])
    assert quick["attacked"].shape == quick["x"].shape
    assert 0 < float((quick["attacked"] - quick["x"]).abs().max()) <= 0.1 + 1e-6
    assert weak["attacked"] is None, "nine steps are too few to take the place of the checks' own PGD"
    assert (quick["steps"], quick["queries"]) == (10, 50)
    assert (full["steps"], full["queries"]) == (20, 200)
    assert len(full["x"]) == int(right.sum())


def test_checks_that_cannot_run_are_a_finding(model: nn.Module) -> None:
    record = evaluate(model, load("digits").test.first(5), ThreatModel("linf", 0.0), attack="fgsm")
    (finding,) = record.findings
    assert finding.startswith("gradient masking was not checked: masking_report got epsilon=0")


def test_a_model_that_is_always_wrong_has_nothing_to_check() -> None:
    test = load("digits").test.first(1)
    model = MiniResNet(channels=1, width=1)
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.copy_(2 * (torch.arange(10) == (int(test.labels[0]) + 1) % 10))
    record = evaluate(model, test, THREAT, attack="fgsm", masking="quick")
    assert record.clean_accuracy == 0
    assert record.findings == ["gradient masking was not checked: no image is classified correctly"]
    assert evaluate(model, test, THREAT, attack="fgsm", masking="none").findings == []


class _Black(nn.Module):
    """Sees black and white only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x > 0.5).float())  # type: ignore[no-any-return]


@pytest.mark.parametrize("attack", ["fgsm", "pgd-5", "apgd-ce"])
def test_a_model_that_cuts_the_graph_is_on_record_with_its_alarms(model: nn.Module, attack: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SuspectModelWarning)
        record = evaluate(_Black(model).eval(), load("digits").test.first(20), THREAT, attack=attack)
    assert record.clean_accuracy > 0.5
    assert any("do not depend on" in finding for finding in record.findings)
    for alarm in ("zero gradients", "finite differences"):
        assert any(finding.startswith(f"{alarm}:") for finding in record.findings), alarm


def test_probabilities_are_a_finding(model: nn.Module) -> None:
    soft = nn.Sequential(model, nn.Softmax(1)).eval()
    record = evaluate(soft, load("digits").test.first(20), THREAT, attack="pgd-2", masking="none")
    assert any("probabilities" in finding for finding in record.findings)


def test_parts_of_autoattack_are_no_ensemble(model: nn.Module) -> None:
    test = load("digits").test.first(3)
    record = evaluate(model, test, THREAT, attack="apgd-ce+apgd-dlr", masking="none")
    assert (record.attack, record.ensemble, record.mode) == ("apgd-ce + apgd-dlr", False, "plain")
    assert record.versions == {name: version(name) for name in ("curvact", "pyautoattack", "torch")}
    quick = evaluate(model, test, THREAT, attack="fgsm", masking="none")
    assert quick.versions == {name: version(name) for name in ("curvact", "torch")}


def test_finished_shards_add_their_seconds_once(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of this session are in its wall time already."""
    ticks = itertools.count()
    monkeypatch.setattr("curvact.lab.record.evaluation.time.perf_counter", lambda: float(next(ticks)))
    test, threat = load("digits").test.first(6), ThreatModel("linf", 0.01)
    shards = tmp_path / "shards"

    def seconds(folder: Path | None) -> float:
        return evaluate(model, test, threat, attack="apgd-ce", folder=folder, masking="none").seconds

    bare = seconds(None)
    assert seconds(shards) == bare
    spent = sum(_seconds_of(file) for file in shards.glob("shard-*.safetensors"))
    assert spent > 0
    real = AutoAttack.run

    def forgetting(*arguments: Any, **settings: Any) -> AutoAttackResult:
        return replace(real(*arguments, **settings), seconds_resumed=0.0)

    with monkeypatch.context() as patch:
        patch.setattr(AutoAttack, "run", forgetting)
        wall = seconds(shards)
    assert seconds(shards) == wall + spent


def _seconds_of(shard: Path) -> float:
    data = shard.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return float(json.loads(header["__metadata__"]["about"])["seconds"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 of evaluate: a whole number >= 1"),
        ({"batch_size": 2.5}, "batch_size=2.5 of evaluate: a whole number >= 1"),
        ({"workers": 0}, "workers=0 of evaluate: a whole number >= 1"),
        ({"masking": "quik"}, "masking='quik'; did you mean 'quick'"),
        ({"attack": "pgd"}, "pgd"),
        ({"attack": "pdg-20"}, "unknown attack 'pdg-20'"),
    ],
)
def test_bad_arguments_are_one_line(model: nn.Module, setting: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"attack": "pgd-2", "masking": "none", **setting}
    with pytest.raises(CurvactError, match=message) as caught:
        evaluate(model, load("digits").test.first(4), THREAT, **settings)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_one_line(model: nn.Module, tmp_path: Path) -> None:
    data = load("digits")
    for given, message in (
        ((data, THREAT), r"dataset=Splits.* of evaluate: a Dataset of curvact"),
        (((data.test.inputs(), data.test.labels), THREAT), r"dataset=\(tensor.* of evaluate: a Dataset"),
        ((data.test, 0.1), r"threat_model=0\.1 of evaluate: a ThreatModel"),
    ):
        with pytest.raises(CurvactError, match=message) as caught:
            evaluate(model, *given, attack="pgd-2")  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    place = str(tmp_path / "a.images.npz")
    evaluate(model, data.test.first(4), THREAT, attack="pgd-1", masking="none", images_to=place)
    assert Path(place).is_file()
