"""`curvact data`: list data sets, fetch them, look at them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvact.errors import CurvactError
from curvact.lab.cli.options import SPLITS, one_of, plain_console

if TYPE_CHECKING:
    from curvact.data import Splits

data_app = typer.Typer(no_args_is_help=True, help="List, fetch and look at data sets.")

Root = Annotated[
    Path | None, typer.Option(help="The folder of the data sets; by default $CURVACT_DATA, else ./data.")
]


@data_app.command("list")
def data_list(
    root: Root = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the data sets that are here, and check their content.")
    ] = False,
) -> None:
    """List the named data sets, and which are here."""
    from rich.table import Table

    from curvact.data import DATASETS, data_root

    place = data_root(root)
    problems = []
    table = Table(box=None, pad_edge=False)
    for column in ("name", "shape", "classes", "train", "test", "here", "source"):
        table.add_column(column, justify="right" if column in ("classes", "train", "test") else "left")
    for name, entry in DATASETS.items():
        here = "built in" if name == "digits" else "yes" if (place / name).is_dir() else "no"
        if verify and here != "no":
            try:
                here += f", {_load(name, root, None)[1]}"
            except CurvactError as error:
                here += ", unreadable"
                problems.append(str(error))
        shape = "×".join(map(str, entry.shape))
        counts = (f"{len(entry.classes)}", f"{entry.train:,}", f"{entry.test:,}")
        table.add_row(name, shape, *counts, here, entry.source)
    console = plain_console()
    console.print(table)
    others = "other data: ./a/folder/of/class/folders, ./arrays.npz, ./x.parquet, hf:owner/name"
    console.print(f"\nlooked in {place.absolute()}; {others}", soft_wrap=True)
    if problems:
        raise CurvactError("; ".join(problems))


@data_app.command("fetch")
def data_fetch(
    names: Annotated[list[str], typer.Argument(help="Data sets, such as cifar10.")],
    root: Root = None,
    mirror: Annotated[
        str | None, typer.Option(help="A server with MIRROR/NAME/FILE; by default $CURVACT_MIRROR.")
    ] = None,
) -> None:
    """Download data sets and check their checksums."""
    from curvact.data.fetch import fetch

    for name in names:
        folder = fetch(name, root, mirror=mirror)
        print(f"{name}: {folder}" if folder.exists() else f"{name}: built in, nothing to fetch")


@data_app.command("show")
def data_show(
    name: Annotated[str, typer.Argument(help="A name, ./a/path, or hf:owner/name.")],
    out: Annotated[
        Path | None, typer.Option(help="The picture, .png, .svg or .pdf; by default NAME.png.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split: train, validation or test.")] = "train",
    columns: Annotated[int, typer.Option(help="Images of each class.")] = 10,
    rows: Annotated[int, typer.Option(help="The largest number of classes.")] = 10,
    size: Annotated[int | None, typer.Option(help="Scale the images to this number of pixels.")] = None,
    root: Root = None,
) -> None:
    """Draw a grid of images, and show what a data set holds."""
    one_of("--split", split, SPLITS)

    from rich.table import Table

    from curvact.lab.report.grid import draw_grid

    splits, content = _load(name, root, size)
    chosen = getattr(splits, split)
    out = out if out is not None else Path(f"{chosen.name.split('/')[0].replace(':', '-')}.png")
    draw_grid(chosen, out, columns=columns, rows=rows)
    table = Table(box=None, pad_edge=False)
    for column in ("split", "images", "shape", "of each class", "sha256"):
        table.add_column(column)
    for part in (splits.train, splits.validation, splits.test):
        counts = part.labels.bincount(minlength=len(part.classes))
        table.add_row(
            part.name.rsplit("/", 1)[1],
            f"{len(part):,}",
            "×".join(map(str, part.images.shape[1:])),
            f"{int(counts.min()):,} to {int(counts.max()):,}",
            part.sha256[:16],
        )
    console = plain_console()
    console.print(table)
    mean, std = (", ".join(f"{v:.4f}" for v in values) for values in (chosen.mean, chosen.std))
    for line in (
        f"{len(chosen.classes)} classes; mean {mean}; std {std}",
        f"{name}: {content}",
        f"wrote {out}",
    ):
        console.print(line, soft_wrap=True)


def _load(name: str, root: Path | None, size: int | None) -> tuple[Splits, str]:
    """A data set, and whether its content is what its name stands for."""
    from curvact.data import DATASETS, OtherDataWarning, load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load(name, root=root, size=size)
    entry = DATASETS.get(name)
    if entry is None or entry.hashes is None:
        return splits, "no checksum known"
    other = any(issubclass(warning.category, OtherDataWarning) for warning in caught)
    return splits, "not the usual files" if other else "verified"
