"""The accuracy of a network against β of `ctu` in the place of its activations."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from curvact.lab.report.analysis.common import (
    ATTACKED,
    CLEAN,
    Record,
    headline,
    new_table,
    number,
    percent,
)
from curvact.lab.report.style import MARKERS, canvas, house_style


def steering_figure(record: Record, title: str = "", ax: Axes | None = None) -> Figure:
    """Clean and robust accuracy on the validation images against β, with 95 % intervals. Dashed: the
    network as it is.

    record: of `curvact.lab.steering.Steering`.

    >>> share = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 100}
    >>> rows = [{"beta": beta, "clean": share, "robust": share} for beta in (None, 0.8, 0.9)]
    >>> len(steering_figure({"validation": rows, "beta": 0.9}).axes)
    1
    """
    plain, *rows = record["validation"]
    betas = [row["beta"] for row in rows]
    with house_style():
        figure = canvas((6.4, 3.9), ax)
        axes = figure.subplots()
        for column, colour, marker in (("clean", CLEAN, MARKERS[0]), ("robust", ATTACKED, MARKERS[1])):
            shares = [{key: 100 * row[column][key] for key in ("value", "low", "high")} for row in rows]
            values = [share["value"] for share in shares]
            around = [
                [share["value"] - share["low"] for share in shares],
                [share["high"] - share["value"] for share in shares],
            ]
            axes.errorbar(betas, values, around, color=colour, marker=marker, capsize=2, label=column)
            axes.axhline(
                100 * plain[column]["value"], color=colour, linestyle="--", label=f"{column}, as it is"
            )
        axes.axvline(record["beta"], color="#888888", linewidth=0.8, label="chosen β")
        axes.set(xlabel="β", ylabel=f"accuracy on {plain['clean']['count']} validation images, %")
        axes.legend(loc="best", fontsize=8)
        headline(figure, title)
        return figure


def steering_table(record: Record) -> Table:
    """Accuracies by β on the validation images, then on the test images."""
    columns = ["images", "β", "κ", "clean %", "robust %", "95 % interval"]
    validation, test = (record[split][0]["clean"]["count"] for split in ("validation", "test"))
    title = f"{record['attack']}, c = {number(record['c'])}, {validation} validation and {test} test images"
    table = new_table(title, columns)
    for split in ("validation", "test"):
        for row in record[split]:
            robust = row["robust"]
            table.add_row(
                split,
                "as it is" if row["beta"] is None else number(row["beta"], 6),
                number(row["curvature"]),
                percent(row["clean"]["value"]),
                percent(robust["value"]),
                f"[{percent(robust['low'])}, {percent(robust['high'])}]",
            )
    return table
