"""`curvact data`: which data sets there are, get them, look at them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from curvact.errors import CurvactError

if TYPE_CHECKING:
    from curvact.data import Splits

data_app = typer.Typer(no_args_is_help=True, help="List, fetch and look at data sets.")
Root = Annotated[
    Path | None, typer.Option(help="folder of the data sets; $CURVACT_DATA, or ./data, if not given")
]


@data_app.command("list")
def data_list(
    root: Root = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="read those that are here, and compare them with the usual files")
    ] = False,
) -> None:
    """Every data set with a name, and whether it is here."""
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
                here += f", {_verdict(name, root, None)[1]}"
            except CurvactError as error:
                here += ", unreadable"
                problems.append(str(error))
        shape = "×".join(map(str, entry.shape))
        table.add_row(
            name, shape, str(len(entry.classes)), f"{entry.train:,}", f"{entry.test:,}", here, entry.source
        )
    console = Console()
    console.print(table)
    console.print(
        f"\nlooked in {place.absolute()}; besides: ./a/folder/of/class/folders, ./arrays.npz, hf:owner/name",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    if problems:
        raise CurvactError("; ".join(problems))


@data_app.command("fetch")
def data_fetch(
    names: Annotated[list[str], typer.Argument(help="such as cifar10")],
    root: Root = None,
    mirror: Annotated[
        str | None, typer.Option(help="server with MIRROR/NAME/FILE; $CURVACT_MIRROR if not given")
    ] = None,
) -> None:
    """Download data sets from their publishers or a mirror, checked against checksums."""
    from curvact.data.fetch import fetch

    for name in names:
        folder = fetch(name, root, mirror=mirror)
        text = f"{name}: {folder}" if folder.exists() else f"{name}: built in, nothing to fetch"
        Console().print(text, highlight=False, soft_wrap=True, markup=False)


@data_app.command("show")
def data_show(
    name: Annotated[str, typer.Argument(help="a name, ./a/path, or hf:owner/name")],
    out: Annotated[
        Path | None, typer.Option(help="the picture: .png, .svg or .pdf; NAME.png if not given")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "train",
    columns: Annotated[int, typer.Option(help="images of each class")] = 10,
    rows: Annotated[int, typer.Option(help="at most so many classes")] = 10,
    size: Annotated[int | None, typer.Option(help="scale the images to so many pixels")] = None,
    root: Root = None,
) -> None:
    """Draw a grid of images, and print what a data set holds."""
    from curvact.lab.report.grid import draw_grid

    if split not in ("train", "validation", "test"):
        raise CurvactError(f"--split {split}: allowed are train, validation, test")
    splits, verdict = _verdict(name, root, size)
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
    console = Console()
    console.print(table)
    mean, std = (", ".join(f"{v:.4f}" for v in values) for values in (chosen.mean, chosen.std))
    console.print(f"{len(chosen.classes)} classes; mean {mean}; std {std}", highlight=False)
    console.print(f"{name}: {verdict}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True, markup=False)


def _verdict(name: str, root: Path | None, size: int | None) -> tuple[Splits, str]:
    """A data set, and whether its content is that which its name stands for."""
    from curvact.data import DATASETS, OtherDataWarning, load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load(name, root=root, size=size)
    entry = DATASETS.get(name)
    if entry is None or entry.hashes is None:
        return splits, "no checksum known"
    other = any(issubclass(warning.category, OtherDataWarning) for warning in caught)
    return splits, "not the usual files" if other else "verified"
