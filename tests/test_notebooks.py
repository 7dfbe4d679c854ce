"""The notebooks are the scripts that they are written from, and run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = runpy.run_path(str(DOCS / "notebooks.py"))


@pytest.mark.parametrize("script", NOTEBOOKS["SCRIPTS"], ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_script(script: Path) -> None:
    notebook = json.loads(script.with_suffix(".ipynb").read_text())
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert found == NOTEBOOKS["cells"](script.read_text()), "run `python docs/notebooks.py`"
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the packages that run it
@pytest.mark.parametrize("script", NOTEBOOKS["SCRIPTS"], ids=lambda path: path.stem)
def test_a_notebook_runs(script: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    assert NOTEBOOKS["executed"](script.read_text()).cells
