"""Writes docs/notebooks/*.ipynb from the scripts beside them, with their output: `python docs/notebooks.py`.

A line `# %% [markdown]` begins a cell of text, `# %%` one of code. Magic words stand in comments.
Needs `pip install 'curvact[docs,pandas]'`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from curvact.files import atomic_write

SCRIPTS = sorted((Path(__file__).parent / "notebooks").glob("*.py"))


def cells(source: str) -> list[tuple[str, str]]:
    """The cells of a script: "markdown" or "code", and the text."""
    found = []
    for mark, text in re.findall(
        r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", source, re.DOTALL | re.MULTILINE
    ):
        hidden = r"^# ?" if mark else r"^# (?=%matplotlib)"
        text = re.sub(hidden, "", text, flags=re.MULTILINE)
        found.append(("markdown" if mark else "code", text.strip()))
    return found


def executed(source: str) -> Any:
    """The notebook of a script, executed. An error in a cell is raised."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook()
    for number, (kind, text) in enumerate(cells(source)):
        cell = getattr(nbformat.v4, f"new_{kind}_cell")(text)
        cell["id"] = f"cell-{number}"
        notebook.cells.append(cell)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
    return notebook


def _is_progress(output: Any) -> bool:
    return output.get("name") == "stderr" or (
        output.output_type == "display_data" and "image/png" not in output.data
    )


def main() -> None:
    """Write every notebook."""
    import nbformat

    for script in SCRIPTS:
        text = nbformat.writes(executed(script.read_text()))
        atomic_write(script.with_suffix(".ipynb"), (text + "\n").encode())


if __name__ == "__main__":
    main()
