"""The examples of README and docs run as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    if ">>>" not in block
]


@pytest.mark.parametrize("block", EXAMPLES)
def test_examples_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "example", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


def test_there_are_examples_and_every_link_leads_somewhere() -> None:
    assert len(EXAMPLES) >= 2
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "cli.py"))["page"]()
    assert page == (ROOT / "docs" / "cli.md").read_text(), "run `python docs/cli.py`"


def test_every_page_has_a_place_in_the_site() -> None:
    placed = set(re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - placed == set()
    outside = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "reproductions/")
    assert {page for page in placed - pages if not page.startswith(outside)} == {"index.md"}
