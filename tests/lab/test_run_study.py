"""Running a study: the same numbers however it is run, killed or resumed, and nothing half-written."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from curvact.errors import CurvactError
from curvact.lab import trial as trial_module
from curvact.lab.engines.local import ATTEMPTS, Event, run_trials
from curvact.lab.report.summary import summarize
from curvact.lab.run_study import run_study
from curvact.lab.store import finished, read_study, rows_of
from curvact.lab.study_spec import load_spec, trial_id
from curvact.lab.trial import run_trial
from curvact.models.checkpoint import load_checkpoint


def _csv_without_times(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"]
    return rows


def _run(spec: Path, out: Path, *extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "curvact", "study", "run", str(spec), "--out", str(out), *extra]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _children(pid: int) -> list[int]:
    """Worker processes of a run: its children that hold our code (not multiprocessing's resource tracker)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    return found


def _wait_for(condition, seconds: float = 120) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_content: dict[str, Any]) -> tuple[Path, Path]:
    """A spec and the folder of an unbroken run of it with one worker."""
    folder = tmp_path_factory.mktemp("unbroken")
    spec = folder / "tiny.yaml"
    spec.write_text(yaml.safe_dump(tiny_content))
    out = folder / "run"
    process = _run(spec, out, "--workers", "1")
    text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "report.html" in text
    return spec, out


def test_what_a_run_leaves(unbroken: tuple[Path, Path]) -> None:
    spec_path, out = unbroken
    spec = load_spec(spec_path)
    assert read_study(out) == spec
    for name in ("results.csv", "report.html", "study.yaml"):
        assert (out / name).stat().st_size > 0
    assert list(out.rglob("*.png"))
    assert list(out.rglob("*.svg"))
    assert not list(out.rglob("*.partial"))
    for config in spec.trials():
        folder = out / "trials" / trial_id(config)
        assert sorted(p.name for p in folder.iterdir()) == [
            "config.json",
            "environment.json",
            "metrics.jsonl",
            "model.json",
            "model.safetensors",
            "record.json",
        ]
        assert json.loads((folder / "config.json").read_text()) == config
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == config["epochs"]
        environment = json.loads((folder / "environment.json").read_text())
        assert environment["torch"] == torch.__version__
        assert environment["threads"] == 1
        record = json.loads((folder / "record.json").read_text())
        assert record["max_curvature"] == pytest.approx(config["curvature"])
        assert record["gradient_evaluations"] == 5 * 2


def test_a_checkpoint_reproduces_its_record(unbroken: tuple[Path, Path]) -> None:
    from curvact.data import load

    spec_path, out = unbroken
    config = load_spec(spec_path).trials()[0]
    folder = out / "trials" / trial_id(config)
    model = load_checkpoint(folder / "model.safetensors")
    test = load("digits").test
    accuracy = float((model(test.inputs()).argmax(1) == test.labels).double().mean())
    record = json.loads((folder / "record.json").read_text())
    assert record["metrics"]["clean_accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_two_workers_give_the_same_bytes(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    spec, out = unbroken
    process = _run(spec, tmp_path / "run", "--workers", "2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert _csv_without_times(tmp_path / "run" / "results.csv") == _csv_without_times(out / "results.csv")


def test_killed_and_resumed_gives_the_same(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    spec, out = unbroken
    there = tmp_path / "run"
    process = _run(spec, there, "--workers", "1")
    _wait_for(lambda: any(not p.name.startswith(".") for p in (there / "trials").glob("*")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = [p for p in (there / "trials").iterdir() if not p.name.startswith(".")]
    assert 1 <= len(done) < 4
    process = _run(spec, there)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "--resume" in errors
    before = {p.name: p.stat().st_mtime_ns for p in done}
    process = _run(spec, there, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert {p.name: p.stat().st_mtime_ns for p in done} == before
    assert _csv_without_times(there / "results.csv") == _csv_without_times(out / "results.csv")
    assert not list(there.rglob(".*.partial"))


def test_a_killed_worker_is_replaced(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    spec, out = unbroken
    there = tmp_path / "run"
    process = _run(spec, there, "--workers", "1")
    _wait_for(lambda: list((there / "trials").glob(".*.partial")))
    for child in _children(process.pid):
        os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "a worker died" in errors
    assert _csv_without_times(there / "results.csv") == _csv_without_times(out / "results.csv")


def test_a_worker_that_keeps_dying_is_given_up(tiny: Path, tmp_path: Path) -> None:
    kinds = []

    def kill(event: Event) -> None:
        kinds.append(event.kind)
        if event.kind == "start" and event.trial == 0:
            os.kill(event.content["pid"], signal.SIGKILL)

    configs = load_spec(tiny, ["factors.seed=[0]"]).trials()
    assert run_trials(configs, tmp_path / "trials", 1, kill) == [0]
    assert kinds.count("died") == ATTEMPTS
    assert kinds.count("done") == 1
    assert finished(tmp_path / "trials", configs[1]) is not None


def test_a_fault_inside_a_trial_is_one_line(tiny: Path, tmp_path: Path) -> None:
    config = load_spec(tiny).trials()[0]
    del config["threat_model"]
    with pytest.raises(CurvactError, match=r"trial [0-9a-f]{12}: KeyError: 'threat_model'"):
        run_trials([config], tmp_path / "trials", 1, lambda event: None)


def test_another_spec_is_refused(unbroken: tuple[Path, Path]) -> None:
    spec, out = unbroken
    other = load_spec(spec, ["training.momentum=0.5"])
    with pytest.raises(
        CurvactError, match=r"holds another study \(training.momentum is 0.9 there and 0.5 here\)"
    ):
        run_study(other, out, resume=True)


def test_a_folder_with_other_things_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "letter.txt").write_text("dear")
    with pytest.raises(CurvactError, match="not empty and holds no study"):
        run_study(load_spec(tiny), tmp_path / "x")
    with pytest.raises(CurvactError, match="holds no study"):
        summarize(tmp_path / "x")


def test_damaged_trials_are_named(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    spec_path, out = unbroken
    shutil.copytree(out, tmp_path / "run")
    config = load_spec(spec_path).trials()[0]
    folder = tmp_path / "run" / "trials" / trial_id(config)
    checkpoint = folder / "model.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-7])
    with pytest.raises(CurvactError, match=r"model\.safetensors is truncated.*--resume") as caught:
        summarize(tmp_path / "run")
    assert "\n" not in str(caught.value)
    (folder / "record.json").write_text("{")
    with pytest.raises(CurvactError, match=r"record\.json is missing or damaged"):
        finished(tmp_path / "run" / "trials", config)
    shutil.rmtree(folder)
    assert len(rows_of(load_spec(spec_path), tmp_path / "run" / "trials")) == 3


def test_a_diverging_trial_is_recorded_with_its_cause(tiny: Path, tmp_path: Path) -> None:
    spec = load_spec(
        tiny,
        ["training.learning_rate=1e30", "training.warmup=0", "factors.seed=[0]", "factors.curvature=[1]"],
    )
    config = spec.trials()[0]
    record = run_trial(config, tmp_path)
    assert record["status"] == "failed"
    assert re.match(r"the loss became (nan|inf) at step \d+", record["cause"])
    assert finished(tmp_path, config) == json.loads(json.dumps(record))
    assert not (tmp_path / trial_id(config) / "model.safetensors").exists()


def test_a_network_that_is_not_finite_fails_its_trial_only(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ends with finite losses, but a weight is NaN when the network is evaluated."""
    real = trial_module.fit

    def poisoned(model: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        history = real(model, *arguments, **options)
        with torch.no_grad():
            next(model.parameters())[0] = float("nan")
        return history

    monkeypatch.setattr(trial_module, "fit", poisoned)
    config = load_spec(tiny).trials()[0]
    record = run_trial(config, tmp_path)
    assert record["status"] == "failed"
    assert "NaN" in record["cause"]
    assert record["metrics"] == {}


def test_a_full_disk_leaves_nothing_half_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_spec(tiny).trials()[0]
    real = trial_module.atomic_write

    def full(path: Path, data: bytes | str) -> None:
        if path.name == "record.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(trial_module, "atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        run_trial(config, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.yaml"]


def test_zero_workers(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match="--workers 0"):
        run_study(load_spec(tiny), tmp_path / "run", workers=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data={name: cifar10}", "cifar10 is not in"),
        ("training.crop=9", "training.crop=9 is larger than the images, 8 pixels"),
        ("model={name: vit, width: 10}", "the width must be a multiple of heads"),
        ("data={name: digits, extra: none.npz}", r"no file of extra images none\.npz"),
    ],
)
def test_nothing_is_written_where_the_first_trial_cannot_start(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    monkeypatch.setenv("CURVACT_DATA", str(tmp_path / "empty"))
    with pytest.raises(CurvactError, match=message):
        run_study(load_spec(tiny, [change]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
