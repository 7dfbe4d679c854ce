"""`curvact sweep`: many runs from one spec, their table, and the answers to its questions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from curvact.errors import CurvactError, printable
from curvact.lab.cli.options import Device, Place, Resume, RunOut, with_options

sweep_app = typer.Typer(no_args_is_help=True, help="Run many variants side by side, and report on them.")


@sweep_app.command("run")
@with_options()
def sweep_run(
    spec: Annotated[
        Path,
        typer.Argument(help="A YAML file, a name of `sweep list`, or a sweep's folder to go on with."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key: base.training.batch_size=64, grid.seed=[0,1]."),
    ] = None,
    out: RunOut = None,
    resume: Resume = False,
    *,
    where: Place,
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
        problems = run_sweep(sweep, folder, where.placement, resume=resume or place == spec, store=store)
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


@sweep_app.command("list")
def sweep_list() -> None:
    """List the sweeps that come with curvact, each with its question."""
    from curvact.lab.sweep import sweeps

    for name, question in sweeps().items():
        print(f"{name:20} {question}")


@sweep_app.command("cost")
def sweep_cost(
    spec: Annotated[Path, typer.Argument(help="A YAML file, a name of `sweep list`, or a sweep's folder.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key, as in `sweep run`.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Operations a second of one device, such as 40TFLOPS, for the hours; "
            "measure: try the first batches of the first run."
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="An axis of the sweep, such as model.name.")] = None,
    clean: Annotated[float, typer.Option(help="The assumed clean accuracy, for AutoAttack.")] = 0.85,
    robust: Annotated[float, typer.Option(help="The assumed robust accuracy, for AutoAttack.")] = 0.5,
    device: Device = "auto",
) -> None:
    """Count what the runs of a sweep cost. Nothing is trained.

    Operations are counted for each network, objective and attack, and added up over images, epochs and runs.
    """
    from rich.console import Console

    from curvact.lab.cost import AssumedAccuracy, costs_of, measured_rate, parse_rate, rate_text
    from curvact.lab.placement import Placement
    from curvact.lab.remote import local_spec
    from curvact.lab.report.sweep.cost import check_axis, cost_tables
    from curvact.lab.report.text import to_terminal
    from curvact.lab.sweep import read_sweep

    if device != "auto" and rate != "measure":
        raise CurvactError(f"--device {device}: it is for --rate measure, which tries that device")
    accuracy = AssumedAccuracy(clean, robust)
    known = parse_rate(rate) if rate not in (None, "measure") else None
    sweep = read_sweep(local_spec(spec), settings)
    runs = list({run.id: run for run in sweep.planned}.values())
    check_axis(runs, by)
    console = Console()
    with Console(stderr=True).status("counting"):
        costs = costs_of([run.spec for run in runs], accuracy)
        if rate == "measure":
            known = measured_rate(Placement(device=device).settled(runs[0].spec))
    evaluations = sum(cost.gradient_evaluations for cost in costs)
    words = [f"{len(runs):,} runs, at most {evaluations:,} gradient evaluations of training."]
    if known is not None:
        how = f"measured in {runs[0].label}" if rate == "measure" else "given"
        words.append(f"Hours are those of one device at {rate_text(known)} ({how}).")
    for grid in cost_tables(runs, costs, accuracy, known, by):
        for table in to_terminal(grid, console.width):
            console.print(table)
            console.print()
        words += grid.notes
    for sentence in words:
        console.print(f"• {printable(sentence)}", highlight=False, markup=False)


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
