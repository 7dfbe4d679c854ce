"""`curvact explore`: the file that it writes, and the browser that it opens or does not."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_the_page_is_written_and_shown(curvact: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(shown.append(url)))
    monkeypatch.chdir(tmp_path)
    assert curvact("explore") == (0, "wrote explore.html\n", "")
    assert shown == [(tmp_path / "explore.html").as_uri()]
    assert "</html>" in (tmp_path / "explore.html").read_text()
    assert curvact("explore", "--no-open", "--out", tmp_path / "b.html").code == 0
    assert len(shown) == 1
    assert (tmp_path / "b.html").read_text() == (tmp_path / "explore.html").read_text()


def test_without_a_browser_the_page_is_written(
    curvact: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(url: str) -> bool:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "open", none)
    assert curvact("explore", "--out", tmp_path / "a.html").code == 0


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("page.txt", "--out page.txt: the name must end in .html"),
        ("no/page.html", "cannot write no/page.html"),
    ],
)
def test_a_file_that_cannot_be(
    curvact: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("opened"))
    done = curvact("explore", "--out", out)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert list(tmp_path.iterdir()) == []
