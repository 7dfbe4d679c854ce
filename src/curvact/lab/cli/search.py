"""`curvact search`: the best value of any keys within a budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from curvact.errors import printable
from curvact.lab.cli.options import Place, Resume, RunOut, plain_console, with_options

SHOWN = ("report.html", "winner.yaml", "trials.csv")


@with_options()
def search(
    spec: Annotated[Path, typer.Argument(help="A YAML file, or a search's folder to go on with.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key: budget=20000, base.training.epochs=5.")
    ] = None,
    out: RunOut = None,
    resume: Resume = False,
    *,
    where: Place,
) -> None:
    """Search the best value of any keys within a budget.

    The budget is in gradient evaluations. Trials are judged by robust accuracy on validation images.
    At the end the winner and a baseline are attacked once on the test images. Needs pip install 'curvact[search]'.
    """
    from curvact.devices import device_named
    from curvact.lab.remote import local_spec, working
    from curvact.lab.search import read_search
    from curvact.lab.search_result import conclude
    from curvact.lab.search_run import run_search

    here = local_spec(spec)
    wanted = read_search(here, settings)
    place = out if out is not None else spec if here.is_dir() else Path("runs") / wanted.name
    with working(place) as (folder, store):
        problems = run_search(wanted, folder, where.placement, resume=resume or place == spec, store=store)
        for problem in problems:
            print(problem, file=sys.stderr)
        if problems:
            raise typer.Exit(1)
        # this machine attacks the test images: it may lack the devices of the cluster
        device = str(device_named("auto")) if where.placement.elsewhere else where.device
        result, files = conclude(folder, device, store)
    console = plain_console()
    for sentence in result.sentences:
        console.print(f"• {printable(sentence)}")
    console.print(f"\n{result.command}", soft_wrap=True)
    console.print(
        "\n".join(f"{name}: {path}" for name, path in files.items() if name in SHOWN), soft_wrap=True
    )
