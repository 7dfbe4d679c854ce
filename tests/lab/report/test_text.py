"""Tables as Markdown, LaTeX and for a terminal: no name breaks them, and no cell is cut."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from curvact.lab.report.text import latex, to_latex, to_markdown, to_terminal
from curvact.lab.statistics.paired import MEASURES
from curvact.lab.statistics.question import Grid

GRID = Grid(
    "title",
    ("activation", "setting", "clean", "share of σ″ in diag H"),
    (("a|b \\", "x", "50.0 ± 1.2", "–"), ("[σ″] x^2", "x", "+0.1 [-2.0, +2.2]*", "0.123"), ("[σ″] x^2", "y", "1", "2")),
    2,
    ("A note\nof two lines.",),
)  # fmt: skip


def test_names_do_not_break_the_tables() -> None:
    markdown = to_markdown(GRID).splitlines()
    assert markdown[2].startswith("| a\\|b \\\\ | x | 50.0 ± 1.2 |")
    # a cell ends at a | that no backslash escapes
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in markdown[:5]} == {5}
    assert markdown[1] == "| --- | --- | ---: | ---: |"
    lines = to_latex(GRID).splitlines()
    assert all(line.isascii() for line in lines if not line.startswith("%"))
    assert lines[0] == "% A note of two lines."
    assert r"\begin{tabular}{llrr}" in lines
    assert any(line.startswith(r"{}[\ensuremath{\sigma}''] x{\textasciicircum}2 & x & ") for line in lines)


def test_latex_is_what_pdflatex_sets() -> None:
    for text, wanted in {
        "share of σ″ in diag H": r"share of \ensuremath{\sigma}'' in diag H",
        "RCT-AF β = 1": r"RCT-AF \ensuremath{\beta} = 1",
        "a^2_b": r"a{\textasciicircum}2\_b",
        "a\\b": r"a{\textbackslash}b",
        "1 − 2": r"1 \ensuremath{-} 2",
        "a\nb": "a b",
    }.items():
        assert latex(text) == wanted
    assert all(latex(measure.title).isascii() for measure in MEASURES)


@pytest.mark.parametrize("width", [48, 200])
def test_the_terminal_shows_every_cell_whole(width: int) -> None:
    """In as many tables as it takes, whatever the width; names that repeat are left out."""
    console = Console(width=width, record=True, file=io.StringIO())
    tables = to_terminal(GRID, width)
    for table in tables:
        console.print(table)
    shown = console.export_text()
    assert all(cell in shown for line in GRID.lines for cell in line)
    assert shown.count("[σ″] x^2") == len(tables)
    assert len(tables) == (1 if width == 200 else 2)
