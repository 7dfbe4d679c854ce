"""Writes docs/cli.md: every command with its options, read off typer's help. Run it as `python docs/cli.py`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from curvact.lab.cli.main import app

HEAD = """# Every command

[On the command line](commands.md) says which command is for what; `curvact COMMAND --help` prints what stands here.

`python docs/cli.py` writes this page.
"""


def page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(line for path, command in _commands(app) for line in _section(path, command))])


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{path} {name}", inner)
        if not hasattr(command, "commands"):
            yield path, command

    return walk("curvact", typer.main.get_command(group))


def _section(path: str, command: Any) -> Iterator[str]:
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    words = [p.name.upper() + "..." * (p.nargs == -1) for p in arguments]
    words = [word if p.required else f"[{word}]" for word, p in zip(words, arguments, strict=True)]
    yield f"## `{' '.join([path, *words])}`\n"
    yield _text(inspect.cleandoc(command.help or "")) + "\n"
    if shown:
        yield "| | default | meaning |\n|---|---|---|"
        yield from (_row(p) for p in shown)
        yield ""
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    if examples:
        yield "\n".join(["```sh", *examples, "```", ""])


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    default = parameter.default
    value = "required" if parameter.required else "" if default in (None, False, ()) else f"`{default}`"
    return f"| {', '.join(f'`{name}`' for name in names)} | {value} | {_text(parameter.help or '')} |"


def _text(text: str) -> str:
    return text.replace("\b\n", "").replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
