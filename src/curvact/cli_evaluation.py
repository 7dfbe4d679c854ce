"""`curvact evaluate` and `curvact leaderboard`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curvact.errors import CurvactError, nearest

if TYPE_CHECKING:
    from curvact.attacks import Finding, Progress
    from curvact.evaluation.run import Masking

evaluation_app = typer.Typer()
FOLDER = Path("runs/evaluations")
CHECKS = 11
"""Of the checklist for gradient masking."""


@evaluation_app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="model.safetensors of a trial, or weights in RobustBench's naming")
    ],
    attack: Annotated[
        str, typer.Option(help="autoattack[-plus|-rand], parts such as apgd-ce+square, pgd-20, fgsm")
    ] = "autoattack",
    data: Annotated[str | None, typer.Option(help="data set; the one it was trained on if known")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    n: Annotated[int, typer.Option("--n", help="the first so many images")] = 1000,
    norm: Annotated[
        str | None, typer.Option(help="linf, l2 or l1; the trained one if known, else linf")
    ] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="in input units, such as 8/255; the trained one if known")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the attack")] = 0,
    batch_size: Annotated[int, typer.Option(help="images at a time")] = 250,
    restarts: Annotated[int, typer.Option(help="of PGD")] = 1,
    fast: Annotated[
        bool, typer.Option("--fast", help="AutoAttack by a faster twin; each success is checked")
    ] = False,
    workers: Annotated[int, typer.Option(help="processes that share AutoAttack's shards")] = 1,
    out: Annotated[Path, typer.Option(help="folder of the records")] = FOLDER,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with an AutoAttack that was begun, or show its record")
    ] = False,
    masking: Annotated[
        str,
        typer.Option(help="look for gradient masking: quick (64 images), full (128, longer attacks) or none"),
    ] = "quick",
    no_masking: Annotated[bool, typer.Option("--no-masking", help="the same as --masking none")] = False,
) -> None:
    """Attack a checkpoint and put the outcome on record, image by image."""
    from curvact.attacks import Norm, ThreatModel
    from curvact.data import load
    from curvact.evaluation import (
        attack_parts,
        evaluate_model,
        model_hash,
        open_model,
        read_record,
        write_record,
    )

    if split not in ("train", "validation", "test"):
        raise CurvactError(f"--split {split}: allowed are train, validation, test")
    if masking not in ("quick", "full", "none"):
        raise CurvactError(
            f"--masking {masking}{nearest(masking, ('quick', 'full', 'none'))}; allowed are quick, full, none"
        )
    for option, value in (
        ("--n", n),
        ("--batch-size", batch_size),
        ("--restarts", restarts),
        ("--workers", workers),
    ):
        if value < 1:
            raise CurvactError(f"{option} {value}: must be >= 1")
    model, known = open_model(checkpoint)
    threat = known.get("threat_model", {})
    if data is None and "data" not in known:
        raise CurvactError(
            f"{checkpoint} does not say what it was trained on: give --data, such as --data cifar10"
        )
    if epsilon is None and "epsilon" not in threat:
        raise CurvactError(
            f"{checkpoint} does not say its threat model: give --epsilon, such as --epsilon 8/255"
        )
    radius = threat["epsilon"] if epsilon is None else parse_epsilon(epsilon)
    threat_model = ThreatModel(cast(Norm, norm or threat.get("norm", "linf")), radius)
    where: dict[str, Any] = known["data"] if data is None else {"name": data, "size": None}
    dataset = getattr(load(str(where["name"]), size=where["size"]), split).first(n)
    name = f"{checkpoint.parent.name}-{checkpoint.stem}" if checkpoint.stem == "model" else checkpoint.stem
    path = out / f"{name}-{attack}-{threat_model.norm}-{radius:.6g}-{split}{n}-seed{seed}.evaluation.json"
    record = read_record(path) if resume and path.is_file() else None
    if record is not None and (record.model.sha256, record.data.sha256) != (
        model_hash(model),
        dataset.sha256,
    ):
        raise CurvactError(
            f"{path} is of other weights or images than {checkpoint} and {dataset.name}: move it away"
        )
    shards = path.with_suffix(".shards")
    checklist: list[Finding] = []
    if record is None:
        if shards.exists() and not resume:
            raise CurvactError(
                f"{shards} holds an evaluation that was begun: --resume goes on with it, or remove it"
            )
        with _bar(f"{attack} on {len(dataset):,} images", checklist) as (on_progress, on_check):
            record = evaluate_model(
                model,
                dataset,
                threat_model,
                attack=attack,
                seed=seed,
                batch_size=min(batch_size, len(dataset)),
                restarts=restarts,
                mode="fast" if fast else "plain",
                workers=workers,
                folder=shards if attack_parts(attack) else None,
                on_progress=on_progress,
                on_check=on_check,
                name=name,
                architecture=known.get("architecture"),
                masking="none" if no_masking else cast("Masking", masking),
            )
        write_record(record, path)
        shutil.rmtree(shards, ignore_errors=True)
    console = Console()
    error = f"± {100 * record.standard_error:.1f}"
    console.print(
        f"{record.data.name}, first {record.data.count:,} images: clean {100 * record.clean_accuracy:.2f} %, "
        f"robust {100 * record.robust_accuracy:.2f} % {error} (one standard error, from the choice of images)",
        highlight=False,
    )
    console.print(
        f"{record.attack}, {record.threat_model.norm} ε = {record.threat_model.epsilon:.6g}, {record.seconds:,.1f} s",
        highlight=False,
    )
    told = {f"{finding.name}: {finding.sentence}" for finding in checklist}
    for text in record.findings:
        if text not in told:
            console.print(f"[bold]finding[/] {text}", highlight=False)
    if checklist:
        alarms = sum(finding.alarm for finding in checklist)
        console.print(
            f"gradient masking ({masking}): "
            + (f"{alarms} of {len(checklist)} checks alarm" if alarms else "no sign"),
            highlight=False,
        )
        for finding in checklist:
            console.print(
                f"  {escape(str(finding))}",
                highlight=False,
                soft_wrap=True,
                style="bold" if finding.alarm else "",
            )
    console.print(f"record: {path}", highlight=False, soft_wrap=True)


@evaluation_app.command("leaderboard")
def leaderboard_command(
    folder: Annotated[Path, typer.Argument(help="folder of records")] = FOLDER,
    export: Annotated[
        Path | None, typer.Option(help="write RobustBench's model_info files of the AutoAttack rows here")
    ] = None,
) -> None:
    """The records in a folder, AutoAttack apart from less."""
    from curvact.evaluation import boards, export_model_info, read_records

    console = Console()
    tables = boards(read_records(folder))
    if not tables:
        raise CurvactError(f"{folder} holds no records: `curvact evaluate CHECKPOINT` writes one")
    for board in tables:
        table = Table(title=board.title, title_justify="left", box=None, pad_edge=False)
        for column in ("#", "model", "attack", "images", "clean %", "robust %", "± SE", "findings"):
            table.add_column(column, justify="left" if column in ("model", "attack") else "right")
        for place, record in enumerate(board.records, 1):
            row: list[Any] = [
                place,
                record.model.name,
                record.attack,
                f"{record.data.count:,}",
                f"{100 * record.clean_accuracy:.2f}",
                f"{100 * record.robust_accuracy:.2f}",
                f"{100 * record.standard_error:.1f}",
                len(record.findings) or "",
            ]
            table.add_row(*map(str, row))
        console.print(table)
        console.print()
    if export is not None:
        paths = [
            export_model_info(r, export) for b in tables if b.ensemble and b.norm != "l1" for r in b.records
        ]
        console.print(f"wrote {len(paths)} files under {export}", highlight=False)


@contextmanager
def _bar(
    title: str, checklist: list[Finding]
) -> Iterator[tuple[Callable[[Progress], None], Callable[[Finding], None]]]:
    """A bar on standard error, for the attack (images done, robust accuracy so far, time left) and then for the checklist, which
    is filled.
    """
    from rich.progress import BarColumn
    from rich.progress import Progress as Bars

    columns = ("{task.description}", BarColumn(), "{task.fields[now]}")
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None, now="")

        def on_progress(progress: Progress) -> None:
            if math.isnan(progress.seconds_left):
                bars.update(task, now=_where(progress))
                return
            seconds = progress.seconds + progress.seconds_left
            bars.update(task, total=seconds, completed=progress.seconds, now=_where(progress))

        def on_check(finding: Finding) -> None:
            checklist.append(finding)
            now = f"{len(checklist)}/{CHECKS} checks"
            bars.update(task, description="gradient masking", total=CHECKS, completed=len(checklist), now=now)

        yield on_progress, on_check


def _where(progress: Progress) -> str:
    """Images done, robust accuracy so far and time left, each as far as it is known.

    >>> from curvact.attacks import Progress
    >>> _where(Progress("pgd-20", 1, 4, 250, 1000, 0.5, 30.0, 90.4))
    '250/1,000 images, robust so far 50.0 %, 01:30 left'
    """
    parts = [f"{progress.points_done:,}/{progress.points:,} images"]
    if not math.isnan(progress.robust_accuracy):
        parts.append(f"robust so far {100 * progress.robust_accuracy:.1f} %")
    if not math.isnan(progress.seconds_left):
        parts.append(f"{timedelta(seconds=round(progress.seconds_left))} left".removeprefix("0:"))
    return ", ".join(parts)


def parse_epsilon(text: str) -> float:
    """A radius such as 0.03 or 8/255.

    >>> parse_epsilon("8/255") == 8 / 255
    True
    """
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise CurvactError(f"--epsilon {text}: a number >= 0 in input units, such as 0.03 or 8/255")
    return value
