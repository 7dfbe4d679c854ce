"""What an analysis command found: results by model, pictures and tables, all written at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from torch import nn

from curvact.analysis.records import OnProgress, plain
from curvact.errors import CurvactError, printable
from curvact.lab.cli.subjects import Subjects
from curvact.lab.environment import environment
from curvact.lab.record.record import model_entry
from curvact.lab.report.style import to_png, to_svg
from curvact.lab.store import check_writable

Record = dict[str, Any]


class Findings:
    """The results of one analysis, in memory until `write`.

    results, seconds: by name of a model, or by `together` for what belongs to all models.
    notes: lines under the tables.
    """

    def __init__(self, kind: str, config: Mapping[str, Any], subjects: Subjects, out: Path | None) -> None:
        """config: all options of the command. out: None for analysis/ beside each checkpoint.

        Raises CurvactError where a folder cannot be written: before hours are spent.
        """
        self.kind, self.config, self.subjects, self.out = kind, config, subjects, out
        self.results: dict[str, Record] = {}
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self._pictures: dict[tuple[Path, str], Callable[[], Figure]] = {}
        for name in subjects.checkpoints:
            check_writable(self.folder(name))

    @property
    def together(self) -> str:
        """The name of what belongs to all models: that of the first, and how many more."""
        first, *others = self.subjects.checkpoints
        return f"{first}+{len(others)}" if others else first

    def folder(self, name: str) -> Path:
        checkpoints = self.subjects.checkpoints
        checkpoint = checkpoints.get(name) or next(iter(checkpoints.values()))
        return self.out if self.out is not None else checkpoint.analyses

    def each(self, analyse: Callable[[nn.Module, OnProgress], Record]) -> None:
        """Analyse every model, behind one bar."""
        with progress_bar(self.kind, len(self.subjects.checkpoints)) as begin:
            for name, model in self.subjects.models.items():
                with self._measured(name):
                    self.results[name] = analyse(model, begin(name))

    def all_at_once(self, analyse: Callable[[Callable[[str], OnProgress]], Record], parts: int = 1) -> None:
        """Analyse all models together, behind one bar of so many parts."""
        with progress_bar(self.kind, parts) as begin, self._measured(self.together):
            self.results[self.together] = analyse(begin)

    def draw(self, draw: Callable[[], Figure], *, name: str | None = None, part: str = "") -> None:
        """Draw a picture at the end: of one model, or of all of them."""
        name = self.together if name is None else name
        stem = "-".join(filter(None, (self.kind, name, part)))
        self._pictures[self.folder(name), stem] = draw

    def draw_each(self, draw: Callable[[Record, str], Figure], part: str = "") -> None:
        """Draw the record of every model, under its name."""
        for name, record in self.results.items():
            heading = f"{name}: {self.subjects.caption}"
            self.draw(partial(draw, record, heading), name=name, part=part)

    def write(self, tables: Sequence[Table]) -> None:
        """Draw everything, then write all files, then print the tables and the files' names."""
        folders: dict[Path, dict[str, bytes | str]] = {}
        for (folder, stem), draw in self._pictures.items():
            try:
                figure = draw()
                files: dict[str, bytes | str] = {f"{stem}.png": to_png(figure), f"{stem}.svg": to_svg(figure)}
            except Exception as error:  # matplotlib fails in many ways; the numbers are kept
                why = " ".join(str(error).split()) or type(error).__name__
                self.notes.append(f"no picture {stem}: {why}")
            else:
                folders.setdefault(folder, {}).update(files)
        for name, result in self.results.items():
            folders.setdefault(self.folder(name), {})[f"{self.kind}-{name}.json"] = self._json(name, result)
        _write(folders)
        console = Console()
        for table in tables:
            _show(console, table)
            console.print()
        console.print(escape(printable(self.subjects.caption)), highlight=False)
        for note in self.notes:
            console.print(f"• {escape(printable(note))}", highlight=False)
        for folder, files in folders.items():
            console.print(
                escape(printable(f"{folder}/: {', '.join(files)}")), highlight=False, soft_wrap=True
            )

    @contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)

    def _json(self, name: str, result: Record) -> str:
        subjects, threat = self.subjects, self.subjects.threat_model
        one = name in subjects.checkpoints and len(self.results) == len(subjects.checkpoints)
        record = {
            "schema": 1,
            "analysis": self.kind,
            "config": self.config,
            "seed": self.config["seed"],
            "models": [
                {
                    **model_entry(checkpoint.model, key, checkpoint.architecture).model_dump(mode="json"),
                    "checkpoint": str(checkpoint.path),
                }
                for key, checkpoint in subjects.checkpoints.items()
                if not one or key == name
            ],
            "data": {
                "name": subjects.images.name,
                "sha256": subjects.images.sha256,
                "count": len(subjects.images),
            },
            "threat_model": None if threat is None else {"norm": threat.norm, "epsilon": threat.epsilon},
            "environment": environment(subjects.x.device),
            "seconds": self.seconds[name],
            "result": result,
        }
        return json.dumps(plain(record), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


@contextmanager
def progress_bar(title: str, parts: int) -> Iterator[Callable[[str], OnProgress]]:
    """A bar on standard error, where that is a terminal.

    Gives a function: the name of the next part to the on_progress of that part.
    """
    from rich.progress import BarColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), "{task.fields[now]}", TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=parts, now="")
        begun = 0

        def begin(name: str) -> OnProgress:
            nonlocal begun
            offset, begun = begun, begun + 1
            bars.update(task, description=escape(f"{title}: {name}"), completed=offset, now="")

            def on_progress(done: int, total: int | None) -> None:
                now = f"{done}/{total}" if total else f"{done}"
                bars.update(task, completed=offset + (done / total if total else 0.0), now=now)

            return on_progress

        yield begin


def _write(folders: Mapping[Path, Mapping[str, bytes | str]]) -> None:
    from curvact.files import atomic_write

    for folder, files in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CurvactError(f"cannot write {folder}: {error.strerror}") from None
        for name, content in files.items():
            atomic_write(folder / name, content)


def _show(console: Console, table: Table) -> None:
    """Print a table as wide as it is: a number that is cut off says nothing."""
    needed = Measurement.get(console, console.options.update(width=1000), table).maximum
    Console(width=max(console.width, needed)).print(table)
