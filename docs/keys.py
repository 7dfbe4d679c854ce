"""Writes docs/keys.md: every key of every spec, read off the types. Run it as `python docs/keys.py`."""

from __future__ import annotations

from pathlib import Path

import yaml

from curvact.lab.keys import SPECS, Key, keys_of

USES = {"run": "curvact train", "sweep": "curvact sweep run", "search": "curvact search"}

HEAD = """# Every key of every spec

A spec is a YAML file. `curvact init run|sweep|search` writes one to begin with, `--all` with every key.
A key is also set on the command line: `curvact train SPEC training.epochs=20`, and
`curvact sweep run SPEC --set base.training.epochs=20`.

`curvact schema run|sweep|search > spec.schema.json` writes the JSON schema. An editor with a YAML language
server completes and checks a spec whose first line is `# yaml-language-server: $schema=spec.schema.json`.

`python docs/keys.py` writes this page.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for kind in SPECS:
        parts.append(f"## The spec of a {kind} (`{USES[kind]} SPEC`)\n")
        parts.append("| key | default | allowed | meaning |\n|---|---|---|---|")
        parts += [_row(key) for key in keys_of(kind)]
        parts.append("")
    return "\n".join(parts)


def _row(key: Key) -> str:
    if key.holds_keys:
        return f"| **`{key.path}`** | | | {_cell(key.about)} |"
    default = "required" if key.required else f"`{_text(key.default)}`"
    return f"| `{key.path}` | {default} | {_cell(key.values)} | {_cell(key.about)} |"


def _text(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
