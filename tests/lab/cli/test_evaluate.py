"""`curvact evaluate` and `leaderboard`: no record is lost, replaced or shown for another."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
import torch
from rich.console import Console

from curvact.attacks import AutoAttack, AutoAttackResult, Progress, ThreatModel
from curvact.attacks.masking import LIMITS, RATES
from curvact.data import load
from curvact.errors import CurvactError
from curvact.files import with_checksum
from curvact.lab.checkpoints import open_checkpoint
from curvact.lab.cli import evaluate as cli
from curvact.lab.imports import copy_code, import_code
from curvact.lab.record import EvaluationRecord, evaluate, read_record, write_record
from curvact.models import build
from curvact.models.interchange import to_robustbench, write_state_dict

Run = Callable[..., Any]
Save = Callable[..., Path]


@pytest.fixture
def best(save: Save, tmp_path: Path) -> Path:
    return save(tmp_path / "run" / "best.safetensors")


@pytest.fixture
def done(curvact: Run) -> Callable[..., str]:
    """What a command prints that must not fail."""

    def run(*arguments: object) -> str:
        ended = curvact(*arguments)
        assert ended.code == 0, ended.err
        return str(ended.out)

    return run


def _records(folder: Path) -> list[EvaluationRecord]:
    return [read_record(path) for path in sorted(folder.glob("*.evaluation.json"))]


def test_two_runs_are_two_records(done: Run, save: Save, tmp_path: Path) -> None:
    """Every run writes a `best`; a folder stands for it; two folders can have one name."""
    out = tmp_path / "out"
    for seed, run in enumerate(("run", "runB", "deeper/run")):
        save(tmp_path / run / "best.safetensors", seed=seed)
        done("evaluate", tmp_path / run, "--attack", "fgsm", "--n", 10, "--no-masking", "--out", out)
    records = _records(out)
    assert sorted(record.model.name for record in records) == ["run-best", "run-best", "runB-best"]
    assert len({record.model.sha256 for record in records}) == 3


def test_other_settings_are_another_record(done: Run, save: Save, best: Path, tmp_path: Path) -> None:
    """Neither replaced by each other nor shown for each other, and found again by --resume."""
    out = tmp_path / "out"
    save(tmp_path / "run" / "last.safetensors", seed=1)
    ask = ["evaluate", best.parent, "--n", 10, "--out", out, "--masking", "none"]
    done(*ask, "--attack", "pgd-2")
    pgd = ["--attack", "pgd-2"]
    changes: list[list[object]] = [
        ["--attack", "pgd(steps=2, restarts=5)"],
        ["--attack", "apgd-ce"],
        ["--attack", "apgd-ce", "--fast"],
        [*pgd, "--masking", "full"],
        [*pgd, "--batch-size", 5],
        [*pgd, "--seed", 1],
        [*pgd, "--epsilon", 0.2],
        [*pgd, "--norm", "l2"],
        [*pgd, "--split", "validation"],
        [*pgd, "--n", 11],
        [*pgd, "--weights", "last"],
    ]
    for number, change in enumerate(changes):
        for _ in range(2):
            done(*ask, *change, "--resume")
            assert len(_records(out)) == 2 + number, change
    records = _records(out)
    assert sum("restarts=5" in record.attack for record in records) == 1
    assert sorted(record.mode for record in records if record.mode) == ["fast", "plain"]
    assert sorted(str(record.masking) for record in records) == ["full"] + ["none"] * len(changes)
    for path in out.glob("*.evaluation.json"):
        assert f"-{read_record(path).key.id}-masking-" in path.name


def test_the_name_counts_the_images_that_there_are(done: Run, best: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for n in (5000, 1000):
        done("evaluate", best, "--attack", "fgsm", "--n", n, "--no-masking", "--out", out, "--resume")
    (path,) = out.glob("*.evaluation.json")
    assert "-digits-test359-" in path.name
    assert read_record(path).data.count == 359


class _StoppedError(Exception):
    pass


def test_a_stopped_evaluation_goes_on(
    curvact: Run, done: Run, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    ask = ["evaluate", best, "--attack", "apgd-ce+fab-t", "--n", 10, "--batch-size", 5, "--no-masking"]
    ask += ["--epsilon", 0.001, "--out", out]
    real, results = AutoAttack.run, []

    def stopping(*arguments: Any, **settings: Any) -> AutoAttackResult:
        def stop(progress: Progress) -> None:
            if (progress.shards_done, progress.attack) == (1, "apgd-ce"):
                raise _StoppedError

        return real(*arguments, **{**settings, "on_progress": stop})

    def watched(*arguments: Any, **settings: Any) -> AutoAttackResult:
        results.append(real(*arguments, **settings))
        return results[-1]

    with monkeypatch.context() as patch:
        patch.setattr(AutoAttack, "run", stopping)
        with pytest.raises(_StoppedError):
            curvact(*ask)
    (shards,) = out.glob("*.shards")
    refused = curvact(*ask)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "holds an evaluation that was begun: --resume goes on with it" in refused.err
    monkeypatch.setattr(AutoAttack, "run", watched)
    done(*ask, "--resume")
    (record,) = _records(out)
    (result,) = results
    assert result.units_resumed == 5
    # Half a millisecond is the record's rounding.
    assert record.seconds >= result.seconds + result.seconds_resumed - 5e-4
    assert result.seconds_resumed > 0
    assert not shards.exists(), "the shards go when the record is there"


def test_a_record_of_other_weights_is_refused(curvact: Run, done: Run, best: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ask = ["evaluate", best, "--attack", "fgsm", "--n", 10, "--out", out, "--no-masking"]
    done(*ask)
    (path,) = out.glob("*.evaluation.json")
    content = json.loads(path.read_text())
    content["model"]["sha256"] = "other"
    write_record(EvaluationRecord.model_validate(content), path)
    for again in (ask, [*ask, "--resume"]):
        before = path.read_text()
        refused = curvact(*again)
        assert refused.code == 2
        assert "holds another evaluation: model is other there and" in refused.err
        assert path.read_text() == before


def test_what_is_printed(done: Run, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ["evaluate", best, "--attack", "pgd-10", "--n", 20, "--out", tmp_path / "a"]
    out = done(*ask)
    assert "digits/test, first 20 images: clean" in out
    assert "pgd(steps=10, step=0.25), linf ε = 0.1" in out
    assert sum(line.startswith(("  ok", "  ALARM")) for line in out.splitlines()) == len(RATES) + len(LIMITS)
    assert "gradient masking (quick): no sign" in out
    for option in ("--no-masking", "--resume"):
        assert "gradient masking" not in done(*ask, option)
    real = AutoAttack.run

    def noting(*arguments: Any, **settings: Any) -> AutoAttackResult:
        return replace(real(*arguments, **settings), notes=("shard-00001[/x] was damaged",))

    monkeypatch.setattr(AutoAttack, "run", noting)
    ask = ["evaluate", best, "--attack", "apgd-ce", "--n", 4, "--no-masking", "--out", tmp_path / "b"]
    assert "note: shard-00001[/x] was damaged" in done(*ask)
    (path,) = (tmp_path / "b").glob("*.evaluation.json")
    content = json.loads(path.read_text())
    findings = ["zero [/x] [bold]gradients \x1b[31m\x07"]
    write_record(EvaluationRecord.model_validate({**content, "findings": findings}), path)
    assert r"finding zero [/x] [bold]gradients \x1b[31m\x07" in done(*ask, "--resume")


def test_a_whole_autoattack(done: Run, best: Path, tmp_path: Path) -> None:
    ask = ["evaluate", best, "--n", 6, "--batch-size", 3, "--epsilon", 0.5, "--no-masking"]
    assert "AutoAttack, linf ε = 0.5" in done(*ask, "--out", tmp_path / "out")
    (record,) = _records(tmp_path / "out")
    assert (record.attack, record.ensemble, record.mode) == ("AutoAttack", True, "plain")
    assert record.accuracy_after["square"] == record.robust_accuracy
    assert set(record.broken_by) <= {"clean", "apgd-ce", "apgd-t", "fab-t", "square", ""}
    assert "AutoAttack" in done("leaderboard", tmp_path / "out", "--export", tmp_path / "info")
    assert (tmp_path / "info" / "digits" / "Linf").is_dir()


def test_names_are_printed_as_they_are(done: Run, save: Save, tmp_path: Path) -> None:
    out = tmp_path / "out[v2]"
    names = ("resnet[v2]", "resnet[", "net:smile:", "x[bold]")
    for name in names:
        path = save(tmp_path / f"{name}.safetensors")
        output = done("evaluate", path, "--attack", "fgsm", "--n", 4, "--no-masking", "--out", out)
        assert f"record: {out}/" in output
        assert Path(output.split("record: ")[1].strip()).is_file()
    record = _records(out)[0]
    entry = {**record.model.model_dump(), "name": "resnet[/v2]\x1b[2J"}
    odd = EvaluationRecord.model_validate({**record.model_dump(), "model": entry, "findings": ["no [/x]"]})
    write_record(odd, out / "odd.evaluation.json")
    board = done("leaderboard", out)
    assert "Less than AutoAttack" in board
    assert "\x1b" not in board
    for name in (*names, r"resnet[/v2]\x1b[2J"):
        assert name in board


def test_images_are_saved_beside_the_record(curvact: Run, done: Run, best: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ask = ["evaluate", best, "--attack", "pgd-2", "--n", 20, "--no-masking", "--out", out]
    done(*ask)
    refused = curvact(*ask, "--save-images", "--resume")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is there without its images: leave out --resume" in refused.err
    printed = done(*ask, "--save-images")
    (record,) = _records(out)
    (file,) = out.glob("*.images.npz")
    assert f"images: {file}" in printed
    assert file.with_suffix(".png").is_file()
    arrays = np.load(file)
    test = load("digits").test.first(20)
    assert arrays["clean"].tolist() == test.inputs().tolist()
    assert (arrays["label"].tolist(), arrays["index"].tolist()) == (test.labels.tolist(), list(range(20)))
    assert 0 < np.abs(arrays["adversarial"] - arrays["clean"]).max() <= 0.1 + 1e-6
    model = open_checkpoint(best).model
    x_adv = torch.from_numpy(arrays["adversarial"])
    with torch.no_grad():
        assert arrays["prediction"].tolist() == model(x_adv).argmax(1).tolist()
        rounded = model((x_adv * 255).round() / 255).argmax(1) == test.labels
    clean = torch.tensor([c == "1" for c in record.clean_correct])
    assert record.rounded_accuracy == pytest.approx(float((rounded & clean).double().mean()))
    assert "rounded to 8 bits: robust" in printed
    assert done(*ask, "--save-images", "--resume").count("\nimages: ") == 1


def test_outputs_are_chosen_for_the_classes(curvact: Run, done: Run, best: Path, tmp_path: Path) -> None:
    ask = ["evaluate", best, "--attack", "fgsm", "--n", 20, "--no-masking", "--out", tmp_path / "out"]
    done(*ask)
    done(*ask, "--outputs", "1,0,2,3,4,5,6,7,8,9")
    assert len({record.model.sha256 for record in _records(tmp_path / "out")}) == 2
    for outputs, message in (
        ("1,x", "--outputs 1,x: whole numbers"),
        ("0,11", "it has no output 11"),
        ("0,1,1", "each once"),
    ):
        refused = curvact(*ask, "--outputs", outputs)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert message in refused.err


def test_the_bar_takes_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich.console, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=True))
    with cli._bar("pgd[/x]", []) as bar:
        bar.on_progress(Progress("[/x]", 0, 1, 0, 1, 0.5, 1.0, 1.0))


def test_what_is_no_record_is_skipped_in_a_line(curvact: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.evaluation.json").write_text('{"attack": "../x"}')
    code, out, err = curvact("leaderboard", tmp_path)
    skipped, problem = err.splitlines()
    assert (code, out) == (2, "")
    assert skipped.startswith(f"skipped: {tmp_path / 'bad.evaluation.json'} is no evaluation record")
    assert "holds no records" in problem
    assert "no folder of records" in curvact("leaderboard", tmp_path / "none").err


def test_the_leaderboard_exports_each_record_once(done: Run, best: Path, tmp_path: Path) -> None:
    test, threat = load("digits").test.first(4), ThreatModel("linf", 0.1)
    record = evaluate(open_checkpoint(best).model, test, threat, attack="fgsm", masking="none")
    whole = {**record.model_dump(), "attack": "AutoAttack", "ensemble": True}
    changes = ({}, {"seed": 1}, {"seed": 2}, {"attack": "AutoAttack (rand)", "seed": 3})
    for number, change in enumerate(changes):
        changed = EvaluationRecord.model_validate({**whole, **change})
        write_record(changed, tmp_path / f"{number}.evaluation.json")
    output = done("leaderboard", tmp_path, "--export", tmp_path / "info")
    files = list((tmp_path / "info").rglob("*.json"))
    assert "wrote 3 files under" in output
    assert "left out 1: only standard AutoAttack" in output
    assert len(files) == 3
    assert {json.loads(file.read_text())["footnote"] for file in files} == {
        f"curvact, AutoAttack on 4 images, seed {seed}" for seed in (0, 1, 2)
    }


def test_options_take_the_place_of_what_a_checkpoint_says(done: Run, save: Save, tmp_path: Path) -> None:
    bad = save(tmp_path / "run" / "best.safetensors", data="digits", threat_model="linf")
    ask = ["--attack", "fgsm", "--n", 4, "--no-masking", "--out", tmp_path / "out"]
    done("evaluate", bad, "--data", "digits", "--norm", "linf", "--epsilon", "0.1", *ask)
    short = save(tmp_path / "short" / "best.safetensors", data={"name": "digits"})
    done("evaluate", short, *ask)
    assert len(_records(tmp_path / "out")) == 2


def test_other_data_than_those_of_the_training_are_noted(
    curvact: Run, done: Run, save: Save, tmp_path: Path
) -> None:
    own = save(tmp_path / "own" / "best.safetensors", data={"name": "mnist"})
    ask = ["--data", "digits", "--epsilon", "0.1", "--n", 4]
    out = done("evaluate", own, *ask, "--attack", "fgsm", "--no-masking", "--out", tmp_path / "out")
    assert "note: own-best was trained on mnist, not on digits" in out
    (record,) = _records(tmp_path / "out")
    assert record.notes == ["own-best was trained on mnist, not on digits"]
    run = curvact("analyze", "hessian", own, *ask, "--probes", 8, "--attack", "pgd-1", "--out", tmp_path)
    assert (run.code, run.err) == (0, "note: own-best was trained on mnist, not on digits\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack", "pgd"], "pgd"),
        (["--attack", "pgd-x"], "pgd-x"),
        (["--attack", "pgd(steps=3, step=3)"], "step=3"),
        (["--attack", "pgd[/x]"], "pgd[/x]"),
        (["--attack", "apgd-ce+../../[/x]"], "apgd-ce+../../[/x]"),
        (["--epsilon", "8/0"], "--epsilon 8/0: a finite number >= 0"),
        (["--epsilon", "-1"], "--epsilon -1: a finite number >= 0"),
        (["--norm", "l7"], "norm='l7'"),
        (["--split", "tests"], "--split tests; did you mean 'test'?; allowed are"),
        (["--n", "0"], "--n 0: must be >= 1"),
        (["--batch-size", "0"], "--batch-size 0: must be >= 1"),
        (["--seed", "-1"], "seed=-1"),
        (["--masking", "quik"], "--masking quik; did you mean 'quick'?; allowed are none, quick, full"),
        (["--data", "digit"], "unknown data set 'digit'"),
        (["--device", "cuda:99"], "--device cuda:99: torch sees"),
        (
            ["--attack", "fgsm", "--device", "cpu:0,cpu:1"],
            "--device cpu:0,cpu:1: for AutoAttack and its parts, not for fgsm",
        ),
        (["--attack", "pgd-3", "--fast"], "--fast: for AutoAttack and its parts, not for pgd-3"),
        (["--attack", "fgsm", "--workers", "2"], "--workers 2: for AutoAttack and its parts, not for fgsm"),
    ],
)
def test_bad_input_is_one_line(
    curvact: Run, best: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, out, err = curvact("evaluate", best, "--out", tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_autoattack_has_a_worker_on_each_device(
    curvact: Run, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def shards(content: Any, done: Any, waiting: Any, workers: int, devices: Any, *rest: Any) -> None:
        seen.append((list(waiting), workers, [str(device) for device in devices]))
        raise CurvactError("seen")

    monkeypatch.setattr(importlib.import_module("curvact.attacks.autoattack.run"), "run_shards", shards)
    ask = ["evaluate", best, "--attack", "apgd-ce", "--n", 30, "--batch-size", 10, "--out", tmp_path / "out"]
    assert curvact(*ask, "--device", "cpu:0,cpu:1").err == "curvact: seen\n"
    assert curvact(*ask, "--device", "cpu:0,cpu:1", "--workers", 3, "--resume").err == "curvact: seen\n"
    assert seen == [([0, 1, 2], 2, ["cpu", "cpu"]), ([0, 1, 2], 3, ["cpu", "cpu"])]


def test_what_a_file_does_not_say_has_to_be_given(curvact: Run, save: Save, tmp_path: Path) -> None:
    model = build("wide_resnet", depth=10, widen_factor=1, mean=[0] * 3, std=[1] * 3).eval()
    foreign = tmp_path / "foreign.pt"
    write_state_dict(foreign, to_robustbench(model))
    wrong = save(tmp_path / "best.safetensors", threat_model={"epsilon": -1})
    for arguments, message in (
        ([foreign], "foreign.pt does not say its data set: give --data"),
        ([foreign, "--data", "digits"], "foreign.pt does not say its epsilon: give --epsilon"),
        ([wrong], "best.json: threat_model="),
        ([tmp_path / "none.safetensors"], "no checkpoint file"),
    ):
        code, out, err = curvact("evaluate", *arguments, "--out", tmp_path / "out")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_weights_without_a_description(
    curvact: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Any
) -> None:
    """--model names the network, from a file of the user too, with its normalization."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes=10, width=8):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))\n"
    )
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.ReLU(), torch.nn.Linear(5, 10)
    )
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "w.pt")
    command = ["evaluate", "w.pt", "--data", "digits", "--epsilon", "0.05", "--attack", "pgd-1", "--n", "50"]
    network = ["--model", "theirs.py:Net(width=5)", "--mean", "0.3", "--std", "0.4"]
    done = curvact(*command, *network, "--masking", "none", "--out", "records")
    assert done.code == 0, done.err
    images = load("digits").test.first(50)
    wanted = (theirs((images.inputs() - 0.3) / 0.4).argmax(1) == images.labels).double().mean().item()
    record = json.loads(next((tmp_path / "records").glob("*.json")).read_text())
    assert record["clean_accuracy"] == pytest.approx(wanted)
    for extra, problem in (
        (["--model", "theirs.py:Net"], "wrong shape of 1.weight"),
        (["--model", "theirs.py:Net(width=5)", "--mean", "0.3"], "give both or neither"),
        (["--model", "theirs.py:Nett"], "did you mean 'Net'"),
        (["--model", "none.py:Net"], "there is no file none.py of Python"),
        (["--mean", "0.3"], "--mean 0.3: it belongs to --model"),
    ):
        done = curvact(*command, *extra)
        assert done.code == 2
        assert problem in done.err
        assert done.err.count("\n") == 1


ATTACK = """
import curvact as cv
def push(model, x, y, threat_model, *, generator, share=1.0):
    start = threat_model.random_start(x, generator)
    return x + {share} * share * (start - x)
cv.attacks.register_attack("push", push)
"""


def test_an_edited_attack_is_another_record(
    done: Run, best: Path, tmp_path: Path, fresh: Callable[[], None]
) -> None:
    """The name and the weights are the same, but not the formula: the old record does not answer."""
    mine, out = tmp_path / "my.py", tmp_path / "out"
    options = ("--attack", "push(share=0.5)", "--n", 10, "--no-masking", "--out", out, "--import", mine)
    for times, share in ((1, 1.0), (1, 1.0), (2, 0.0)):
        fresh()
        mine.write_text(ATTACK.format(share=share))
        done("evaluate", best, *options, "--resume")
        records = _records(out)
        assert len(records) == times
    assert len({record.code["my.py"] for record in records}) == 2
    assert len({record.key.id for record in records}) == 2


def test_the_code_of_a_run_may_register_the_attack(
    done: Run, best: Path, tmp_path: Path, fresh: Callable[[], None]
) -> None:
    """--trust-code runs it before the attack is looked up."""
    mine = tmp_path / "my.py"
    mine.write_text(ATTACK.format(share=1.0))
    item = import_code(mine)
    copy_code([item], best.parent)
    sidecar = json.loads(best.with_suffix(".json").read_text())
    best.with_suffix(".json").write_text(
        json.dumps(with_checksum({**sidecar, "imports": [item.model_dump()]}))
    )
    fresh()
    options = ("--attack", "push", "--n", 10, "--no-masking", "--out", tmp_path / "out")
    assert "robust" in done("evaluate", best.parent, *options, "--trust-code")
