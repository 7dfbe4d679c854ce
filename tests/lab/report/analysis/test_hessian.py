"""Figures of the Hessian draw what the record says, and leave noise out."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from curvact.errors import CurvactError
from curvact.lab.report.analysis.hessian import BASE, density_figure, norms_figure, split_figure
from curvact.lab.report.style import to_png, to_svg


def number(value: float | None, error: float | None = 0.0) -> dict[str, float | None]:
    return {"value": value, "standard_error": error}


def part(base: float, sites: dict[str, float], error: float | None = 0.01) -> dict[str, Any]:
    return {
        "base_share": number(base, error),
        "curvature_share": number(sum(sites.values()), error),
        "sites": {site: {"share": number(value, error)} for site, value in sites.items()},
    }


def split(**layers: dict[str, Any]) -> dict[str, Any]:
    return {"holds": True, "sites": ["a", "b"], "total": part(0.7, {"a": 0.4, "b": -0.1}), "layers": layers}


def bars(figure: Figure, panel: int = 0) -> dict[int, list[tuple[float, float]]]:
    """By row: (start, width) of every bar, in %."""
    found: dict[int, list[tuple[float, float]]] = {}
    for patch in figure.axes[panel].patches:
        assert isinstance(patch, Rectangle)
        row = round(patch.get_y() + patch.get_height() / 2)
        found.setdefault(row, []).append((patch.get_x(), patch.get_width()))
    return found


def test_shares_are_stacked_and_negative_ones_go_left() -> None:
    figure = split_figure({"clean": split(conv=part(1.0, {"a": 0.0}))})
    rows = bars(figure)
    assert rows[0] == [
        (0, pytest.approx(70)),
        (pytest.approx(70), pytest.approx(40)),
        (0, pytest.approx(-10)),
    ]
    for row in rows.values():
        assert sum(width for _, width in row) == pytest.approx(100)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["diag GGN", "σ″ at a", "σ″ at b"]


def test_without_call_sites_all_of_the_curvature_is_one_bar() -> None:
    record = split()
    record["total"]["sites"] = {}
    figure = split_figure({"clean": record})
    assert bars(figure)[0][1] == (pytest.approx(70), pytest.approx(30))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["diag GGN", "σ″"]


def test_noise_is_not_drawn() -> None:
    figure = split_figure({"clean": split(bn=part(-40.0, {"a": 41.0}, error=20.0), fc=part(1.0, {}))})
    assert set(bars(figure)) == {0, 2}
    assert any("noise" in text.get_text() for text in figure.axes[0].texts)
    low, high = figure.axes[0].get_xlim()
    assert -100 < low < high < 200


def test_where_the_split_does_not_hold_it_is_not_called_ggn() -> None:
    record = split()
    record["holds"] = False
    assert split_figure({"clean": record}).legends[0].get_texts()[0].get_text() == "diag H₀"


def norms(value: float | None, error: float | None = 0.1) -> dict[str, Any]:
    return {name: number(value, error) for name in ("rms", "gradient_relative", "scale_invariant")}


def test_norms_of_zero_are_marked_where_they_may_be() -> None:
    record = {**norms(1.0), "layers": {"w": norms(0.0, 0.25), "b": norms(None, None)}}
    axes = norms_figure({"clean": record}, "A $title$").axes[0]
    marks = [line for line in axes.get_lines() if line.get_marker() == "$<$"]
    assert [list(line.get_xdata()) for line in marks] == [[0.5]]  # type: ignore[arg-type]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["whole network", "w", "b"]


def test_norms_that_are_all_zero_can_be_drawn() -> None:
    assert to_png(norms_figure({"clean": {**norms(0.0, 0.0), "layers": {"w": norms(0.0, 0.0)}}})).startswith(
        b"\x89PNG"
    )


def test_densities_show_the_ends_of_the_spectrum() -> None:
    density = {"at": [-1.0, 0.0, 1.0], "density": [0.0, 2.0, 0.1]}
    record = {"density": density, "largest": [1.0, 0.5], "smallest": [-1.0]}
    figure = density_figure({"clean": record, "adversarial": record})
    ends = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_marker() == "v"]  # type: ignore[index]
    assert ends == [1.0, 0.5, -1.0] * 2
    assert to_svg(figure) == to_svg(density_figure({"clean": record, "adversarial": record}))


@pytest.mark.parametrize("draw", [norms_figure, split_figure, density_figure])
def test_nothing_to_draw(draw: Any) -> None:
    with pytest.raises(CurvactError, match=f"{draw.__name__} got no records"):
        draw({})


def test_the_base_is_grey() -> None:
    from matplotlib.colors import to_hex

    first = split_figure({"clean": split()}).axes[0].patches[0]
    assert to_hex(first.get_facecolor()) == BASE
