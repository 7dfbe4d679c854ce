"""`curvact train`: one run into a folder, gone on with, or extended."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvact.errors import CurvactError
from curvact.lab.cli.options import Device, Resume, RunOut, plain_console

if TYPE_CHECKING:
    from curvact.lab.remote import Store
    from curvact.lab.spec import RunSpec


def train(
    spec: Annotated[
        str | None,
        typer.Argument(help="A YAML file, the name of a recipe, or a run folder to go on with."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings to change, such as training.epochs=20 seed=1.")
    ] = None,
    out: RunOut = None,
    device: Device = "auto",
    resume: Resume = False,
    list_recipes: Annotated[bool, typer.Option("--list-recipes", help="List the recipes.")] = False,
) -> None:
    """Train a network adversarially, then attack it.

    The best and the last weights are attacked on the test split. A finished run is extended by its
    folder and more epochs, such as `curvact train runs/mine training.epochs=40`, where its schedule
    allows it.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from curvact.lab.remote import local_spec, working
    from curvact.lab.spec import read_spec, recipes
    from curvact.lab.urls import is_url

    console = Console()
    if list_recipes:
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, about in recipes().items():
            table.add_row(f"[bold]{name}[/]", escape(about))
        console.print(table)
        return
    if spec is None:
        raise CurvactError(f"give a YAML file, a run's folder or a recipe: {', '.join(recipes())}")
    here = local_spec(Path(spec)) if is_url(spec) else Path(spec)
    folder = Path(spec) if here.is_dir() else None
    if folder is not None and out is not None:
        raise CurvactError(f"{spec} is the folder of a run: it goes on there, without --out")
    run = read_spec(here if is_url(spec) else spec, settings)
    with working(folder or out or Path("runs") / run.name) as (where, store):
        code = train_into(run, where, resume=resume or folder is not None, device=device, store=store)
    if code:
        raise typer.Exit(code)


def train_into(run: RunSpec, where: Path, *, resume: bool, device: str, store: Store | None = None) -> int:
    """Execute a run, draw its curves, print its accuracies. Returns the exit code, 1 if it failed.

    device: a name; "auto" leaves it to the spec. store: as in `execute`.
    """
    from rich.console import Console
    from rich.table import Table

    from curvact.devices import check_device_name, device_named
    from curvact.lab.layout import RECORD_FILE, SPEC_FILE
    from curvact.lab.progress import run_bar
    from curvact.lab.report.training_curves import draw_curves
    from curvact.lab.run import execute
    from curvact.lab.store import read_history, read_record

    if check_device_name(device, "--device") != "auto":
        device_named(device, "--device")
        run = run.on(device)
    errors = Console(stderr=True, markup=False, emoji=False)
    if (where / SPEC_FILE).is_file() and not resume:
        raise CurvactError(f"{where} holds a run already: --resume goes on with it")
    earlier = read_record(where) if (where / RECORD_FILE).is_file() else None
    with run_bar(run.name, errors) as show:
        record = execute(run, where, on_event=show, store=store)
    if earlier == record:
        errors.print(f"{where} has run to its end", soft_wrap=True, highlight=False)
    if record.status == "failed":
        print(f"curvact: {run.name}: {record.cause}", file=sys.stderr)
        return 1
    if not record.metrics:  # another process of torchrun has them
        return 0
    draw_curves(read_history(where), where / "curves", run.name)
    table = Table(box=None, pad_edge=False)
    for column in ("weights", "epoch", "clean", str(run.evaluation.attack)):
        table.add_column(column, justify="left" if column == "weights" else "right")
    numbers, name = record.metrics, run.evaluation.metric
    rows = [("last", record.last_epoch, "")]
    if "best_epoch" in numbers:
        rows.insert(0, ("best", int(numbers["best_epoch"]), "best_"))
    for weights, epoch, prefix in rows:
        clean, robust = (numbers[prefix + name(f"{kind}_accuracy")] for kind in ("clean", "robust"))
        table.add_row(weights, str(epoch), f"{clean:.2%}", f"{robust:.2%}")
    console = plain_console()
    console.print(table)
    parts, pgd = (name(f"subset_{kind}_accuracy") for kind in ("robust", "pgd"))
    if parts in numbers:
        attacks = " + ".join(run.evaluation.autoattack_parts)
        console.print(
            f"{attacks} on the first images, at most {run.evaluation.autoattack_images}, last weights: robust "
            f"{numbers[parts]:.2%}; {run.evaluation.attack} on the same images: {numbers[pgd]:.2%}",
            highlight=False,
        )
    if record.note:
        console.print(record.note)
    console.print(
        f"{record.gradient_evaluations} gradient evaluations, {record.seconds:.0f} s; {where}/curves.png",
        highlight=False,
        soft_wrap=True,
    )
    return 0
