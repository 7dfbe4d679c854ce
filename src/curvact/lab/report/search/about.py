"""What the page of a search needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from curvact.lab.report.interactive import Explorer
from curvact.lab.table import Value


@dataclass(frozen=True)
class Point:
    """A trial as it is drawn. state: "completed", "pruned", "failed" or "left". accuracy: a fraction, or
    None. spent: gradient evaluations of all trials up to and with this one."""

    number: int
    run: str
    settings: Mapping[str, Value]
    state: str
    accuracy: float | None
    epochs: int
    evaluations: int
    spent: int
    cause: str


@dataclass(frozen=True)
class SearchAbout:
    """A search that has ended, in words and numbers.

    keys: of the space. logarithmic: those drawn on a logarithmic scale. best: the number of the winner.
    standard_error: of its accuracy. baseline: its name and its validation robust accuracy.
    explorer: the trials as the page draws them for mouse and keys; None: it does not.
    """

    title: str
    sentences: tuple[str, ...]
    keys: tuple[str, ...]
    logarithmic: frozenset[str]
    points: tuple[Point, ...]
    best: int
    standard_error: float
    baseline: tuple[str, float] | None
    budget: int
    command: str
    winner_yaml: str
    spec_yaml: str
    provenance: Mapping[str, str]
    explorer: Explorer | None = None
