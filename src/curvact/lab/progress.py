"""What a terminal shows while runs are executed. Without a terminal: one line an epoch, or a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from curvact.lab.store import Record
from curvact.training import Epoch, Step
from curvact.workers import Event


@contextmanager
def run_bar(name: str, console: Console) -> Iterator[Callable[[Step | Epoch], None]]:
    """A bar over the steps of one run, with its loss and its robust accuracy."""
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f} % {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(name, total=None, note="")
        robust = ""

        def show(event: Step | Epoch) -> None:
            nonlocal robust
            if isinstance(event, Step):
                note = f"epoch {event.epoch}, loss {event.loss:.3f}{robust}"
                progress.update(task, total=event.total, completed=event.step, note=note)
                return
            robust = f", robust {event.validation_robust_accuracy:.1%}"
            if not console.is_terminal or event.note:
                console.print(
                    f"epoch {event.epoch}: loss {event.loss:.3f}, validation {event.validation_accuracy:.1%}, "
                    f"robust {event.validation_robust_accuracy:.1%}, {event.gradient_evaluations} gradients, "
                    f"{event.seconds:.1f} s {event.note}".rstrip(),
                    soft_wrap=True,
                    highlight=False,
                )

        yield show


class SweepBars:
    """A bar for the sweep, and one for each run that is being executed."""

    def __init__(self, console: Console, name: str, *, total: int, finished: int) -> None:
        self.console, self.total, self.finished = console, total, finished
        self.total_is_known = True
        self.before, self.began = finished, time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.sweep = self.progress.add_task(f"[bold]{name}[/] runs", total=total, completed=finished, note="")
        self.bars: dict[str, TaskID] = {}
        self.devices: dict[str, str] = {}

    def __enter__(self) -> SweepBars:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def show(self, label: str, epochs: int, event: Event) -> None:
        """Show an event of the run of that label, which has so many epochs."""
        if event.kind == "start":
            self.started(label, epochs, event.device)
        elif event.kind == "epoch":
            self.epoch(label, event.content)
        elif event.kind == "died":
            self.died(label, event.content, event.cause)
        elif event.kind == "done":
            self.done(label, event.content)

    def started(self, label: str, epochs: int, device: str = "") -> None:
        if label in self.bars:  # run again after its worker died
            self.progress.remove_task(self.bars.pop(label))
        self.devices[label] = f" on {device}" if device else ""
        text = escape(label) + self.devices[label]
        self.bars[label] = self.progress.add_task(text, total=epochs, note="epochs")

    def epoch(self, label: str, epoch: Mapping[str, Any]) -> None:
        note = f"loss {epoch['loss']:.2f}, robust {epoch['validation_robust_accuracy']:.0%}"
        if label in self.bars:  # not where another run of the same words has ended
            self.progress.update(self.bars[label], completed=epoch["epoch"], note=note)

    def died(self, label: str, attempt: int, cause: str) -> None:
        self.console.print(
            f"[yellow]a worker died[/] during {escape(label)}: attempt {attempt}, {escape(cause)}",
            soft_wrap=True,
            highlight=False,
        )

    def add(self) -> None:
        """One run more than was known."""
        self.total, self.total_is_known = self.total + 1, False
        self.progress.update(self.sweep, total=self.total)

    def done(self, label: str, record: Record | None) -> None:
        """record: None where the run was stopped before its end."""
        self.finished += 1
        if label in self.bars:
            self.progress.remove_task(self.bars.pop(label))
        note = ""
        if record is None:
            self.console.print(f"{self._place()} {escape(label)}: stopped early", soft_wrap=True)
        elif record.status == "failed":
            self.console.print(f"[red]failed[/] {escape(label)}: {escape(record.cause)}", soft_wrap=True)
        else:
            name = record.spec.evaluation.metric
            robust, clean = (record.metrics[name(f"{kind}_accuracy")] for kind in ("robust", "clean"))
            strong = record.metrics.get(name("subset_robust_accuracy"))
            accuracies = f"robust {robust:.1%}"
            if strong is not None:
                accuracies += f" ({strong:.1%} by {'+'.join(record.spec.evaluation.autoattack_parts)})"
            note = f"last: {accuracies}"
            if not self.console.is_terminal:
                self.console.print(
                    f"{self._place()} {escape(label)}: {accuracies}, clean {clean:.1%}, "
                    f"{record.seconds:.1f} s{self.devices.get(label, '')}{self._time_left()}",
                    soft_wrap=True,
                )
        self.progress.update(self.sweep, completed=self.finished, note=note)

    def _place(self) -> str:
        return f"{self.finished}/{self.total}" if self.total_is_known else f"{self.finished}"

    def _time_left(self) -> str:
        """At the rate of the runs that have finished since the sweep began or went on."""
        if not self.total_is_known:
            return ""
        each = (time.monotonic() - self.began) / (self.finished - self.before)
        seconds = round(each * (self.total - self.finished))
        return f"; about {seconds // 60} min {seconds % 60:02} s left" if seconds else ""
