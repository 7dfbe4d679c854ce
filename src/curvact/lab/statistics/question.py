"""What a question to a finished sweep is, and what its answer is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from curvact.errors import CurvactError, nearest
from curvact.lab.table import Table
from curvact.notebook import html_list, html_table


@dataclass(frozen=True)
class Grid:
    """A table of text. The first `names` columns name the line; the others hold numbers.

    notes: sentences under the table.
    """

    title: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    names: int = 1
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        return html_table(self.title, self.heads, self.lines)


@dataclass(frozen=True)
class Answer:
    """What a question found: sentences and tables.

    title: the heading of its section on the page. sentences: the most important first; the terminal
    shows them all. A question may return a subclass with more; the page draws those that it knows,
    and shows sentences and tables of any.
    """

    title: str
    sentences: tuple[str, ...]
    tables: tuple[Grid, ...]

    def _repr_html_(self) -> str:
        return html_list(self.title, self.sentences) + "".join(grid._repr_html_() for grid in self.tables)


class Question(BaseModel):
    """A question to a table of runs. Its fields are its settings, as the spec of a sweep gives
    them.

    A new question is a subclass in a file of its own and a line in
    `curvact.lab.statistics.QUESTIONS`.

    >>> from curvact.lab.table import Row
    >>> class Best(Question):
    ...     def suits(self, table: Table) -> bool:
    ...         return bool(table.rows)
    ...     def answer(self, table: Table) -> Answer:
    ...         best = max(table.rows, key=lambda row: row.metrics["robust_accuracy"])
    ...         return Answer("Best run", (f"The best run is {best.run}.",), ())
    >>> rows = [Row(name, {"seed": 0}, "done", "", {"robust_accuracy": r}, 1, 1.0) for name, r in (("a", 0.4), ("b", 0.5))]
    >>> Best().answer(Table(("seed",), tuple(rows))).sentences
    ('The best run is b.',)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def suits(self, table: Table) -> bool:
        """Whether the question can be asked of a table with these axes."""
        raise NotImplementedError

    def check(self, table: Table) -> None:
        """Raises CurvactError where the settings name what a table with these labels lacks. A sweep asks before
        its runs; the table has no metrics then.
        """

    def answer(self, table: Table) -> Answer:
        """The answer. Raises CurvactError in one line where the table does not fit the settings."""
        raise NotImplementedError


def question(kinds: Mapping[str, type[Question]], name: str, settings: Mapping[str, Any] | None) -> Question:
    """The question `name` of `kinds` with these settings.

    Raises CurvactError for an unknown name or setting, or a value that is not allowed.
    """
    if name not in kinds:
        raise CurvactError(
            f"questions.{name}: no such question{nearest(name, kinds)}; questions are {', '.join(sorted(kinds))}"
        )
    try:
        return kinds[name].model_validate(dict(settings or {}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("questions", name, *first["loc"])))
        if first["type"] == "extra_forbidden":
            known = list(kinds[name].model_fields)
            raise CurvactError(
                f"{place}: no such setting{nearest(place.rsplit('.', 1)[-1], known)}; settings are {', '.join(known)}"
            ) from None
        raise CurvactError(f"{place} = {first['input']!r}: {first['msg']}") from None
