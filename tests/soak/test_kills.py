"""kill -9 at random moments: what goes on ends with the same bits as what was never disturbed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import harness
import pytest
from harness import KILLS, SEARCH, SWEEP, Command, csv_without_times, note, torment, weights, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.soak]

ALL = ("driver", "worker", "workers", "group")


def _undisturbed(*arguments: object, cwd: Path) -> float:
    """Run a command to its end. Returns its seconds."""
    command = Command.start(*arguments, cwd=cwd)
    code, _, errors = command.end()
    assert code == 0, errors
    return harness.seconds_since(command.began)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep(workers: int, tmp_path: Path, chance: random.Random) -> None:
    spec = write_spec(tmp_path / "soak.yaml", SWEEP)
    whole, out = tmp_path / "whole", tmp_path / "out"
    length = _undisturbed("sweep", "run", spec, "--out", whole, "--workers", 1, cwd=tmp_path)

    def done(command: Command) -> None:
        assert csv_without_times(out / "results.csv") == csv_without_times(whole / "results.csv")
        assert weights(out) == weights(whole)
        harness.nothing_half_written(out)
        assert not list(out.rglob("state*.safetensors"))
        note("sweeps equal to the undisturbed one")
        shutil.rmtree(out)

    torment(
        lambda: Command.start("sweep", "run", spec, "--out", out, "--resume", "--workers", workers),
        done,
        kills=KILLS,
        targets=ALL,
        length=length,
        chance=chance,
    )


def test_a_training(tmp_path: Path, chance: random.Random) -> None:
    spec = write_spec(tmp_path / "run.yaml", harness.BASE)
    whole, out = tmp_path / "whole", tmp_path / "out"
    length = _undisturbed("train", spec, "--out", whole, cwd=tmp_path)

    def plain(folder: Path) -> dict[str, object]:
        content = json.loads((folder / "record.json").read_text())
        metrics = {key: value for key, value in content["metrics"].items() if "seconds" not in key}
        return {**content, "metrics": metrics, "seconds": 0, "checksum": ""}

    def done(command: Command) -> None:
        assert plain(out) == plain(whole)
        assert weights(out) == weights(whole)
        harness.nothing_half_written(out)
        note("trainings equal to the undisturbed one")
        shutil.rmtree(out)

    torment(
        lambda: Command.start("train", spec, "--out", out, "--resume"),
        done,
        kills=KILLS,
        targets=["driver"],
        length=length,
        chance=chance,
    )


def test_a_search(tmp_path: Path, chance: random.Random) -> None:
    """With one worker the trials are the same too."""
    pytest.importorskip("optuna")
    spec = write_spec(tmp_path / "soak.yaml", SEARCH)
    whole, out = tmp_path / "whole", tmp_path / "out"
    length = _undisturbed("search", spec, "--out", whole, "--workers", 1, cwd=tmp_path)

    def done(command: Command) -> None:
        assert csv_without_times(out / "trials.csv") == csv_without_times(whole / "trials.csv")
        assert weights(out) == weights(whole)
        harness.nothing_half_written(out)
        note("searches equal to the undisturbed one")
        shutil.rmtree(out)

    torment(
        lambda: Command.start("search", spec, "--out", out, "--resume", "--workers", 1),
        done,
        kills=KILLS,
        targets=ALL,
        length=length,
        chance=chance,
    )


def test_an_evaluation(tmp_path: Path, chance: random.Random) -> None:
    """The shards of AutoAttack, in two workers."""
    spec = write_spec(tmp_path / "run.yaml", harness.BASE)
    _undisturbed("train", spec, "--out", tmp_path / "run", cwd=tmp_path)
    arguments = ["evaluate", tmp_path / "run", "--attack", "apgd-ce+square", "--n", 40, "--batch-size", 10]
    arguments += ["--masking", "none", "--workers", 2]
    whole, out = tmp_path / "whole", tmp_path / "out"
    length = _undisturbed(*arguments, "--out", whole, cwd=tmp_path)

    def plain(folder: Path) -> dict[str, object]:
        (file,) = folder.glob("*.evaluation.json")
        content = json.loads(file.read_text())
        for key in ("seconds", "checksum", "notes"):
            content.pop(key)
        return dict(content)

    def done(command: Command) -> None:
        assert plain(out) == plain(whole)
        harness.nothing_half_written(out)
        note("evaluations equal to the undisturbed one")
        shutil.rmtree(out)

    torment(
        lambda: Command.start(*arguments, "--out", out, "--resume"),
        done,
        kills=KILLS,
        targets=ALL,
        length=length,
        chance=chance,
    )
