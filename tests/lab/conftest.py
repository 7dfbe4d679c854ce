"""Runs and sweeps small enough for a second each."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from curvact.lab.settings import check_settings
from curvact.lab.spec import RunSpec
from curvact.lab.table import Row, Table, Value

BASE: dict[str, Any] = {
    "data": {"name": "digits", "train": 100, "validation": 40, "test": 40},
    "model": {"name": "mini_resnet", "width": 2, "blocks": 1},
    "threat_model": {"norm": "linf", "epsilon": 0.2},
    "training": {
        "objective": "pgd-at(batch_norm=eval)",
        "epochs": 1,
        "batch_size": 20,
        "attack": "pgd(steps=1, step=0.4)",
    },
    "evaluation": {"attack": "pgd(steps=2, step=0.2)", "train_images": 40},
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "base": {**BASE, "activation": "rctaf(beta=1)", "hessian": {"probes": 4, "deflation": 1, "images": 16}},
    "grid": {"curvature": [1, 6], "seed": [0, 1]},
}


@pytest.fixture
def run_spec():  # type: ignore[no-untyped-def]
    """A small run with some settings changed: `run_spec(training={...}, seed=1)`."""

    def make(**changes: Any) -> RunSpec:
        content = {**BASE, "activation": "silu", **changes}
        content["training"] = {**BASE["training"], **changes.get("training", {})}
        return check_settings(RunSpec, content, "run")

    return make


@pytest.fixture
def sweep_spec():  # type: ignore[no-untyped-def]
    """A small sweep with some keys changed, its base merged: `sweep_spec(base={...}, grid={...})`."""

    from curvact.lab.sweep import SweepSpec

    def make(**changes: Any) -> SweepSpec:
        content = {**TINY, **changes, "base": {**TINY["base"], **changes.get("base", {})}}
        return check_settings(SweepSpec, content, "sweep")

    return make


@pytest.fixture(scope="session")
def tiny_content() -> dict[str, Any]:
    return TINY


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


ROOT = Path(__file__).parents[2]
APART = (
    "run",
    "trial",
    "cell",
    "family",
    "activation",
    "status",
    "cause",
    "gradient_evaluations",
    "seconds",
    "seed",
)


def shipped_table(name: str, axes: Sequence[str]) -> Table:
    """A table of docs/results. axes: those of its cells, or for a curve such as ("activation", "curvature")."""
    path = ROOT / "docs" / "results" / f"{name}.csv"
    rows = []
    for line in csv.DictReader(path.read_text().splitlines()):
        labels: dict[str, Value] = {}
        parts = line["cell"].split(" / ") if "cell" in line else []
        for i, axis in enumerate(axes):
            key = {"activation": "family"}.get(axis, axis) if "family" in line else axis
            text = parts[i] if i < len(parts) else line.get(key, "")
            known: dict[str, Value] = {"": None, "true": True, "false": False}
            number = text.replace(".", "").replace("e-", "").isdigit()
            labels[axis] = float(text) if number else known.get(text, text)
        labels["seed"] = int(line["seed"])
        metrics = {k: float(v) for k, v in line.items() if k not in (*APART, *axes) and v}
        cost = int(float(line["gradient_evaluations"])), float(line["seconds"])
        run = line.get("trial") or line["run"]
        rows.append(Row(run, labels, line.get("status") or "done", line.get("cause", ""), metrics, *cost))
    return Table((*axes, "seed"), tuple(rows))


def curve_table(
    truths: Mapping[tuple[Value, ...], NDArray[np.float64]],
    axes: Sequence[str] = ("data.name",),
    *,
    points: Sequence[float] = (0.1, 0.5, 1, 2, 4, 6, 10, 20, 50, 200),
    seeds: int = 3,
    sd: float = 0.004,
    norms: bool = False,
) -> Table:
    """A sweep with known truths: labels on `axes` → mean robust accuracy at each point."""
    random = np.random.default_rng(0)
    rows = []
    for key, truth in truths.items():
        for at, mean in zip(points, truth, strict=True):
            for seed in range(seeds):
                robust = float(mean + sd * random.standard_normal())
                metrics = {
                    "clean_accuracy": 0.9 + 0.05 * robust,
                    "robust_accuracy": robust,
                    "train_robust_accuracy": robust + 0.03,
                }
                if norms:
                    for loss in ("clean", "adversarial"):
                        for norm in ("rms", "gradient_relative", "scale_invariant"):
                            level = 0.4 * (np.log10(at) - 0.7) ** 2 + 0.03 * random.standard_normal()
                            metrics[f"{loss}_hessian_{norm}"] = float(10**level)
                labels = {**dict(zip(axes, key, strict=True)), "curvature": float(at), "seed": seed}
                run = "-".join(map(str, labels.values()))
                rows.append(Row(run, labels, "done", "", metrics, 100, 1.5))
    return Table((*axes, "curvature", "seed"), tuple(rows))


@pytest.fixture(scope="session")
def shipped() -> Callable[..., Table]:
    return shipped_table


@pytest.fixture(scope="session")
def curves() -> Callable[..., Table]:
    return curve_table
