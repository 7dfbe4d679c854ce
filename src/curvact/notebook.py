"""What a notebook shows of our values: small tables of escaped HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

MOST = 30
"""Lines of a table that are shown."""


def html_table(title: str, heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table with a title; lines beyond MOST are counted. Every text is escaped.

    >>> html_table("κ", ["at", "<b>"], [[1, "a&b"]])
    '<table><caption>κ</caption><thead><tr><th>at</th><th>&lt;b&gt;</th></tr></thead><tbody><tr><td>1</td><td>a&amp;b</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(_text(cell))}</td>' for cell in line)}</tr>" for line in lines[:MOST]
    )
    more = f"<p>and {len(lines) - MOST} more lines</p>" if len(lines) > MOST else ""
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f"<table><caption>{escape(title)}</caption>{top}<tbody>{rows}</tbody></table>{more}"


def html_facts(title: str, facts: Mapping[str, object]) -> str:
    """Names and values, a line each."""
    return html_table(title, (), [(name, value) for name, value in facts.items()])


def html_list(title: str, sentences: Iterable[str]) -> str:
    """Sentences below a title.

    >>> html_list("One", ["a < b"])
    '<p><b>One</b></p><ul><li>a &lt; b</li></ul>'
    """
    items = "".join(f"<li>{escape(text)}</li>" for text in sentences)
    return f"<p><b>{escape(title)}</b></p><ul>{items}</ul>"


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell)
