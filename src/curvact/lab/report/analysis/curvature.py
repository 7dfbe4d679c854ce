"""Effective curvature by call site, as a figure and a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from curvact.errors import CurvactError
from curvact.lab.report.analysis.common import (
    Record,
    handle,
    headline,
    legend,
    new_table,
    number,
    percent,
    plotted,
)
from curvact.lab.report.style import OKABE_ITO, canvas, house_style, plain_text


def effective_curvature_figure(record: Record, title: str = "", ax: Axes | None = None) -> Figure:
    """Effective curvature and the share of curved units, by call site.

    record: of `EffectiveCurvature`; or of `EffectiveCurvatureChange`, where hollow marks are before
    training. Call sites with a kink have ∞ at the right edge, and the title counts them.
    Raises CurvactError for a record without call sites.

    >>> site = {"site": "act", "effective": 2.0, "curved_half": 0.5, "curved_tenth": 0.9, "kink": False}
    >>> len(effective_curvature_figure({"sites": [site]}).axes)
    2
    """
    moments = (
        [("after", record["after"], True), ("before", record["before"], False)] if "after" in record else []
    )
    moments = moments or [("", record, True)]
    sites = [str(site["site"]) for site in moments[0][1]["sites"]]
    if not sites:
        raise CurvactError("a record of effective curvature without call sites: there is nothing to draw")
    kinks = sum(bool(site["kink"]) for site in moments[0][1]["sites"])
    rows = np.arange(len(sites))
    with house_style():
        figure = canvas((9.0, 1.9 + 0.24 * len(sites)), ax)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        for when, moment, filled in moments:
            at = rows + {"before": -0.13, "after": 0.13, "": 0.0}[when]
            _dots(left, moment, "effective", at, OKABE_ITO[0], "o", filled)
            _dots(right, moment, "curved_half", at, OKABE_ITO[1], "s", filled)
            _dots(right, moment, "curved_tenth", at, OKABE_ITO[2], "^", filled)
        left.set_yticks(rows, [plain_text(site) for site in sites], fontsize=8)
        left.set_ylim(len(sites) - 0.5, -0.5)
        left.set_xlim(0, 1.08 * left.get_xlim()[1])
        right.set_xlim(0, min(100.0, 1.15 * max(1.0, right.get_xlim()[1])))
        for row, entry in zip(rows, moments[0][1]["sites"], strict=True):
            if entry["kink"]:
                across = left.get_yaxis_transform()
                left.text(0.985, row, "∞", transform=across, color=OKABE_ITO[0], ha="right", va="center")
        for axes in (left, right):
            if not any(
                np.isfinite(np.asarray(line.get_xdata(), dtype=float)).any() for line in axes.get_lines()
            ):
                axes.set_xticks([])
        left.set_xlabel("effective curvature κ·s")
        right.set_xlabel("units in the curved region, %")
        for axes in (left, right):
            axes.grid(True, axis="both")
        note = f"{kinks} of {len(sites)} call sites have a kink: κ is infinite" if kinks else ""
        headline(figure, title, note)
        handles = [
            handle("κ·s", OKABE_ITO[0], "o"),
            handle("|σ″| ≥ κ/2", OKABE_ITO[1], "s"),
            handle("|σ″| ≥ κ/10", OKABE_ITO[2], "^"),
        ]
        if len(moments) == 2:
            handles += [handle("before", marker="o", filled=False), handle("after", marker="o")]
        legend(figure, handles, len(handles))
        return figure


def curvature_table(name: str, record: Record) -> Table:
    """The record of one model, a row a call site. record: as in `effective_curvature_figure`."""
    change = "after" in record
    after = record["after"] if change else record
    kinds = dict.fromkeys(site["activation"] for site in after["sites"])
    columns = ["call site", *(["activation"] if len(kinds) > 1 else [])]
    left = len(columns)
    columns += ["κ", "s", "κ·s", "≥ κ/2 %", "≥ κ/10 %"]
    if change:
        columns += ["before: κ·s", "≥ κ/2 %", "κ·s after/before"]
    title = f"{name}: effective curvature κ·s, and share of units with |σ″| ≥ κ/2, ≥ κ/10"
    if len(kinds) == 1:
        title += f"; σ = {next(iter(kinds))}"
    table = new_table(title, columns, left=left)
    earlier = record["before"]["sites"] if change else [{}] * len(after["sites"])
    for site, old in zip(after["sites"], earlier, strict=True):
        cells = [
            escape(site["site"]),
            *([escape(site["activation"])] if len(kinds) > 1 else []),
            "∞" if site["kink"] else number(site["max_curvature"]),
            number(site["spread"]),
            "∞" if site["kink"] else number(site["effective"]),
            percent(site["curved_half"]),
            percent(site["curved_tenth"]),
        ]
        if change:
            cells += [
                "∞" if old["kink"] else number(old["effective"]),
                percent(old["curved_half"]),
                number(record["ratio"][site["site"]]),
            ]
        table.add_row(*cells)
    return table


def _dots(
    axes: Axes, record: Record, column: str, at: NDArray[Any], colour: str, marker: str, filled: bool
) -> None:
    scale = 1.0 if column == "effective" else 100.0
    values = [plotted(site[column]) * scale for site in record["sites"]]
    face = colour if filled else "white"
    axes.plot(
        values,
        at,
        linestyle="none",
        color=colour,
        marker=marker,
        markerfacecolor=face,
        zorder=3,
        clip_on=False,
    )
