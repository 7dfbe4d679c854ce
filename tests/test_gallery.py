"""The scripts of the gallery run, and its pages show them as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
GALLERY = runpy.run_path(str(DOCS / "gallery.py"))
QUICK = ("kappa", "steering", "swap")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in GALLERY["ORDER"]]
)
def test_a_script_runs(name: str, tmp_path: Path) -> None:
    printed, picture = GALLERY["run"](name, tmp_path)
    shown = (DOCS / "img/gallery" / f"{name}.png").exists()
    assert shown == (picture is not None)
    assert printed or picture


def test_every_script_is_shown_as_it_is() -> None:
    scripts = {path.stem: path.read_text() for path in (DOCS / "gallery").glob("*.py")}
    assert set(scripts) == set(GALLERY["ORDER"])
    assert (DOCS / "gallery/index.md").read_text() == GALLERY["index"]()
    for name, source in scripts.items():
        assert len(source.splitlines()) < 40
        page = (DOCS / "gallery" / f"{name}.md").read_text()
        printed = page.partition("```text\n")[2].partition("\n```")[0]
        picture = DOCS / "img/gallery" / f"{name}.png"
        assert page == GALLERY["page"](name, printed, has_picture=picture.exists()), "run docs/gallery.py"
        assert not picture.exists() or picture.stat().st_size < 60_000
