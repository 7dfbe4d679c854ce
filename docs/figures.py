"""Draws the figure of the README from the runs of the demo: `python docs/figures.py`."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import curvact as cv
from curvact.lab.report.style import (
    BAND_COLOUR,
    CURVATURE_LABEL,
    GREY,
    OKABE_ITO,
    house_style,
    log_ticks,
    write_figure,
)

HERE = Path(__file__).parent
SHOWN = (0.5, 2, 6, 40)
ATTACKS = (("subset_robust_accuracy", "apgd-ce + apgd-t", "-"), ("robust_accuracy", "PGD-20", ":"))


def shapes(axes: tuple[Axes, ...]) -> None:
    """σ, σ′ and σ″ of RCT-AF for a few κ."""
    x = torch.linspace(-2.5, 2.5, 801, dtype=torch.float64)
    for colour, kappa in zip(OKABE_ITO, SHOWN, strict=False):
        act = cv.activation(f"rctaf(curvature={kappa})").double()
        for ax, values in zip(axes, (act(x), act.slope(x), act.curvature(x)), strict=True):
            ax.plot(x, values.detach(), color=colour, label=f"κ = {kappa:g}")
    for ax, title in zip(axes, ("σ", "σ′", "σ″ (its maximum is κ)"), strict=True):
        ax.set_title(title)
    axes[2].set_ylim(0, 8)
    axes[0].legend(loc="upper left")


def robustness(ax: Axes, rows: list[dict[str, str]]) -> None:
    """Mean robust accuracy by κ under both attacks, each seed as a dot, ReLU as a line."""
    ax.axvspan(4, 10, color=BAND_COLOUR, zorder=0)
    for (metric, label, dash), colour in zip(ATTACKS, (OKABE_ITO[0], GREY), strict=True):
        values: dict[float, list[float]] = defaultdict(list)
        for row in rows:
            if row["curvature"]:
                values[float(row["curvature"])].append(100 * float(row[metric]))
        kappas = sorted(values)
        ax.plot(kappas, [sum(values[k]) / len(values[k]) for k in kappas], dash, color=colour, label=label)
        dots = [(k, value) for k in kappas for value in values[k]]
        ax.plot(*zip(*dots, strict=True), ".", color=colour, markersize=4, alpha=0.6)
        relu = [100 * float(row[metric]) for row in rows if row["reference"] == "relu"]
        ax.axhline(sum(relu) / len(relu), color=colour, linewidth=0.9, linestyle="--")
        ax.annotate("ReLU", (0.09, sum(relu) / len(relu) + 0.4), color=colour, fontsize=8)
    ax.set_xscale("log")
    log_ticks(ax, "x")
    ax.set_xlabel(CURVATURE_LABEL)
    ax.set_title("robust accuracy, %")
    ax.legend(loc="lower right")


def main() -> None:
    rows = list(
        csv.DictReader(
            (HERE.parent / "reproductions" / "rctaf" / "results" / "demo.csv").read_text().splitlines()
        )
    )
    with house_style():
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.5))
        shapes(tuple(axes[:3]))
        robustness(axes[3], rows)
    write_figure(figure, HERE / "img" / "curvature")


if __name__ == "__main__":
    main()
