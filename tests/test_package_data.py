"""Every file of the package that is not Python is in the wheel."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "curvact"
BUILT = {".py", ".pyc", ".so"}


def test_pyproject_names_every_kind_of_file() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"\[tool\.setuptools\.package-data\]\ncurvact = (\[.*\])", text)
    assert found
    named = {path for pattern in ast.literal_eval(found[1]) for path in PACKAGE.glob(pattern)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in BUILT}
    assert {path.relative_to(PACKAGE).as_posix() for path in files - named} == set()
    assert PACKAGE / "lab" / "report" / "explore" / "networks.json" in named
