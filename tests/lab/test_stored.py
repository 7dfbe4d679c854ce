"""The runs below a folder: what is listed is what the folders hold, with and without an index."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curvact.errors import CurvactError
from curvact.lab import stored
from curvact.lab.layout import INDEX_FILE
from curvact.lab.run import execute
from curvact.lab.stored import COLUMNS, StoredRun, export_runs, selected, stored_runs


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run."""
    from curvact.lab.settings import check_settings
    from curvact.lab.spec import RunSpec

    content = {
        "data": {"name": "digits", "train": 40, "validation": 20, "test": 20},
        "model": {"name": "mlp", "width": 4},
        "activation": "rctaf(beta=0)",
        "curvature": 6,
        "training": {"objective": "trades(beta=6)", "epochs": 1, "batch_size": 20, "attack": "pgd-1"},
        "evaluation": {"attack": "pgd-2", "train_images": 20},
        "threat_model": {"norm": "linf", "epsilon": "8/255"},
        "seed": 3,
    }
    folder = tmp_path_factory.mktemp("one") / "run"
    execute(check_settings(RunSpec, content, "run"), folder)
    return folder


def _write(folder: Path, one: Path, number: int, **changes: Any) -> Path:
    """A run's folder with the record of the real one, but for some keys."""
    content = json.loads((one / "record.json").read_text())
    content |= {"checksum": "", "run": f"{number:012x}", "max_curvature": float(number % 7), **changes}
    content["spec"]["seed"] = number
    content["spec"]["training"]["objective"] = ("pgd-at", "trades(beta=6)")[number % 2]
    if "metrics" not in changes:
        content["metrics"]["robust_accuracy"] = (number * 37 % 101) / 101
    place = folder / f"s{number % 3}" / "runs" / content["run"]
    place.mkdir(parents=True, exist_ok=True)
    (place / "record.json").write_text(json.dumps(content))
    return place


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, one: Path) -> Path:
    """300 runs, of which one is unfinished, one damaged, one of another schema, one failed."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(296):
        _write(folder, one, number)
    _write(folder, one, 296, status="failed", cause="the loss became nan", metrics={})
    (_write(folder, one, 297) / "record.json").write_text('{"run": ')
    _write(folder, one, 298, schema_version=3)
    unfinished = folder / "s0" / "runs" / f"{299:012x}"
    unfinished.mkdir()
    shutil.copy(one / "spec.yaml", unfinished)
    (unfinished / "metrics.jsonl").write_text("{}\n{}\n")
    return folder


@pytest.fixture
def copy(many: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    shutil.copytree(many, folder, ignore=lambda _, names: [INDEX_FILE] if INDEX_FILE in names else [])
    return folder


def _without_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[StoredRun]:
    with monkeypatch.context() as patch:
        patch.setattr(stored, "MANY", math.inf)
        return stored_runs(folder)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were read, not taken from the index."""
    seen: list[Path] = []
    real = stored._read

    def read(folder: Path) -> Any:
        seen.append(folder)
        return real(folder)

    monkeypatch.setattr(stored, "_read", read)
    return seen


def test_a_run_is_what_its_record_says(one: Path) -> None:
    (run,) = stored_runs(one)
    record = json.loads((one / "record.json").read_text())
    assert (run.folder, run.run, run.status, run.seed) == (one, record["run"], "done", 3)
    assert (run.curvature, run.attack) == (pytest.approx(6), "pgd-2")
    assert run.robust == record["metrics"]["robust_accuracy"]
    assert dict(run.metrics) == record["metrics"]
    assert run.get("training.objective") == "trades(beta=6)"
    assert run.get("gradient_evaluations") == record["gradient_evaluations"]
    assert run.get("training.milestones") == "0.5, 0.75"
    assert run.get("nothing") is None
    assert not (one / INDEX_FILE).exists()


def test_the_strongest_attack_counts(one: Path, tmp_path: Path) -> None:
    for number, metrics in enumerate(
        (
            {"robust_accuracy": 0.5, "subset_robust_accuracy": 0.3},
            {"robust_accuracy": 0.5},
            {"validation_robust_accuracy": 0.6},
            {},
        )
    ):
        place = _write(tmp_path, one, number, metrics=metrics)
        content = json.loads((place / "record.json").read_text())
        content["spec"]["evaluation"]["split"] = "validation" if number == 2 else "test"
        (place / "record.json").write_text(json.dumps(content))
    found = {run.seed: (run.robust, run.attack) for run in stored_runs(tmp_path)}
    assert found == {
        0: (0.3, "apgd-ce+apgd-t"),
        1: (0.5, "pgd-2"),
        2: (0.6, "pgd-2, validation"),
        3: (None, ""),
    }


def test_300_runs_with_their_states(many: Path) -> None:
    found = {run.folder.name: run for run in stored_runs(many)}
    assert len(found) == 300
    for number in range(296):
        run = found[f"{number:012x}"]
        assert (run.run, run.seed, run.curvature) == (f"{number:012x}", number, number % 7)
        assert run.robust == (number * 37 % 101) / 101
    failed, damaged, old, unfinished = (found[f"{number:012x}"] for number in range(296, 300))
    assert (failed.status, failed.cause, failed.robust) == ("failed", "the loss became nan", None)
    assert damaged.status == old.status == "unreadable"
    assert (
        damaged.cause
        == f"{damaged.folder / 'record.json'} is damaged: delete {damaged.folder} and run it again"
    )
    assert "schema_version 3, this version reads 4" in old.cause
    assert (unfinished.status, unfinished.seed, unfinished.get("epochs")) == ("unfinished", 3, 2)


def test_an_index_gives_what_the_folders_hold(
    copy: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _without_index(copy, monkeypatch)
    assert not (copy / INDEX_FILE).exists()
    reads.clear()
    assert stored_runs(copy) == expected
    assert len(reads) == 300
    assert (copy / INDEX_FILE).exists()
    reads.clear()
    assert stored_runs(copy) == expected
    assert reads == []


def test_what_has_changed_is_read_again(
    copy: Path, one: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_runs(copy)
    reads.clear()
    changed = _write(copy, one, 5, max_curvature=77.0)
    added = _write(copy, one, 1000)
    shutil.rmtree(copy / "s0" / "runs" / f"{6:012x}")
    with (copy / "s0" / "runs" / f"{299:012x}" / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    found = {run.folder.name: run for run in stored_runs(copy)}
    assert sorted(reads) == sorted([changed, added, copy / "s0" / "runs" / f"{299:012x}"])
    assert len(found) == 300
    assert found[f"{5:012x}"].curvature == 77
    assert found[f"{299:012x}"].get("epochs") == 3
    assert f"{6:012x}" not in found
    reads.clear()
    assert list(found.values()) == stored_runs(copy) == _without_index(copy, monkeypatch)


@pytest.mark.parametrize("damage", ["no database", "cut", "other version", "other content", "a folder"])
def test_a_damaged_index_is_made_again(
    damage: str, copy: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stored_runs(copy)
    path = copy / INDEX_FILE
    if damage == "no database":
        path.write_bytes(b"x" * 5000)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        with sqlite3.connect(path) as index:
            index.execute(
                "PRAGMA user_version = 99" if damage == "other version" else "UPDATE runs SET content = '[]'"
            )
        index.close()
    assert stored_runs(copy) == expected
    reads.clear()
    assert stored_runs(copy) == expected
    assert len(reads) == (300 if damage == "a folder" else 0)


def test_a_folder_that_cannot_be_written_works(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(path: Path, mode: str) -> Any:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    expected = _without_index(copy, monkeypatch)
    monkeypatch.setattr(stored, "_connect", connect)
    assert stored_runs(copy) == expected
    assert not (copy / INDEX_FILE).exists()


def test_readers_and_writers_side_by_side(copy: Path, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each listing has every run that was there before it began."""
    problems: list[str] = []

    def read() -> None:
        for _ in range(4):
            before = sum(1 for _ in copy.glob("s*/runs/*"))
            found = stored_runs(copy)
            if len(found) < before:
                problems.append(f"{len(found)} of {before}")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(2000, 2040):
        _write(copy, one, number)
    for reader in readers:
        reader.join()
    assert problems == []
    assert stored_runs(copy) == _without_index(copy, monkeypatch)
    assert len(stored_runs(copy)) == 340


def test_an_index_that_is_being_written_is_left_alone(
    copy: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Path]
) -> None:
    expected = stored_runs(copy)
    monkeypatch.setattr(stored, "WAIT", 0.01)
    other = sqlite3.connect(copy / INDEX_FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert stored_runs(copy) == expected
    other.execute("ROLLBACK")
    other.close()
    reads.clear()
    assert stored_runs(copy) == expected
    assert reads == []


CONDITIONS: list[tuple[list[str], Callable[[int], bool]]] = [
    (["training.objective=trades"], lambda n: n % 2 == 1),
    (["training.objective=trades(beta=6)"], lambda n: n % 2 == 1),
    (["training.objective!=trades"], lambda n: n % 2 == 0),
    (["curvature>4"], lambda n: n % 7 > 4),
    (["curvature >= 4", "curvature<6"], lambda n: 4 <= n % 7 < 6),
    (["curvature=4", "training.objective=trades"], lambda n: n % 7 == 4 and n % 2 == 1),
    (["curvature<=0"], lambda n: n % 7 == 0),
    (["seed=17"], lambda n: n == 17),
    (["robust_accuracy>0.5"], lambda n: n * 37 % 101 > 50.5),
    (["threat_model.epsilon=8/255"], lambda n: True),
    (["threat_model.epsilon<8/255"], lambda n: False),
    (["activation=rctaf", "model.name=mlp"], lambda n: True),
    (["training.flip=false"], lambda n: True),
    (["training.flip=true"], lambda n: False),
    (["training.budget=null"], lambda n: True),
]


@pytest.mark.parametrize(
    ("where", "expected"), CONDITIONS, ids=lambda v: str(v) if isinstance(v, list) else ""
)
def test_conditions(where: list[str], expected: Callable[[int], bool], many: Path) -> None:
    found = selected(stored_runs(many), ["status=done", *where])
    assert {run.seed for run in found} == {n for n in range(296) if expected(n)}


def test_sorting(many: Path) -> None:
    runs = stored_runs(many)
    for key, value in (("robust", lambda n: n * 37 % 101), ("curvature", lambda n: n % 7)):
        up = [value(run.seed) for run in selected(runs, ["status=done"], key)]
        assert up == sorted(up)
        down = [value(run.seed) for run in selected(runs, ["status=done"], f"-{key}")]
        assert down == sorted(down, reverse=True)
    last = selected(runs, sort="-robust")[-4:]
    assert {run.status for run in last} == {"failed", "unreadable", "unfinished"}
    assert selected([], ["nonsense"]) == []


@pytest.mark.parametrize(
    ("where", "sort", "message"),
    [
        (["curvatur>4"], None, "--where curvatur: no run has this key; did you mean 'curvature'"),
        (["training.lr=1"], None, "--where training.lr: no run has this key"),
        (["curvature"], None, "write it as key=value"),
        (["=4"], None, "write it as key=value"),
        (["curvature>high"], None, "'high' is no number; > compares numbers"),
        ([], "robsut", "--sort robsut: no run has this key; did you mean 'robust'"),
    ],
)
def test_bad_conditions_are_one_line(where: list[str], sort: str | None, message: str, many: Path) -> None:
    with pytest.raises(CurvactError) as problem:
        selected(stored_runs(many), where, sort)
    assert message in str(problem.value)
    assert "\n" not in str(problem.value)


def test_export(many: Path, tmp_path: Path) -> None:
    runs = selected(stored_runs(many), sort="seed")
    export_runs(runs, tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines] == [run.run for run in runs]
    assert list(lines[0])[: len(COLUMNS)] == list(COLUMNS)
    assert [line["robust_accuracy"] for line in lines[:3]] == [repr(run.robust) for run in runs[:3]]
    export_runs(runs, tmp_path / "runs.json")
    rows = json.loads((tmp_path / "runs.json").read_text())
    assert [row["run"] for row in rows] == [run.run for run in runs]
    assert rows[0]["training.objective"] == runs[0].get("training.objective")
    assert rows[0]["training.flip"] is False
    with pytest.raises(CurvactError, match=r"runs.txt: the name must end in .csv, .json or .parquet"):
        export_runs(runs, tmp_path / "runs.txt")


def test_export_to_parquet(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = stored_runs(many)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(CurvactError, match=r"pip install 'curvact\[parquet\]'"):
            export_runs(runs, tmp_path / "runs.parquet")
    assert not list(tmp_path.iterdir())
    parquet = pytest.importorskip("pyarrow.parquet")
    export_runs(runs, tmp_path / "runs.parquet")
    rows = parquet.read_table(tmp_path / "runs.parquet").to_pylist()
    assert [row["run"] for row in rows] == [run.run for run in runs]
    assert [row["curvature"] for row in rows] == [run.curvature for run in runs]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match="there is no folder"):
        stored_runs(tmp_path / "none")
    assert stored_runs(tmp_path) == []
    assert not os.listdir(tmp_path)
