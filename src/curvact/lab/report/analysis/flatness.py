"""Rise of the adversarial loss when weights move, as a figure and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from curvact.lab.report.analysis.common import Record, check_not_empty, headline, new_table, number, plotted
from curvact.lab.report.style import OKABE_ITO, canvas, house_style, plain_text


def flatness_figure(records: Mapping[str, Record], title: str = "", ax: Axes | None = None) -> Figure:
    """Rise of the adversarial loss by model, with a dot for every draw or restart.

    records: of `AverageFlatness` and `WorstFlatness`, by name; a panel for each kind. The bars of
    the average case are ± 2 standard errors.
    Raises CurvactError for no records.

    >>> record = {"kind": "worst", "flatness": 0.3, "loss": 1.0, "losses": [1.2, 1.3], "radius": 0.003}
    >>> [axes.get_title(loc="left") for axes in flatness_figure({"net": record}).axes]
    ['worst case, ξ = 0.003']
    """
    check_not_empty(records, "flatness_figure")
    kinds = [kind for kind in ("average", "worst") if any(r["kind"] == kind for r in records.values())]
    with house_style():
        most = max(sum(r["kind"] == kind for r in records.values()) for kind in kinds)
        figure = canvas((4.8 * len(kinds), 1.6 + 0.42 * most), ax)
        for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            chosen = {name: r for name, r in records.items() if r["kind"] == kind}
            for row, record in enumerate(chosen.values()):
                loss = plotted(record["loss"])
                rises = np.array([plotted(v) for v in record["losses"]]) - loss
                colour = OKABE_ITO[row % len(OKABE_ITO)]
                axes.plot(rises, np.full(len(rises), row), ".", color=colour, alpha=0.45, markeredgewidth=0)
                error = 2 * plotted(record.get("standard_error", 0.0))
                axes.errorbar(
                    [plotted(record["flatness"])],
                    [row],
                    xerr=[error] if math.isfinite(error) and error > 0 else None,
                    marker="D",
                    color=colour,
                    capsize=3,
                )
            radii = sorted({r["radius"] for r in chosen.values()})
            axes.set_yticks(range(len(chosen)), [plain_text(name) for name in chosen])
            axes.set_ylim(len(chosen) - 0.4, -0.6)
            axes.axvline(0, color="#888888", linewidth=0.8)
            axes.grid(True, axis="x")
            axes.grid(False, axis="y")
            axes.set_xlabel("rise of the loss")
            case = "average case" if kind == "average" else "worst case"
            axes.set_title(f"{case}, ξ = {', '.join(f'{radius:g}' for radius in radii)}")
        headline(figure, title)
        return figure


def flatness_table(results: Mapping[str, Record]) -> Table:
    """Results of `flatness_analysis` by name of the model."""
    table = new_table(
        "rise of the adversarial loss when the weights move",
        ["model", "case", "ξ", "loss", "rise", "± SE", "highest", "parameters"],
        left=2,
    )
    for name, result in results.items():
        for case, record in result.items():
            losses = [loss for loss in record["losses"] if loss is not None]
            highest = max(losses) - record["loss"] if losses and record["loss"] is not None else None
            table.add_row(
                escape(name),
                case,
                number(record["radius"]),
                number(record["loss"], 4),
                number(record["flatness"]),
                number(record.get("standard_error"), 2),
                number(highest),
                f"{record['parameters']:,}",
            )
    return table
