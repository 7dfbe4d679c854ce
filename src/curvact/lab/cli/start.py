"""`curvact init`, `curvact schema` and `curvact doctor`: a spec to begin with, and what this machine has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from curvact.errors import CurvactError

Kind = Annotated[str, typer.Argument(help="What the spec is for: run, sweep or search.")]

_RUN: dict[str, Any] = {
    "name": "mine",
    "data.name": "digits",
    "model.name": "mini_resnet",
    "activation": "rctaf(curvature=6)",
    "threat_model.norm": "linf",
    "threat_model.epsilon": "8/255",
    "training.objective": "pgd-at",
    "training.epochs": 10,
    "training.batch_size": 48,
    "training.learning_rate": 0.06,
    "training.attack": "pgd-10",
    "evaluation.attack": "pgd-20",
    "evaluation.autoattack_images": 100,
    "seed": 0,
}
"""What a run's spec of `init` sets."""

_SWEEP: dict[str, Any] = {
    "name": "mine",
    "question": "At which curvature is the network most robust?",
    "grid": {"curvature": [0.5, 2, 6, 20], "seed": [0, 1, 2]},
    "references": ["relu"],
}
_SEARCH: dict[str, Any] = {
    "name": "mine",
    "space": {"curvature": {"low": 0.1, "high": 60, "log": True}},
    "budget": 20_000,
}

_COMMANDS = {"run": "train", "sweep": "sweep run", "search": "search"}


def init(
    kind: Kind = "run",
    out: Annotated[Path | None, typer.Option(help="The file to write; by default KIND.yaml.")] = None,
    data: Annotated[str, typer.Option(help="A data set or a path: see `curvact data list`.")] = "digits",
    model: Annotated[
        str, typer.Option(help='A network, such as resnet18 or "my.py:Net(width=8)".')
    ] = "mini_resnet",
    every: Annotated[
        bool, typer.Option("--all", help="Write every key; those not set stand behind a #.")
    ] = False,
) -> None:
    """Write a spec to begin with: each key says what it means."""
    from curvact.files import atomic_write
    from curvact.lab.keys import check_kind, commented
    from curvact.lab.settings import check_settings
    from curvact.lab.spec import DataSpec, ModelSpec

    check_kind(kind)
    check_settings(DataSpec, {"name": data}, "--data")
    file, colon, _ = model.partition(":")
    if not colon:  # else of a file or a library, which need not be here yet
        check_settings(ModelSpec, {"name": model}, "--model")
    path = out or Path(f"{kind}.yaml")
    if path.exists():
        raise CurvactError(f"{path} exists: --out takes another name")
    given = _RUN | {"data.name": data, "model.name": model}
    given["threat_model.epsilon"] = 0.2 if data == "digits" else "8/255"
    if kind != "run":
        base = {f"base.{key}": value for key, value in given.items() if key not in ("name", "seed")}
        given = base | {"base.activation": "rctaf"} | (_SWEEP if kind == "sweep" else _SEARCH)
    if file.endswith(".py"):
        given["imports"] = [file]
    command = f"curvact {_COMMANDS[kind]} {path}"
    atomic_write(path, f"# {command}\n\n{commented(kind, given, every)}")
    print(f"wrote {path}; it is run by: {command}")


def schema(kind: Kind = "run") -> None:
    """Print the JSON schema of a spec, for editors.

    An editor with a YAML language server completes and checks a spec whose first line is
    `# yaml-language-server: $schema=FILE`.
    """
    from curvact.lab.keys import schema_of

    print(json.dumps(schema_of(kind), indent=2, ensure_ascii=False))


def doctor(
    root: Annotated[
        Path | None, typer.Option(help="The folder of the data sets; by default $CURVACT_DATA, else ./data.")
    ] = None,
) -> None:
    """Show what this machine has, and what is slow here.

    Three rates are measured, which takes some seconds.
    """
    from rich.table import Table

    from curvact.lab.cli.options import plain_console
    from curvact.lab.doctor import examine

    health = examine(root)
    console = plain_console()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in {**health.facts, **health.rates}.items():
        table.add_row(name, value)
    whole = [name for name, missing in health.extras.items() if not missing]
    table.add_row("extras installed", ", ".join(whole) or "none")
    lacking = [name for name, missing in health.extras.items() if missing]
    if lacking:
        table.add_row("extras missing", f"{', '.join(lacking)} (pip install 'curvact[NAME]')")
    console.print(table)
    for finding in health.findings:
        console.print(f"• {finding}", soft_wrap=True)
