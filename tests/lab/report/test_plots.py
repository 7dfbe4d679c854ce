from __future__ import annotations

import itertools
import math
import os
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import stats

from curvact.errors import CurvactError
from curvact.lab.report.plots import (
    OKABE_ITO,
    accuracy_chart,
    charts,
    curve_figure,
    hessian_chart,
    legend_figures,
    looks_of,
    panel_figure,
    to_png,
    to_svg,
    train_test_chart,
    write_figures,
)

Row = dict[str, object]


def numbers(rows: list[Row], column: str, **where: object) -> dict[float, list[float]]:
    """Values by curvature, found without the code under test."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["status"] == "done" and all(row[key] == value for key, value in where.items()):
            found.setdefault(float(row["curvature"]), []).append(float(row[column]))  # type: ignore[arg-type]
    return dict(sorted(found.items()))


def lines(axes: Axes, kind: str) -> list[tuple[np.ndarray, np.ndarray, str]]:
    return [
        (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), to_hex(line.get_color()).upper())
        for line in axes.get_lines()
        if line.get_gid() == kind
    ]


def by_title(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_accuracy_figure_holds_the_means_the_seeds_and_the_intervals(study: list[Row]) -> None:
    axes = by_title(curve_figure(accuracy_chart(study)))
    assert list(axes) == ["Robust accuracy, test set", "Clean accuracy, test set"]
    for title, column in zip(axes, ("robust_accuracy", "clean_accuracy"), strict=True):
        means, seeds = lines(axes[title], "mean"), lines(axes[title], "seeds")
        for i, family in enumerate(("rctaf(beta=0)", "rctaf(beta=1)")):
            found = numbers(study, column, family=family)
            x, y, colour = means[i]
            np.testing.assert_array_equal(x, list(found))
            np.testing.assert_allclose(y, [100 * statistics.fmean(v) for v in found.values()], rtol=1e-12)
            assert colour == OKABE_ITO[i]
            np.testing.assert_allclose(
                sorted(seeds[i][1]), sorted(100 * v for vs in found.values() for v in vs), rtol=1e-12
            )
            bars = axes[title].collections[2 * i + 1].get_segments()  # type: ignore[attr-defined]
            for (kappa, values), bar in zip(found.items(), bars, strict=True):
                half = stats.t.ppf(0.975, 2) * statistics.stdev(values) / math.sqrt(3)
                middle = statistics.fmean(values)
                np.testing.assert_allclose(
                    bar, [[kappa, 100 * (middle - half)], [kappa, 100 * (middle + half)]], rtol=1e-9
                )


def test_hessian_figure_holds_geometric_means(study: list[Row]) -> None:
    axes = curve_figure(hessian_chart(study)).axes
    assert len(axes) == 6
    columns = [
        f"{loss}_hessian_{norm}"
        for loss in ("clean", "adversarial")
        for norm in ("rms", "gradient_relative", "scale_invariant")
    ]
    for axis, column in zip(axes, columns, strict=True):
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        for i, family in enumerate(("rctaf(beta=0)", "rctaf(beta=1)")):
            found = numbers(study, column, family=family)
            np.testing.assert_allclose(
                lines(axis, "mean")[i][1], [statistics.geometric_mean(v) for v in found.values()], rtol=1e-12
            )


def test_train_and_test_lie_side_by_side(study: list[Row]) -> None:
    axes = by_title(curve_figure(train_test_chart(study)))
    assert list(axes) == ["rctaf(beta=0)", "rctaf(beta=1)"]
    for family, axis in axes.items():
        train, test = lines(axis, "mean")
        for line, column in ((train, "train_robust_accuracy"), (test, "robust_accuracy")):
            wanted = [100 * statistics.fmean(v) for v in numbers(study, column, family=family).values()]
            np.testing.assert_allclose(line[1], wanted, rtol=1e-12)
    assert len({axis.get_ylim() for axis in axes.values()}) == 1  # to be compared by eye


def test_the_band_is_where_it_is_said_to_be(study: list[Row]) -> None:
    for figure in map(curve_figure, charts(study, band=(3.0, 12.0))):
        for axes in figure.axes:
            (band,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
            assert (band.get_x(), band.get_x() + band.get_width()) == (3.0, 12.0)
        assert "published optimum, 3 to 12" in [text.get_text() for text in figure.legends[0].get_texts()]
    figure = curve_figure(accuracy_chart(study, band=None))
    assert not figure.axes[0].patches


def test_the_confidence_set_of_the_optimum_lies_under_the_curves(
    study: list[Row], verdicts: list[object]
) -> None:
    chart = accuracy_chart(study, verdicts)  # type: ignore[arg-type]
    robust, clean = curve_figure(chart).axes
    bars = lines(robust, "optimum")
    assert [(x.tolist(), colour) for x, _, colour in bars] == [([1.0, 200.0], c) for c in OKABE_ITO[:2]]
    assert lines(clean, "optimum") == []
    low, high = robust.get_ylim()
    lowest = min(y.min() for _, y, _ in lines(robust, "seeds"))
    assert all(low + height * (high - low) < lowest for _, y, _ in bars for height in y)


@pytest.mark.parametrize(
    "optimum", [None, SimpleNamespace(low=math.nan, high=3.0), SimpleNamespace(low=0.1, high=math.inf)]
)
def test_an_optimum_without_an_interval_is_not_drawn(study: list[Row], optimum: object) -> None:
    verdict = SimpleNamespace(
        family="rctaf(beta=0)",
        robustness=SimpleNamespace(best=math.nan, optimum=optimum, kind="inconclusive"),
        sentences=(),
    )
    chart = accuracy_chart(study, [verdict])
    assert all(not panel.bars for panel in chart.panels)
    assert "confidence set of the optimum" not in [text for text, _ in legend_figures(chart)]


def test_levels_become_curves_and_families_facets(confounds: list[Row]) -> None:
    chart = accuracy_chart(confounds)
    names = ["not centred, 10 epochs", "not centred, 40 epochs", "centred, 10 epochs", "centred, 40 epochs"]
    assert [name for name, _ in chart.legend] == names
    assert len(chart.panels) == 4
    axes = by_title(curve_figure(chart))["Robust accuracy, test set\nrctaf(beta=1)"]
    for line, (centered, epochs) in zip(
        lines(axes, "mean"), itertools.product((False, True), (10, 40)), strict=True
    ):
        found = numbers(
            confounds, "robust_accuracy", family="rctaf(beta=1)", centered=centered, epochs=epochs
        )
        np.testing.assert_allclose(line[1], [100 * statistics.fmean(v) for v in found.values()], rtol=1e-12)
    assert [panel.family for panel in hessian_chart(confounds).panels] == ["rctaf(beta=0)"] * 3 + [
        "rctaf(beta=1)"
    ] * 3 + ["rctaf(beta=0)"] * 3 + ["rctaf(beta=1)"] * 3
    assert len(train_test_chart(confounds).panels) == 8


def test_one_level_is_not_mentioned(study: list[Row]) -> None:
    words = {
        text
        for chart in charts(study)
        for panel in chart.panels
        for text in (panel.title, *(c.label for c in panel.curves))
    }
    assert not any("centred" in word or "epochs" in word for word in words)


def test_a_confidence_set_with_gaps_has_a_tick_for_each_curvature(study: list[Row]) -> None:
    optimum = SimpleNamespace(low=0.5, high=20.0)
    robustness = SimpleNamespace(best=4.0, optimum=optimum, optimum_set=(0.5, 4.0, 20.0), kind="inconclusive")
    chart = accuracy_chart(
        study, [SimpleNamespace(family="rctaf(beta=0)", robustness=robustness, sentences=())]
    )
    ((x, _, _),) = lines(curve_figure(chart).axes[0], "optimum")
    assert list(x) == [0.5, 4.0, 20.0]


@dataclass
class LevelVerdict:
    family: str
    robustness: SimpleNamespace
    centered: bool
    epochs: int
    sentences: tuple[str, ...] = ()


def test_a_verdict_on_one_level_has_the_colour_of_its_curve(confounds: list[Row]) -> None:
    robustness = SimpleNamespace(best=4.0, optimum=SimpleNamespace(low=4.0, high=200.0), kind="plateau")
    chart = accuracy_chart(confounds, [LevelVerdict("rctaf(beta=1)", robustness, True, 10)])
    drawn = [(panel.title, bar.look) for panel in chart.panels for bar in panel.bars]
    assert drawn == [("Robust accuracy, test set\nrctaf(beta=1)", dict(chart.legend)["centred, 10 epochs"])]


def test_every_look_is_distinct_and_from_the_palette() -> None:
    looks = list(looks_of([str(i) for i in range(28)]).values())
    assert len(set(looks)) == 28
    assert {look.colour for look in looks} == set(OKABE_ITO)
    assert len({(look.marker, look.colour) for look in looks[:7]}) == 7


def test_ticks_are_plain_numbers(study: list[Row]) -> None:
    figure = curve_figure(accuracy_chart(study))
    to_png(figure)
    low, high = figure.axes[0].get_xlim()
    shown = [
        tick.get_text() for tick in figure.axes[0].get_xticklabels() if low <= tick.get_position()[0] <= high
    ]
    assert shown == ["0.1", "1", "10", "100"]
    assert figure.axes[0].get_xlabel() == "curvature κ = max|σ″|"
    assert figure.axes[0].get_ylabel() == "accuracy (%)"


def test_values_a_log_axis_cannot_show_are_counted(study: list[Row]) -> None:
    rows = [dict(row) for row in study]
    rows[0]["clean_hessian_rms"] = 0.0
    rows[1]["clean_hessian_rms"] = -1e-3
    rows.append(
        {**rows[0], "trial": "relu", "curvature": math.inf, "seed": 0, "adversarial_hessian_rms": 3.0}
    )
    assert hessian_chart(study).hidden == 0
    chart = hessian_chart(rows)
    assert chart.hidden == 2 + 6
    x, y, _ = lines(curve_figure(chart).axes[0], "mean")[0]
    assert y[0] == pytest.approx(float(rows[2]["clean_hessian_rms"]), rel=1e-12)  # type: ignore[arg-type]
    assert np.isfinite(x).all()


def test_an_interval_of_two_seeds_does_not_flatten_the_curves(make: Callable[..., list[Row]]) -> None:
    rows = make(failed=lambda index: index == 7)
    rows[6]["robust_accuracy"] = float(rows[8]["robust_accuracy"]) + 0.05  # type: ignore[arg-type]
    (panel, _) = accuracy_chart(rows).panels
    assert panel.limits is not None
    assert panel.cut
    values = np.concatenate([curve.values.ravel() for curve in panel.curves])
    spread = np.nanmax(values) - np.nanmin(values)
    assert panel.limits[1] - panel.limits[0] < 2 * spread
    assert panel.limits[0] < np.nanmin(values) < np.nanmax(values) < panel.limits[1]
    assert not accuracy_chart(make()).panels[0].cut


def test_files_are_written_and_are_pictures(tmp_path: Path, study: list[Row], verdicts: list[object]) -> None:
    written = write_figures(study, tmp_path, verdicts=verdicts)  # type: ignore[arg-type]
    names = {
        f"{name}.{ending}" for name in ("accuracy", "hessian", "train_test") for ending in ("png", "svg")
    }
    assert set(written) == set(os.listdir(tmp_path)) == names
    for name, path in written.items():
        data = path.read_bytes()
        if name.endswith("png"):
            assert data.startswith(b"\x89PNG")
            assert b"pHYs" in data
        else:
            assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"


def test_degenerate_studies_draw_what_they_have(tmp_path: Path, degenerate: list[Row]) -> None:
    written = write_figures(degenerate, tmp_path)
    done = [row for row in degenerate if row["status"] == "done"]
    shown = {
        name
        for name, column in (
            ("accuracy", "robust_accuracy"),
            ("hessian", "clean_hessian_rms"),
            ("train_test", "train_robust_accuracy"),
        )
        if any(math.isfinite(float(row.get(column, math.nan))) for row in done)  # type: ignore[arg-type]
    }
    assert {name.split(".")[0] for name in written} == shown


def test_same_rows_same_bytes_whatever_the_user_has_set(study: list[Row]) -> None:
    before = dict(matplotlib.rcParams)
    first = [(to_svg(curve_figure(chart)), to_png(curve_figure(chart))) for chart in charts(study)[::2]]
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context(
        {"lines.linewidth": 9.0, "font.size": 30.0, "svg.hashsalt": None, "xtick.major.size": 20.0}
    ):
        second = [
            (to_svg(curve_figure(chart)), to_png(curve_figure(chart))) for chart in charts(study[::-1])[::2]
        ]
    assert first == second


def test_names_are_text_not_formulas(make: Callable[..., list[Row]]) -> None:
    rows = make(families=("_f(a=$x$)", "g<b>&" + "y" * 60), kappas=(1.0, 2.0))
    chart = accuracy_chart(rows)
    texts = [text for text, _ in legend_figures(chart)]
    assert texts[0] == "_f(a=$x$)"
    assert len(texts[1]) == 38
    assert texts[1].endswith("…")
    legend = curve_figure(chart).legends[0]
    assert len(legend.get_texts()) == 2  # a leading underscore would hide it; no band within 1 to 2
    ElementTree.fromstring(to_svg(panel_figure(chart.panels[0])))


def test_duplicate_trials_are_refused(study: list[Row], tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match="two finished trials"):
        write_figures([*study, study[0]], tmp_path)
    assert os.listdir(tmp_path) == []
