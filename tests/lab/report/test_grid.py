"""The picture grid: each class in a row of its own, in the colours of its images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from curvact.data import Dataset
from curvact.errors import CurvactError
from curvact.lab.report.grid import draw_grid

COLOURS = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 200, 10)]


def flags(
    labels: list[int], channels: int = 3, classes: tuple[str, ...] = ("red", "green", "blue", "yellow")
) -> Dataset:
    """Images of one colour each."""
    images = torch.tensor([COLOURS[label][:channels] for label in labels], dtype=torch.uint8)
    images = images[:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    return Dataset(
        "flags/train", images, torch.tensor(labels), classes, (0.5,) * channels, (0.5,) * channels, ""
    )


def areas(path: Path, channels: int = 3) -> tuple[dict[int, int], dict[int, tuple[float, float]]]:
    """Of each class's colour: how many pixels, and the mean place (down, right) of them."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    counts, places = {}, {}
    for number, colour in enumerate(COLOURS):
        wanted = colour if channels == 3 else (colour[0],) * 3
        mask = np.abs(pixels - wanted).max(-1) <= 2
        counts[number] = int(mask.sum())
        if mask.any():
            down, right = np.nonzero(mask)
            places[number] = float(down.mean()), float(right.mean())
    return counts, places


def test_rows_are_classes_and_columns_their_first_images(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    draw_grid(flags([3, 0, 1, 1, 1, 0, 3, 3, 3]), path, columns=3)
    counts, places = areas(path)
    # Two reds, three greens, no blue, three of the four yellows: areas are as those numbers (1 %
    # for edges between pixels).
    one = counts[0] / 2
    assert counts[2] == 0
    assert counts[1] == pytest.approx(3 * one, rel=0.01)
    assert counts[3] == pytest.approx(3 * one, rel=0.01)
    assert places[0][0] < places[1][0] < places[3][0]
    # Two of three columns: half a column further left.
    assert places[0][1] == pytest.approx(places[1][1] - np.sqrt(one) / 0.94 / 2, rel=0.02)


def test_limits_of_rows_and_grey_images(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    draw_grid(flags([0, 1, 2, 3]), path, rows=2)
    counts, _ = areas(path)
    assert counts[0] > 0
    assert counts[1] > 0
    assert counts[2] == counts[3] == 0
    draw_grid(flags([0], channels=1), path)
    assert areas(path, channels=1)[0][0] > 100


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_kinds_of_files(tmp_path: Path, ending: str, magic: bytes) -> None:
    """A name that matplotlib would take for mathematics is drawn as it is."""
    path = tmp_path / f"x.{ending}"
    draw_grid(flags([0, 1], classes=("costs $5, or $6_{", "a very long name of a class", "c", "d")), path)
    assert path.read_bytes().startswith(magic)
    assert os.listdir(tmp_path) == [path.name]


def test_what_is_refused(tmp_path: Path) -> None:
    data = flags([0])
    with pytest.raises(CurvactError, match=r"x\.gif: the name must end in"):
        draw_grid(data, tmp_path / "x.gif")
    with pytest.raises(CurvactError, match="columns=0"):
        draw_grid(data, tmp_path / "x.png", columns=0)
    with pytest.raises(CurvactError, match="no folder"):
        draw_grid(data, tmp_path / "none" / "x.png")
    assert os.listdir(tmp_path) == []
