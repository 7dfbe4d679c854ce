"""Tables of text as Markdown, as LaTeX and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from curvact.errors import printable
from curvact.lab.statistics.question import Grid

if TYPE_CHECKING:
    from rich.table import Table


def to_markdown(grid: Grid) -> str:
    """The table with its notes as Markdown; what would end a cell early is escaped."""
    marks = [*["---"] * grid.names, *["---:"] * (len(grid.heads) - grid.names)]
    rows = [
        [_cell(text) for text in grid.heads],
        marks,
        *([_cell(text) for text in line] for line in grid.lines),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join([table, *grid.notes]) + "\n"


def _cell(text: str) -> str:
    r"""
    >>> print(_cell("a|b"))
    a\|b
    """
    return " ".join(text.split()).replace("\\", r"\\").replace("|", r"\|")


def to_latex(grid: Grid) -> str:
    """The table as a LaTeX tabular (booktabs) that pdfLaTeX sets, its notes as comments."""
    rows = [[latex(text) for text in row] for row in (grid.heads, *grid.lines)]
    for row in rows:
        if row[0].startswith(("[", "*")):  # \\ before it would take it for its argument
            row[0] = f"{{}}{row[0]}"
    body = [" & ".join(row) + r" \\" for row in rows]
    columns = "l" * grid.names + "r" * (len(grid.heads) - grid.names)
    return "\n".join(
        [
            *(f"% {' '.join(note.split())}" for note in grid.notes),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def latex(text: str) -> str:
    r"""A text as LaTeX that is ASCII.

    >>> print(latex("κ ± 1 % of a_b"))
    \ensuremath{\kappa} \ensuremath{\pm} 1 \% of a\_b
    """
    from pylatexenc.latexencode import UnicodeToLatexEncoder

    encoder = UnicodeToLatexEncoder(unknown_char_policy="replace", unknown_char_warning=False)
    return str(encoder.unicode_to_latex(" ".join(text.split())))


def to_terminal(grid: Grid, width: int) -> list[Table]:
    """The table for a terminal of `width` columns: as many tables as it takes, each with the names;
    no cell is cut."""
    from rich.table import Table
    from rich.text import Text

    def size(column: int) -> int:
        head = max(min(len(grid.heads[column]), 12), *map(len, grid.heads[column].split() or [""]))
        return max([head, *(len(line[column]) for line in grid.lines)])

    names = list(range(grid.names))
    groups: list[list[int]] = [[]]
    left = width - sum(size(column) + 2 for column in names)
    for column in range(grid.names, len(grid.heads)):
        if size(column) + 2 > left and groups[-1]:
            groups.append([])
            left = width - sum(size(name) + 2 for name in names)
        groups[-1].append(column)
        left -= size(column) + 2
    tables = []
    for group in groups:
        table = Table(box=None, pad_edge=False)
        for column in (*names, *group):
            table.add_column(
                Text(printable(grid.heads[column])),
                justify="left" if column < grid.names else "right",
                width=size(column),
                no_wrap=column < grid.names,
            )
        for line in _without_repeats(grid.lines, grid.names - 1):
            table.add_row(*(Text(printable(line[column])) for column in (*names, *group)))
        tables.append(table)
    return tables


def _without_repeats(lines: Sequence[tuple[str, ...]], names: int) -> list[tuple[str, ...]]:
    """The lines with the first `names` columns empty where they repeat the line above."""
    result, above = [], None
    for line in lines:
        result.append((("",) * names + line[names:]) if line[:names] == above else line)
        above = line[:names]
    return result
