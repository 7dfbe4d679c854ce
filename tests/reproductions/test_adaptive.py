"""The script that attacks networks of a sweep adaptively."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from criteria import HERE, read_results
from origin import read_origin

from curvact.lab.placement import Placement
from curvact.lab.sweep import read_sweep
from curvact.lab.sweep_run import run_sweep

SMALL = [
    "grid.curvature=[2, 6, 200]",
    "grid.seed=[0]",
    "cells.network={mini: {model: {name: mini_resnet, width: 2}}}",
    "cells.data={digits: {data: {name: digits, train: 60, validation: 20, test: 20}}}",
    "cells.method={PGD-AT: {training.objective: pgd-at}}",
    "cells.decay={all: {training.weight_decay_on: all}}",
    "base.training.epochs=1",
    "base.evaluation={attack: pgd-1, autoattack_images: 4, autoattack_parts: [apgd-ce]}",
    "base.hessian=null",
]


def test_extremes_and_references_are_attacked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "runs", tmp_path / "adaptive.csv"
    spec = read_sweep(HERE / "rctaf/kappa-digits-resnet.yaml", SMALL)
    assert run_sweep(spec, folder, Placement("inline")) == []
    script: Any = runpy.run_path(str(HERE / "rctaf/adaptive.py"))
    arguments = [str(folder), "--out", str(out), "--images", "6", "--steps", "2"]
    assert script["main"](arguments) == 0
    found = read_results(out)
    rows = [*found.rows, *found.references]
    assert sorted(str(row.labels.get("curvature", row.reference)) for row in rows) == ["200", "6", "relu"]
    for row in rows:
        taken = row.metrics["subset_robust_accuracy"] - row.metrics["adaptive_accuracy"]
        assert row.metrics["adaptive_loss"] == pytest.approx(taken)
        assert taken >= 0
    origin = read_origin(out)
    assert origin["runs"] == 3
    capsys.readouterr()
    assert script["main"](arguments) == 0
    assert (capsys.readouterr().out, read_origin(out)) == ("", origin)
