"""`curvact evaluate` and `curvact leaderboard`."""

from __future__ import annotations

import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curvact.errors import CurvactError, nearest

if TYPE_CHECKING:
    from curvact.attacks import Finding, Progress
    from curvact.attacks.autoattack.ensemble import Mode
    from curvact.lab.record.evaluate import Masking

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
    from curvact.lab.record import attack_parts, evaluate_model, open_model, write_record
    from curvact.lab.record.evaluate import asked_of
    from curvact.lab.record.place import checkpoint_name, evaluation_paths, record_there

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
    parts = attack_parts(attack)
    for option, given in (("--fast", fast), (f"--workers {workers}", workers > 1)):
        if given and parts is None:
            raise CurvactError(f"{option}: for AutoAttack and its parts, not for {attack}")
    if restarts > 1 and not attack.startswith("pgd"):
        raise CurvactError(f"--restarts {restarts}: for pgd-STEPS, not for {attack}")
    model, known = open_model(checkpoint)
    data_name, pixels = _data_of(checkpoint, known) if data is None else (data, None)
    told = _threat_of(checkpoint, known) if epsilon is None or norm is None else {}
    if epsilon is None and "epsilon" not in told:
        raise CurvactError(
            f"{checkpoint} does not say its threat model: give --epsilon, such as --epsilon 8/255"
        )
    radius = float(told["epsilon"]) if epsilon is None else parse_epsilon(epsilon)
    threat_model = ThreatModel(cast(Norm, norm or told.get("norm", "linf")), radius)
    dataset = getattr(load(data_name, size=pixels), split).first(n)
    name = checkpoint_name(checkpoint)
    depth = "none" if no_masking else cast("Masking", masking)
    architecture = known.get("architecture")
    size = min(batch_size, len(dataset))
    mode: Mode = "fast" if fast else "plain"
    asked = asked_of(
        model,
        dataset,
        threat_model,
        attack=attack,
        seed=seed,
        batch_size=size,
        restarts=restarts,
        mode=mode,
        architecture=architecture,
    )
    path, shards = evaluation_paths(out, name, attack, dataset.name, len(dataset), asked, depth)
    there = record_there(path, asked, depth)
    record = there if resume else None
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
                batch_size=size,
                restarts=restarts,
                mode=mode,
                workers=workers,
                folder=shards if parts else None,
                on_progress=on_progress,
                on_check=on_check,
                name=name,
                architecture=architecture,
                masking=depth,
            )
        write_record(record, path)
        shutil.rmtree(shards, ignore_errors=True)
    console = _console()
    error = f"± {100 * record.standard_error:.1f}"
    console.print(
        f"{record.data.name}, first {record.data.count:,} images: clean {100 * record.clean_accuracy:.2f} %, "
        f"robust {100 * record.robust_accuracy:.2f} % {error} (one standard error, from the choice of images)"
    )
    console.print(
        f"{record.attack}, {record.threat_model.norm} ε = {record.threat_model.epsilon:.6g}, {record.seconds:,.1f} s"
    )
    for text in record.notes:
        console.print(f"note: {text}")
    listed = {f"{finding.name}: {finding.sentence}" for finding in checklist}
    for text in record.findings:
        if text not in listed:
            console.print(Text.assemble(("finding", "bold"), f" {text}"))
    if checklist:
        alarms = sum(finding.alarm for finding in checklist)
        console.print(
            f"gradient masking ({depth}): "
            + (f"{alarms} of {len(checklist)} checks alarm" if alarms else "no sign")
        )
        for finding in checklist:
            console.print(f"  {finding}", soft_wrap=True, style="bold" if finding.alarm else "")
    console.print(f"record: {path}", soft_wrap=True)


@evaluation_app.command("leaderboard")
def leaderboard_command(
    folder: Annotated[Path, typer.Argument(help="folder of records")] = FOLDER,
    export: Annotated[
        Path | None,
        typer.Option(help="write RobustBench's model_info files of the rows of standard AutoAttack here"),
    ] = None,
) -> None:
    """The records in a folder: a table for each version of AutoAttack, another for less."""
    from curvact.lab.record import boards, export_boards, read_records
    from curvact.lab.record.leaderboard import SkippedRecordWarning

    console = _console()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SkippedRecordWarning)
        tables = boards(read_records(folder))
    for warning in caught:
        typer.echo(f"skipped: {warning.message}", err=True)
    if not tables:
        raise CurvactError(f"{folder} holds no records: `curvact evaluate CHECKPOINT` writes one")
    for board in tables:
        table = Table(title=Text(board.title), title_justify="left", box=None, pad_edge=False)
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
            table.add_row(*(Text(str(cell)) for cell in row))
        console.print(table)
        console.print()
    if export is not None:
        paths = export_boards(tables, export)
        left = sum(len(board.records) for board in tables) - len(paths)
        console.print(
            f"wrote {len(paths)} file{'' if len(paths) == 1 else 's'} under {export}"
            + (f"; left out {left}: only standard AutoAttack under linf or l2 is exported" if left else ""),
            soft_wrap=True,
        )


def _console() -> Console:
    """Prints texts as they are: names of files and models may hold brackets and colons."""
    return Console(markup=False, emoji=False, highlight=False)


def _data_of(checkpoint: Path, known: Mapping[str, Any]) -> tuple[str, int | None]:
    """Name and size of the data set that the checkpoint's JSON says it was trained on."""
    if "data" not in known:
        raise CurvactError(
            f"{checkpoint} does not say what it was trained on: give --data, such as --data cifar10"
        )
    file, data = checkpoint.with_suffix(".json"), known["data"]
    remedy = "correct it or give --data"
    if not isinstance(data, dict):
        raise CurvactError(
            f'{file}: data={_shown(data)}: an object with a name, such as {{"name": "digits"}}; {remedy}'
        )
    name, size = data.get("name"), data.get("size")
    if not isinstance(name, str):
        what = f"data.name={_shown(name)}" if "name" in data else f"data={_shown(data)} lacks its name"
        raise CurvactError(f'{file}: {what}: the name of a data set, such as "digits"; {remedy}')
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise CurvactError(
            f"{file}: data.size={_shown(size)}: null or a whole number of pixels >= 1; {remedy}"
        )
    return name, size


def _threat_of(checkpoint: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Norm and radius that the checkpoint's JSON says it was trained with, as far as it says so."""
    from curvact.attacks import Norm

    file, threat = checkpoint.with_suffix(".json"), known.get("threat_model", {})
    if not isinstance(threat, dict):
        raise CurvactError(
            f'{file}: threat_model={_shown(threat)}: an object such as {{"norm": "linf", "epsilon": 0.1}}; correct it '
            "or give --norm and --epsilon"
        )
    epsilon, norm = threat.get("epsilon", 0), threat.get("norm", "linf")
    if (
        isinstance(epsilon, bool)
        or not isinstance(epsilon, (int, float))
        or not 0 <= epsilon <= sys.float_info.max
    ):
        raise CurvactError(
            f"{file}: threat_model.epsilon={_shown(epsilon)}: a number >= 0 in input units, such as 0.1; correct it or give "
            "--norm and --epsilon"
        )
    if norm not in get_args(Norm):
        raise CurvactError(
            f"{file}: threat_model.norm={_shown(norm)}: allowed are {', '.join(get_args(Norm))}; correct it or give --norm and "
            "--epsilon"
        )
    return threat


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


@contextmanager
def _bar(
    title: str, checklist: list[Finding]
) -> Iterator[tuple[Callable[[Progress], None], Callable[[Finding], None]]]:
    """A bar on standard error, for the attack (images done, robust accuracy so far, time left) and then for the checklist, which
    is filled.
    """
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[now]}", markup=False),
    )
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
