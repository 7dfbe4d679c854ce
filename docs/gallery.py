"""Runs the scripts of docs/gallery and writes their pictures, their output and their pages.

`python docs/gallery.py` runs all of them, `python docs/gallery.py kappa swap` some.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from curvact.files import atomic_write

DOCS = Path(__file__).parent
SCRIPTS = DOCS / "gallery"
PICTURES = DOCS / "img" / "gallery"
ORDER = (
    "kappa",
    "own_function",
    "swap",
    "training_curve",
    "radius",
    "autoattack",
    "masking",
    "corruptions",
    "hessian",
    "landscape",
    "learned_shape",
    "steering",
    "sweep",
)
"""The scripts, as the gallery shows them."""


def run(name: str, folder: Path) -> tuple[str, Path | None]:
    """What the script prints, and the picture that it writes into the folder."""
    torch.manual_seed(0)  # of the first weights
    printed = io.StringIO()
    with _inside(folder), contextlib.redirect_stdout(printed):
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    picture = folder / f"{name}.png"
    return printed.getvalue(), picture if picture.exists() else None


def page(name: str, printed: str, *, has_picture: bool) -> str:
    """The page of a script: title, sentences, picture, output, code."""
    source = (SCRIPTS / f"{name}.py").read_text()
    title, about = _about(source)
    code = source.split('"""\n', 1)[1].lstrip("\n")
    parts = [f"# {title}", about]
    parts += [f"![{title}](../img/gallery/{name}.png)"] if has_picture else []
    parts += [f"```text\n{printed.rstrip()}\n```"] if printed else []
    return "\n\n".join([*parts, f"```python\n{code}```"]) + "\n"


def index() -> str:
    """The first page: every script with its picture."""
    head = (
        "# Gallery\n\nShort scripts, each of some seconds on one core, for one seed. `python docs/gallery.py` runs them. "
        "Alone, `python docs/gallery/kappa.py` writes `kappa.png` and\n`kappa.svg` into the working directory."
    )
    parts = [head]
    for name in ORDER:
        title, about = _about((SCRIPTS / f"{name}.py").read_text())
        picture = f"[![{title}](../img/gallery/{name}.png)]({name}.md)"
        parts += [f"## [{title}]({name}.md)", " ".join(about.split())]
        parts += [picture] if (PICTURES / f"{name}.png").exists() else []
    return "\n\n".join(parts) + "\n"


def _in_few_colours(picture: Path) -> bytes:
    """A PNG with 64 colours, which is a third as large."""
    file = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE).save(file, "png", optimize=True)
    return file.getvalue()


def _about(source: str) -> tuple[str, str]:
    """Title and sentences of a script."""
    title, _, about = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")
    return title, about


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main(names: list[str]) -> None:
    """Run the scripts and write what they give."""
    torch.set_num_threads(1)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in names or ORDER:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            printed, picture = run(name, Path(folder))
            if picture is not None:
                atomic_write(PICTURES / picture.name, _in_few_colours(picture))
        atomic_write(SCRIPTS / f"{name}.md", page(name, printed, has_picture=picture is not None).encode())
        print(f"{name}: {time.perf_counter() - start:.1f} s")
    atomic_write(SCRIPTS / "index.md", index().encode())


if __name__ == "__main__":
    main(sys.argv[1:])
