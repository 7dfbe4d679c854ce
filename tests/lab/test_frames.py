"""Runs, tables and evaluations as data frames, and what a notebook shows of them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from curvact.activations import max_curvature
from curvact.attacks import ThreatModel
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab import frames
from curvact.lab.frames import load_evaluations, load_runs
from curvact.lab.record import evaluate, write_record
from curvact.lab.run import execute
from curvact.lab.statistics import ask
from curvact.lab.statistics.curve import Curve
from curvact.lab.table import Row, Table
from curvact.models import MiniResNet

ROWS = (
    Row(
        "a", {"activation": "relu", "seed": 0}, "done", "", {"robust_accuracy": 0.4, "flatness": 1.0}, 10, 1.5
    ),
    Row("b", {"activation": "silu", "seed": 0}, "failed", "nan", {}, 5, 1.0),
)
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in the place of data frames, so that the tests need no pandas."""
    monkeypatch.setattr(frames, "frame", list)


def test_a_table_has_a_line_for_each_run_and_reference() -> None:
    table = Table(
        ("activation", "seed"), ROWS, (replace(ROWS[0], run="r", labels={"seed": 0}, reference="relu"),)
    )
    first, second, reference = table.as_dicts()
    assert first == {
        "run": "a", "activation": "relu", "seed": 0, "reference": "", "status": "done", "cause": "",
        "robust_accuracy": 0.4, "flatness": 1.0, "gradient_evaluations": 10, "seconds": 1.5,
    }  # fmt: skip
    assert (second["status"], second["cause"], "robust_accuracy" in second) == ("failed", "nan", False)
    assert (reference["reference"], reference["activation"]) == ("relu", None)
    assert "reference" not in Table(("activation", "seed"), ROWS).as_dicts()[0]


def test_pandas_gives_the_same_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    found = Table(("activation", "seed"), ROWS).to_pandas()
    assert isinstance(found, pandas.DataFrame)
    assert found["robust_accuracy"][0] == 0.4
    assert math.isnan(found["robust_accuracy"][1])


def test_missing_pandas_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(CurvactError, match=r"^pandas is not installed: pip install curvact\[pandas\]$"):
        Table(("seed",), ROWS).to_pandas()


@pytest.mark.usefixtures("listed")
def test_runs_of_a_folder(run_spec: Callable[..., Any], tmp_path: Path) -> None:
    record = execute(run_spec(seed=3), tmp_path / "runs" / "one")
    (row,) = load_runs(tmp_path)
    assert (row["run"], row["seed"], row["data"], row["status"]) == (record.run, 3, "digits", "done")
    assert {key: row[key] for key in record.metrics} == record.metrics
    assert record.run in record._repr_html_()
    with pytest.raises(CurvactError, match="holds no finished run"):
        load_runs(tmp_path / "none")


@pytest.mark.usefixtures("listed")
def test_evaluations_of_a_folder(tmp_path: Path) -> None:
    test, threat = load("digits").test.first(20), ThreatModel("linf", 0.1)
    record = evaluate(MiniResNet(channels=1, width=2), test, threat, attack="fgsm", masking="none", name=EVIL)
    write_record(record, tmp_path / "a.evaluation.json")
    (row,) = load_evaluations(tmp_path)
    assert (row["images"], row["attack"], row["epsilon"]) == (20, "fgsm", 0.1)
    assert row["robust_low"] <= row["robust_accuracy"] == record.robust_accuracy <= row["robust_high"]
    json.dumps(row)
    images = record.to_pandas()
    assert [image["clean_correct"] for image in images] == [c == "1" for c in record.clean_correct]
    assert [image["broken_by"] for image in images] == record.broken_by
    assert EVIL not in record._repr_html_()
    with pytest.raises(CurvactError, match="no folder of records"):
        load_evaluations(tmp_path / "none")


class _Strict(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_what_a_notebook_shows_is_small_and_escaped(curves: Callable[..., Table]) -> None:
    import numpy as np

    table = curves({(EVIL,): np.array([0.5, 0.6, 0.5])}, points=(1.0, 4.0, 20.0))
    answers = ask(table, {"curve": Curve(norms=())})
    shown = [
        table._repr_html_(),
        answers["curve"]._repr_html_(),
        answers["curve"].strata[0].verdict._repr_html_(),  # type: ignore[attr-defined]
        max_curvature("silu")._repr_html_(),
    ]
    for text in shown:
        reader = _Strict()
        reader.feed(text)
        assert reader.open == []
        assert len(text) < 20_000
    assert "0.5" in shown[3]
