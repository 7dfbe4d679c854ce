"""Questions to a table of runs, and the tests behind their answers.

A new question is a file with a subclass of `Question` and a line that calls `register_question`.
"""

from __future__ import annotations

from collections.abc import Mapping

from curvact.lab.statistics.curve import Curve
from curvact.lab.statistics.paired import Paired
from curvact.lab.statistics.question import Answer, Question
from curvact.lab.table import Table

QUESTIONS: dict[str, type[Question]] = {"curve": Curve, "paired": Paired}


def register_question(name: str, kind: type[Question]) -> None:
    """Make a kind of question known by a name, for the key `questions` of a sweep."""
    QUESTIONS[name] = kind


def ask(table: Table, questions: Mapping[str, Question] | None = None) -> dict[str, Answer]:
    """The answers by name. questions: None for every question of `QUESTIONS` that suits the table.

    Raises CurvactError where a question does not fit the table.
    """
    if questions is None:
        every = {name: kind() for name, kind in QUESTIONS.items()}
        questions = {name: one for name, one in every.items() if one.suits(table)}
    return {name: one.answer(table) for name, one in questions.items()}


__all__ = ["QUESTIONS", "Answer", "Question", "ask", "register_question"]
