"""Engines by name and by file."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvact.errors import CurvactError
from curvact.lab.engines import ENGINES, engine_from, register_engine
from curvact.lab.engines.inline import run_inline
from curvact.lab.settings import Strict


class Settings(Strict):
    """Those of an engine of the tests."""

    queue: str
    hours: int = 1


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    monkeypatch.setattr("curvact.lab.engines.engine.ENGINES", dict(ENGINES))
    called: list[Settings] = []

    def engine(jobs: object, workers: int, on_event: object, *, settings: Settings) -> list[int]:
        called.append(settings)
        return []

    register_engine("queued", engine, Settings)
    return called


def test_a_file_has_the_settings_and_the_call_wins(seen: list[Settings], tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("engine: queued\nqueue: night\nhours: 3\n")
    engine_from(str(file))([], 1, print)
    engine_from(str(file), hours=5, queue=None)([], 1, print)
    assert seen == [Settings(queue="night", hours=3), Settings(queue="night", hours=5)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("queue: night", "names no engine"),
        ("engine: 3", "names no engine"),
        ("[1]", "names no engine"),
        ("engine: quened\n", "unknown engine 'quened'; did you mean 'queued'"),
        ("engine: queued\n", "queue"),
        ("engine: queued\nqueue: a\nhour: 1\n", "hour"),
        ("engine: queued\nqueue: a\nhours: x\n", "hours"),
        ("engine: local\nqueue: a\n", "the engine local has no settings, and was given queue"),
    ],
)
def test_wrong_files_are_refused_in_one_line(
    seen: list[Settings], tmp_path: Path, text: str, why: str
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(CurvactError, match=why) as caught:
        engine_from(str(file))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match="cannot read"):
        engine_from(str(tmp_path / "none.yaml"))


def test_a_name_alone() -> None:
    assert engine_from("inline") is run_inline
