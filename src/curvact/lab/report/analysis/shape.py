"""Shape of the activations against robustness, as a figure and a table."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from curvact.errors import CurvactError
from curvact.lab.report.analysis.common import (
    ATTACKED,
    CLEAN,
    Record,
    annotate,
    headline,
    new_table,
    number,
    percent,
    plotted,
)
from curvact.lab.report.style import MARKERS, OKABE_ITO, canvas, house_style


def shape_figure(record: Record, title: str = "", ax: Axes | None = None) -> Figure:
    """Accuracy, minimum radius and Lipschitz constant of models against the κ of their activations.

    record: of `ShapeTable`. Models with a kink stand at the right edge, marked ∞. Models of unknown
    κ are left out. Raises CurvactError where none is left.

    >>> row = {"model": "a", "max_curvature": 2.0, "kink": False, "clean_accuracy": 0.9, "robust_accuracy": 0.5}
    >>> row |= {"radius": 0.03, "lipschitz": 12.0}
    >>> len(shape_figure({"rows": [row]}).axes)
    3
    """
    rows = [row for row in record["rows"] if row["kink"] or (row["max_curvature"] or 0) > 0]
    if not rows:
        raise CurvactError("a shape table without a model of known curvature: there is nothing to draw")
    finite = [row["max_curvature"] for row in rows if not row["kink"]]
    edge = 3 * max(finite) if finite else 1.0
    places = [edge if row["kink"] else row["max_curvature"] for row in rows]
    panels = (
        (
            "Accuracy",
            "%",
            (("clean_accuracy", "clean", CLEAN, 100.0), ("robust_accuracy", "robust", ATTACKED, 100.0)),
        ),
        ("Minimum PGD radius", "mean, input units", (("radius", "", OKABE_ITO[2], 1.0),)),
        ("Empirical Lipschitz constant", "mean, L1 over L∞", (("lipschitz", "", OKABE_ITO[3], 1.0),)),
    )
    with house_style():
        figure = canvas((11.4, 3.7), ax)
        for axes, (heading, label, columns) in zip(figure.subplots(1, 3), panels, strict=True):
            for index, (column, name, colour, scale) in enumerate(columns):
                values = [plotted(row[column]) * scale for row in rows]
                axes.plot(
                    places, values, linestyle="none", marker=MARKERS[index], color=colour, label=name or None
                )
                if index == len(columns) - 1:
                    models = (str(row["model"]) for row in rows)
                    annotate(axes, zip(models, places, values, strict=True))
            axes.set_xscale("log")
            low, high = min(places), max(places)
            axes.set_xlim(low / 1.8, high * 1.8)
            axes.margins(y=0.3)
            ticks = sorted({*finite})
            step = max(1, -(-len(ticks) // 6))
            marks = ticks[::step] + ([edge] if len(finite) < len(rows) else [])
            axes.set_xticks(
                marks, ["∞" if mark == edge and mark not in finite else f"{mark:.3g}" for mark in marks]
            )
            axes.set_xticks([], minor=True)
            axes.set(title=heading, xlabel="curvature κ = max|σ″|", ylabel=label)
            if len(columns) > 1:
                axes.legend(loc="best")
        headline(figure, title)
        return figure


def shape_table(record: Record) -> Table:
    """The record of a `ShapeTable`, a row a model."""
    columns = [
        "model",
        "activation",
        "κ",
        "|σ″| by 0",
        "σ>0, x<0",
        "slopes ∓∞",
        "clean %",
        "robust %",
        "radius",
        "Lipschitz",
    ]
    square = any(row["square_success"] is not None for row in record["rows"])
    columns += ["Square %"] if square else []
    table = new_table("shape of the activations and robustness", columns, left=2)
    for row in record["rows"]:
        above = row["positive_on_negative"]
        table.add_row(
            escape(row["model"]),
            escape(row["activation"]) or "–",
            "∞" if row["kink"] else number(row["max_curvature"]),
            number(row["curvature_near_zero"]),
            "–" if above is None else "yes" if above else "no",
            f"{number(row['slope_low'])}, {number(row['slope_high'])}",
            percent(row["clean_accuracy"]),
            percent(row["robust_accuracy"]),
            number(row["radius"]),
            number(row["lipschitz"]),
            *([percent(row["square_success"])] if square else []),
        )
    return table
