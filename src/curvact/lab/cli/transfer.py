"""`curvact transfer`: extract a learned activation, show it, train another network with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvact.errors import CurvactError
from curvact.lab.cli.options import Device, OneCheckpoint, Resume, RunOut

if TYPE_CHECKING:
    from curvact.activations import Activation
    from curvact.models.learned import LearnedActivation

transfer_app = typer.Typer(no_args_is_help=True, help="Move learned activations between networks.")

ActivationFile = Annotated[Path, typer.Argument(help="The .safetensors file of a learned activation.")]


@transfer_app.command("extract")
def extract(
    checkpoint: OneCheckpoint,
    out: Annotated[Path, typer.Option(help="The file to write, .safetensors; a .json comes beside it.")],
) -> None:
    """Take the learned activation out of a checkpoint."""
    from curvact.lab.checkpoints import run_code_of
    from curvact.models.learned import extract_activation, write_learned

    for file in (out, out.with_suffix(".json")):
        if file.exists():
            raise CurvactError(f"{file} exists already: give another --out")
    learned = extract_activation(run_code_of(checkpoint))
    write_learned(out, learned)
    _show(learned)
    print(f"wrote {out} and {out.with_suffix('.json').name}")


@transfer_app.command("show")
def show(activation: ActivationFile) -> None:
    """Show values, κ, widths and origin of a learned activation."""
    from curvact.models.learned import read_learned

    _show(read_learned(activation))


@transfer_app.command("train")
def train(
    activation: ActivationFile,
    spec: Annotated[str, typer.Argument(help="A YAML file or the name of a recipe, as in `curvact train`.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings to change, such as model.name=resnet34 seed=1.")
    ] = None,
    warm_start: Annotated[
        bool, typer.Option("--warm-start", help="Train the activation on; by default it is frozen.")
    ] = False,
    out: RunOut = None,
    device: Device = "auto",
    resume: Resume = False,
) -> None:
    """Train a network with a learned activation. Its folder is runs/NAME-transfer by default."""
    from curvact.lab.cli.train import train_into
    from curvact.lab.remote import working
    from curvact.lab.spec import read_spec
    from curvact.models.learned import read_learned

    if Path(spec).is_dir():
        raise CurvactError(f"{spec} is a folder: a run that was begun goes on by `curvact train {spec}`")
    for setting in settings or []:
        key = setting.partition("=")[0]
        if key.startswith(("activation", "curvature", "centered")) or key == "model.scope":
            raise CurvactError(f"{setting!r}: the file of the learned activation decides that")
    read_learned(activation)
    origin = json.dumps({"path": str(activation), "frozen": not warm_start})
    run = read_spec(spec, [*(settings or []), f"activation_from={origin}"])
    with working(out or Path("runs") / f"{run.name}-transfer") as (where, store):
        code = train_into(run, where, resume=resume, device=device, store=store)
    if code:
        raise typer.Exit(code)


def _show(learned: LearnedActivation) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{escape(learned.name)}[/]", highlight=False)
    about = learned.provenance
    facts = Table(box=None, pad_edge=False, show_header=False)
    shared = f"{learned.scope}, {len(learned.groups)} module{'s' * (len(learned.groups) != 1)}"
    rows: dict[str, str] = {
        "scope": shared,
        "parameters": str(learned.parameters),
        "from": _origin(about),
        "checkpoint": f"{about.get('checkpoint', '')} {str(about.get('checkpoint_sha256', ''))[:12]}".strip(),
        "data": str(about.get("data", {}).get("name", "")) if isinstance(about.get("data"), dict) else "",
        "robust accuracy": _accuracy(about),
        "sha256": learned.sha256,
    }
    for key, value in rows.items():
        if value:
            facts.add_row(f"[dim]{key}[/]", escape(value))
    console.print(facts)
    table = Table(box=None, pad_edge=False)
    for column in ("places", "widths", "κ", "values"):
        table.add_column(column, overflow="fold")
    for group, module in zip(learned.groups, learned.modules(), strict=True):
        places = group.places[0] + (f" and {len(group.places) - 1} more" if len(group.places) > 1 else "")
        values = ", ".join(
            f"{name} {float(tensor):.6g}"
            if tensor.numel() == 1
            else f"{name} {'×'.join(map(str, tensor.shape))}"
            for name, tensor in group.tensors.items()
        )
        widths = ", ".join(map(str, group.widths))
        table.add_row(escape(places), widths, _curvature(module), escape(values))
    console.print(table)


def _curvature(module: Activation) -> str:
    """κ of these values. The provenance in the file may say something else."""
    from curvact.activations import known_curvature

    try:
        kappa = known_curvature(module)
    except CurvactError:
        kappa = None
    return "–" if kappa is None else f"{kappa:.6g}".replace("inf", "∞")


def _origin(about: Any) -> str:
    architecture = about.get("architecture")
    return str(architecture.get("name", "")) if isinstance(architecture, dict) else ""


def _accuracy(about: Any) -> str:
    robust = about.get("robust_accuracy")
    if not isinstance(robust, float):
        return ""
    return f"{robust:.2%} under {about['attack']}" if "attack" in about else f"{robust:.2%}"
