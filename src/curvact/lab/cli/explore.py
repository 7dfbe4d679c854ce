"""`curvact explore`: a page with activations and small networks that change while κ moves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvact.errors import CurvactError


def explore(
    out: Annotated[Path, typer.Option(help="The .html file to write.")] = Path("explore.html"),
    show: Annotated[bool, typer.Option("--open/--no-open", help="Show it in the browser.")] = True,
) -> None:
    """Write a page with sliders for κ and the family, and show it.

    It draws σ, σ′ and σ″ of every family, and what small networks, trained before, do under attack. It is one file and
    needs no network.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise CurvactError(f"--out {out}: the name must end in .html")
    from curvact.lab.report.explore.page import write_explore

    print(f"wrote {write_explore(out)}", flush=True)
    if show:
        _show(out)


def _show(page: Path) -> None:
    """Open the page in the browser of this machine, if there is one."""
    import webbrowser

    try:
        webbrowser.open(page.resolve().as_uri())
    except (webbrowser.Error, OSError):
        return
