"""What every page is made of: a strict template, and pictures inside the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup


@dataclass(frozen=True)
class Picture:
    """An image of a page: a data URI, its text for readers who do not see it, its size in
    pixels."""

    uri: str
    alt: str
    width: int
    height: int


def picture(svg: bytes, alt: str) -> Picture:
    """An SVG as a picture of a page."""
    head = svg[svg.index(b"<svg") :].split(b">", 1)[0].decode()
    width, height = (
        round(float(head.split(f' {side}="')[1].split('pt"')[0]) * 4 / 3) for side in ("width", "height")
    )
    return Picture("data:image/svg+xml;base64," + base64.b64encode(svg).decode(), alt, width, height)


def page_template(package: str, file: str) -> jinja2.Template:
    """The template in `file` of a package; what it prints is escaped, and an unknown name is an
    error. `style` is what all pages look like, page.css."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    css = resources.files("curvact.lab.report").joinpath("page.css").read_text(encoding="utf-8")
    environment.globals["style"] = Markup(css)
    return environment.from_string(resources.files(package).joinpath(file).read_text(encoding="utf-8"))
