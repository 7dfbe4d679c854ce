"""Running a sweep: the same numbers however it is run, killed or resumed, and nothing half-written."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

import curvact.lab.run
from curvact.activations import current_parameters
from curvact.data.loading import _load_place
from curvact.errors import CurvactError
from curvact.lab.engines import ENGINES, Job, register_engine
from curvact.lab.engines.local import run_local
from curvact.lab.placement import Placement
from curvact.lab.run import execute
from curvact.lab.spec import read_spec
from curvact.lab.store import finished, read_history
from curvact.lab.sweep import SweepSpec, read_sweep
from curvact.lab.sweep_run import report, run_sweep, sweep_records, table_of
from curvact.models import build
from curvact.models.checkpoint import load_checkpoint, save_checkpoint
from curvact.workers import Event

QUIET = Console(quiet=True)


def _csv_without_times(path: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def _run(spec: Path, out: Path, *extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "curvact", "sweep", "run", str(spec), "--out", str(out), *extra]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _children(pid: int) -> list[int]:
    """Worker processes of a run: its children that hold our code (not multiprocessing's resource
    tracker).
    """
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    return found


def _lives(pid: int) -> bool:
    """Whether a process computes still: it is there, and no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _wait_for(condition: Any) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_content: dict[str, Any]) -> tuple[Path, Path]:
    """A spec and the folder of an unbroken run of it with one local worker."""
    folder = tmp_path_factory.mktemp("unbroken")
    spec = folder / "tiny.yaml"
    spec.write_text(yaml.safe_dump(tiny_content))
    out = folder / "run"
    process = _run(spec, out, "--workers", "1")
    text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "report.html" in text
    return spec, out


def test_what_a_sweep_leaves(unbroken: tuple[Path, Path]) -> None:
    spec_path, out = unbroken
    spec = read_sweep(spec_path)
    assert read_sweep(out) == spec
    for name in ("results.csv", "report.html", "sweep.yaml"):
        assert (out / name).stat().st_size > 0
    assert list(out.rglob("*.png"))
    assert {p.name for p in (out / "runs").iterdir()} == {run.id for run in spec.planned}
    rows = _csv_without_times(out / "results.csv")
    assert [row["run"] for row in rows] == [run.id for run in spec.planned]
    assert [float(row["curvature"]) for row in rows] == [1, 1, 6, 6]
    table = table_of(spec, sweep_records(spec, out))
    assert table.axes == ("curvature", "seed")
    assert [row.labels for row in table.rows] == [run.labels for run in spec.planned]
    page = (out / "report.html").read_text()
    content = re.search(r'id="explorer-data">(.*?)</script>', page)
    assert content is not None
    data = json.loads(content[1])
    for run in spec.planned:  # the page's command repeats just this run
        about = data["runs"][run.id]
        _, _, source, _, place = shlex.split(data["texts"][about["command"]].replace("\0", run.id))
        assert (read_spec(source).id, place) == (run.id, f"runs/again-{run.id}")
        assert about["settings"]["seed"] == str(run.spec.seed)
        history = read_history(out / "runs" / run.id)
        assert about["curves"]["loss"] == [float(f"{line['loss']:.3g}") for line in history]


def test_a_run_of_a_sweep_is_a_run(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    """The same spec by itself gives the same record, bit for bit."""
    spec, out = unbroken
    run = read_sweep(spec).planned[0]
    record = finished(out / "runs" / run.id, run.id)
    alone = execute(run.spec, tmp_path)
    assert record is not None
    assert alone.files == record.files
    times = {"seconds_per_epoch": 0}
    assert alone.metrics | times == record.metrics | times


@pytest.fixture
def deadly() -> Iterator[str]:
    """The local engine; the first worker that starts a run is killed."""
    killed: list[int] = []

    def engine(jobs: Sequence[Job], workers: int, on_event: Any) -> list[int]:
        def tell(event: Event) -> None:
            if event.kind == "start" and not killed:
                killed.append(event.content)
                os.kill(event.content, signal.SIGKILL)
            on_event(event)

        return run_local(jobs, workers, tell)

    register_engine("deadly", engine)
    yield "deadly"
    assert killed
    del ENGINES["deadly"]


def test_killed_resumed_and_a_worker_replaced_gives_the_same(
    unbroken: tuple[Path, Path], deadly: str, tmp_path: Path
) -> None:
    """kill -9 of the driver, whose workers leave with it; then with two workers, one of which is killed:
    the same table.
    """
    spec, out = unbroken
    there = tmp_path / "run"
    process = _run(spec, there, "--workers", "1")
    _wait_for(lambda: list(there.glob("runs/*/record.json")))
    children = _children(process.pid)
    assert children
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _wait_for(lambda: not any(map(_lives, children)))
    done = list(there.glob("runs/*/record.json"))
    assert 1 <= len(done) < 4
    with pytest.raises(CurvactError, match="--resume"):
        run_sweep(read_sweep(spec), there, console=QUIET)
    before = {p: p.stat().st_mtime_ns for p in done}
    console = Console(file=io.StringIO())
    assert (
        run_sweep(read_sweep(spec), there, Placement(deadly, workers=2), resume=True, console=console) == []
    )
    report(there)
    assert isinstance(console.file, io.StringIO)
    assert "a worker died" in console.file.getvalue()
    assert {p: p.stat().st_mtime_ns for p in done} == before
    assert _csv_without_times(there / "results.csv") == _csv_without_times(out / "results.csv")
    assert not list(there.rglob("*.tmp"))


def test_a_run_out_of_memory_fails_and_is_tried_again(
    sweep_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says what it says when memory is short. The other run goes on."""
    whole = curvact.lab.run.fit
    enough = False

    def fit(model: Any, *arguments: Any, **options: Any) -> Any:
        found = whole(model, *arguments, **options)
        if "beta=1" in repr(model) and model.act.max_curvature.value > 3 and not enough:
            torch.empty(1 << 60, dtype=torch.uint8)
        return found

    monkeypatch.setattr(curvact.lab.run, "fit", fit)
    spec = sweep_spec(grid={"curvature": [1, 6], "seed": [0]})
    failed = f"1 of 2 runs failed: {tmp_path}/results.csv has the causes"
    assert run_sweep(spec, tmp_path, Placement("inline"), console=QUIET) == [failed]
    (_, small), (large_run, large) = sweep_records(spec, tmp_path)
    assert (small.status, large.status) == ("done", "failed")
    assert re.match("out of memory: .*can't allocate memory", large.cause)
    assert "\n" not in large.cause
    report(tmp_path)
    enough = True
    assert run_sweep(spec, tmp_path, Placement("inline"), resume=True, console=QUIET) == []
    again = finished(tmp_path / "runs" / large_run.id, large_run.id)
    assert again is not None
    alone = execute(large_run.spec, tmp_path / "alone")
    assert (again.status, again.files) == ("done", alone.files)
    assert sweep_records(spec, tmp_path)[0][1] == small


def test_a_worker_that_keeps_dying_is_given_up(sweep_spec: Any, tmp_path: Path) -> None:
    kinds, causes = [], set()

    def kill(event: Event) -> None:
        kinds.append(event.kind)
        causes.add(event.cause)
        if event.kind == "start" and event.job == 0:
            os.kill(event.content, signal.SIGKILL)

    runs = sweep_spec(grid={"curvature": [1, 6], "seed": [0]}).planned
    assert run_local([Job(run.spec, tmp_path / run.id) for run in runs], 1, kill) == [0]
    assert kinds.count("died") == 3
    assert causes == {"", "killed by SIGKILL, as for want of memory"}
    assert kinds.count("done") == 1
    assert finished(tmp_path / runs[1].id, runs[1].id) is not None


def test_a_sweep_grows(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    """More seeds or values in the same folder reuse what has run."""
    spec, out = unbroken
    there = tmp_path / "run"
    shutil.copytree(out, there)
    before = {p: p.stat().st_mtime_ns for p in there.glob("runs/*/record.json")}
    grown = read_sweep(spec, ["grid.curvature=[1,3,6]", "grid.seed=[0]"])
    assert run_sweep(grown, there, Placement("inline"), resume=True, console=QUIET) == []
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(list(there.glob("runs/*/record.json"))) == 5
    report(there)
    assert len(_csv_without_times(there / "results.csv")) == 3


def test_a_sweep_on_other_images_does_not_grow(sweep_spec: Any, tmp_path: Path) -> None:
    """The path is the same and the images are not: new runs could not be compared with the old ones."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (60, 8, 8), np.uint8), np.arange(60) % 2
    file, out = tmp_path / "mine.npz", tmp_path / "run"
    changes = {"base": {"data": str(file), "evaluation": {"attack": "pgd-1", "train_images": 20}}}
    one, two = (
        sweep_spec(**changes, grid={"activation": ["relu"], "seed": seeds}, sources={}, cells={})
        for seeds in ([0], [0, 1])
    )
    np.savez(file, images=images, labels=labels)
    assert run_sweep(one, out, Placement("inline"), console=QUIET) == []
    np.savez(file, images=255 - images, labels=labels)
    _load_place.cache_clear()
    with pytest.raises(
        CurvactError, match=r"mine\.npz have changed since runs of .*sha256 of test was"
    ) as caught:
        run_sweep(two, out, Placement("inline"), resume=True, console=QUIET)
    assert "\n" not in str(caught.value)
    assert read_sweep(out) == one

    sole = two.planned[1]
    execute(sole.spec, out / "runs" / sole.id)  # behind its back
    (out / "sweep.yaml").write_text(two.to_yaml())
    report(out)
    assert "The images changed between runs" in (out / "report.html").read_text()


def test_a_folder_with_other_things_is_refused(sweep_spec: Any, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "letter.txt").write_text("dear")
    with pytest.raises(CurvactError, match="not empty and holds no sweep"):
        run_sweep(sweep_spec(), tmp_path / "x", console=QUIET)
    with pytest.raises(CurvactError, match="holds no sweep"):
        report(tmp_path / "x")
    with pytest.raises(CurvactError, match="--workers 0"):
        run_sweep(sweep_spec(), tmp_path / "y", Placement(workers=0), console=QUIET)
    with pytest.raises(CurvactError, match="unknown engine 'loca'; did you mean 'local'"):
        run_sweep(sweep_spec(), tmp_path / "y", Placement("loca"), console=QUIET)
    assert not (tmp_path / "y").exists()


def test_damaged_runs_are_named(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    spec_path, out = unbroken
    shutil.copytree(out, tmp_path / "run")
    run = read_sweep(spec_path).planned[0]
    checkpoint = tmp_path / "run" / "runs" / run.id / "last.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-7])
    with pytest.raises(CurvactError, match=r"last\.safetensors is damaged") as caught:
        report(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["base", "cells"])
def test_a_sweep_knows_its_runs_without_the_files_that_they_began_with(
    place: str, sweep_spec: Any, tmp_path: Path
) -> None:
    """The sweep holds the hash of a helper: without its file it is reported, with another one it does not go on."""
    architecture = {"name": "mini_resnet", "activation": "relu", "channels": 1, "width": 2}
    file, out = tmp_path / "helper.safetensors", tmp_path / "out"
    save_checkpoint(file, build(**architecture), architecture, {})
    hat = {"training.objective": "hat", "helper": str(file)}

    def made(seeds: list[int]) -> SweepSpec:
        change = {"base": hat} if place == "base" else {"cells": {"method": {"HAT": hat}}}
        return sweep_spec(grid={"seed": seeds}, **change)  # type: ignore[no-any-return]

    run_sweep(made([0]), out, Placement("inline"), console=QUIET)
    again = read_sweep(out)
    assert again == made([0])
    file.rename(tmp_path / "moved.safetensors")
    report(out)
    assert len(_csv_without_times(out / "results.csv")) == 1
    assert [run.id for run in read_sweep(out).planned] == [run.id for run in again.planned]
    longer = read_sweep(out, ["grid.seed=[0,1]"])
    save_checkpoint(
        file, build(**{**architecture, "activation": "silu"}), {**architecture, "activation": "silu"}, {}
    )
    with pytest.raises(CurvactError, match=r"helper: .*helper\.safetensors has changed"):
        run_sweep(longer, out, Placement("inline"), resume=True, console=QUIET)


def test_a_failed_run_is_named(sweep_spec: Any, tmp_path: Path) -> None:
    wild = {"training.learning_rate": 1e30, "training.warmup": 0.0}
    spec = sweep_spec(grid={"seed": [0]}, cells={"rate": {"calm": {}, "wild": wild}})
    run_sweep(spec, tmp_path, Placement("inline"), console=QUIET)
    report(tmp_path)
    rows = {row["rate"]: row for row in _csv_without_times(tmp_path / "results.csv")}
    assert rows["calm"]["status"] == "done"
    assert rows["wild"]["status"] == "failed"
    assert "the loss became" in rows["wild"]["cause"]


LEARNED: dict[str, Any] = {
    "grid": {"seed": [0]},
    "sources": {"psilu": {"activation": "psilu(alpha=3)", "model.scope": "network"}},
    "cells": {
        "from": {
            "scratch": {"activation": "psilu(alpha=3)", "model.scope": "network"},
            "frozen": {"activation_from": {"source": "psilu"}},
            "warm": {"activation_from": {"source": "psilu", "frozen": False}},
        },
        "size": {"deeper": {"model.blocks": 2}},
    },
}


def test_activations_move_from_sources_to_cells(sweep_spec: Any, tmp_path: Path) -> None:
    """The frozen one ends where its source ended, the warm one does not."""
    spec: SweepSpec = sweep_spec(**LEARNED)
    assert run_sweep(spec, tmp_path, Placement("inline"), console=QUIET) == []
    kappa = {}
    for run in spec.planned:
        model = load_checkpoint(tmp_path / "runs" / run.id / "last.safetensors")
        (kappa[run.source or run.labels["from"]],) = current_parameters(model).values()
    assert kappa["frozen"] == kappa["psilu"] != 3
    assert kappa["warm"] not in (kappa["psilu"], 3)
    report(tmp_path)
    rows = _csv_without_times(tmp_path / "results.csv")
    assert [row["from"] for row in rows] == ["scratch", "frozen", "warm"]


def test_a_cell_fails_with_its_source(sweep_spec: Any, tmp_path: Path) -> None:
    spec = sweep_spec(**LEARNED, base={"training": {"learning_rate": 1e30, "warmup": 0.0, "epochs": 1}})
    run_sweep(spec, tmp_path, Placement("inline"), console=QUIET)
    causes = {run.labels["from"]: record.cause for run, record in sweep_records(spec, tmp_path)}
    assert causes["frozen"].startswith("the run that learns its activation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": {"data": "cifar10"}}, "cifar10 is not in"),
        ({"base": {"training": {"crop": 9}}}, "training.crop=9 is larger than the images, 8 pixels"),
        ({"base": {"model": {"name": "vit", "width": 10}}}, "the width must be a multiple of heads"),
        ({"grid": {"seed": [0], "hardware.precision": ["32-true", "16-mixed"]}}, "'16-mixed' needs a GPU"),
        ({"base": {"data": {"name": "digits", "extra": "none.npz"}}}, r"no file of extra images none\.npz"),
        ({"cells": {"data": {"a": {}, "b": {"data": "imagenette"}}}}, "imagenette"),
        (
            {
                "sources": {"sparta": {"activation": "sparta", "model.scope": "network"}},
                "cells": {"m": {"moved": {"activation_from": {"source": "sparta"}, "model.width": 3}}},
                "grid": {"seed": [0]},
            },
            "^moved, seed 0: .*3",
        ),
    ],
)
def test_nothing_is_written_where_a_run_cannot_start(
    sweep_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    """Data of the last cell, an activation that does not fit: found at once, not after an hour."""
    monkeypatch.setenv("CURVACT_DATA", str(tmp_path / "empty"))
    with pytest.raises(CurvactError, match=message) as caught:
        run_sweep(sweep_spec(**change), tmp_path / "out", Placement("inline"), console=QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_grown_sweep_is_rehearsed_too(sweep_spec: Any, tmp_path: Path) -> None:
    grid: dict[str, Any] = {"curvature": [1], "seed": [0]}
    run_sweep(sweep_spec(grid=grid), tmp_path, Placement("inline"), console=QUIET)
    before = (tmp_path / "sweep.yaml").read_bytes()
    grown = sweep_spec(grid={**grid, "training.crop": [0, 9]})
    with pytest.raises(CurvactError, match="crop=9 is larger than the images"):
        run_sweep(grown, tmp_path, Placement("inline"), resume=True, console=QUIET)
    assert (tmp_path / "sweep.yaml").read_bytes() == before


def test_the_helper_of_each_run_is_rehearsed(sweep_spec: Any, tmp_path: Path) -> None:
    """Of two helpers the second has other classes: found before the first run."""
    helpers = []
    for classes in (10, 7):
        architecture = {
            "name": "mini_resnet",
            "activation": "relu",
            "channels": 1,
            "width": 2,
            "classes": classes,
        }
        helpers.append(str(tmp_path / f"h{classes}.safetensors"))
        save_checkpoint(Path(helpers[-1]), build(**architecture), architecture, {})
    spec = sweep_spec(base={"training": {"objective": "hat"}}, grid={"helper": helpers, "seed": [0]})
    with pytest.raises(CurvactError, match=r"h7.*: helper: it has 7 outputs and the model 10"):
        run_sweep(spec, tmp_path / "out", Placement("inline"), console=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [None, "", "[]", "{"])
def test_a_damaged_environment_is_one_line(
    unbroken: tuple[Path, Path], tmp_path: Path, text: str | None
) -> None:
    spec_path, out = unbroken
    shutil.copytree(out, tmp_path / "run")
    file = tmp_path / "run" / "runs" / read_sweep(spec_path).planned[0].id / "environment.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(CurvactError, match=r"environment\.json.* delete .* and run it again") as caught:
        report(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_an_engine_from_outside(sweep_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function and one line of registration: here an engine that runs everything in this
    process.
    """
    monkeypatch.setattr("curvact.lab.engines.engine.ENGINES", dict(ENGINES))

    def here(jobs: Any, workers: int, on_event: Any) -> list[int]:
        for number, job in enumerate(jobs):
            on_event(Event("start", number, {}))
            on_event(Event("done", number, execute(job.spec, job.folder)))
        return []

    register_engine("here", here)
    spec = sweep_spec(grid={"curvature": [1], "seed": [0]})
    assert run_sweep(spec, tmp_path, Placement("here"), console=QUIET) == []
    assert len(sweep_records(spec, tmp_path)) == 1


def test_references_are_apart_from_the_curve(tmp_path: Path, sweep_spec: Any) -> None:
    spec = sweep_spec(base={"hessian": None}, grid={"curvature": [1], "seed": [0]}, references=["relu"])
    assert run_sweep(spec, tmp_path, Placement("inline"), console=QUIET) == []
    table = table_of(spec, sweep_records(spec, tmp_path))
    assert [row.labels for row in table.rows] == [{"curvature": 1, "seed": 0}]
    assert [(row.reference, row.labels) for row in table.references] == [("relu", {"seed": 0})]
    report(tmp_path)
    lines = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(line["curvature"], line["reference"]) for line in lines] == [("1", ""), ("", "relu")]
