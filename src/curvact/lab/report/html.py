"""What every page is made of: a strict template, and pictures inside the page."""

from __future__ import annotations

import base64
import re
from collections import Counter
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


def slim(svg: bytes) -> bytes:
    """An SVG of matplotlib that looks the same and has a fifth of the bytes: two decimals, no comments,
    a class for each style that is used again, and the dots of single seeds (the groups with the id
    "seeds") as one path a group.

    >>> slim(b"<svg><!-- a --> <g x='1.23456'/>  </svg>")
    b"<svg><g x='1.23'/></svg>"
    """
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg.decode(), flags=re.DOTALL)
    text = re.sub(r">\s+<", "><", re.sub(r"(\d\.\d\d)\d+", r"\1", text))
    text = re.sub(r"( style=\"[^\"]*\")", lambda style: style[1].replace("; ", ";").replace(": ", ":"), text)
    dots = r'(<g id="seeds[^"]*">(?:(?!<g id=).)*?<g[^>]*>)((?:<use [^>]*/>)+)'
    text = re.sub(dots, _dots, text, flags=re.DOTALL)
    text = re.sub(r"\s*\n", "", re.sub(r"([MLQCz]) (?=[-\d])", r"\1", text.replace(" \n", "\n")))
    used = Counter(re.findall(r' style="([^"]*)"', text))
    names = {style: f"s{n}" for n, style in enumerate(sorted(s for s, times in used.items() if times > 1))}
    if not names:
        return text.encode()
    text = re.sub(r' style="([^"]*)"', lambda s: f' class="{names[s[1]]}"' if s[1] in names else s[0], text)
    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    return re.sub(r"(<svg[^>]*>)", rf"\1<style>{rules}</style>", text, count=1).encode()


def _dots(found: re.Match[str]) -> str:
    """Markers of one group as a path of points."""
    places = re.findall(r' x="([^"]*)" y="([^"]*)"', found[2])
    colour = re.search(r"fill:(#\w+)", found[2])
    if colour is None:
        return found[0]
    path = "".join(f"M{x} {y}h0" for x, y in places)
    style = f"fill:none;stroke:{colour[1]};stroke-opacity:.4;stroke-width:3.2;stroke-linecap:round"
    return f'{found[1]}<path d="{path}" style="{style}"/>'


def picture(svg: bytes, alt: str) -> Picture:
    """An SVG as a picture of a page."""
    svg = slim(svg)
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
