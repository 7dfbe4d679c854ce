"""`curvact runs`: what lies below a folder, filtered, sorted and exported. It runs no code of yours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvact.errors import CurvactError, printable
from curvact.lab.cli.options import at_least, plain_console

if TYPE_CHECKING:
    from curvact.lab.stored import StoredRun

runs_app = typer.Typer(no_args_is_help=True, help="List, show and export the runs below folders.")

Folders = Annotated[list[Path], typer.Argument(help="Folders of sweeps, searches and runs, or above them.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Only runs that meet it: training.objective=trades, curvature>4, status!=done."),
]
Sort = Annotated[
    str | None, typer.Option(help="Sort by this key, such as robust; -robust has the highest first.")
]


@runs_app.command("ls")
def runs_ls(
    folders: Folders,
    where: Where = None,
    sort: Sort = None,
    limit: Annotated[int, typer.Option(help="Show so many runs; 0 shows all.")] = 50,
) -> None:
    """List runs: id, status, κ, robust accuracy, cost.

    The robust accuracy is that of the strongest attack that was measured, with the last weights.
    """
    at_least("--limit", limit, 0)
    found = _found(folders, where, sort)
    lines = [_HEADS, *(_line(run) for run in (found[:limit] if limit else found))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.rjust(width) if head in _NUMBERS else cell.ljust(width)
            for head, cell, width in zip(_HEADS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    typer.echo("\n".join(text))
    if limit and len(found) > limit:
        typer.echo(f"… {len(found) - limit:,} more: --limit 0 shows all")
    typer.echo(_summary(found))


@runs_app.command("show")
def runs_show(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, or one above it.")],
    run: Annotated[str | None, typer.Argument(help="The run's id, or how it begins.")] = None,
) -> None:
    """Show one run: spec, metrics, files, command.

    The command trains it again from its spec.
    """
    from curvact.lab.layout import SPEC_FILE
    from curvact.lab.stored import stored_runs

    found = stored_runs(folder)
    if run is not None:
        found = [one for one in found if one.run.startswith(run)]
    if not found:
        what = "no run" if run is None else f"no run whose id begins with {run}"
        raise CurvactError(f"{folder} holds {what}: `curvact runs ls {folder}` lists them")
    if len(found) > 1:
        some = ", ".join(f"{one.run or one.folder}" for one in found[:5])
        raise CurvactError(f"{folder} holds {len(found):,} such runs ({some}, …): give the id of one")
    (one,) = found
    console = plain_console()
    facts = {
        "run": one.run,
        "name": one.name,
        "status": f"{one.status}{': ' if one.cause else ''}{one.cause}",
        "folder": str(one.folder),
        "activation": one.activation,
        "κ": _number(one.curvature),
        "robust": f"{_percent(one.robust)} ({one.attack})" if one.attack else "",
    }
    lines = [*facts.items(), ("", ""), *one.metrics.items(), ("", ""), *one.values.items()]
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        text = _number(value) if isinstance(value, float) else "" if value is None else str(value)
        console.print(f"{key:<{width}}  {printable(text)}".rstrip(), soft_wrap=True)
    files = sorted(path for path in one.folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for path in files:
        console.print(f"{path.stat().st_size:>14,}  {printable(path.name)}", soft_wrap=True)
    if one.folder / SPEC_FILE in files:
        console.print(f"\ncurvact train {one.folder / SPEC_FILE} --out runs/again", soft_wrap=True)


@runs_app.command("export")
def runs_export(
    folders: Folders,
    out: Annotated[Path, typer.Option("--out", help="The file: .csv, .json or .parquet.")],
    where: Where = None,
    sort: Sort = None,
) -> None:
    """Write runs to a file, a row each, with every key.

    A Parquet file needs pip install 'curvact[parquet]'.
    """
    from curvact.lab.stored import export_runs

    found = _found(folders, where, sort)
    export_runs(found, out)
    typer.echo(f"{len(found):,} runs: {out}")


def _found(folders: Sequence[Path], where: Sequence[str] | None, sort: str | None) -> list[StoredRun]:
    from curvact.lab.stored import selected, stored_runs

    found = list({run.folder.absolute(): run for folder in folders for run in stored_runs(folder)}.values())
    if not found:
        raise CurvactError(f"no run below {', '.join(map(str, folders))}: `curvact train` writes one")
    return selected(found, where or (), sort)


_HEADS = ("run", "name", "status", "κ", "activation", "robust %", "by", "seed", "s", "folder")
_NUMBERS = ("κ", "robust %", "seed", "s")


def _line(run: StoredRun) -> tuple[str, ...]:
    cells = (
        run.run,
        run.name,
        run.status,
        _number(run.curvature),
        run.activation,
        _percent(run.robust),
        run.attack,
        "" if run.seed is None else str(run.seed),
        "" if run.seconds is None else f"{run.seconds:.0f}",
        str(run.folder),
    )
    return tuple(printable(cell).replace("\n", " ") for cell in cells)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _summary(runs: Sequence[StoredRun]) -> str:
    states = [run.status for run in runs]
    kinds = ", ".join(f"{states.count(state):,} {state}" for state in dict.fromkeys(sorted(states)))
    hours = sum(run.seconds or 0.0 for run in runs) / 3600
    return f"{len(runs):,} runs" + (f" ({kinds})" if kinds else "") + f", {hours:,.2f} h"
