"""`curvact evaluate` and `curvact leaderboard`: no record lost or shown for another; names as they are; bad files in one line."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from curvact.attacks import Progress, ThreatModel, ensemble
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab.cli import evaluate as cli_evaluation
from curvact.lab.cli.main import app, main
from curvact.lab.record import EvaluationRecord, evaluate_model, open_model, read_record, write_record
from curvact.models import build
from curvact.models.checkpoint import save_checkpoint
from curvact.random import generator

ARCHITECTURE = {"name": "mini_resnet", "activation": "silu", "channels": 1, "width": 2}
ABOUT: dict[str, Any] = {
    "data": {"name": "digits", "size": None},
    "threat_model": {"norm": "linf", "epsilon": 0.1},
}


def _checkpoint(path: Path, seed: int = 0, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    model = build(**ARCHITECTURE, generator=generator(seed, "initialization"))
    save_checkpoint(path, model, ARCHITECTURE, {**ABOUT, **changes})
    return path


def _curvact(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _records(folder: Path) -> list[EvaluationRecord]:
    return [read_record(path) for path in sorted(folder.glob("*.evaluation.json"))]


def test_two_runs_two_records(tmp_path: Path) -> None:
    """Every training run writes a `best`."""
    out = tmp_path / "out"
    for seed, run in enumerate(("run", "runB")):
        best = _checkpoint(tmp_path / run / "best.safetensors", seed)
        _curvact("evaluate", best, "--attack", "fgsm", "--n", 10, "--no-masking", "--out", out)
    assert sorted(record.model.name for record in _records(out)) == ["run-best", "runB-best"]
    # Folders of one name.
    third = _checkpoint(tmp_path / "deeper" / "run" / "best.safetensors", 2)
    _curvact("evaluate", third, "--attack", "fgsm", "--n", 10, "--no-masking", "--out", out)
    assert len({record.model.sha256 for record in _records(out)}) == 3


def test_other_settings_are_another_record(tmp_path: Path) -> None:
    """Neither written over each other nor shown for each other, with or without --resume."""
    out, best = tmp_path / "out", _checkpoint(tmp_path / "run" / "best.safetensors")
    ask = ["evaluate", best, "--attack", "pgd-2", "--n", 10, "--out", out, "--masking", "none"]
    _curvact(*ask)
    changes: list[list[object]] = [
        ["--restarts", 5],
        ["--masking", "full"],
        ["--batch-size", 5],
        ["--seed", 1],
        ["--epsilon", 0.2],
        ["--norm", "l2"],
        ["--split", "validation"],
        ["--n", 11],
    ]
    for number, change in enumerate(changes):
        _curvact(*ask, *change, "--resume")
        assert len(_records(out)) == 2 + number, change
        _curvact(*ask, *change, "--resume")
        assert len(_records(out)) == 2 + number, f"{change} is found again"
    records = _records(out)
    assert sorted(r.settings["restarts"] for r in records) == [1] * len(changes) + [5]
    assert sorted(str(r.masking) for r in records) == ["full"] + ["none"] * len(changes)


def test_modes_are_told_apart(tmp_path: Path) -> None:
    out, best = tmp_path / "out", _checkpoint(tmp_path / "run" / "best.safetensors")
    ask = ["evaluate", best, "--attack", "apgd-ce", "--n", 8, "--out", out, "--no-masking"]
    for option in ([], ["--fast", "--resume"], ["--resume"]):
        _curvact(*ask, *option)
    assert sorted(record.settings["mode"] for record in _records(out)) == ["fast", "plain"]


def test_the_name_counts_the_images_that_there_are(tmp_path: Path) -> None:
    out, best = tmp_path / "out", _checkpoint(tmp_path / "run" / "best.safetensors")
    for n in (5000, 1000):
        _curvact("evaluate", best, "--attack", "fgsm", "--n", n, "--no-masking", "--out", out, "--resume")
    (path,) = out.glob("*.evaluation.json")
    assert "-digits-test359-" in path.name
    assert read_record(path).data.count == 359


def _seconds_in(shards: Path) -> float:
    """What the headers of the units say."""
    spent = 0.0
    for file in shards.glob("shard-*.safetensors"):
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        spent += json.loads(header["__metadata__"]["about"])["seconds"]
    return spent


class _StoppedError(Exception):
    pass


def test_a_killed_evaluation_goes_on_and_its_seconds_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, best = tmp_path / "out", _checkpoint(tmp_path / "run" / "best.safetensors")
    ask = ["evaluate", best, "--attack", "apgd-ce+fab-t", "--n", 10, "--batch-size", 5, "--no-masking"]
    ask += ["--epsilon", 0.001, "--out", out]

    def stopping(*arguments: Any, **settings: Any) -> Any:
        def stop(progress: Progress) -> None:
            if (progress.shards_done, progress.attack) == (1, "apgd-ce"):
                raise _StoppedError

        return ensemble(*arguments, **{**settings, "on_progress": stop})

    with monkeypatch.context() as patch:
        patch.setattr("curvact.lab.record.evaluate.ensemble", stopping)
        with pytest.raises(_StoppedError):
            _curvact(*ask)
    (shards,) = out.glob("*.shards")
    spent = _seconds_in(shards)
    assert spent > 0
    resumed: list[int] = []

    def counting(*arguments: Any, **settings: Any) -> Any:
        verdict = ensemble(*arguments, **settings)
        resumed.append(verdict.units_resumed)
        own.append(verdict.seconds)
        return verdict

    own: list[float] = []
    with pytest.raises(CurvactError, match="--resume goes on with it"):
        _curvact(*ask)
    monkeypatch.setattr("curvact.lab.record.evaluate.ensemble", counting)
    _curvact(*ask, "--resume")
    (record,) = _records(out)
    assert resumed == [5]
    # Of this session there is also the record's own making; half a millisecond is the record's rounding.
    assert record.seconds >= spent + own[0] - 5e-4
    assert not shards.exists()


def test_a_fresh_folder_adds_no_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of this session are in its wall time already; a folder that is whole adds what it took, once."""
    model, _ = open_model(_checkpoint(tmp_path / "model.safetensors"))
    ticks = itertools.count()
    monkeypatch.setattr("curvact.lab.record.evaluate.time.perf_counter", lambda: float(next(ticks)))
    test, threat = load("digits").test.first(6), ThreatModel("linf", 0.01)
    shards = tmp_path / "shards"

    def seconds(folder: Path | None) -> float:
        return evaluate_model(model, test, threat, attack="apgd-ce", folder=folder, masking="none").seconds

    bare = seconds(None)
    assert seconds(shards) == bare
    spent = _seconds_in(shards)
    assert spent > 0
    with monkeypatch.context() as patch:
        patch.setattr(
            "curvact.lab.record.evaluate.ensemble",
            lambda *a, **k: replace(ensemble(*a, **k), seconds_resumed=0.0),
        )
        wall = seconds(shards)
    assert seconds(shards) == wall + spent


def test_versions_and_notes_are_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def noting(*arguments: Any, **settings: Any) -> Any:
        return replace(ensemble(*arguments, **settings), notes=("shard-00001[/x] was damaged",))

    monkeypatch.setattr("curvact.lab.record.evaluate.ensemble", noting)
    out, best = tmp_path / "out", _checkpoint(tmp_path / "run" / "best.safetensors")
    ask = ["evaluate", best, "--n", 4, "--no-masking", "--out", out, "--attack"]
    output = _curvact(*ask, "apgd-ce")
    assert "note: shard-00001[/x] was damaged" in output
    _curvact(*ask, "fgsm")
    part, quick = _records(out)
    assert part.notes == ["shard-00001[/x] was damaged"]
    assert part.versions == {name: version(name) for name in ("curvact", "pyautoattack", "torch")}
    assert quick.versions == {name: version(name) for name in ("curvact", "torch")}


def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "out[v2]"
    for name in ("resnet[v2]", "resnet[", "net:smile:", "x[bold]"):
        best = _checkpoint(tmp_path / f"{name}.safetensors")
        output = _curvact("evaluate", best, "--attack", "fgsm", "--n", 4, "--no-masking", "--out", out)
        assert f"record: {out}/" in output
        assert Path(output.split("record: ")[1].strip()).is_file()
    record = _records(out)[0]
    entry = {**record.model.model_dump(), "name": "resnet[/v2]"}
    finding = "zero gradients [/x]"
    odd = EvaluationRecord.model_validate({**record.model_dump(), "model": entry, "findings": [finding]})
    write_record(odd, out / "odd.evaluation.json")
    board = _curvact("leaderboard", out)
    for name in ("resnet[v2]", "resnet[/v2]", "net:smile:", "x[bold]"):
        assert name in board


def test_a_finding_in_brackets_is_printed_as_it_is(tmp_path: Path) -> None:
    out, best = tmp_path / "out", _checkpoint(tmp_path / "run" / "best.safetensors")
    ask = ["evaluate", best, "--attack", "fgsm", "--n", 4, "--no-masking", "--out", out]
    _curvact(*ask)
    (path,) = out.glob("*.evaluation.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "findings": ["zero [/x] [bold]gradients"]}))
    assert "finding zero [/x] [bold]gradients" in _curvact(*ask, "--resume")


def test_the_bar_takes_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cli_evaluation, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=True)
    )
    with cli_evaluation._bar("pgd[/x]", []) as (on_progress, _):
        on_progress(Progress("[/x]", 0, 1, 0, 1, 0.5, 1.0, 1.0))


def test_what_is_no_record_is_skipped_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "bad.evaluation.json").write_text('{"attack": "../x"}')
    done = CliRunner().invoke(app, ["leaderboard", str(tmp_path)])
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"skipped: {tmp_path / 'bad.evaluation.json'} is no evaluation record")
    assert "holds no records" in str(done.exception)


def test_the_leaderboard_exports_each_record_once(tmp_path: Path) -> None:
    model, _ = open_model(_checkpoint(tmp_path / "model.safetensors"))
    record = evaluate_model(
        model, load("digits").test.first(4), ThreatModel("linf", 0.1), attack="fgsm", masking="none"
    )
    whole = {**record.model_dump(), "attack": "AutoAttack", "ensemble": True}
    for name, change in (
        ("a", {}),
        ("b", {"seed": 1}),
        ("c", {"seed": 2}),
        ("d", {"attack": "AutoAttack (rand)", "seed": 3}),
    ):
        write_record(
            EvaluationRecord.model_validate({**whole, **change}), tmp_path / f"{name}.evaluation.json"
        )
    output = _curvact("leaderboard", tmp_path, "--export", tmp_path / "info")
    files = list((tmp_path / "info").rglob("*.json"))
    assert "wrote 3 files under" in output
    assert "left out 1: only standard AutoAttack" in output
    assert len(files) == 3
    assert {json.loads(file.read_text())["footnote"] for file in files} == {
        f"curvact, AutoAttack on 4 images, seed {seed}" for seed in (0, 1, 2)
    }


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"threat_model": {"norm": "linf", "epsilon": "8/255"}},
            'threat_model.epsilon="8/255": a number >= 0',
        ),
        ({"threat_model": {"epsilon": True}}, "threat_model.epsilon=true: a number >= 0"),
        ({"threat_model": {"epsilon": -0.1}}, "threat_model.epsilon=-0.1: a number >= 0"),
        ({"threat_model": {"epsilon": float("nan")}}, "threat_model.epsilon=NaN: a number >= 0"),
        ({"threat_model": {"epsilon": None}}, "threat_model.epsilon=null: a number >= 0"),
        ({"threat_model": {"epsilon": 10**400}}, "threat_model.epsilon=1000"),
        (
            {"threat_model": {"epsilon": 0.1, "norm": ["linf"]}},
            'threat_model.norm=["linf"]: allowed are linf',
        ),
        (
            {"threat_model": {"epsilon": 0.1, "norm": "l7"}},
            'threat_model.norm="l7": allowed are linf, l2, l1',
        ),
        ({"threat_model": None}, "threat_model=null: an object such as"),
        ({"threat_model": "linf"}, 'threat_model="linf": an object such as'),
        ({"data": "digits"}, 'data="digits": an object with a name'),
        ({"data": None}, "data=null: an object with a name"),
        ({"data": {}}, "data={} lacks its name"),
        ({"data": {"name": 3}}, "data.name=3: the name of a data set"),
        ({"data": {"name": "digits", "size": "big"}}, 'data.size="big": null or a whole number'),
        ({"data": {"name": "digits", "size": 0}}, "data.size=0: null or a whole number"),
        ({"data": {"name": "digots"}}, "unknown data set 'digots'"),
    ],
)
def test_a_wrong_sidecar_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: dict[str, Any],
    message: str,
) -> None:
    best = _checkpoint(tmp_path / "run" / "best.safetensors", **said)
    arguments = ["evaluate", str(best), "--attack", "fgsm", "--n", "4", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["curvact", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    if "unknown data set" not in message:
        assert str(best.with_suffix(".json")) in line
        assert "correct it or give --" in line
    assert not (tmp_path / "out").exists()


def test_options_take_the_place_of_a_wrong_sidecar(tmp_path: Path) -> None:
    """What the command line says need not be in the file; a data set without a size has its own."""
    bad = _checkpoint(tmp_path / "run" / "best.safetensors", data="digits", threat_model=None)
    ask = ["--attack", "fgsm", "--n", 4, "--no-masking", "--out", tmp_path / "out"]
    _curvact("evaluate", bad, "--data", "digits", "--norm", "linf", "--epsilon", "0.1", *ask)
    short = _checkpoint(tmp_path / "short" / "best.safetensors", data={"name": "digits"})
    _curvact("evaluate", short, *ask)
    assert len(_records(tmp_path / "out")) == 2


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"restarts": 0}, {"workers": 0}, {"batch_size": 2.5}])
def test_numbers_below_one_are_one_line(setting: dict[str, Any]) -> None:
    model = build(**ARCHITECTURE)
    test = load("digits").test.first(4)
    with pytest.raises(
        CurvactError, match=f"{next(iter(setting))}=.* of evaluate_model: a whole number >= 1"
    ):
        evaluate_model(model, test, ThreatModel("linf", 0.1), attack="pgd-2", masking="none", **setting)


def test_what_was_asked_is_known_before_it_is_run(tmp_path: Path) -> None:
    """Of a whole AutoAttack and of parts; by it the file is named."""
    out, best = tmp_path / "out", _checkpoint(tmp_path / "model.safetensors")
    for attack in ("autoattack-rand", "apgd-ce+apgd-dlr", "pgd-2", "fgsm"):
        _curvact("evaluate", best, "--attack", attack, "--n", 4, "--no-masking", "--out", out)
        (path,) = out.glob("*.evaluation.json")
        assert f"-{read_record(path).id}-masking-none.evaluation.json" in path.name
        shutil.rmtree(out)
