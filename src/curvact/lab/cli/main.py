"""The command line: parses, calls, prints. Bad input is one line on standard error and exit code 2."""

from __future__ import annotations

import errno
import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from curvact.errors import CurvactError
from curvact.lab.cli.analyze import analysis_app
from curvact.lab.cli.data import data_app
from curvact.lab.cli.evaluate import evaluation_app
from curvact.lab.cli.sweep import sweep_app
from curvact.lab.cli.train import training_app
from curvact.lab.cli.transfer import transfer_app

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Robust activations, chosen by their curvature."
)
app.add_typer(sweep_app, name="sweep")
app.add_typer(data_app, name="data")
app.add_typer(analysis_app, name="analyze")
app.add_typer(evaluation_app)
app.add_typer(training_app)
app.add_typer(transfer_app, name="transfer")


@app.command("activation")
def activation_command(
    names: Annotated[
        list[str], typer.Argument(help='such as "rctaf(curvature=6)" or relu; several are compared')
    ],
    plot: Annotated[
        Path | None, typer.Option(help="draw σ, σ′ and σ″ side by side into this .png, .svg or .pdf")
    ] = None,
    reach: Annotated[float | None, typer.Option(help="half the width of the plot's x axis")] = None,
) -> None:
    """κ, limits of slope and value, output at 0, monotone or not, positive on negative inputs or not."""
    from curvact.activations.describe import describe

    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise CurvactError(f"--plot {plot}: the name must end in .png, .svg or .pdf")
    if reach is not None and not (math.isfinite(reach) and reach > 0):
        raise CurvactError(f"--reach {reach}: must be a finite number > 0")
    reports = [describe(name) for name in names]
    table = Table(show_header=len(reports) > 1, box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, overflow="fold")
    if len(reports) == 1:
        Console().print(f"[bold]{reports[0].name}[/]")

    def row(label: str, texts: list[str]) -> None:
        table.add_row(f"[dim]{label}[/]", *texts)

    row(
        "κ = max|σ″|",
        [f"{_number(r.max_curvature.value)} at x = {_number(r.max_curvature.at)}" for r in reports],
    )
    row("σ(0)", [_number(r.at_zero) for r in reports])
    row("σ′(0)", [_number(r.slope_at_zero) for r in reports])
    row("slope, x → −∞ and +∞", [f"{_number(r.slope_low)} and {_number(r.slope_high)}" for r in reports])
    row("value, x → −∞", [_number(r.value_low) for r in reports])
    row("value, x → +∞", [_asymptote(r.slope_high, r.gap_high) for r in reports])
    row("monotone", ["yes" if r.monotone else f"no (least slope {_number(r.least_slope)})" for r in reports])
    row(
        "positive for some x < 0",
        [
            f"yes (up to {_number(r.largest_on_negative)})" if r.positive_on_negative else "no"
            for r in reports
        ],
    )
    Console().print(table)
    if plot is not None:
        from curvact.lab.report.activation_plot import draw_activations

        draw_activations(list(names), plot, reach)
        Console().print(f"wrote {plot}")


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


def main() -> None:
    """Entry point of the `curvact` command."""
    try:
        app()
    except CurvactError as error:
        print(f"curvact: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        print(f"curvact: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("curvact: stopped; `curvact sweep run … --resume` goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
