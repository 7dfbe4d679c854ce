"""`curvact activation`: the properties of activations, and a picture of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from curvact.errors import CurvactError

PLOTS = (".png", ".svg", ".pdf")


def activation(
    names: Annotated[list[str], typer.Argument(help='Activations, such as "rctaf(curvature=6)" or relu.')],
    plot: Annotated[Path | None, typer.Option(help="Draw σ, σ′ and σ″ into this .png, .svg or .pdf.")] = None,
    reach: Annotated[float | None, typer.Option(help="Half the width of the plot's x axis.")] = None,
) -> None:
    """Show the properties of activations: κ, slopes, limits."""
    if plot is not None and plot.suffix not in PLOTS:
        raise CurvactError(f"--plot {plot}: the name must end in .png, .svg or .pdf")
    if reach is not None and not (math.isfinite(reach) and reach > 0):
        raise CurvactError(f"--reach {reach}: must be a finite number > 0")
    from rich.console import Console
    from rich.table import Table

    from curvact.activations.describe import describe

    console = Console()
    reports = [describe(name) for name in names]
    table = Table(show_header=len(reports) > 1, box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, overflow="fold")
    if len(reports) == 1:
        console.print(f"[bold]{reports[0].name}[/]")
    rows = {
        "κ = max|σ″|": [
            f"{_number(r.max_curvature.value)} at x = {_number(r.max_curvature.at)}" for r in reports
        ],
        "σ(0)": [_number(r.at_zero) for r in reports],
        "σ′(0)": [_number(r.slope_at_zero) for r in reports],
        "slope, x → −∞ and +∞": [f"{_number(r.slope_low)} and {_number(r.slope_high)}" for r in reports],
        "value, x → −∞": [_number(r.value_low) for r in reports],
        "value, x → +∞": [_asymptote(r.slope_high, r.gap_high) for r in reports],
        "monotone": ["yes" if r.monotone else f"no (least slope {_number(r.least_slope)})" for r in reports],
        "positive for some x < 0": [
            f"yes (up to {_number(r.largest_on_negative)})" if r.positive_on_negative else "no"
            for r in reports
        ],
    }
    for label, texts in rows.items():
        table.add_row(f"[dim]{label}[/]", *texts)
    console.print(table)
    if plot is not None:
        from curvact.lab.report.activation_plot import draw_activations

        draw_activations(list(names), plot, reach)
        console.print(f"wrote {plot}")


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{0.0 if abs(value) < 1e-12 else value:.6g}".replace("-", "−")


def _asymptote(slope: float, gap: float) -> str:
    if abs(slope) < 1e-6:
        return _number(gap)
    line = "x" if abs(slope - 1) < 1e-9 else f"{_number(slope)}·x"
    gap = 0.0 if abs(gap) < 1e-9 else gap
    return line if gap == 0 else f"{line} {'+' if gap > 0 else '−'} {_number(abs(gap))}"
