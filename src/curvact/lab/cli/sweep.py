"""`curvact sweep`: many runs from one spec, their table, and the answers to its questions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sweep_app = typer.Typer(no_args_is_help=True, help="Run many variants side by side, and report on them.")


@sweep_app.command("run")
def run_command(
    spec: Annotated[
        Path,
        typer.Argument(help="A YAML file such as sweeps/digits.yaml, or the folder of a sweep that goes on."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: runs/NAME.")] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time. Default: the number of cores.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in a folder that holds a sweep. Its spec may have grown.")
    ] = False,
    engine: Annotated[str, typer.Option(help="What executes the runs.")] = "local",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key: base.training.batch_size=64, grid.seed=[0,1]."),
    ] = None,
) -> None:
    """Execute every run of a sweep side by side, then write its table, figures and page."""
    from curvact.lab.sweep import read_sweep
    from curvact.lab.sweep_run import run_sweep

    sweep = read_sweep(spec, set_)
    folder = out if out is not None else spec if spec.is_dir() else Path("runs") / sweep.name
    problems = run_sweep(sweep, folder, workers=workers, resume=resume or folder == spec, engine=engine)
    _report(folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise typer.Exit(1)


@sweep_app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="The folder that `curvact sweep run` wrote.")],
) -> None:
    """Write results.csv, the tables, the figures and report.html again from the records of a sweep."""
    _report(folder)


def _report(folder: Path) -> None:
    from rich.console import Console

    from curvact.lab.report.text import to_terminal
    from curvact.lab.sweep_run import report

    console = Console()
    with Console(stderr=True).status("statistics, figures and page"):
        result = report(folder)
    for grid in result.tables:
        for table in to_terminal(grid, console.width):
            console.print(table)
            console.print()
    for sentence in result.sentences:
        console.print(f"• {sentence}", highlight=False)
    names = ("report.html", "results.csv", "table.md", "table.tex")
    files = "\n".join(f"{name}: {result.files[name]}" for name in names if name in result.files)
    console.print(f"\n{files}", highlight=False, soft_wrap=True)
