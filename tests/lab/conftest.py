"""Runs and sweeps small enough for a second each."""

from __future__ import annotations

import csv
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget all code: as in a new process. Nothing that a test registers stays."""
    from curvact import workers
    from curvact.activations import registry as activations
    from curvact.attacks import registry as attacks
    from curvact.lab import imports
    from curvact.lab.engines import engine
    from curvact.lab.spec import canonical_activation
    from curvact.lab.statistics import QUESTIONS
    from curvact.models import registry as models
    from curvact.models.named import FILES
    from curvact.training.objectives import OBJECTIVES

    tables: list[dict[str, Any]] = [
        activations._REGISTRY,
        attacks._REGISTRY,
        engine.ENGINES,
        QUESTIONS,  # type: ignore[list-item]
        OBJECTIVES,
        models.MODELS,  # type: ignore[list-item]
        imports._RUN,
        FILES,  # type: ignore[list-item]
    ]
    kept = [dict(table) for table in tables]

    def forget() -> None:
        for table, before in zip(tables, kept, strict=True):
            table.clear()
            table.update(before)
        workers._AT_START.clear()
        canonical_activation.cache_clear()
        for name in [
            n for n in sys.modules if n.startswith("curvact_code_") or n in ("my", "net", "helper", "theirs")
        ]:
            del sys.modules[name]

    forget()
    yield forget  # type: ignore[misc]
    forget()


ROOT = Path(__file__).parents[2]


def shipped_table(name: str) -> Table:
    """The runs of reproductions/*/results/NAME.csv, which a sweep's report wrote."""
    path = next(ROOT.glob(f"reproductions/*/results/{name}.csv"))
    lines = list(csv.DictReader(path.read_text().splitlines()))
    heads = list(lines[0])
    axes = [head for head in heads[1 : heads.index("status")] if head != "reference"]
    words: dict[str, Value] = {"": None, "true": True, "false": False}
    rows = []
    for line in lines:
        labels: dict[str, Value] = {}
        for axis in axes:
            text = line[axis]
            labels[axis] = float(text) if re.fullmatch(r"[\d.e-]+", text) else words.get(text.lower(), text)
        metrics = {k: float(line[k]) for k in heads[heads.index("cause") + 1 : -2] if line[k]}
        cost = int(float(line["gradient_evaluations"])), float(line["seconds"])
        reference = line.get("reference", "")
        if reference:  # it has labels on the axes alone that do not choose the activation
            labels = {axis: label for axis, label in labels.items() if label is not None}
        rows.append(Row(line["run"], labels, line["status"], line["cause"], metrics, *cost, reference))
    return Table(
        tuple(axes),
        tuple(row for row in rows if not row.reference),
        tuple(row for row in rows if row.reference),
    )


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


@pytest.fixture(scope="session")
def slurm_config() -> Iterator[Path]:
    """The configuration of a running SLURM cluster; the test is skipped where there can be none."""
    code = runpy.run_path(str(Path(__file__).parent / "slurm" / "cluster.py"))
    problem = code["why_not"]()
    if problem:
        pytest.skip(problem)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # a short path: munge has a socket there
        running = code["cluster"](Path(folder))
        try:
            config = running.__enter__()
        except (RuntimeError, OSError) as error:
            pytest.skip(f"SLURM does not start here: {error}")
        yield config
        running.__exit__(None, None, None)


@pytest.fixture
def slurm(slurm_config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A running SLURM cluster, which the commands of SLURM and their children find."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("SLURM_CONF", str(slurm_config))
    return slurm_config
