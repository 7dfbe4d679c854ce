"""Run a study: what is left of it, side by side, with progress."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from curvact.errors import CurvactError
from curvact.lab.engines.local import Event, run_trials
from curvact.lab.store import Spec, finished, open_folder
from curvact.lab.study_spec import trial_id
from curvact.lab.trial import prepare, put_activation


def run_study(
    spec: Spec,
    folder: Path,
    *,
    workers: int | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> list[str]:
    """Run every trial of the study that has no record in the folder yet.

    workers: processes, one thread each; the number of cores if None. The records do not depend on it.
    Returns one line for each trial that could not be finished because its worker kept dying.
    Raises CurvactError for a folder that holds something else, a damaged record, or a full disk; before anything is written,
    for data, a network or a learned activation that a trial could not start from.
    """
    console = console or Console(stderr=True)
    if not folder.exists():
        _rehearse(spec)
    trials = open_folder(folder, spec, resume=resume)
    configs = spec.trials()
    left = [config for config in configs if finished(trials, config) is None]
    if not left:
        console.print(f"all {len(configs)} trials of {spec.name} have run")
        return []
    workers = workers if workers is not None else os.cpu_count() or 1
    problems = []
    with _Display(console, spec, total=len(configs), before=len(configs) - len(left)) as display:
        for depending in (False, True):
            batch = [config for config in left if ("activation_from" in config) is depending]
            given_up = [config for config in batch if depending and not _has_source(config, trials)]
            batch = [config for config in batch if config not in given_up]
            problems += [f"{spec.label(config)}: its source has not run" for config in given_up]
            if batch:
                problems += _run(spec, batch, trials, workers, display)
    return problems


def _rehearse(spec: Spec) -> None:
    """Start every trial that differs in data, network or activation from those before it, without training."""
    configs = {trial_id(config): config for config in spec.trials()}
    seen = set()
    for config in configs.values():
        wanted = config.get("activation_from")
        source = None if wanted is None else configs[wanted["trial"]]
        parts = [
            [c["data"], c["model"], c["activation"], c["training"]["crop"]]
            for c in (config, source)
            if c is not None
        ]
        key = json.dumps(parts, sort_keys=True)
        if key in seen:
            continue
        seen.add(key)
        _, _, architecture, model = prepare(config)
        if wanted is not None and source is not None:
            try:
                put_activation(model, architecture, prepare(source)[3], frozen=wanted["frozen"])
            except CurvactError as error:
                raise CurvactError(f"{spec.label(config)}: {error}") from None


def _has_source(config: dict[str, Any], trials: Path) -> bool:
    source: str = config["activation_from"]["trial"]
    return (trials / source).exists()


def _run(
    spec: Spec, configs: list[dict[str, Any]], trials: Path, workers: int, display: _Display
) -> list[str]:
    given_up = run_trials(
        configs, trials, min(workers, len(configs)), lambda event: display.show(configs[event.trial], event)
    )
    return [
        f"{spec.label(configs[index])}: its worker died again and again; --resume tries it once more"
        for index in given_up
    ]


class _Display:
    """A bar for the study, one for each running trial; without a terminal, one line a finished trial."""

    def __init__(self, console: Console, spec: Spec, *, total: int, before: int) -> None:
        self.console, self.spec, self.total, self.finished = console, spec, total, before
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
        self.study = self.progress.add_task(
            f"[bold]{spec.name}[/] trials", total=total, completed=before, note=""
        )
        self.bars: dict[str, TaskID] = {}

    def __enter__(self) -> _Display:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def show(self, config: dict[str, Any], event: Event) -> None:
        label = self.spec.label(config)
        if event.kind == "start":
            self.bars[label] = self.progress.add_task(label, total=config["epochs"], note="epochs")
        elif event.kind == "epoch":
            note = f"loss {event.content['loss']:.2f}, robust {100 * event.content['validation_robust_accuracy']:.0f} %"
            self.progress.update(self.bars[label], completed=event.content["epoch"], note=note)
        else:
            if label in self.bars:
                self.progress.remove_task(self.bars.pop(label))
            if event.kind == "done":
                self._done(label, event.content)
            else:
                self.console.print(
                    f"[yellow]a worker died[/] during {label}: attempt {event.content['attempt']}, run again"
                )

    def _done(self, label: str, record: dict[str, Any]) -> None:
        self.finished += 1
        if record["status"] == "failed":
            self.console.print(f"[red]failed[/] {label}: {record['cause']}")
            note = ""
        else:
            note = f"last: robust {100 * record['metrics']['robust_accuracy']:.1f} %"
            if not self.console.is_terminal:
                self.console.print(
                    f"{self.finished}/{self.total} {label}: robust {100 * record['metrics']['robust_accuracy']:.1f} %, "
                    f"clean {100 * record['metrics']['clean_accuracy']:.1f} %, {record['seconds']:.1f} s",
                    soft_wrap=True,
                )
        self.progress.update(self.study, completed=self.finished, note=note)
