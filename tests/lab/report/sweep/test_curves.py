"""Figures of a sweep: what is drawn are the means, seeds and intervals; one panel a stratum; the
same bytes again.
"""

from __future__ import annotations

import math
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from curvact.lab.report.style import OKABE_ITO, looks_of, to_png, to_svg
from curvact.lab.report.sweep.curves import (
    Chart,
    chart_figures,
    charts,
    legend_figures,
    optimum_figure,
    panel_figure,
)
from curvact.lab.statistics.curve import Curve, CurveAnswer
from curvact.lab.statistics.interval import curve_intervals, student
from curvact.lab.table import Row, Table

GRID = np.array((0.1, 1.0, 4.0, 10.0, 200.0))
TRUTH = np.array((0.5, 0.6, 0.7, 0.65, 0.6))

Curves = Callable[..., Table]


def make(curves: Curves, names: int = 2, **options: object) -> CurveAnswer:
    truths = {(f"s{i}",): TRUTH - 0.01 * i for i in range(names)}
    return Curve().answer(curves(truths, points=GRID, **options))


@pytest.fixture(scope="module")
def two(curves: Curves) -> CurveAnswer:
    return make(curves, norms=True)


def lines(axes: Axes, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in axes.get_lines()
        if line.get_gid() == kind
    ]


def axes_of(chart: Chart) -> list[Axes]:
    ((_, figure),) = chart_figures(chart)
    return list(figure.axes)


def test_one_panel_a_stratum_holds_the_means_the_seeds_and_the_intervals(two: CurveAnswer) -> None:
    chart = charts(two)[0]
    assert chart.name == "robust_accuracy"
    panels = axes_of(chart)
    assert [axes.get_title(loc="left") for axes in panels] == ["s0", "s1"]
    for axes, s in zip(panels, two.strata, strict=True):
        for (x, y), metric in zip(
            lines(axes, "mean"), ("robust_accuracy", "train_robust_accuracy"), strict=True
        ):
            rows = s.stratum.rows
            found = {at: [r.metrics[metric] for r in rows if r.labels["curvature"] == at] for at in GRID}
            np.testing.assert_array_equal(x, GRID)
            np.testing.assert_allclose(y, [100 * statistics.fmean(v) for v in found.values()], rtol=1e-12)
            if metric == "robust_accuracy":
                _, low, high = curve_intervals(np.array(list(found.values())), scale="fraction")
                bars = axes.collections[1].get_segments()  # type: ignore[attr-defined]
                np.testing.assert_allclose(
                    [bar[:, 1] for bar in bars], 100 * np.stack([low, high], 1), rtol=1e-9
                )
                seeds = sorted(100 * v for vs in found.values() for v in vs)
                np.testing.assert_allclose(sorted(lines(axes, "seeds")[0][1]), seeds, rtol=1e-12)
    assert len({axes.get_ylim() for axes in panels}) == 1  # to be compared by eye


def test_norms_are_geometric_means_on_two_logarithmic_axes(two: CurveAnswer) -> None:
    chart = next(c for c in charts(two) if c.name == "hessian_rms")
    for axes, s in zip(axes_of(chart), two.strata, strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        for (_, y), loss in zip(lines(axes, "mean"), ("clean", "adversarial"), strict=True):
            rows = s.stratum.rows
            wanted = [
                statistics.geometric_mean(
                    r.metrics[f"{loss}_hessian_rms"] for r in rows if r.labels["curvature"] == at
                )
                for at in GRID
            ]
            np.testing.assert_allclose(y, wanted, rtol=1e-12)


def test_the_confidence_set_lies_under_the_curves_and_the_band_where_it_is(two: CurveAnswer) -> None:
    chart = charts(two)[0]
    for axes, s in zip(axes_of(chart), two.strata, strict=True):
        ((x, heights),) = lines(axes, "optimum")
        assert tuple(x) == s.verdict.optimum_set
        low, high = axes.get_ylim()
        lowest = min(y.min() for _, y in lines(axes, "seeds"))
        assert all(low + height * (high - low) < lowest for height in heights)
        (band,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert (band.get_x(), band.get_x() + band.get_width()) == (4.0, 10.0)
    words = [text for text, _ in legend_figures(chart)]
    assert words == [
        "test set",
        "training set",
        "confidence set of the optimum",
        "published optimum, 4 to 10",
    ]
    assert not charts(replace(two, question=Curve(band=None)))[0].band
    clean = charts(two)[1]
    assert all(lines(axes, "optimum") == [] for axes in axes_of(clean))


def test_references_are_horizontal_lines(curves: Curves) -> None:
    table = curves({("swish",): TRUTH}, ("activation",), points=GRID)
    relu = [
        Row(
            f"r{s}",
            {"activation": "relu", "curvature": None, "seed": s},
            "done",
            "",
            {"robust_accuracy": r},
            1,
            1.0,
        )
        for s, r in enumerate((0.55, 0.56, 0.57))
    ]
    chart = charts(Curve().answer(replace(table, rows=(*table.rows, *relu))))[0]
    (mean,) = chart.panels[0].references.values()
    wanted = student([0.55, 0.56, 0.57], scale="fraction")
    assert (mean.value, mean.low, mean.high) == pytest.approx((56.0, 100 * wanted.low, 100 * wanted.high))
    (axes,) = axes_of(chart)
    ((_, y),) = lines(axes, "reference")
    assert list(y) == pytest.approx([56.0, 56.0])
    spans = [patch.get_bbox() for patch in axes.patches]
    assert any((span.y0, span.y1) == pytest.approx((mean.low, mean.high)) for span in spans)
    assert "relu" in [text.get_text() for text in axes.texts]
    assert "relu (reference)" in [text for text, _ in legend_figures(chart)]


def test_many_strata_make_several_figures(curves: Curves) -> None:
    answer = make(curves, 14, seeds=2)
    figures = dict(chart_figures(charts(answer)[0]))
    assert {name: len(figure.axes) for name, figure in figures.items()} == {
        "robust_accuracy-1": 12,
        "robust_accuracy-2": 2,
    }
    optimum = optimum_figure(answer)
    assert optimum is not None
    assert [text.get_text() for text in optimum.axes[0].get_yticklabels()] == [f"s{i}" for i in range(14)]
    assert optimum_figure(make(curves, 1)) is None


def test_one_seed_and_missing_norms_are_drawn_as_they_are(curves: Curves) -> None:
    answer = make(curves, 1, seeds=1)
    found = charts(answer)
    assert [chart.name for chart in found] == ["robust_accuracy", "clean_accuracy"]
    assert found[0].panels[0].optimum is None
    assert all(math.isnan(v) for v in found[0].panels[0].curves[0].low)
    to_svg(panel_figure(found[0], found[0].panels[0]))


def test_values_a_log_axis_cannot_show_are_counted(two: CurveAnswer) -> None:
    s = two.strata[0]
    first = replace(s.stratum.rows[0], metrics={**s.stratum.rows[0].metrics, "clean_hessian_rms": 0.0})
    stratum = replace(s.stratum, rows=(first, *s.stratum.rows[1:]))
    answer = replace(two, strata=(replace(s, stratum=stratum), *two.strata[1:]))
    hidden = {chart.name: chart.hidden for chart in charts(answer)}
    assert hidden["hessian_rms"] == 1
    assert sum(hidden.values()) == 1


def test_two_seeds_have_no_interval(curves: Curves) -> None:
    """It would be many times as wide as the whole effect."""
    two = charts(Curve().answer(curves({("a",): np.full(2, 0.6)}, points=GRID[:2], seeds=2, sd=0.02)))[0]
    assert not any(curve.bounded for curve in two.panels[0].curves)
    three = charts(make(curves, 1))[0]
    assert all(curve.bounded for curve in three.panels[0].curves)
    assert not three.cut


def test_same_answer_same_bytes_whatever_the_user_has_set(two: CurveAnswer) -> None:
    before = dict(matplotlib.rcParams)
    first = [(to_svg(f), to_png(f)) for _, f in chart_figures(charts(two)[0])]
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30.0, "svg.hashsalt": None}):
        second = [(to_svg(f), to_png(f)) for _, f in chart_figures(charts(two)[0])]
    assert first == second


def test_names_are_text_not_formulas(curves: Curves) -> None:
    names = ("_f(a=$x$)", "g<b>&" + "y" * 60)
    answer = Curve().answer(curves({(name,): TRUTH for name in names}, points=GRID, seeds=2))
    chart = charts(answer)[0]
    for panel in chart.panels:
        ElementTree.fromstring(to_svg(panel_figure(chart, panel)))


def test_every_look_is_distinct_and_from_the_palette() -> None:
    looks = list(looks_of([str(i) for i in range(28)]).values())
    assert len(set(looks)) == 28
    assert {look.colour for look in looks} == set(OKABE_ITO)


def test_ticks_are_plain_numbers(two: CurveAnswer) -> None:
    ((_, figure),) = chart_figures(charts(two)[0])
    to_png(figure)
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    shown = [tick.get_text() for tick in axes.get_xticklabels() if low <= tick.get_position()[0] <= high]
    assert shown == ["0.1", "1", "10", "100"]
    assert axes.get_xlabel() == "curvature κ = max|σ″|"
    assert axes.get_ylabel() == "robust accuracy (%)"
