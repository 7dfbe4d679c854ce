"""The part of a page that answers to mouse and keys: its data as JSON, and the script that draws them.

interactive.js builds everything from the data, in the element that `explorer` of parts.html makes. A
reader without JavaScript has the still figures and the tables.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

from markupsafe import Markup

from curvact.files import cell_text
from curvact.lab.report.style import CURVATURE_LABEL, DASHES, MARKERS, OKABE_ITO
from curvact.lab.statistics.interval import scale_of
from curvact.lab.statistics.strata import axis_name
from curvact.lab.statistics.words import outcome_name

MOST_EPOCHS, LEAST_EPOCHS, EPOCHS_IN_ALL = 40, 8, 10_000
"""Points of a training curve in the page: the most, the least, and those of all runs together."""

RUN_MARK = "\0"
"""Stands for the id of a run in the texts that the runs of a page share but for it."""


@dataclass(frozen=True)
class RunAbout:
    """What the page shows of a run when its point is chosen.

    settings: where the runs of the page differ, dotted key → value as text. folder: of the run.
    command: repeats it. epochs, curves: numbers of epochs, and the values of a metric at each.
    """

    settings: Mapping[str, str]
    folder: str
    command: str
    epochs: tuple[int, ...] = ()
    curves: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shading:
    """The interval of a metric's mean at each point of the horizontal axis, in the runs with these
    labels, in the units that are drawn (accuracies in per cent)."""

    metric: str
    labels: Mapping[str, str]
    at: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class Explorer:
    """The runs of a page as a table, and how they are drawn first.

    lines: the heads and a line a run, as in the CSV file `file`. axes: the columns that are settings.
    x, y: the columns drawn first. metrics: those that can be drawn. logarithmic: axes with that scale
    at first. connected: whether points of equal labels are seeds, which have a mean and a line.
    titles: of columns, where their name says too little. add_seeds: the command, or "".
    """

    lines: Sequence[Sequence[object]]
    axes: tuple[str, ...]
    metrics: tuple[str, ...]
    x: str
    y: str
    file: str
    logarithmic: frozenset[str] = frozenset()
    connected: bool = True
    band: tuple[float, float] | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    shadings: tuple[Shading, ...] = ()
    runs: Mapping[str, RunAbout] = field(default_factory=dict)
    add_seeds: str = ""

    def to_json(self) -> Markup:
        """All of it as JSON that no text in it can end: <, > and & are escaped."""
        metrics = {
            name: {
                "title": self.titles.get(name) or outcome_name(name),
                "percent": scale_of(name) == "fraction",
                "log": scale_of(name) == "positive",
            }
            for name in self.metrics
        }
        epochs = list(dict.fromkeys(about.epochs for about in self.runs.values()))
        texts = list(
            dict.fromkeys(
                text.replace(run, RUN_MARK)
                for run, about in self.runs.items()
                for text in (about.folder, about.command)
            )
        )
        content = {
            "heads": [str(head) for head in self.lines[0]],
            "rows": [[cell_text(value) for value in line] for line in self.lines[1:]],
            "axes": {axis: self.titles.get(axis) or _axis_title(axis) for axis in self.axes},
            "metrics": metrics,
            "x": self.x,
            "y": self.y,
            "file": self.file,
            "logarithmic": sorted(self.logarithmic),
            "connected": self.connected,
            "band": self.band,
            "shadings": [asdict(shading) for shading in self.shadings],
            "epochs": epochs,
            "texts": texts,
            "runs": {
                run: {
                    "settings": dict(about.settings),
                    "curves": dict(about.curves),
                    "epochs": epochs.index(about.epochs),
                    "folder": texts.index(about.folder.replace(run, RUN_MARK)),
                    "command": texts.index(about.command.replace(run, RUN_MARK)),
                }
                for run, about in self.runs.items()
            },
            "addSeeds": self.add_seeds,
            "colours": OKABE_ITO,
            "markers": MARKERS,
            "dashes": DASHES,
        }
        return script_json(content)


def script_json(content: Mapping[str, Any]) -> Markup:
    """JSON for a script element. It has no <, > and &, so that no text can end the element.

    >>> print(script_json({"name": "</script>"}))
    {"name":"\\u003c/script\\u003e"}
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def script(*names: str) -> tuple[Markup, str]:
    """Scripts below this folder as one, by default interactive.js, and its source for a
    Content-Security-Policy: its sha256. drawing.js, with what they draw, comes first. No other script
    runs in the page, whatever the texts of a user are."""
    folder = resources.files("curvact.lab.report")
    files = ("drawing.js", *(names or ("interactive.js",)))
    text = "\n".join((folder / name).read_text(encoding="utf-8") for name in files)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"


def thinned(history: Sequence[Mapping[str, Any]], metrics: Sequence[str], runs: int = 1) -> dict[str, Any]:
    """Epochs of a run, the first and the last among them, as `epochs` and `curves` of a RunAbout;
    numbers with three digits. runs: of the page; the more, the fewer epochs of each.

    >>> thinned([{"epoch": 1, "loss": 2.34567}, {"epoch": 2, "loss": float("nan")}], ["loss"])
    {'epochs': (1, 2), 'curves': {'loss': (2.35, None)}}
    """
    last = len(history) - 1
    count = min(len(history), MOST_EPOCHS, max(LEAST_EPOCHS, EPOCHS_IN_ALL // max(1, runs)))
    kept = [history[round(i * last / max(1, count - 1))] for i in range(count)]
    return {
        "epochs": tuple(int(epoch["epoch"]) for epoch in kept),
        "curves": {name: tuple(finite(epoch.get(name), 3) for epoch in kept) for name in metrics},
    }


def finite(value: float | None, digits: int = 4) -> float | None:
    """A number with so many digits, or None where there is none."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def drawable(lines: Sequence[Sequence[object]], columns: Sequence[str]) -> tuple[str, ...]:
    """Those columns of a table with a finite number in them."""
    heads = list(lines[0])
    return tuple(
        name
        for name in columns
        if any(
            isinstance(value := line[heads.index(name)], (int, float)) and math.isfinite(value)
            for line in lines[1:]
        )
    )


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """run → those settings, by dotted key, that are not the same in all runs. settings: run → nested
    settings.

    >>> differing({"a": {"seed": 0, "model": {"width": 2}}, "b": {"seed": 1, "model": {"width": 2}}})
    {'a': {'seed': '0'}, 'b': {'seed': '1'}}
    """
    flat = {run: dict(_flat(content)) for run, content in settings.items()}
    keys = dict.fromkeys(key for content in flat.values() for key in content)
    varied = [key for key in keys if len({content.get(key, "") for content in flat.values()}) > 1]
    return {run: {key: content[key] for key in varied if key in content} for run, content in flat.items()}


def _flat(content: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{above}{key}.")
        else:
            found.append((above + key, "none" if value is None else cell_text(value)))
    return found


def _axis_title(axis: str) -> str:
    return CURVATURE_LABEL if axis == "curvature" else axis_name(axis)
