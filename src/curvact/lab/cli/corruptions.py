"""`curvact corruptions`: accuracy on corrupted images, by corruption and severity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvact.errors import CurvactError
from curvact.lab.cli.options import OneCheckpoint, Subject, listed, plain_console, with_options

if TYPE_CHECKING:
    from curvact.data import Dataset


@with_options(n=1000, batch_size=250)
def corruptions(
    checkpoint: OneCheckpoint,
    subject: Subject,
    names: Annotated[
        str | None, typer.Option("--corruptions", help="Names with commas; by default all that suit.")
    ] = None,
    severities: Annotated[str, typer.Option(help="Severities from 1 to 5, with commas.")] = "1,2,3,4,5",
    folder: Annotated[
        Path | None, typer.Option(help="Read a folder such as CIFAR-10-C instead; all of its images.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the numbers to this .json.")] = None,
) -> None:
    """Measure the accuracy on corrupted images; nothing attacks.

    Corruptions are noise, blur, fog, brightness, contrast, pixelate and JPEG at severities 1 to 5,
    as in CIFAR-10-C. docs/data.md says which formulas are of the paper.
    """
    from rich.table import Table

    from curvact.attacks import corruption_accuracy
    from curvact.files import atomic_write
    from curvact.lab.checkpoints import open_checkpoint
    from curvact.lab.cli.subjects import open_subjects
    from curvact.models import model_hash

    levels = _levels(severities)
    if out is not None and (out.suffix != ".json" or not out.parent.is_dir()):
        raise CurvactError(f"--out {out}: a .json file in a folder that exists")
    console = plain_console()
    if folder is None:
        subjects = open_subjects("corruptions", [checkpoint], subject)
        name, model = next(iter(subjects.models.items()))
        data: Dataset | Path = subjects.images
        images, sha256, count = subjects.images.name, subjects.images.sha256, len(subjects.images)
    else:
        opened = open_checkpoint(checkpoint, subject.weights, subject.network)
        name, model, data = opened.name, opened.model.to(subject.torch_device), folder
        images, sha256, count = str(folder), "", 0

    def show(corruption: str, severity: int, value: float) -> None:
        if console.is_terminal:
            typer.echo(f"{corruption} {severity}: {100 * value:.2f} %", err=True)

    found = corruption_accuracy(
        model,
        data,
        corruptions=None if names is None else listed(names),
        severities=levels,
        seed=subject.seed,
        batch_size=subject.batch_size,
        on_done=show,
    )
    table = Table(box=None, pad_edge=False)
    for column in ("accuracy %", *(f"severity {level}" for level in levels), "mean"):
        table.add_column(column, justify="left" if column == "accuracy %" else "right")
    for corruption, row in found.by.items():
        cells = (*row, found.mean_of(corruption))
        table.add_row(corruption, *(f"{100 * value:.2f}" for value in cells))
    first = "" if folder is not None else f", first {count:,} images"
    clean = "" if found.clean is None else f"clean {100 * found.clean:.2f} %, "
    console.print(
        f"{name} on {images}{first}: {clean}corrupted {100 * found.mean:.2f} % in the mean", soft_wrap=True
    )
    console.print(table)
    if out is not None:
        content = {
            "model": {"name": name, "sha256": model_hash(model)},
            "data": {"name": images, **({} if folder else {"sha256": sha256, "count": count})},
            "seed": subject.seed,
            "clean_accuracy": found.clean,
            "mean_accuracy": found.mean,
            "severities": list(found.severities),
            "accuracy": {key: list(row) for key, row in found.by.items()},
        }
        atomic_write(out, json.dumps(content, indent=2) + "\n")
        console.print(f"wrote {out}", soft_wrap=True)


def _levels(text: str) -> list[int]:
    """The severities between commas.

    >>> _levels("1, 5")
    [1, 5]
    """
    words = listed(text)
    if not words or not all(word in ("1", "2", "3", "4", "5") for word in words):
        raise CurvactError(f"--severities {text}: numbers from 1 to 5 with commas between them")
    return [int(word) for word in words]
