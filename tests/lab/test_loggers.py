"""TensorBoard and Weights & Biases tell the runs of sweeps apart, and know one that goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from curvact.errors import CurvactError
from curvact.lab.loggers import wandb_id
from curvact.lab.placement import Placement
from curvact.lab.run import execute
from curvact.lab.sweep_run import run_sweep
from curvact.training import Epoch

QUIET = Console(quiet=True)


def _steps(folder: Path) -> list[int]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars("validation_robust_accuracy")]


def test_tensorboard_has_every_epoch_under_the_name_of_the_run(run_spec: Any, tmp_path: Path) -> None:
    spec = run_spec(training={"epochs": 2}, logging={"tensorboard": True})
    execute(spec, tmp_path)
    assert _steps(tmp_path / "tensorboard" / f"{spec.name}-{spec.id}") == [1, 2]


def test_a_run_goes_on_among_its_events(run_spec: Any, tmp_path: Path) -> None:
    spec = run_spec(training={"epochs": 3}, logging={"tensorboard": True})

    def stop(event: object) -> None:
        if isinstance(event, Epoch) and event.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(spec, tmp_path, on_event=stop)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    renamed = folder.rename(folder.with_name("as it was called"))
    execute(spec, tmp_path)
    assert list((tmp_path / "tensorboard").iterdir()) == [renamed]
    assert _steps(renamed) == [1, 2, 3]


def test_the_id_is_of_the_folder(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    first, second = wandb_id(one, "0123456789ab"), wandb_id(two, "0123456789ab")
    assert first != second
    assert first.startswith("0123456789ab-")
    moved = one.rename(tmp_path / "moved")
    assert wandb_id(moved, "ba9876543210") == first  # extended: another run id, the same W&B run
    shutil.rmtree(two)
    two.mkdir()
    assert wandb_id(two, "0123456789ab") != second  # made again
    (two / "wandb-id.txt").write_text("../not an id\n")
    assert wandb_id(two, "0123456789ab").startswith("0123456789ab-")


# ---- Weights & Biases, offline: what it has written is read by its own reader ----

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="needs wandb: pip install 'curvact[wandb]'"
)


def _pieces(log: bytes) -> Iterator[bytes]:
    """The records in a file of W&B: a log of LevelDB after 7 bytes. Each block of 32 KiB holds pieces:
    checksum (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last), content.
    """
    place, record = 7, b""
    while place + 7 <= len(log):
        left = 32768 - place % 32768
        length, kind = struct.unpack("<HB", log[place + 4 : place + 7])
        if left < 7 or kind == 0:
            place += left
            continue
        record += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def _sent(folder: Path) -> list[dict[str, Any]]:
    """Every W&B run below a folder as it was sent: its names, its settings and its steps."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(folder.rglob("*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        run: dict[str, Any] = {"steps": [], "config": {}}
        for content in _pieces(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.HasField("run"):
                run |= {
                    "id": record.run.run_id,
                    "name": record.run.display_name,
                    "group": record.run.run_group,
                    "project": record.run.project,
                }
            for item in record.config.update:
                run["config"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            if "validation_robust_accuracy" in values:
                run["steps"].append(int(json.loads(values["epoch"])))
            if record.HasField("exit"):
                run["exit"] = record.exit.exit_code
        found.append(run)
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    import wandb

    wandb.teardown()  # its settings are those of the first run of a process
    for key, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config"),
        "WANDB_CACHE_DIR": str(tmp_path / "wandb-cache"),
        "WANDB_DATA_DIR": str(tmp_path / "wandb-data"),
    }.items():
        monkeypatch.setenv(key, value)
    yield
    wandb.teardown()


@needs_wandb
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("offline")
def test_runs_of_two_sweeps_are_runs_of_their_own(sweep_spec: Any, tmp_path: Path) -> None:
    spec = sweep_spec(
        base={"hessian": None, "logging": {"wandb": "project"}}, grid={"curvature": [1, 6], "seed": [0]}
    )
    for name in ("one", "two"):
        run_sweep(spec, tmp_path / name, Placement("inline"), console=QUIET)
    sent = [_sent(tmp_path / name) for name in ("one", "two")]
    labels = {run.label: run for run in spec.planned}
    for runs in sent:
        assert {run["name"] for run in runs} == set(labels)
        for run in runs:
            planned = labels[run["name"]]
            assert run["id"].startswith(f"{planned.id}-")
            assert (run["group"], run["project"], run["steps"], run["exit"]) == ("tiny", "project", [1], 0)
            assert run["config"]["activation"] == planned.spec.activation
            assert run["config"]["training.epochs"] == 1
    assert len({run["id"] for runs in sent for run in runs}) == 4


@needs_wandb
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("offline")
def test_a_run_that_fails_ends_its_own_and_one_that_goes_on_keeps_it(run_spec: Any, tmp_path: Path) -> None:
    logging = {"wandb": "project"}
    failing = run_spec(training={"learning_rate": 1e30, "warmup": 0.0}, logging=logging)
    assert execute(failing, tmp_path / "failing").status == "failed"
    spec = run_spec(training={"epochs": 2}, logging=logging)

    def stop(event: object) -> None:
        if isinstance(event, Epoch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(spec, tmp_path / "run", on_event=stop)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    execute(spec, moved)
    (failed,), (before, after) = _sent(tmp_path / "failing"), _sent(moved)
    assert failed["id"].startswith(failing.id)
    assert failed["steps"] == []
    assert before["id"] == after["id"]
    assert before["id"].startswith(spec.id)
    assert (before["steps"], after["steps"]) == ([1], [2])
    assert [run["exit"] for run in (failed, before, after)] == [1, 1, 0]


@needs_wandb
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_no_login_is_one_line(
    run_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing is sent anywhere
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(CurvactError, match=r"logging\.wandb='project': .*wandb login") as found:
        execute(run_spec(logging={"wandb": "project"}), tmp_path / "run")
    assert "\n" not in str(found.value)
