"""What a sweep says of itself where there is no terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from curvact.lab import progress
from curvact.lab.progress import SweepBars
from curvact.lab.store import Record


def test_a_line_a_run_with_both_attacks_and_the_time_left(
    run_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = run_spec(evaluation={"autoattack_images": 40})
    metrics = {"robust_accuracy": 0.5, "clean_accuracy": 0.9, "subset_robust_accuracy": 0.4}
    record = Record(
        run=spec.id,
        spec=spec,
        status="done",
        metrics=metrics,
        epochs=1,
        gradient_evaluations=1,
        max_curvature=1.0,
        test_images=40,
        data_sha256={},
        files={},
        seconds=8.0,
    )
    clock = iter([100.0, 130.0, 160.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    bars = SweepBars(Console(file=stream, width=200), "tiny", total=5, finished=2)
    bars.done("κ=1", record)
    bars.done("κ=2", record)
    assert stream.getvalue().splitlines() == [
        "3/5 κ=1: robust 50.0% (40.0% by apgd-ce+apgd-t), clean 90.0%, 8.0 s; about 1 min 00 s left",
        "4/5 κ=2: robust 50.0% (40.0% by apgd-ce+apgd-t), clean 90.0%, 8.0 s; about 0 min 30 s left",
    ]
