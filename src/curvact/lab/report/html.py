"""What every page is made of: a strict template, and pictures inside the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import jinja2


@dataclass(frozen=True)
class Picture:
    """An image of a page: a data URI, its text for readers who do not see it, its size in
    pixels."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Plate:
    """A figure on the page: pictures side by side on a laptop, one below the other on a phone."""

    title: str
    caption: str
    columns: int
    panels: tuple[Picture, ...]
    legend: tuple[Picture, ...] = ()


def picture(svg: bytes, alt: str) -> Picture:
    """An SVG as a picture of a page."""
    head = svg[svg.index(b"<svg") :].split(b">", 1)[0].decode()
    width, height = (
        round(float(head.split(f' {side}="')[1].split('pt"')[0]) * 4 / 3) for side in ("width", "height")
    )
    return Picture("data:image/svg+xml;base64," + base64.b64encode(svg).decode(), alt, width, height)


def page_template(file: str) -> jinja2.Template:
    """The template of a page, a file below this folder such as "sweep/page.html". What it prints is
    escaped, and an unknown name is an error. parts.html has what pages share, page.css how all look.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("curvact.lab.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(file)
