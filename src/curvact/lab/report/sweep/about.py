"""What the report of a sweep needs to know beside the table of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from curvact.lab.report.interactive import RunAbout
from curvact.lab.statistics.question import Grid, Question


@dataclass(frozen=True)
class SweepAbout:
    """A sweep in words.

    name, question: of its spec; question may be empty. spec_yaml: the resolved spec.
    questions: by name, with their settings; None: every question of `QUESTIONS` that suits the
    table.
    provenance: what the runs ran on and cost, such as commit, hardware and cost, in the order to
    show.
    expected: how many runs the sweep has; those that are not in the table are missing.
    titles: headings of outcomes that depend on the spec, such as {"robust_accuracy": "PGD-20"}.
    notes: sentences on how it was run, such as a budget.
    more_seeds: the command that adds seeds, with `{seeds}` where the list goes, such as 0,1,2;
    empty: none is shown.
    runs: what the page shows of a run when its point is chosen, by id.
    """

    name: str
    question: str = ""
    spec_yaml: str = ""
    questions: Mapping[str, Question] | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    expected: int = 0
    titles: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    more_seeds: str = ""
    runs: Mapping[str, RunAbout] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepReport:
    """What was written, and what the terminal shows.

    tables: as text; `curvact.lab.report.text.to_terminal(grid, width)` makes them fit a terminal.
    sentences: the answers, one line each. files: path by file name, `report.html` and `results.csv`
    among them.
    """

    tables: tuple[Grid, ...]
    sentences: tuple[str, ...]
    files: Mapping[str, Path]
