"""`curvact train`: a config, a recipe or a run's folder in; a folder with weights, metrics and curves out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curvact.errors import CurvactError

training_app = typer.Typer()


@training_app.command("train")
def train(
    config: Annotated[
        str | None, typer.Argument(help="a YAML file, a recipe's name, or the folder of a run to go on with")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings to change, such as training.epochs=20 seed=1")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write; runs/NAME if not given")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a run that was begun there")] = False,
    list_recipes: Annotated[bool, typer.Option("--list-recipes", help="the recipes that come along")] = False,
) -> None:
    """Train adversarially, then attack the best and the last weights on the test split."""
    from curvact.lab.train_config import read_config, recipes

    if list_recipes:
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, about in recipes().items():
            table.add_row(f"[bold]{name}[/]", escape(about))
        Console().print(table)
        return
    if config is None:
        raise CurvactError(f"give a YAML file, a run's folder or a recipe: {', '.join(recipes())}")
    from curvact.lab.train_run import read_history, run_training
    from curvact.training import Diverged

    folder = Path(config) if Path(config).is_dir() else None
    if folder is not None and (out is not None or overrides):
        raise CurvactError(
            f"{folder} is the folder of a run: it goes on as it was begun, without --out and overrides"
        )
    settings = read_config(config, overrides)
    where = folder or out or Path("runs") / settings.name
    try:
        record = run_training(settings, where, resume=resume or folder is not None)
    except Diverged as error:
        print(f"curvact: {settings.name}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if not record:
        return
    from curvact.lab.report.training_curves import draw_curves

    draw_curves(read_history(where), where / "curves", settings.name)
    console = Console()
    if record["status"] == "failed":
        console.print(f"failed: {record['cause']}")
        raise typer.Exit(1)
    table = Table(box=None, pad_edge=False)
    for column in ("weights", "epoch", "clean", f"PGD-{settings.test.steps}"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    for name, metrics in record["metrics"].items():
        table.add_row(
            name,
            str(metrics["epoch"]),
            f"{metrics['clean_accuracy']:.2%}",
            f"{metrics['robust_accuracy']:.2%}",
        )
    console.print(table)
    if record["note"]:
        console.print(record["note"])
    console.print(
        f"{record['gradient_evaluations']} gradient evaluations, {record['seconds']:.0f} s; {where}/curves.png",
        highlight=False,
        soft_wrap=True,
    )
