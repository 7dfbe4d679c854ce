"""`curvact evaluate` and `curvact leaderboard`: attack a model on record, and compare records."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from curvact.errors import CurvactError, printable
from curvact.lab.cli.options import (
    Attacked,
    OneCheckpoint,
    Resume,
    at_least,
    one_of,
    plain_console,
    with_options,
)

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from curvact.attacks import Finding, Mode, Progress
    from curvact.lab.record import Board, EvaluationRecord
    from curvact.lab.record.record import Masking

FOLDER = Path("runs/evaluations")


@with_options(n=1000, batch_size=250, attack="autoattack")
def evaluate(
    checkpoint: OneCheckpoint,
    subject: Attacked,
    fast: Annotated[
        bool, typer.Option("--fast", help="Search on a faster twin of the model; each success is checked.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share the work of AutoAttack; by default one a device.")
    ] = None,
    masking: Annotated[str, typer.Option(help="Gradient-masking checks: quick, full or none.")] = "quick",
    no_masking: Annotated[bool, typer.Option("--no-masking", help="The same as --masking none.")] = False,
    outputs: Annotated[
        str | None,
        typer.Option(
            help="The model's output of each class, such as 0,217,482; by default output k of class k."
        ),
    ] = None,
    save_images: Annotated[
        bool,
        typer.Option("--save-images", help="Write clean and attacked images beside the record (.npz, .png)."),
    ] = False,
    out: Annotated[Path, typer.Option(help="The folder of the records.")] = FOLDER,
    resume: Resume = False,
) -> None:
    """Attack a model and put the outcome on record.

    The record has the outcome of every image. Attacks are autoattack, autoattack-plus,
    autoattack-rand, attacks of AutoAttack such as apgd-ce+square, malt, adaptive, pgd-20,
    "pgd(steps=20, restarts=5)" and fgsm. AutoAttack runs on several devices, such as --device cuda:0,cuda:1.
    """
    from curvact.attacks import AutoAttack, named_attack
    from curvact.devices import device_named, device_names
    from curvact.lab.checkpoints import open_checkpoint
    from curvact.lab.cli.subjects import data_of, threat_model_of, trained_on_others
    from curvact.lab.record import evaluate as evaluate_on_record
    from curvact.lab.record import record_key, write_record
    from curvact.lab.record.evaluation import short_name
    from curvact.lab.record.record import Masking, existing_record, record_paths
    from curvact.lab.urls import refuse_url

    refuse_url(out, "--out")
    depth = cast("Masking", "none" if no_masking else masking)
    one_of("--masking", masking, get_args(Masking))
    devices = (subject.device,) if subject.device == "auto" else device_names(subject.device, "--device")
    workers = len(devices) if workers is None else workers
    at_least("--workers", workers, 1)
    device = device_named(devices[0], "--device")
    opened = open_checkpoint(checkpoint, subject.weights, subject.network)  # its code may register the attack
    attack = named_attack(subject.attack)
    whole = isinstance(attack, AutoAttack)
    for option, given in (
        ("--fast", fast),
        (f"--device {subject.device}", len(devices) > 1),
        (f"--workers {workers}", workers > 1),
    ):
        if given and not whole:
            raise CurvactError(f"{option}: for AutoAttack and its parts, not for {subject.attack}")
    data, threat_model = data_of([opened], subject), threat_model_of([opened], subject)
    images = getattr(data.load(), subject.split).first(subject.n)
    model, mode = _with_outputs(opened.model, outputs).to(device), _mode(fast)
    size = min(subject.batch_size, len(images))
    key = record_key(
        model,
        images,
        threat_model,
        attack=attack,
        seed=subject.seed,
        batch_size=size,
        mode=mode,
        architecture=opened.architecture,
    )
    names = (opened.name, short_name(attack), f"{images.name}{len(images)}")
    path, shards = record_paths(out, key, depth, names)
    pictures = path.with_name(path.name.replace(".evaluation.json", ".images.npz"))
    record = existing_record(path, key, depth)
    if record is not None and resume and save_images and not pictures.exists():
        raise CurvactError(f"{path} is there without its images: leave out --resume to attack again")
    checks: list[Finding] = []
    if record is None or not resume:
        if shards.exists() and not resume:
            raise CurvactError(
                f"{shards} holds an evaluation that was begun: --resume goes on with it, or remove it"
            )
        with _bar(f"{subject.attack} on {len(images):,} images", checks) as bar:
            record = evaluate_on_record(
                model,
                images,
                threat_model,
                attack=attack,
                seed=subject.seed,
                batch_size=size,
                mode=mode,
                workers=workers,
                devices=devices if len(devices) > 1 else None,
                folder=shards if whole else None,
                name=opened.name,
                architecture=opened.architecture,
                masking=depth,
                on_progress=bar.on_progress,
                on_check=bar.on_check,
                images_to=pictures if save_images else None,
            )
        notes = [*record.notes, *trained_on_others([opened], data)]
        record = record.model_copy(update={"notes": notes})
        write_record(record, path)
        shutil.rmtree(shards, ignore_errors=True)
    _show(record, checks, path)
    if save_images:
        plain_console().print(f"images: {pictures}", soft_wrap=True)


def _with_outputs(model: nn.Module, outputs: str | None) -> nn.Module:
    """The model with the outputs that `--outputs` names."""
    from curvact.models import select_outputs

    if outputs is None:
        return model
    words = [word.strip() for word in outputs.split(",")]
    if not all(word.isdecimal() for word in words):
        raise CurvactError(f"--outputs {outputs}: whole numbers with commas between them, one for each class")
    return select_outputs(model, [int(word) for word in words])


def leaderboard(
    folder: Annotated[Path, typer.Argument(help="The folder of the records.")] = FOLDER,
    export: Annotated[
        Path | None,
        typer.Option(help="Write RobustBench's model_info files of standard AutoAttack to this folder."),
    ] = None,
) -> None:
    """Show the records of a folder as tables, the best first.

    Each version of AutoAttack has a table of its own, and weaker attacks have one.
    """
    from curvact.lab.record import boards, export_boards, read_records
    from curvact.lab.record.leaderboard import SkippedRecordWarning

    console = plain_console()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SkippedRecordWarning)
        found = boards(read_records(folder))
    for warning in caught:
        typer.echo(f"skipped: {printable(str(warning.message))}", err=True)
    if not found:
        raise CurvactError(f"{folder} holds no records: `curvact evaluate CHECKPOINT` writes one")
    for board in found:
        console.print(_table(board))
        console.print()
    if export is not None:
        paths = export_boards(found, export)
        left = sum(len(board.records) for board in found) - len(paths)
        files = f"{len(paths)} file{'' if len(paths) == 1 else 's'}"
        rest = f"; left out {left}: only standard AutoAttack under linf or l2 is exported" if left else ""
        console.print(f"wrote {files} under {export}{rest}", soft_wrap=True)


def _mode(fast: bool) -> Mode:
    return "fast" if fast else "plain"


def _show(record: EvaluationRecord, checks: list[Finding], path: Path) -> None:
    from rich.text import Text

    from curvact.lab.statistics.interval import interval_text

    console = plain_console()
    clean, robust = (interval_text(share, brackets=True) for share in (record.clean, record.robust))
    console.print(
        f"{printable(record.data.name)}, first {record.data.count:,} images: clean {clean} %, robust {robust} % "
        "(95 % intervals, from the choice of images)"
    )
    threat = record.threat_model
    console.print(f"{printable(record.attack)}, {threat}, {record.seconds:,.1f} s")
    if len(record.accuracy_after) > 2:
        after = ", ".join(f"{name} {100 * share:.1f} %" for name, share in record.accuracy_after.items())
        console.print(f"accuracy after each attack: {printable(after)}", soft_wrap=True, highlight=False)
    if record.rounded_accuracy is not None:
        console.print(f"attacked images rounded to 8 bits: robust {100 * record.rounded_accuracy:.1f} %")
    if len(record.by_class) > 1:
        console.print(f"robust by class: {_by_class(record)}", soft_wrap=True)
    for text in record.notes:
        console.print(f"note: {printable(text)}")
    listed = {f"{check.name}: {check.sentence}" for check in checks}
    for text in record.findings:
        if text not in listed:
            console.print(Text.assemble(("finding", "bold"), f" {printable(text)}"), soft_wrap=True)
    if checks:
        alarms = sum(check.alarm for check in checks)
        verdict = f"{alarms} of {len(checks)} checks alarm" if alarms else "no sign"
        console.print(f"gradient masking ({record.masking}): {verdict}")
        for check in checks:
            console.print(f"  {check}", soft_wrap=True, style="bold" if check.alarm else "")
    console.print(f"record: {path}", soft_wrap=True)


def _by_class(record: EvaluationRecord, most: int = 12) -> str:
    """The classes with their robust accuracy, the lowest first."""
    order = sorted(record.by_class, key=lambda entry: entry.robust_correct / entry.count)
    shown = [f"{printable(e.name)} {100 * e.robust_correct / e.count:.0f} %" for e in order[:most]]
    return ", ".join(shown) + (f", and {len(order) - most} more" if len(order) > most else "")


def _table(board: Board) -> Table:
    from rich.table import Table
    from rich.text import Text

    from curvact.lab.statistics.interval import interval_text

    table = Table(title=Text(printable(board.title)), title_justify="left", box=None, pad_edge=False)
    for column in ("#", "model", "attack", "images", "clean %", "robust %", "95 % interval", "findings"):
        table.add_column(column, justify="left" if column in ("model", "attack") else "right")
    for place, record in enumerate(board.records, 1):
        cells = (
            place,
            record.model.name,
            record.attack,
            f"{record.data.count:,}",
            f"{100 * record.clean_accuracy:.2f}",
            f"{100 * record.robust_accuracy:.2f}",
            interval_text(record.robust, brackets=True).partition(" ")[2],
            len(record.findings) or "",
        )
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    return table


@dataclass
class _Bar:
    """Moves a bar by the progress of the attack, then by the checks, whose findings it collects."""

    update: Callable[..., None]
    checks: list[Finding] = field(default_factory=list)
    total: int = 0

    def on_progress(self, progress: Progress) -> None:
        if math.isnan(progress.seconds_left):
            self.update(now=_where(progress))
            return
        seconds = progress.seconds + progress.seconds_left
        self.update(total=seconds, completed=progress.seconds, now=_where(progress))

    def on_check(self, finding: Finding) -> None:
        self.checks.append(finding)
        done, total = len(self.checks), self.total
        self.update(description="gradient masking", total=total, completed=done, now=f"{done}/{total} checks")


@contextmanager
def _bar(title: str, checks: list[Finding]) -> Iterator[_Bar]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    from curvact.attacks.masking import LIMITS, RATES

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[now]}", markup=False),
    )
    console = Console(stderr=True)
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None, now="")
        yield _Bar(lambda **fields: bars.update(task, **fields), checks, len(RATES) + len(LIMITS))


def _where(progress: Progress) -> str:
    """Images done, robust accuracy so far and time left, each where it is known.

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
