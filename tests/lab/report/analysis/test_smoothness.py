from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from curvact.analysis import Loss, match_radii, smoothness_report, trajectory_smoothness
from curvact.attacks import PGD
from curvact.errors import CurvactError
from curvact.lab.report.analysis.smoothness import smoothness_figure, tradeoff_figure, trajectory_figure
from curvact.lab.report.style import to_png


def small(seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random))
    return model, torch.rand(6, 4, generator=random), torch.arange(6) % 2


def directions(seed: int) -> dict[str, Any]:
    model, x, y = small(seed)
    loss = Loss(model, x, y)
    matched = match_radii(loss, 0.05)
    report = smoothness_report(
        loss,
        matched.attacks(PGD(2)),
        norms=(0.01, 0.1),
        directions=2,
        threat_models=matched.threat_models,
    )
    record: dict[str, Any] = json.loads(json.dumps(report.as_dict()))
    return record


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, Any]]:
    return {f"net {seed}": directions(seed) for seed in range(3)}


@pytest.fixture(scope="module")
def path() -> dict[str, Any]:
    model, x, y = small(0)
    points = torch.randn(4, 37, generator=torch.Generator().manual_seed(0))
    loss = Loss(model, x, y)
    found = trajectory_smoothness(loss, points, match_radii(loss, 0.05).attacks(PGD(2)))
    record: dict[str, Any] = json.loads(json.dumps(found.as_dict()))
    return record


def test_the_means_are_drawn(records: dict[str, Any]) -> None:
    record = records["net 0"]
    figure = smoothness_figure(record, "A title with $")
    ratio, numerator, drift = figure.axes
    drawn = {line.get_label(): line for line in ratio.get_lines() if line.get_linestyle() == "-"}
    assert set(drawn) == {"clean", "linf", "l2"}
    for attack, line in drawn.items():
        lines = [item for item in record["lines"] if item["attack"] == attack]
        np.testing.assert_allclose(line.get_ydata(), [item["ratio"] for item in lines])
        np.testing.assert_allclose(line.get_xdata(), [0.01, 0.1])
    dashed = [line for line in numerator.get_lines() if line.get_linestyle() == "--"]
    assert len(dashed) == sum(any(r["moved"] > 0 for r in record["rows"] if r["attack"] == a) for a in drawn)
    assert "clean" not in {
        line.get_label() for line in drift.get_lines()
    }  # it does not move: nothing on a log axis
    assert to_png(figure)[:4] == b"\x89PNG"


def test_trajectories_by_run_or_by_attack(path: dict[str, Any]) -> None:
    one = trajectory_figure({"SGD": path})
    assert [t.get_text() for t in one.legends[0].get_texts()] == ["clean", "linf", "l2"]
    two = trajectory_figure({"SGD": path, "EntropySGD": path}, attacks=["linf"], label="gradient evaluations")
    assert [t.get_text() for t in two.legends[0].get_texts()] == ["SGD", "EntropySGD"]
    assert two.axes[0].get_xlabel() == "gradient evaluations"
    every = trajectory_figure({"SGD": path, "EntropySGD": path})
    assert len(every.legends[0].get_texts()) == 6
    expected = [row["ratio"] for row in path["rows"] if row["attack"] == "linf"]
    np.testing.assert_allclose(two.axes[0].get_lines()[0].get_ydata(), expected)
    steps = [row["relative_norm"] for row in path["rows"] if row["attack"] == "linf"]
    np.testing.assert_allclose(two.axes[3].get_lines()[0].get_ydata(), steps)
    assert to_png(every)[:4] == b"\x89PNG"


@pytest.mark.parametrize("measure", ["gradient_norm", "gradient_l1", "top_eigenvalue", "linearity_error"])
def test_the_tradeoff_has_a_mark_for_each_model(records: dict[str, Any], measure: str) -> None:
    figure = tradeoff_figure(records, measure=measure, relative_norm=0.01)
    axes = figure.axes[0]
    names = {text.get_text() for text in axes.texts}
    assert names == set(records)
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    kinds = ["linf", "l2"] if measure == "linearity_error" else ["clean", "linf", "l2"]
    assert [text.split(",")[0] for text in legend] == kinds
    x = [
        record["flatness"]["measures"][f"{measure} linf" if measure == "linearity_error" else measure]["mean"]
        for record in records.values()
    ]
    y = [
        next(i["ratio"] for i in record["lines"] if i["attack"] == "linf" and i["relative_norm"] == 0.01)
        for record in records.values()
    ]
    container = axes.containers[kinds.index("linf")]
    np.testing.assert_allclose(np.asarray(container.lines[0].get_xdata(), float), x)
    np.testing.assert_allclose(np.asarray(container.lines[0].get_ydata(), float), y)
    # three values: the rank correlation by the formula with squared differences of ranks
    apart = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))
    assert legend[kinds.index("linf")].endswith(f"{1 - 6 * (apart**2).sum() / 24:+.2f}")


def test_one_model_and_one_norm_can_be_drawn(records: dict[str, Any]) -> None:
    record = copy.deepcopy(records["net 0"])
    record["rows"] = [r for r in record["rows"] if r["relative_norm"] == 0.1]
    record["lines"] = [r for r in record["lines"] if r["relative_norm"] == 0.1]
    to_png(smoothness_figure(record))
    to_png(tradeoff_figure({"a $ name": record}))
    only_clean = {**record, "rows": [r for r in record["rows"] if r["attack"] == "clean"]}
    to_png(smoothness_figure(only_clean))  # a panel of drift with nothing in it


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda records, path: smoothness_figure(path),
            "kind 'trajectory' with 9 rows .* needs 'directions'",
        ),
        (lambda records, path: smoothness_figure({"kind": "directions", "rows": []}), "with 0 rows"),
        (lambda records, path: trajectory_figure({}), "no records"),
        (lambda records, path: trajectory_figure({"a": path}, attacks=["lnf"]), "did you mean 'linf'"),
        (lambda records, path: tradeoff_figure({}), "no records"),
        (
            lambda records, path: tradeoff_figure(records, measure="top_eigenvalu"),
            "did you mean 'top_eigenvalue'",
        ),
        (lambda records, path: tradeoff_figure(records, relative_norm=0.5), "nothing to draw"),
        (
            lambda records, path: tradeoff_figure({"a": {**records["net 0"], "flatness": None}}),
            "'a' in tradeoff_figure was made without input flatness",
        ),
    ],
)
def test_bad_records_are_one_line(
    call: Callable[[Any, Any], object], message: str, records: dict[str, Any], path: dict[str, Any]
) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        call(records, path)
    assert "\n" not in str(caught.value)
