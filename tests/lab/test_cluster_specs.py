"""The specs of whole published grids: they parse and plan their runs; a small part of one runs through Ray."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from curvact.lab.engines import ENGINES, engine_from
from curvact.lab.placement import Placement
from curvact.lab.sweep import read_sweep
from curvact.lab.sweep_run import run_sweep, sweep_records

ROOT = Path(__file__).parents[2]
CLUSTER = sorted((ROOT / "reproductions").glob("*/cluster.yaml"))
ONE_GPU = ROOT / "reproductions/rctaf/cifar10-gpu.yaml"
ENGINE_FILES = sorted(
    path for path in (ROOT / "reproductions").glob("*/*.yaml") if path.stem in ("ray", "slurm")
)
RUNS = {"rctaf": 1350}


@pytest.mark.parametrize("path", CLUSTER, ids=lambda path: path.parent.name)
def test_a_grid_plans_its_runs(path: Path) -> None:
    """κ and seeds are counted; two κ of one seed are planned."""
    content = yaml.safe_load(path.read_text())
    sizes = {axis: len(values) for axis, values in {**content["grid"], **content["cells"]}.items()}
    assert math.prod(sizes.values()) == RUNS[path.parent.name]
    few = read_sweep(path, ["grid.curvature=[0.1, 200]", "grid.seed=[0]"])
    assert len({run.id for run in few.planned}) == 2 * math.prod(map(len, content["cells"].values()))
    assert set(few.asked() or {}) == {"curve"}


@pytest.mark.parametrize("path", ENGINE_FILES, ids=lambda path: path.stem)
def test_an_engine_file_is_read(path: Path) -> None:
    if path.stem not in ENGINES:
        pytest.skip(f"no engine {path.stem}")
    engine_from(str(path))


SMALL = [
    "cells.network={mini: {model.name: mini_resnet, model.width: 2}}",
    "cells.images={digits: {data.name: digits}}",
    "grid.curvature=[1, 6]",
    "grid.seed=[0]",
    "base.data={train: 100, validation: 20, test: 20}",
    "base.training.epochs=2",
    "base.training.batch_size=50",
    "base.training.crop=1",
    "base.evaluation.train_images=20",
    "base.evaluation.autoattack_images=3",
    "base.evaluation.autoattack_parts=[apgd-ce]",
    "base.hessian={probes: 4, deflation: 1, images: 10}",
    "base.hardware.accelerator=cpu",
]


@pytest.mark.slow
@pytest.mark.parametrize("path", CLUSTER, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_small_part_runs(path: Path, engine: str, tmp_path: Path) -> None:
    """Sizes and networks change; the methods and the kinds of measurement are those of the file."""
    if engine == "ray":
        pytest.importorskip("ray")
    spec, folder = read_sweep(path, SMALL), tmp_path / "sweep"
    assert len(spec.planned) == 2 * 3
    assert run_sweep(spec, folder, Placement(engine, workers=2, device="cpu")) == []
    records = [record for _, record in sweep_records(spec, folder)]
    assert [record.status for record in records] == ["done"] * 6
    assert {"subset_robust_accuracy", "clean_hessian_rms", "curvature_end"} <= set(records[0].metrics)


def test_a_small_part_of_the_table_for_one_gpu_runs(tmp_path: Path) -> None:
    """Its measurements and both weight decays, on other images and a smaller network."""
    spec = read_sweep(
        ONE_GPU,
        [
            *(change for change in SMALL if not change.startswith("cells")),
            "base.model={name: mini_resnet, width: 2}",
            "base.data.name=digits",
            "base.evaluation.autoattack_parts=[apgd-ce, apgd-t, fab-t, square]",
            "base.hardware.precision=32-true",
            "grid.curvature=[0.5, 6]",
        ],
    )
    assert run_sweep(spec, tmp_path / "sweep", Placement("inline", device="cpu")) == []
    records = [record for _, record in sweep_records(spec, tmp_path / "sweep")]
    assert [record.status for record in records] == ["done"] * 2 * (2 + 1)
    assert {"subset_robust_accuracy", "adversarial_hessian_scale_invariant"} <= set(records[0].metrics)
