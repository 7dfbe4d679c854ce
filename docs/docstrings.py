"""How our docstrings become Markdown in the site: arguments as a list, examples as code.

Our docstrings are plain sentences. `name: what it is` begins a line for each argument or field, and
`>>>` an example. Markdown would join such lines.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (?=\S)")
SECOND = re.compile(r"(?<=[.;]) (\w+(?:, \w+)*): (?=\S)")  # two arguments on one line
NEW_LINE = re.compile(r"^(Returns?|Raises|Cost|Checks)\b")


class PlainDocstrings(griffe.Extension):
    """Rewrites every docstring, and exports what a module imports as `X as X`."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Once the package is read."""
        self._walk(pkg)

    def _walk(self, thing: griffe.Object) -> None:
        if thing.docstring is not None:
            thing.docstring.value = as_markdown(thing.docstring.value)
        if thing.is_module and thing.exports is None:
            names = [name for name in thing.imports if not name.startswith("_")]
            thing.exports = [name for name in names if name in thing.members] or None
        for member in list(thing.members.values()):
            if not member.is_alias:
                self._walk(member)


def as_markdown(text: str) -> str:
    """A docstring as Markdown."""
    lines: list[str] = []
    state = "text"  # of the line before: text, item, example
    for line in text.splitlines():
        if state == "example" and not line.strip():
            lines.append("```")
            state = "text"
        if line.startswith(">>>") and state != "example":
            lines += ["", "```pycon"]
            state = "example"
        if state == "example":
            lines.append(line)
            continue
        if not line.strip():
            state = "text"
        elif argument := ARGUMENT.match(line):
            if state != "item":
                lines.append("")
            line = f"- `{argument[1]}`: {SECOND.sub(_item, line[argument.end() :])}"
            state = "item"
        elif state == "item" and (line.startswith(" ") or not lines[-1].endswith((".", ":"))):
            line = f"    {SECOND.sub(_item, line.strip())}"
        elif state == "item" or NEW_LINE.match(line):
            lines.append("")
            state = "text"
        elif line.startswith("- ") and lines and lines[-1].strip() and not lines[-1].startswith(("- ", " ")):
            lines.append("")
        lines.append(line)
    if state == "example":
        lines.append("```")
    return "\n".join(lines)


def _item(argument: re.Match[str]) -> str:
    return f"\n- `{argument[1]}`: "
