"""`curvact analyze`: what the loss of a checkpoint looks like; a table on the terminal, JSON and pictures in a folder."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from curvact.errors import CurvactError, nearest
from curvact.lab.cli.evaluate import parse_epsilon

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from curvact.analysis.matching import MatchingRule
    from curvact.analysis.records import OnProgress
    from curvact.attacks import ThreatModel

analysis_app = typer.Typer(no_args_is_help=True, help="Look at the loss of trained models.")

SPLITS = ("train", "validation", "test")
COUNTS = ("size", "train", "validation", "test")
"""What a trial's data are besides their name: side of the images, and how many of each split."""

Checkpoints = Annotated[
    list[Path], typer.Argument(help="model.safetensors of a trial, or weights in RobustBench's naming")
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="data set; the one it was trained on if known")
]
SplitOption = Annotated[str, typer.Option("--split", help="train, validation or test")]
CountOption = Annotated[int, typer.Option("--n", help="the first so many images")]
NormOption = Annotated[
    str | None, typer.Option("--norm", help="linf, l2 or l1; the trained one if known, else linf")
]
EpsilonOption = Annotated[
    str | None,
    typer.Option("--epsilon", help="in input units, such as 8/255; the trained one if known"),
]
SeedOption = Annotated[int, typer.Option("--seed", help="of everything random")]
BatchOption = Annotated[int, typer.Option("--batch-size", help="images at a time")]
AttackStepsOption = Annotated[int, typer.Option("--attack-steps", help="of PGD, each 2.5ε/steps long")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="folder to write; analysis/ next to each checkpoint if not given")
]


@analysis_app.command("hessian")
def hessian_command(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    data: DataOption = None,
    split: SplitOption = "train",
    n: CountOption = 128,
    norm: NormOption = None,
    epsilon: EpsilonOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 128,
    attack_steps: AttackStepsOption = 20,
    device: DeviceOption = "cpu",
    out: OutOption = None,
    what: Annotated[str, typer.Option(help="parts: norms, split, spectrum")] = "norms,split,spectrum",
    probes: Annotated[int, typer.Option(help="random vectors for each number that is estimated")] = 32,
    relative_error: Annotated[
        float | None,
        typer.Option(help="draw probes until standard errors are at most this part, such as 0.02"),
    ] = None,
    max_probes: Annotated[int, typer.Option(help="at most, with --relative-error")] = 1024,
    deflation: Annotated[int, typer.Option(help="directions taken out of H first")] = 8,
    exact: Annotated[
        bool, typer.Option("--exact", help="the diagonal by one backward pass a parameter: small models")
    ] = False,
    by_site: Annotated[
        bool, typer.Option("--by-site/--no-by-site", help="the split by call site; several times slower")
    ] = True,
    eigenvalues: Annotated[int, typer.Option(help="at each end of the spectrum")] = 3,
    density_probes: Annotated[int, typer.Option(help="random vectors for the density; 0: none")] = 4,
    density_steps: Annotated[int, typer.Option(help="Lanczos steps for each")] = 64,
) -> None:
    """diag H of clean and adversarial loss: norms by layer, its split into GGN and σ″, eigenvalues, trace, density.

    Parameters of activations are left out. The perturbation is held fixed.
    """
    from curvact.analysis import Loss
    from curvact.attacks import PGD
    from curvact.lab.analyses import HESSIAN_PARTS, HessianSettings, check_names, hessian_analysis
    from curvact.lab.report import analysis_tables as tables
    from curvact.lab.report.hessian_plots import density_figure, norms_figure, split_figure

    parts = _listed(what)
    check_names("--what", parts, HESSIAN_PARTS, "curvact analyze hessian")
    _at_least("--eigenvalues", eigenvalues, 1)
    _at_least("--density-probes", density_probes, 0)
    _at_least("--density-steps", density_steps, 1)
    settings = HessianSettings(
        what=tuple(parts),
        probes=probes,
        deflation=deflation,
        relative_error=relative_error,
        max_probes=max_probes,
        exact=exact,
        by_site=by_site,
        eigenvalues=eigenvalues,
        density_probes=density_probes,
        density_steps=density_steps,
    )
    subjects = _open("hessian", ctx, checkpoints)
    with _bar("Hessian", len(subjects.models)) as progress:
        for name, model in subjects.models.items():
            with subjects.measured(name):
                subjects.results[name] = hessian_analysis(
                    Loss(model, subjects.x, subjects.y, batch_size=batch_size),
                    subjects.threat,
                    settings,
                    attack=PGD(attack_steps),
                    seed=seed,
                    on_progress=progress(name),
                )
    draws: dict[str, tuple[str, Draw]] = {
        "norms": ("norms", norms_figure),
        "split": ("split", split_figure),
        "density": ("spectrum", density_figure),
    }
    for name, result in subjects.results.items():
        for ending, (part, draw) in draws.items():
            losses = {label: entry[part] for label, entry in result["losses"].items() if part in entry}
            if losses and (ending != "density" or density_probes):
                heading = f"{name}: {subjects.caption}"
                subjects.draw(name, ending, partial(draw, losses, heading))
    _finish(
        subjects, [table for name, r in subjects.results.items() for table in tables.hessian_tables(name, r)]
    )


@analysis_app.command("flatness")
def flatness_command(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    data: DataOption = None,
    split: SplitOption = "test",
    n: CountOption = 128,
    norm: NormOption = None,
    epsilon: EpsilonOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 128,
    attack_steps: AttackStepsOption = 20,
    device: DeviceOption = "cpu",
    out: OutOption = None,
    what: Annotated[str, typer.Option(help="parts: average, worst")] = "average,worst",
    radius: Annotated[float, typer.Option(help="ξ of the average case, relative to each tensor")] = 0.5,
    draws: Annotated[int, typer.Option(help="random weights of the average case")] = 10,
    worst_radius: Annotated[float, typer.Option(help="ξ of the worst case")] = 0.003,
    steps: Annotated[int, typer.Option(help="of ascent, in the worst case")] = 20,
    restarts: Annotated[int, typer.Option(help="of the worst case")] = 10,
) -> None:
    """How much the adversarial loss rises when the weights move: average and worst case (Stutz et al.).

    Parameters of activations and of normalization layers are held fixed.
    """
    from curvact.analysis import Loss
    from curvact.attacks import PGD
    from curvact.lab.analyses import FLATNESS_PARTS, FlatnessSettings, check_names, flatness_analysis
    from curvact.lab.report import analysis_tables as tables
    from curvact.lab.report.analysis_plots import flatness_figure

    parts = _listed(what)
    check_names("--what", parts, FLATNESS_PARTS, "curvact analyze flatness")
    _at_least("--draws", draws, 2)
    for option, value in (("--steps", steps), ("--restarts", restarts)):
        _at_least(option, value, 1)
    for option, size in (("--radius", radius), ("--worst-radius", worst_radius)):
        _positive(option, size)
    subjects = _open("flatness", ctx, checkpoints)
    with _bar("flatness", len(subjects.models)) as progress:
        for name, model in subjects.models.items():
            with subjects.measured(name):
                subjects.results[name] = flatness_analysis(
                    Loss(model, subjects.x, subjects.y, batch_size=batch_size),
                    subjects.threat,
                    FlatnessSettings(tuple(parts), radius, draws, worst_radius, steps, restarts),
                    attack=PGD(attack_steps),
                    seed=seed,
                    on_progress=progress(name),
                )

    def drawn(names: Sequence[str]) -> Callable[[], Figure]:
        records = {
            f"{name}, {part}" if len(parts) > 1 else name: record
            for part in parts
            for name in names
            for record in [subjects.results[name][part]]
        }
        return lambda: flatness_figure(records, f"Rise of the adversarial loss: {subjects.caption}")

    for name in subjects.models:
        subjects.draw(name, "", drawn([name]))
    if len(subjects.models) > 1:
        subjects.draw_together("", drawn(list(subjects.models)))
    _finish(subjects, [tables.flatness_table(subjects.results)])


@analysis_app.command("smoothness")
def smoothness_command(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    data: DataOption = None,
    split: SplitOption = "train",
    n: CountOption = 128,
    norm: NormOption = None,
    epsilon: EpsilonOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 128,
    attack_steps: AttackStepsOption = 20,
    device: DeviceOption = "cpu",
    out: OutOption = None,
    match: Annotated[
        str, typer.Option(help="L2 against L∞ at equal loss, accuracy, or corners (L2 ball through them)")
    ] = "loss",
    relative_norms: Annotated[
        str, typer.Option(help="lengths ‖Δθ‖/‖θ‖ of the steps")
    ] = "0.001,0.003,0.01,0.03,0.1",
    directions: Annotated[int, typer.Option(help="random ones, for each length")] = 5,
    flatness: Annotated[
        bool, typer.Option("--flatness/--no-flatness", help="flatness in the input beside it")
    ] = True,
    trajectory: Annotated[
        bool,
        typer.Option(
            "--trajectory", help="checkpoints of one folder are points of one training run, in this order"
        ),
    ] = False,
) -> None:
    """How fast the gradient of the adversarial loss turns in the parameters, L∞ against L2, attacked anew at each point."""
    from curvact.analysis import Loss
    from curvact.analysis.matching import MatchingRule
    from curvact.attacks import PGD
    from curvact.lab.analyses import SmoothnessSettings, smoothness_analysis
    from curvact.lab.report import analysis_tables as tables
    from curvact.lab.report.smoothness_plots import smoothness_figure, tradeoff_figure

    _one_of("--match", match, MatchingRule)
    _at_least("--directions", directions, 1)
    norms = _numbers("--relative-norms", relative_norms)
    for value in norms:
        _positive("--relative-norms", value)
    if len(set(norms)) < len(norms):
        raise CurvactError(f"--relative-norms {relative_norms}: one of them twice")
    if trajectory and len(checkpoints) < 2:
        raise CurvactError("--trajectory with 1 checkpoint: give the points of a training run, at least 2")
    subjects = _open("smoothness", ctx, checkpoints)
    rule = cast("MatchingRule", match)
    if subjects.threat.norm == "l1":
        raise CurvactError(
            "--norm l1 in curvact analyze smoothness: it compares linf and l2, give one of them"
        )
    if trajectory:
        _trajectories(subjects, rule, seed, batch_size, attack_steps)
        return
    with _bar("smoothness", len(subjects.models)) as progress:
        for name, model in subjects.models.items():
            with subjects.measured(name):
                subjects.results[name] = smoothness_analysis(
                    Loss(model, subjects.x, subjects.y, batch_size=batch_size),
                    subjects.threat,
                    SmoothnessSettings(rule, tuple(norms), directions, flatness),
                    attack=PGD(attack_steps),
                    seed=seed,
                    on_progress=progress(name),
                )
    for name, record in subjects.results.items():
        heading = f"{name}: {subjects.caption}"
        subjects.draw(name, "", partial(smoothness_figure, record, heading))
    if flatness and len(subjects.models) > 1:
        results = dict(subjects.results)
        subjects.draw_together(
            "tradeoff",
            lambda: tradeoff_figure(
                results, title=f"Flat in the input, rough in the parameters? {subjects.caption}"
            ),
        )
    _finish(
        subjects,
        [table for name, r in subjects.results.items() for table in tables.smoothness_tables(name, r)],
    )


def _trajectories(
    subjects: _Subjects, rule: MatchingRule, seed: int, batch_size: int, attack_steps: int
) -> None:
    """Smoothness along every run, the checkpoints of a folder, under the attacks that are matched at the end of the first."""
    from curvact.analysis import Loss, match_radii, trajectory_smoothness
    from curvact.attacks import PGD
    from curvact.lab.analyses import linf_radius
    from curvact.lab.report import analysis_tables as tables
    from curvact.lab.report.smoothness_plots import trajectory_figure

    folders: dict[Path, list[str]] = {}
    for name in subjects.models:
        folders.setdefault(subjects.paths[name].resolve().parent, []).append(name)
    for folder, names in folders.items():
        if len(names) < 2:
            raise CurvactError(f"--trajectory with 1 checkpoint of {folder}: give at least 2 of each run")
    runs = dict(zip(_told_apart(list(folders)), folders.values(), strict=True))
    spent = {
        name: float(about["gradient_evaluations"])
        for name, about in subjects.known.items()
        if "gradient_evaluations" in about
    }
    by_cost = len(spent) == len(subjects.known)
    x, y = subjects.x, subjects.y
    walked: dict[str, dict[str, Any]] = {}
    with _bar("trajectory", len(runs)) as progress, subjects.measured(subjects.together):
        matched = match_radii(
            Loss(subjects.models[next(iter(runs.values()))[-1]], x, y, batch_size=batch_size),
            linf_radius(subjects.threat, x),
            rule=rule,
            attack=PGD(attack_steps),
            seed=seed,
        )
        for run, names in runs.items():
            found = trajectory_smoothness(
                Loss(subjects.models[names[-1]], x, y, batch_size=batch_size),
                [subjects.models[name].state_dict() for name in names],
                matched.attacks(PGD(attack_steps), seed=seed),
                positions=[spent[name] for name in names] if by_cost else None,
                on_progress=progress(run),
            ).as_dict()
            walked[run] = {**found, "checkpoints": names, "matching": matched.as_dict()}
    one = len(walked) == 1
    subjects.results[subjects.together] = next(iter(walked.values())) if one else {"runs": walked}
    label = "gradient evaluations" if by_cost else "checkpoint"
    for attack in [None] if one else list(matched.attacks()):
        subjects.draw_together(
            attack or "",
            partial(
                trajectory_figure,
                walked,
                None if attack is None else [attack],
                subjects.caption if attack is None else f"{subjects.caption}; {attack} loss",
                label,
            ),
        )
    _finish(subjects, [tables.trajectory_table(found, runs[run], run) for run, found in walked.items()])


def _told_apart(folders: Sequence[Path]) -> list[str]:
    """The names of folders, longer where two are alike."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


@analysis_app.command("landscape")
def landscape_command(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    data: DataOption = None,
    split: SplitOption = "train",
    n: CountOption = 128,
    norm: NormOption = None,
    epsilon: EpsilonOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 128,
    attack_steps: AttackStepsOption = 10,
    device: DeviceOption = "cpu",
    out: OutOption = None,
    dimensions: Annotated[int, typer.Option(help="1 or 2 random directions")] = 2,
    points: Annotated[
        int | None, typer.Option(help="a direction, odd; 41 in one dimension, 11 in two if not given")
    ] = None,
    span: Annotated[float, typer.Option(help="coordinates from −span to span")] = 1.0,
    surface: Annotated[bool, typer.Option("--surface", help="also drawn in space (two dimensions)")] = False,
) -> None:
    """The clean and the adversarial loss along filter-normalized random directions (Li et al.), attacked anew at each point."""
    from curvact.analysis import Loss, loss_landscape, seeded
    from curvact.attacks import PGD
    from curvact.lab.analyses import own_parameters
    from curvact.lab.report import analysis_tables as tables
    from curvact.lab.report.analysis_plots import landscape_figure

    if dimensions not in (1, 2):
        raise CurvactError(f"--dimensions {dimensions}: allowed are 1 and 2")
    if surface and dimensions == 1:
        raise CurvactError("--surface with --dimensions 1: a surface needs two dimensions")
    size = points if points is not None else {1: 41, 2: 11}[dimensions]
    if size < 3 or size % 2 == 0:
        raise CurvactError(f"--points {size}: an odd number from 3, so that one of them is the model")
    _positive("--span", span)
    subjects = _open("landscape", ctx, checkpoints)
    attack = seeded(PGD(attack_steps), subjects.threat, seed)
    with _bar("landscape", len(subjects.models)) as progress:
        for name, model in subjects.models.items():
            with subjects.measured(name):
                subjects.results[name] = loss_landscape(
                    Loss(
                        model,
                        subjects.x,
                        subjects.y,
                        exclude=own_parameters(model),
                        batch_size=batch_size,
                    ),
                    attack,
                    directions=dimensions,
                    points=size,
                    span=span,
                    seed=seed,
                    on_progress=progress(name),
                ).as_dict()
    for name, record in subjects.results.items():
        heading = f"{name}: {subjects.caption}"
        for ending, space in (("", False), *([("surface", True)] if surface else [])):
            subjects.draw(
                name,
                ending,
                partial(landscape_figure, record, heading, surface=space),
            )
    _finish(subjects, [tables.landscape_table(subjects.results)])


@analysis_app.command("shape")
def shape_command(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    data: DataOption = None,
    split: SplitOption = "test",
    n: CountOption = 128,
    norm: NormOption = None,
    epsilon: EpsilonOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 128,
    attack_steps: AttackStepsOption = 20,
    device: DeviceOption = "cpu",
    out: OutOption = None,
    largest_radius: Annotated[
        str | None, typer.Option(help="where the search for the minimum radius begins; 4ε if not given")
    ] = None,
    radius_steps: Annotated[int, typer.Option(help="halvings of that search")] = 8,
    lipschitz_steps: Annotated[int, typer.Option(help="of the ascent on the Lipschitz ratio")] = 10,
    square_queries: Annotated[int, typer.Option(help="of the Square attack; 0 leaves it out")] = 0,
) -> None:
    """One row a model: the shape of its activations, accuracy, minimum PGD radius, empirical Lipschitz constant."""
    from curvact.analysis.shape import ShapeSettings, shape_table
    from curvact.attacks import PGD
    from curvact.lab.report import analysis_tables as tables
    from curvact.lab.report.analysis_plots import shape_figure

    for option, value in (("--radius-steps", radius_steps), ("--lipschitz-steps", lipschitz_steps)):
        _at_least(option, value, 1)
    _at_least("--square-queries", square_queries, 0)
    largest = None if largest_radius is None else _radius("--largest-radius", largest_radius)
    subjects = _open("shape", ctx, checkpoints)
    with _bar("shape", 1) as progress, subjects.measured(subjects.together):
        record = shape_table(
            subjects.models,
            subjects.x,
            subjects.y,
            subjects.threat,
            ShapeSettings(PGD(attack_steps), largest, radius_steps, None, lipschitz_steps, square_queries),
            seed=seed,
            batch_size=batch_size,
            on_progress=progress("shapes"),
        ).as_dict()
    subjects.results[subjects.together] = record
    if any(row["kink"] or (row["max_curvature"] or 0) > 0 for row in record["rows"]):
        subjects.draw_together("", lambda: shape_figure(record, subjects.caption))
    else:
        subjects.notes.append("no picture: the κ of no activation is known")
    _finish(subjects, [tables.shape_table(record)])


@analysis_app.command("curvature")
def curvature_command(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    data: DataOption = None,
    split: SplitOption = "train",
    n: CountOption = 128,
    seed: SeedOption = 0,
    batch_size: BatchOption = 128,
    device: DeviceOption = "cpu",
    out: OutOption = None,
    before: Annotated[
        Path | None, typer.Option(help="a checkpoint of the same network before training")
    ] = None,
    initial_seed: Annotated[
        int | None,
        typer.Option(help="build the network before training anew, from its architecture and this seed"),
    ] = None,
) -> None:
    """κ, effective curvature κ·s and the share of curved units at every call of an activation; before and after training.

    With before and after, batch norm uses the statistics of each batch for both.
    """
    from curvact.analysis.effective_curvature import effective_curvature, effective_curvature_change
    from curvact.lab.record import open_model
    from curvact.lab.report import analysis_tables as tables
    from curvact.lab.report.analysis_plots import effective_curvature_figure
    from curvact.models import build
    from curvact.random import generator

    if before is not None and initial_seed is not None:
        raise CurvactError("--before and --initial-seed: give one of them")
    if before is not None and len(checkpoints) > 1:
        raise CurvactError(f"--before with {len(checkpoints)} checkpoints: give one checkpoint")
    subjects = _open("curvature", ctx, checkpoints, attacked=False)
    earlier: dict[str, nn.Module] = {}
    for name, known in subjects.known.items():
        if before is not None:
            first, about = open_model(before)
            earlier[name] = first.to(device)
            _fits(first, about, subjects.x, subjects.y, before, subjects.data["name"])
        elif initial_seed is not None:
            if "architecture" not in known:
                raise CurvactError(
                    f"{subjects.paths[name]} does not say its architecture, which --initial-seed needs: give --before"
                )
            first = build(**known["architecture"], generator=generator(initial_seed, "initialization"))
            earlier[name] = first.to(device)
    with _bar("curvature", len(subjects.models)) as progress:
        for name, model in subjects.models.items():
            common: dict[str, Any] = {"batch_size": batch_size, "on_progress": progress(name)}
            with subjects.measured(name):
                if name in earlier:
                    change = effective_curvature_change(earlier[name], model, subjects.x, **common)
                    subjects.results[name] = change.as_dict()
                else:
                    subjects.results[name] = effective_curvature(model, subjects.x, **common).as_dict()
    for name, record in subjects.results.items():
        heading = f"{name}: {subjects.caption}"
        subjects.draw(name, "", partial(effective_curvature_figure, record, heading))
    _finish(subjects, [tables.curvature_table(name, record) for name, record in subjects.results.items()])


# ---- what is analysed ----

Draw = Callable[[Mapping[str, Any], str], "Figure"]


@dataclass(eq=False)
class _Subjects:
    """The models, the images, and what becomes of them. By name of the model: models, paths, known (of the sidecars), entries.

    results: by name of the model, or `together` for what is of all of them. pictures: by folder and name of a file.
    """

    kind: str
    config: dict[str, Any]
    models: dict[str, nn.Module]
    paths: dict[str, Path]
    known: dict[str, dict[str, Any]]
    entries: dict[str, dict[str, Any]]
    data: dict[str, Any]
    caption: str
    x: Tensor
    y: Tensor
    threat_model: ThreatModel | None
    results: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    pictures: dict[tuple[Path, str], Callable[[], Figure]]
    notes: list[str]

    @property
    def threat(self) -> ThreatModel:
        assert self.threat_model is not None
        return self.threat_model

    @property
    def together(self) -> str:
        """The name of what is of all models at once: that of the first, and how many more."""
        first, *others = self.models
        return f"{first}+{len(others)}" if others else first

    def folder(self, name: str) -> Path:
        given = self.config["out"]
        path = self.paths.get(name) or next(iter(self.paths.values()))
        return Path(given) if given is not None else path.parent / "analysis"

    def draw(self, name: str, ending: str, draw: Callable[[], Figure]) -> None:
        stem = "-".join(filter(None, (self.kind, name, ending)))
        self.pictures[self.folder(name), stem] = draw

    def draw_together(self, ending: str, draw: Callable[[], Figure]) -> None:
        self.draw(self.together, ending, draw)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


def _open(kind: str, ctx: typer.Context, checkpoints: Sequence[Path], *, attacked: bool = True) -> _Subjects:
    """Everything that can be wrong with the options, the checkpoints and the data is found here, before anything is computed."""
    from curvact.attacks import Norm, ThreatModel
    from curvact.data import load
    from curvact.lab.record import open_model
    from curvact.lab.record.evaluate import model_entry

    config = _config(ctx)
    options = ctx.params
    _one_of("--split", options["split"], SPLITS)
    for option in ("n", "batch_size", *(["attack_steps"] if attacked else [])):
        _at_least(f"--{option.replace('_', '-')}", options[option], 1)
    place = _device(options["device"])
    paths = _names(checkpoints)
    opened = {name: open_model(path) for name, path in paths.items()}
    known = {name: about for name, (_, about) in opened.items()}
    where = _agreed(
        "data",
        {paths[name]: _data_of(paths[name], about) for name, about in known.items()},
        None if options["data"] is None else {"name": options["data"]},
        "--data, such as --data cifar10",
    )
    threat_model = None
    if attacked:
        norm, epsilon = options["norm"], options["epsilon"]
        told = {paths[name]: _threat_of(paths[name], about) for name, about in known.items()}
        radius = _agreed(
            "epsilon",
            {path: about.get("epsilon") for path, about in told.items()},
            None if epsilon is None else parse_epsilon(epsilon),
            "--epsilon, such as --epsilon 8/255",
        )
        norm = _agreed(
            "norm", {path: about.get("norm", "linf") for path, about in told.items()}, norm, "--norm"
        )
        _one_of("--norm", str(norm), Norm)
        threat_model = ThreatModel(norm, radius)
        if radius == 0:
            raise CurvactError(
                f"epsilon 0 in curvact analyze {kind}: an attack is needed, give --epsilon > 0"
            )
    counts = {key: where.get(key) for key in COUNTS}
    dataset = getattr(load(str(where["name"]), **counts), options["split"]).first(options["n"]).to(place)
    models = {name: model.to(place) for name, (model, _) in opened.items()}
    subjects = _Subjects(
        kind=kind,
        config=config,
        models=models,
        paths=paths,
        known=known,
        entries={
            name: {
                **model_entry(model, name, known[name].get("architecture")).model_dump(mode="json"),
                "checkpoint": str(paths[name]),
            }
            for name, model in models.items()
        },
        data={"name": dataset.name, "sha256": dataset.sha256, "count": len(dataset)},
        caption=f"{dataset.name}, {len(dataset)} images",
        x=dataset.inputs(),
        y=dataset.labels,
        threat_model=threat_model,
        results={},
        seconds={},
        pictures={},
        notes=[],
    )
    if threat_model is not None:
        norm_name = {"linf": "L∞", "l2": "L2", "l1": "L1"}[threat_model.norm]
        subjects.caption += f", {norm_name} ε = {threat_model.epsilon:.4g}"
    for name in models:
        _fits(models[name], known[name], subjects.x, subjects.y, paths[name], dataset.name)
        _writable(subjects.folder(name))
    return subjects


def _names(checkpoints: Sequence[Path]) -> dict[str, Path]:
    """A short name for each checkpoint: of the file, of its folder where that is `model`; of both where two are alike."""
    seen: set[Path] = set()
    for path in checkpoints:
        if path.absolute() in seen:
            raise CurvactError(f"{path} is given twice")
        seen.add(path.absolute())
    short = [p.absolute().parent.name if p.stem == "model" else p.stem for p in checkpoints]
    long = [f"{p.absolute().parent.name}-{p.stem}" for p in checkpoints]
    names: dict[str, Path] = {}
    for path, brief, full in zip(checkpoints, short, long, strict=True):
        name = (brief if short.count(brief) == 1 else full) or path.stem
        while name in names:
            name += "'"
        names[name] = path
    return names


def _data_of(path: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    data = about.get("data")
    if data is not None and not (isinstance(data, dict) and isinstance(data.get("name"), str)):
        raise CurvactError(f"{path.with_suffix('.json')} has data without a name: give --data")
    return None if data is None else {key: data.get(key) for key in ("name", *COUNTS)}


def _threat_of(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    threat = about.get("threat_model", {})
    if not isinstance(threat, dict) or not isinstance(threat.get("epsilon", 0.0), (int, float)):
        raise CurvactError(f"{path.with_suffix('.json')} has a threat model without a radius: correct it")
    return threat


def _agreed(what: str, told: Mapping[Path, Any], given: Any, option: str) -> Any:
    """The value on the command line, else the one that all checkpoints say."""
    if given is not None:
        return given
    for path, value in told.items():
        if value is None:
            noun = "what it was trained on" if what == "data" else "its threat model"
            raise CurvactError(f"{path} does not say {noun}: give {option}")
    (first, value), *others = told.items()
    for path, other in others:
        if other != value:
            raise CurvactError(f"{first} and {path} were trained with different {what}: give {option}")
    return value


def _fits(model: nn.Module, about: Mapping[str, Any], x: Tensor, y: Tensor, path: Path, data: str) -> None:
    """about: what the checkpoint says; its channels matter, since a grey image would be broadcast to three."""
    import torch

    images = "×".join(map(str, x.shape[1:]))
    problem = CurvactError(f"{path} does not take the images of {data}, {images}: give another --data")
    if about.get("architecture", {}).get("channels", x.shape[1]) != x.shape[1]:
        raise problem
    try:
        with torch.no_grad():
            shape: tuple[int, ...] = tuple(model(x[:1]).shape)
    except (RuntimeError, ValueError):
        raise problem from None
    if len(shape) != 2 or shape[1] <= int(y.max()):
        raise CurvactError(
            f"{path} gives outputs of shape {shape} for one image of {data}, whose labels go up to {int(y.max())}"
        )


# ---- options ----


def _config(ctx: typer.Context) -> dict[str, Any]:
    """All options, as plain values."""

    def simple(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [simple(part) for part in value]
        return str(value) if isinstance(value, Path) else value

    return {name: simple(value) for name, value in ctx.params.items()}


def _listed(text: str) -> list[str]:
    """
    >>> _listed("norms, split")
    ['norms', 'split']
    """
    return list(dict.fromkeys(part for part in (p.strip() for p in text.split(",")) if part))


def _numbers(option: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise CurvactError(f"{option} {text}: numbers with commas between them")
    return values


def _one_of(option: str, value: str, allowed: Any) -> None:
    from typing import get_args

    names = allowed if isinstance(allowed, tuple) else get_args(allowed)
    if value not in names:
        raise CurvactError(f"{option} {value}{nearest(value, names)}; allowed are {', '.join(names)}")


def _at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise CurvactError(f"{option} {value}: must be >= {least}")


def _positive(option: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise CurvactError(f"{option} {value:g}: must be a finite number > 0")


def _radius(option: str, text: str) -> float:
    try:
        value = parse_epsilon(text)
    except CurvactError:
        value = math.nan
    if not value > 0:
        raise CurvactError(f"{option} {text}: a number > 0 in input units, such as 0.03 or 8/255")
    return value


def _device(name: str) -> Any:
    import torch

    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise CurvactError(f"--device {name}: allowed are cpu, cuda and cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise CurvactError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here")
    return torch.device(name)


# ---- progress ----


@contextmanager
def _bar(title: str, models: int) -> Iterator[Callable[[str], OnProgress]]:
    """A bar on standard error over all models, where that is a terminal. Gives: name of the next model to its on_progress."""
    from rich.progress import BarColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), "{task.fields[now]}", TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=models, now="")
        begun = 0

        def begin(name: str) -> OnProgress:
            nonlocal begun
            offset, begun = begun, begun + 1
            bars.update(task, description=escape(f"{title}: {name}"), completed=offset, now="")

            def on_progress(done: int, total: int | None) -> None:
                part = done / total if total else 0.0
                bars.update(task, completed=offset + part, now=f"{done}/{total}" if total else f"{done}")

            return on_progress

        yield begin


# ---- what is written ----


def _finish(subjects: _Subjects, tables: Sequence[Table]) -> None:
    """Everything is drawn first and written then; tables on the terminal, then the names of the files."""
    from curvact.lab.environment import environment

    folders: dict[Path, dict[str, bytes | str]] = {}
    for (folder, stem), draw in subjects.pictures.items():
        try:
            folders.setdefault(folder, {}).update(_drawn(stem, draw))
        except Exception as error:  # of matplotlib, in many ways: the numbers are kept
            why = " ".join(str(error).split()) or type(error).__name__
            subjects.notes.append(f"no picture {stem}: {why}")
    for name, result in subjects.results.items():
        own = [name] if name in subjects.entries and len(subjects.results) == len(subjects.models) else []
        threat = subjects.threat_model
        record = {
            "schema": 1,
            "analysis": subjects.kind,
            "config": subjects.config,
            "seed": subjects.config["seed"],
            "models": [subjects.entries[model] for model in (own or subjects.models)],
            "data": subjects.data,
            "threat_model": None if threat is None else {"norm": threat.norm, "epsilon": threat.epsilon},
            "environment": environment(),
            "seconds": subjects.seconds[name],
            "result": result,
        }
        files = folders.setdefault(subjects.folder(name), {})
        files[f"{subjects.kind}-{name}.json"] = _json(record)
    written = []
    for folder, files in folders.items():
        _make(folder)
        _write(folder, files)
        written += [folder / name for name in files]
    console = Console()
    for table in tables:
        _show(console, table)
        console.print()
    console.print(escape(subjects.caption), highlight=False)
    for note in subjects.notes:
        console.print(f"• {escape(note)}", highlight=False)
    _tell(console, written)


def _drawn(stem: str, draw: Callable[[], Figure]) -> dict[str, bytes | str]:
    from curvact.lab.report.style import to_png, to_svg

    figure = draw()
    return {f"{stem}.png": to_png(figure), f"{stem}.svg": to_svg(figure)}


def _json(record: Mapping[str, Any]) -> str:
    from curvact.analysis.records import plain

    return json.dumps(plain(record), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def _writable(folder: Path) -> None:
    """Found out before hours are spent."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise CurvactError(f"cannot write {folder}: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise CurvactError(f"cannot write {folder}: no permission in {place}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurvactError(f"cannot write {folder}: {error.strerror}") from None


def _write(folder: Path, files: Mapping[str, bytes | str]) -> None:
    from curvact.files import atomic_write

    for name, content in files.items():
        atomic_write(folder / name, content)


def _show(console: Console, table: Table) -> None:
    """As wide as it is: a number that is cut off says nothing."""
    needed = Measurement.get(console, console.options.update(width=1000), table).maximum
    Console(width=max(console.width, needed)).print(table)


def _tell(console: Console, paths: Sequence[Path]) -> None:
    for folder in dict.fromkeys(path.parent for path in paths):
        names = ", ".join(path.name for path in paths if path.parent == folder)
        console.print(escape(f"{folder}/: {names}"), highlight=False, soft_wrap=True)
