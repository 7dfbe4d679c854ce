"""What the site shows beside docs/: README, ARCHITECTURE, the reproductions, and the files that pages link to.

A page outside docs/ keeps its place below the root of the site, README.md is its first page. Links between
pages are rewritten to that; a file that a page links to is copied. A link to no file is an error of the build.
The page of `curvact explore` is made anew; explore.md shows it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from curvact.lab.report.explore.page import explore_html

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "reproductions")
LINK = re.compile(r"(?<!`)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, what they and the others link to, and the live page."""
    for place in OUTSIDE:
        path = ROOT / place
        for page in sorted(path.rglob("*.md")) if path.is_dir() else [path]:
            _add(files, config, page.relative_to(ROOT).as_posix())
    files.append(File.generated(config, "explore-live.html", content=explore_html(site=True)))
    for page in list(files.documentation_pages()):
        here = _in_repository(page)
        for link in LINK.finditer(page.content_string):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link[1]))
            if (ROOT / target).is_file() and not target.startswith("docs/"):
                _add(files, config, target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The page with its links between files of the repository as links between pages of the site."""
    here = _in_repository(page.file)
    site_folder = posixpath.dirname(page.file.src_uri)

    def linked(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link[1]))
        if not (ROOT / target).exists():
            return link[0]
        place = posixpath.relpath(_in_site(target), site_folder or ".")
        return f"]({place}{link[2] or ''})"

    return LINK.sub(linked, markdown)


def _add(files: Files, config: Any, path: str) -> None:
    place = _in_site(path)
    if files.get_file_from_path(place) is None:
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))


def _in_site(path: str) -> str:
    """The place in the site of a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def _in_repository(file: File) -> str:
    """The place in the repository of a file of the site."""
    source = Path(file.abs_src_path) if file.abs_src_path else ROOT / "docs" / file.src_uri
    return source.resolve().relative_to(ROOT).as_posix()
