"""`curvact sweep`: many runs from one spec, their table, and the answers to its questions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from curvact.errors import CurvactError, printable
from curvact.lab.cli.options import Address, Devices, Engine, Resume, RunOut, Workers

sweep_app = typer.Typer(no_args_is_help=True, help="Run many variants side by side, and report on them.")


@sweep_app.command("run")
def sweep_run(
    spec: Annotated[
        Path,
        typer.Argument(help="A YAML file such as sweeps/digits.yaml, or a sweep's folder to go on with."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key: base.training.batch_size=64, grid.seed=[0,1]."),
    ] = None,
    out: RunOut = None,
    workers: Workers = None,
    device: Devices = "auto",
    resume: Resume = False,
    engine: Engine = "local",
    address: Address = None,
) -> None:
    """Execute the runs of a sweep, then report on them.

    With --resume, finished runs are kept, and the spec may have grown. The report is a table,
    figures and a page.
    """
    from curvact.lab.remote import local_spec, working
    from curvact.lab.sweep import read_sweep
    from curvact.lab.sweep_run import run_sweep

    here = local_spec(spec)
    sweep = read_sweep(here, settings)
    place = out if out is not None else spec if here.is_dir() else Path("runs") / sweep.name
    with working(place) as (folder, store):
        problems = run_sweep(
            sweep,
            folder,
            workers=workers,
            resume=resume or place == spec,
            engine=engine,
            address=address,
            device=device,
            store=store,
        )
        for problem in problems:  # before the report, which a sweep without a finished run does not have
            print(problem, file=sys.stderr)
        try:
            _report(folder)
        except CurvactError as error:
            if not problems:
                raise
            print(f"curvact: {printable(str(error))}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)


@sweep_app.command("report")
def sweep_report(folder: Annotated[Path, typer.Argument(help="The folder of a sweep.")]) -> None:
    """Write the tables, figures and page of a sweep again."""
    from curvact.lab.remote import working

    with working(folder) as (here, _):
        _report(here)


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
        console.print(f"• {printable(sentence)}", highlight=False, markup=False)
    names = ("report.html", "results.csv", "table.md", "table.tex")
    files = "\n".join(f"{name}: {result.files[name]}" for name in names if name in result.files)
    console.print(f"\n{files}", highlight=False, soft_wrap=True, markup=False, emoji=False)
