"""Where the runs of a sweep are computed: each worker has a device, and the records say which."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from curvact.errors import CurvactError
from curvact.lab.placement import Placement
from curvact.lab.run import device_of, execute
from curvact.lab.store import finished, read_environment
from curvact.lab.sweep_run import _notes, run_sweep, sweep_records
from curvact.workers import placed


def _gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("workers", "devices", "places"),
    [
        (5, ["cuda:0", "cuda:1"], ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]),
        (1, ["cuda:0", "cuda:1"], ["cuda:0"]),
        (2, [None], [None, None]),
    ],
)
def test_workers_have_the_devices_in_turn(workers: int, devices: list[Any], places: list[Any]) -> None:
    assert placed(workers, devices) == places


@pytest.mark.parametrize(
    ("wanted", "accelerator", "devices", "workers"),
    [
        ("auto", "auto", ("cuda:0", "cuda:1"), 2),
        ("auto", "cuda", ("cuda:0", "cuda:1"), 2),
        ("auto", "cuda:1", (), 1),
        ("auto", "cpu", (), None),
        ("cuda:1", "cpu", ("cuda:1",), 1),
        ("cpu", "cuda", ("cpu",), None),
    ],
)
def test_the_devices_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
    run_spec: Any,
    wanted: str,
    accelerator: str,
    devices: tuple[str, ...],
    workers: int | None,
) -> None:
    """The command's wish, else the spec's, else all GPUs."""
    _gpus(monkeypatch, 2)
    monkeypatch.setattr("os.cpu_count", lambda: 77)
    spec = run_spec(hardware={"accelerator": accelerator})
    place = Placement(device=wanted)
    assert place.devices(spec) == devices
    assert place.count([spec]) == (workers or 77)
    assert Placement(workers=3, device=wanted).count([spec]) == 3
    assert place.settled(spec).id == spec.id


def test_runs_that_take_a_part_of_a_gpu_share_it(monkeypatch: pytest.MonkeyPatch, run_spec: Any) -> None:
    """Where runs take different parts, the largest decides."""
    _gpus(monkeypatch, 2)
    quarter, half, whole = (run_spec(hardware={"gpus": part}) for part in (0.25, 0.5, 1))
    assert Placement().count([quarter]) == 8
    assert Placement().count([quarter, half]) == 4
    assert Placement().count([half, run_spec()]) == 2
    assert Placement().count([whole]) == 2
    assert Placement(device="cuda:1").count([quarter]) == 4
    assert Placement(workers=3).count([quarter]) == 3


def test_one_gpu_needs_no_placement(monkeypatch: pytest.MonkeyPatch, run_spec: Any) -> None:
    _gpus(monkeypatch, 1)
    assert Placement().devices(run_spec()) == ()
    assert Placement().count([run_spec()]) == 1


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "2"])
def test_workers_are_a_whole_number(wrong: Any) -> None:
    with pytest.raises(CurvactError, match=f"^--workers {wrong!r}: must be a whole number >= 1$"):
        Placement(workers=wrong)


def test_hardware_that_is_not_there(monkeypatch: pytest.MonkeyPatch, run_spec: Any, tmp_path: Path) -> None:
    _gpus(monkeypatch, 0)
    with pytest.raises(CurvactError, match=r"^hardware.accelerator cuda:1: torch sees 0 CUDA devices here$"):
        execute(run_spec(hardware={"accelerator": "cuda:1"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        CurvactError, match=r"hardware\.accelerator.*tpu.*allowed are auto, cpu, cuda and cuda:N"
    ):
        run_spec(hardware={"accelerator": "tpu"})
    with pytest.raises(CurvactError, match="'16-mixed' needs a GPU"):
        device_of(run_spec(hardware={"precision": "16-mixed"}).hardware)


@pytest.mark.slow
def test_a_sweep_says_the_device_of_each_run(sweep_spec: Any, tmp_path: Path) -> None:
    """Two names of the CPU stand for two GPUs. The numbers are those without names."""
    spec = sweep_spec(base={"hessian": None}, grid={"curvature": [1], "seed": [0, 1]})
    told = Console(file=io.StringIO(), width=200)
    assert run_sweep(spec, tmp_path / "two", Placement(workers=2, device="cpu:0,cpu:1"), console=told) == []
    records = [record for _, record in sweep_records(spec, tmp_path / "two")]
    assert sorted(r.spec.hardware.accelerator for r in records) == ["cpu:0", "cpu:1"]
    for record in records:
        device = record.spec.hardware.accelerator
        assert f" s on {device}" in told.file.getvalue()  # type: ignore[attr-defined]
        assert read_environment(tmp_path / "two" / "runs" / record.run)["device"] == "cpu"
    run_sweep(spec, tmp_path / "one", Placement("inline"), console=Console(quiet=True))
    for record in records:
        alone = finished(tmp_path / "one" / "runs" / record.run, record.run)
        assert alone is not None
        assert alone.spec.hardware.accelerator == "auto"
        assert alone.files["last.safetensors"] == record.files["last.safetensors"]
    planned = sweep_records(spec, tmp_path / "two")
    assert _notes(spec, planned, tmp_path / "two") == ()
    file = tmp_path / "two" / "runs" / records[0].run / "environment.json"
    file.write_text(file.read_text().replace('"device": "cpu"', '"device": "cuda:0"'))
    (note,) = _notes(spec, planned, tmp_path / "two")
    assert "computed on cpu and cuda" in note


def test_a_deterministic_run_is_another_run(run_spec: Any, tmp_path: Path) -> None:
    spec = run_spec(hardware={"deterministic": True})
    assert spec.id != run_spec().id == run_spec(hardware={"deterministic": False}).id
    record = execute(spec, tmp_path / "run")
    assert record.status == "done"
    assert read_environment(tmp_path / "run")["deterministic"] is True
    assert not torch.are_deterministic_algorithms_enabled()
