"""Run a sweep: what is left of it, side by side, with progress; then its table and its report."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.lab.claim import check_claim
from curvact.lab.engines import Job
from curvact.lab.imports import copy_code, hashes
from curvact.lab.layout import CODE_FOLDER, LISTED_FILE, LOCK_FILE, RUNS, SPEC_FILE
from curvact.lab.loggers import Shown, check_loggers
from curvact.lab.placement import Placement
from curvact.lab.progress import SweepBars
from curvact.lab.remote import Store
from curvact.lab.report.interactive import RunAbout, differing, thinned
from curvact.lab.report.sweep.about import SweepAbout, SweepReport
from curvact.lab.report.sweep.page import report_sweep
from curvact.lab.run import device_of, prepare, settle
from curvact.lab.settings import read_plain
from curvact.lab.store import Record, check_writable, finished, locked, read_environment, read_history
from curvact.lab.sweep import SWEEP_FILE, Planned, SweepSpec, read_sweep
from curvact.lab.table import Row, Table
from curvact.models.learned import extract_activation, insert_activation
from curvact.workers import Event

SHOWN_CURVES = ("validation_robust_accuracy", "validation_accuracy", "loss")
"""Columns of a run's epochs that the page draws."""


def run_sweep(
    spec: SweepSpec,
    folder: Path,
    place: Placement | None = None,
    *,
    resume: bool = False,
    console: Console | None = None,
    store: Store | None = None,
) -> list[str]:
    """Execute every run of the sweep that has no record in the folder yet.

    place: where; by default in worker processes of this machine, one a core or one a GPU. A run's
        record and environment.json say its device.
    resume: go on in a folder that holds a sweep already. Its spec may have grown: runs that are
        part of both are not repeated, but those that memory was too short for.
    store: whose local folder `folder` is, see `curvact.lab.remote.working`. Its runs are pushed while
        they run, and may run on machines that do not share the folder.
    Returns one line for each run that did not finish because its worker died again and again, and one that
    counts the runs whose training failed.
    Raises CurvactError for a folder that holds something else, a damaged record, or a full disk.
    Data, a network or a learned activation that a run cannot start from are found before anything
    is written.
    """
    console = console or Console(stderr=True)
    place = place or Placement()
    check_writable(folder)
    planned = list({run.id: run for run in reversed(_seed_by_seed(spec))}.values())[::-1]
    _check_folder(folder, spec, resume)
    records = {run.id: finished(folder / RUNS / run.id, run.id) for run in planned}
    left = [
        replace(run, spec=place.settled(run.spec))
        for run in planned
        if (record := records[run.id]) is None or not record.is_final
    ]
    workers = place.count([run.spec for run in left])
    if not _holds(folder, spec):
        rehearse(left, elsewhere=place.elsewhere)
    _check_images([record for record in records.values() if record is not None], left, folder)
    problems: list[str] = []
    with locked(folder):
        _check_folder(folder, spec, resume)  # another process may have begun since
        copy_code(spec.imports, folder)
        atomic_write(folder / SWEEP_FILE, spec.to_yaml())
        if store is not None:
            store.push()
        if not left:
            console.print(f"all {len(planned)} runs of {spec.name} have finished", highlight=False)
            return _failed(spec, folder)
        with SweepBars(console, spec.name, total=len(planned), finished=len(planned) - len(left)) as bars:
            for takes_from_a_run in (False, True):
                batch = [run for run in left if _takes_from_a_run(run) is takes_from_a_run]
                ready = [run for run in batch if _source_has_run(run, folder)]
                for run in batch:
                    if run not in ready:
                        problems.append(f"{run.label}: the run that learns its activation has not finished")
                if not ready:
                    continue
                jobs = [
                    Job(
                        run.spec,
                        folder / RUNS / run.id,
                        devices=place.devices(run.spec),
                        store=None if store is None else store.below(RUNS, run.id),
                        shown=Shown(spec.name, run.label),
                    )
                    for run in ready
                ]
                causes: dict[int, str] = {}
                lost = place.run(jobs, min(workers, len(jobs)), partial(_show, bars, ready, causes))
                problems += [given_up(ready[index].label, causes.get(index, "")) for index in lost]
                if store is not None:
                    check_claim(store.url)
                    store.pull_runs()
    return problems + _failed(spec, folder)


def _failed(spec: SweepSpec, folder: Path) -> list[str]:
    """A line where runs failed; each of them has its cause in results.csv."""
    records = [record for _, record in sweep_records(spec, folder)]
    count = sum(record.status == "failed" for record in records)
    return [f"{count} of {len(records)} runs failed: {folder}/results.csv has the causes"] if count else []


def _check_images(done: Sequence[Record], left: Sequence[Planned], folder: Path) -> None:
    """CurvactError where the images of finished runs are no longer what their spec names."""
    wanted = {run.spec.data.model_dump_json() for run in left}
    for record in done:
        data = record.spec.data
        splits = data.load() if data.model_dump_json() in wanted else None
        for split, before in record.data_sha256.items() if splits is not None else ():
            now = getattr(splits, split).sha256 if split != "extra" else before
            if before != now:
                raise CurvactError(
                    f"the images of {data.name} have changed since runs of {folder} were made: the sha256 of "
                    f"{split} was {before[:12]}…, and is {now[:12]}…; give another --out to run all anew"
                )


def _seed_by_seed(spec: SweepSpec) -> list[Planned]:
    """All runs, those of the first seed first: the whole curve shows early."""
    seeds = {seed: number for number, seed in enumerate(spec.grid["seed"])}
    return sorted(spec.planned, key=lambda run: (seeds[run.spec.seed], run.source is None))


def _holds(folder: Path, spec: SweepSpec) -> bool:
    """Whether the folder holds just this sweep. CurvactError where its spec is damaged."""
    if not (folder / SWEEP_FILE).exists():
        return False
    content = read_plain(folder / SWEEP_FILE)
    same_code = isinstance(content, dict) and hashes(content.get("imports")) == hashes(spec.imports)
    return same_code and read_sweep(folder) == spec


def _check_folder(folder: Path, spec: SweepSpec, resume: bool) -> None:
    if (folder / SWEEP_FILE).exists():
        _holds(folder, spec)
        if not resume:
            raise CurvactError(
                f"{folder} holds a sweep already: --resume goes on with it, --out chooses another folder"
            )
    else:
        check_empty(folder, "sweep")


def check_empty(folder: Path, kind: str) -> None:
    """CurvactError for a folder that holds more than a sweep, or another kind, begins with."""
    if folder.is_file():
        raise CurvactError(f"{folder} is a file: --out takes a folder")
    if folder.exists() and any(
        file.name not in (LOCK_FILE, LISTED_FILE, RUNS, CODE_FOLDER) and file.suffix != ".tmp"
        for file in folder.iterdir()
    ):
        raise CurvactError(f"{folder} is not empty and holds no {kind}: choose another --out")


def _show(bars: SweepBars, runs: Sequence[Planned], causes: dict[int, str], event: Event) -> None:
    """Show an event. causes: how the last worker of a run died, by the run's index."""
    if event.kind == "died":
        causes[event.job] = event.cause
    run = runs[event.job]
    bars.show(run.label, run.spec.training.epochs, event)


def given_up(label: str, cause: str) -> str:
    """The line on a run whose worker died again and again. cause: of the last time; "" if unknown."""
    why = f" ({cause})" if cause else ""
    return f"{label}: its worker died again and again{why}; --resume tries it again"


def rehearse(runs: Sequence[Planned], *, elsewhere: bool = False) -> None:
    """Prepare every run that differs in data, network, activation or hardware from those before it.

    elsewhere: the runs will be on other machines, so that this one need not have their devices.
    """
    by_id = {run.id: run for run in runs}
    seen = set()
    for run in runs:
        wanted = run.spec.activation_from
        source = by_id[wanted.run] if wanted is not None and wanted.run in by_id else None
        key = json.dumps([_shape_of(r) for r in (run, source) if r is not None], sort_keys=True)
        if key in seen:
            continue
        seen.add(key)
        try:
            if not elsewhere:
                device_of(run.spec.hardware)
            check_loggers(run.spec)
            if wanted is not None and wanted.path is not None:
                settled, learned, _ = settle(run.spec, Path(os.devnull))
                prepare(settled, learned)
                continue
            start = prepare(run.spec)
            if wanted is not None and source is not None:
                learned = extract_activation(prepare(source.spec).model)
                insert_activation(
                    start.model, learned, freeze=wanted.frozen, inputs=start.data.train.inputs(slice(0, 1))
                )
        except CurvactError as error:
            raise CurvactError(f"{run.label}: {error}") from None


def _shape_of(run: Planned) -> list[object]:
    shape = {"data", "model", "activation", "activation_from", "init_from", "helper", "hardware", "logging"}
    content = run.spec.model_dump(mode="json", include=shape)
    return [content, run.spec.training.crop]


def _takes_from_a_run(run: Planned) -> bool:
    return run.spec.activation_from is not None and run.spec.activation_from.run is not None


def _source_has_run(run: Planned, folder: Path) -> bool:
    wanted = run.spec.activation_from
    return (
        wanted is None or wanted.run is None or finished(folder / RUNS / wanted.run, wanted.run) is not None
    )


def sweep_records(spec: SweepSpec, folder: Path) -> list[tuple[Planned, Record]]:
    """The finished runs of a sweep, without its sources, in the order of its axes, references last."""
    found = []
    for run in spec.planned:
        if run.source is None:
            record = finished(folder / RUNS / run.id, run.id)
            if record is not None:
                found.append((run, record))
    return found


def table_of(spec: SweepSpec, records: Sequence[tuple[Planned, Record]]) -> Table:
    """The table of a sweep's finished runs."""
    rows = [
        Row(
            r.run,
            p.labels,
            r.status,
            r.cause,
            r.metrics,
            r.gradient_evaluations,
            r.seconds,
            reference=p.reference or "",
        )
        for p, r in records
    ]
    return Table(
        tuple(spec.axes),
        tuple(row for row in rows if not row.reference),
        tuple(row for row in rows if row.reference),
    )


def report(folder: Path) -> SweepReport:
    """Write results.csv, tables, figures and report.html from the records in a sweep's folder.

    Raises CurvactError for a folder without a sweep, without a finished run, or with a damaged one.
    """
    spec = read_sweep(folder)
    records = sweep_records(spec, folder)
    if not any(run.reference is None for run, _ in records):
        raise CurvactError(f"{folder} has no finished run: `curvact sweep run … --resume` goes on with it")
    expected = sum(run.source is None and run.reference is None for run in spec.planned)
    about = SweepAbout(
        name=spec.name,
        question=spec.question,
        spec_yaml=spec.to_yaml(),
        questions=spec.asked(),
        provenance=_provenance(spec, records, folder),
        expected=expected,
        titles=_titles(records),
        notes=_notes(spec, records, folder),
        more_seeds=_more_seeds(folder),
        runs=runs_about([record for _, record in records], folder),
    )
    return report_sweep(table_of(spec, records), about, folder)


def runs_about(records: Sequence[Record], folder: Path) -> dict[str, RunAbout]:
    """What a page shows of each run, by id. folder: that holds the folder of runs."""
    settings = differing({r.run: r.spec.model_dump(mode="json", exclude={"name", "about"}) for r in records})
    return {
        run: run_about(folder / RUNS / run, differences, len(records))
        for run, differences in settings.items()
    }


def run_about(place: Path, settings: Mapping[str, str], runs: int) -> RunAbout:
    """What a page of so many runs shows of the run in the folder `place`. settings: where they differ."""
    spec, out = shlex.quote(str(place / SPEC_FILE)), shlex.quote(f"runs/again-{place.name}")
    command = f"curvact train {spec} --out {out}"
    return RunAbout(settings, str(place), command, **thinned(read_history(place), SHOWN_CURVES, runs))


def _more_seeds(folder: Path) -> str:
    spec, out = shlex.quote(str(folder / SWEEP_FILE)), shlex.quote(str(folder))
    return f'curvact sweep run {spec} --out {out} --resume --set "grid.seed=[{{seeds}}]"'


def _titles(records: Sequence[tuple[Planned, Record]]) -> dict[str, str]:
    """The attacks by name, where all runs share them."""
    specs = {(r.spec.evaluation.attack, r.spec.evaluation.autoattack_parts) for _, r in records}
    counts = {min(r.spec.evaluation.autoattack_images, r.test_images) for _, r in records}
    if len(specs) > 1 or len(counts) > 1:
        return {}
    ((attack, parts),), (count,) = specs, counts
    return {
        "robust_accuracy": str(attack),
        "train_robust_accuracy": f"{attack}, training images",
        "subset_robust_accuracy": f"{' + '.join(parts)}, {count} images",
        "subset_pgd_accuracy": f"{attack}, same images",
    }


def _kernels(environment: Mapping[str, Any]) -> str:
    """native or plain."""
    return str(environment.get("kernels", "unknown")).partition(" ")[0]


def _notes(spec: SweepSpec, records: Sequence[tuple[Planned, Record]], folder: Path) -> tuple[str, ...]:
    notes = []
    budgets = {r.spec.training.budget for _, r in records}
    if len(budgets) == 1 and None not in budgets:
        (budget,) = budgets
        notes.append(f"Every run stops at {budget} gradient evaluations, those of its attack included.")
    places = [read_environment(folder / RUNS / r.run) for _, r in records]
    devices = sorted({str(place.get("device", "cpu")).partition(":")[0] for place in places})
    if len(devices) > 1:
        notes.append(
            f"The runs were computed on {' and '.join(devices)}: these draw the starts of attacks differently "
            "and round differently, so a run has another outcome by chance on each."
        )
    kinds = sorted(set(map(_kernels, places)))
    if len(kinds) > 1:
        notes.append(
            f"The runs were computed with different activation kernels, {' and '.join(kinds)}: the same run "
            "differs between them in its last digits, and so in its outcome by chance."
        )
    images: dict[str, set[str]] = {}
    for _, r in records:
        images.setdefault(r.spec.data.model_dump_json(), set()).add(json.dumps(r.data_sha256, sort_keys=True))
    if any(len(hashes_of_one) > 1 for hashes_of_one in images.values()):
        notes.append(
            "The images changed between runs of this sweep (their sha256 differ): runs on different images "
            "cannot be compared."
        )
    wanted = sum(run.reference is not None for run in spec.planned)
    done = sum(run.reference is not None for run, _ in records)
    if done < wanted:
        notes.append(f"{wanted - done} of {wanted} runs of references have not finished.")
    return tuple(notes)


def _provenance(spec: SweepSpec, records: Sequence[tuple[Planned, Record]], folder: Path) -> dict[str, str]:
    places = [read_environment(folder / RUNS / r.run) for _, r in records]

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(place.get(key, "unknown")) for place in places}))

    evaluations = sum(r.gradient_evaluations for _, r in records)
    seconds = sum(r.seconds for _, r in records)
    data = {f"{r.spec.data.name} (test sha256 {r.data_sha256['test'][:12]})" for _, r in records}
    attacks = {f"{r.spec.evaluation.attack}, {r.spec.threat_model}" for _, r in records}
    return {
        "sweep": spec.name,
        "seeds": ", ".join(map(str, spec.grid["seed"])),
        "attack": ", ".join(sorted(attacks)),
        "commit": all_of("commit"),
        "curvact": all_of("curvact"),
        "torch": all_of("torch"),
        "python": all_of("python"),
        "hardware": all_of("processor"),
        **({"GPU": all_of("gpu")} if any(place.get("gpu", "none") != "none" for place in places) else {}),
        "activation kernels": all_of("kernels"),
        "data": ", ".join(sorted(data)),
        "cost": f"{evaluations:,} gradient evaluations of a batch in training; {seconds:,.0f} s of one worker in all",
    }
