"""Questions: two are registered, one from outside the package is asked and answered, and mistakes
are one line.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from curvact.errors import CurvactError
from curvact.lab.statistics import QUESTIONS, ask, register_question
from curvact.lab.statistics.question import Answer, Grid, Question, question
from curvact.lab.table import Table


class Cost(Question):
    """A question from outside: what does a run cost?"""

    unit: str = "s"

    def suits(self, table: Table) -> bool:
        return bool(table.rows)

    def answer(self, table: Table) -> Answer:
        seconds = [row.seconds for row in table.rows]
        grid = Grid("Cost", ("", f"mean, {self.unit}"), (("all", f"{np.mean(seconds):.1f}"),))
        return Answer("Cost", (f"A run costs {np.mean(seconds):.1f} {self.unit}.",), (grid,))


def test_a_question_from_outside(curves: Callable[..., Table], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUESTIONS, "cost", Cost)  # undone after the test
    register_question("cost", Cost)
    table = curves({("digits",): np.linspace(0.5, 0.6, 4)}, points=(1, 2, 4, 8))
    answers = ask(table)
    assert list(answers) == ["curve", "cost"]
    assert answers["cost"].sentences == ("A run costs 1.5 s.",)
    asked = ask(table, {"mine": question(QUESTIONS, "cost", {"unit": "core-seconds"})})
    assert asked["mine"].tables[0].heads == ("", "mean, core-seconds")


def test_which_questions_suit(curves: Callable[..., Table], shipped: Callable[..., Table]) -> None:
    curve = curves({("a",): np.zeros(3)}, points=(1, 2, 4))
    one = curves({("a",): np.zeros(1), ("b",): np.zeros(1)}, points=(1,))
    single = curves({("a",): np.zeros(1)}, points=(1,))
    comparison = shipped("digits-compare")
    found = [
        [name for name, kind in QUESTIONS.items() if kind().suits(table)]
        for table in (curve, one, single, comparison)
    ]
    assert found == [["curve"], ["paired"], [], ["paired"]]


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("curv", {}, "questions.curv: no such question; did you mean 'curve'"),
        ("curve", {"margn": 1}, "questions.curve.margn: no such setting; did you mean 'margin'"),
        ("curve", {"margin": "wide"}, "questions.curve.margin = 'wide'"),
        ("paired", {"correct": "none"}, "questions.paired.correct = 'none'"),
    ],
)
def test_mistakes_are_one_line(name: str, settings: dict[str, object], says: str) -> None:
    with pytest.raises(CurvactError) as caught:
        question(QUESTIONS, name, settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
