"""A picture of a data set, with one row a class."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from curvact.data.dataset import Dataset
from curvact.errors import CurvactError
from curvact.files import atomic_write


def draw_grid(dataset: Dataset, path: Path, *, columns: int = 10, rows: int = 10) -> None:
    """Write a picture of the first `columns` images of the first `rows` classes.

    path: ends in .png, .svg or .pdf.
    Classes without images are left out. Raises CurvactError for another ending, for a number of
    columns or rows below 1, and for a folder that does not exist.

    >>> import tempfile
    >>> from curvact.data import load
    >>> file = Path(tempfile.mkdtemp()) / "digits.png"
    >>> draw_grid(load("digits").test, file, columns=3)
    >>> file.read_bytes()[1:4]
    b'PNG'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise CurvactError(f"{path}: the name must end in .png, .svg or .pdf")
    if min(columns, rows) < 1:
        raise CurvactError(f"columns={columns}, rows={rows} of a picture grid: each must be >= 1")
    if not path.parent.is_dir():
        raise CurvactError(f"cannot write {path}: no folder {path.parent}")
    present = [c for c in range(len(dataset.classes)) if bool((dataset.labels == c).any())][:rows]
    size, label = 0.62, 1.25
    figure = Figure(figsize=(label + size * columns, 0.42 + size * len(present)), dpi=150)
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    figure.text(
        0.1 / width,
        1 - 0.2 / height,
        f"{dataset.name}: {len(dataset):,} images, {' × '.join(map(str, dataset.images.shape[1:]))}",
        va="center",
        fontsize=9,
        parse_math=False,
    )
    for row, number in enumerate(present):
        bottom = height - 0.42 - size * (row + 1)
        index = (dataset.labels == number).nonzero().flatten()[:columns]
        name = dataset.classes[number]
        text = name if len(name) <= 16 else name[:15] + "…"
        figure.text(
            (label - 0.1) / width,
            (bottom + size / 2) / height,
            text,
            ha="right",
            va="center",
            fontsize=8,
            parse_math=False,
        )
        for column, image in enumerate(dataset.images[index].movedim(1, -1)):
            place = (
                (label + size * column) / width,
                bottom / height,
                0.94 * size / width,
                0.94 * size / height,
            )
            axes = figure.add_axes(place)
            axes.set_axis_off()
            pixels = image.expand(-1, -1, 3) if image.shape[-1] == 1 else image
            axes.imshow(pixels.to(torch.uint8).numpy(), interpolation="nearest")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:])
    atomic_write(path, buffer.getvalue())
