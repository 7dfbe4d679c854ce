"""`curvact analyze`: the loss of trained models, as tables, JSON and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from curvact.errors import CurvactError
from curvact.lab.cli.options import (
    Attacked,
    Checkpoints,
    Subject,
    at_least,
    config_of,
    listed,
    numbers,
    one_of,
    positive,
    radius,
    with_options,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from curvact.analysis.matching import MatchingRule
    from curvact.analysis.records import OnProgress
    from curvact.attacks import PGD
    from curvact.lab.cli.findings import Findings

analyze_app = typer.Typer(no_args_is_help=True, help="Analyze the loss of trained models.")

Out = Annotated[
    Path | None, typer.Option(help="The folder to write; by default analysis/ beside each checkpoint.")
]


@analyze_app.command("hessian")
@with_options(split="train")
def hessian(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    subject: Attacked,
    out: Out = None,
    what: Annotated[str, typer.Option(help="The parts: norms, split, spectrum.")] = "norms,split,spectrum",
    probes: Annotated[int, typer.Option(help="Random vectors for each estimated number.")] = 32,
    relative_error: Annotated[
        float | None, typer.Option(help="Draw probes until standard errors are this small, such as 0.02.")
    ] = None,
    max_probes: Annotated[int, typer.Option(help="The most probes with --relative-error.")] = 1024,
    deflation: Annotated[int, typer.Option(help="Directions that are taken out of H first.")] = 8,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compute the diagonal exactly: for small models.")
    ] = False,
    by_site: Annotated[
        bool,
        typer.Option("--by-site/--no-by-site", help="Split by call site, which is several times slower."),
    ] = True,
    eigenvalues: Annotated[int, typer.Option(help="Eigenvalues at each end of the spectrum.")] = 3,
    density_probes: Annotated[int, typer.Option(help="Random vectors of the density; 0 leaves it out.")] = 4,
    density_steps: Annotated[int, typer.Option(help="Lanczos steps of each of these vectors.")] = 64,
) -> None:
    """Measure the Hessian of the clean and the adversarial loss.

    The parts are norms of its diagonal by layer, the split of the diagonal into GGN and σ″, and the
    spectrum. Parameters of activations are left out. The perturbation is held fixed.
    """
    from curvact.lab.analyses import HESSIAN_PARTS, HessianSettings, check_names, hessian_analysis
    from curvact.lab.report.analysis import hessian as report

    parts = listed(what)
    check_names("--what", parts, HESSIAN_PARTS, "curvact analyze hessian")
    at_least("--eigenvalues", eigenvalues, 1)
    at_least("--density-probes", density_probes, 0)
    at_least("--density-steps", density_steps, 1)
    attack, seed = subject.pgd, subject.seed
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
    found = _open("hessian", ctx, checkpoints, subject, out)
    loss, threat = found.subjects.loss, found.subjects.threat
    found.each(
        lambda model, on_progress: hessian_analysis(
            loss(model), threat, settings, attack=attack, seed=seed, on_progress=on_progress
        )
    )
    draws: dict[str, tuple[str, Callable[..., Figure]]] = {
        "norms": ("norms", report.norms_figure),
        "split": ("split", report.split_figure),
        "density": ("spectrum", report.density_figure),
    }
    for ending, (part, draw) in draws.items():
        if part in parts and (ending != "density" or density_probes):
            found.draw_each(partial(_draw_losses, draw, part), ending)
    found.write([t for name, result in found.results.items() for t in report.hessian_tables(name, result)])


def _draw_losses(draw: Callable[..., Figure], part: str, result: dict[str, Any], title: str) -> Figure:
    return draw({label: entry[part] for label, entry in result["losses"].items()}, title)


@analyze_app.command("flatness")
@with_options()
def flatness(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    subject: Attacked,
    out: Out = None,
    what: Annotated[str, typer.Option(help="The parts: average, worst.")] = "average,worst",
    radius: Annotated[float, typer.Option(help="ξ of the average case, relative to each tensor.")] = 0.5,
    draws: Annotated[int, typer.Option(help="Random weights of the average case.")] = 10,
    worst_radius: Annotated[float, typer.Option(help="ξ of the worst case.")] = 0.003,
    steps: Annotated[int, typer.Option(help="Ascent steps of the worst case.")] = 20,
    restarts: Annotated[int, typer.Option(help="Restarts of the worst case.")] = 10,
) -> None:
    """Measure the rise of the adversarial loss when weights move.

    The average and the worst case are those of Stutz et al. Parameters of activations and of
    normalization layers are held fixed.
    """
    from curvact.lab.analyses import FLATNESS_PARTS, FlatnessSettings, check_names, flatness_analysis
    from curvact.lab.report.analysis.flatness import flatness_figure, flatness_table

    parts = listed(what)
    check_names("--what", parts, FLATNESS_PARTS, "curvact analyze flatness")
    at_least("--draws", draws, 2)
    at_least("--steps", steps, 1)
    at_least("--restarts", restarts, 1)
    positive("--radius", radius)
    positive("--worst-radius", worst_radius)
    attack, seed = subject.pgd, subject.seed
    settings = FlatnessSettings(tuple(parts), radius, draws, worst_radius, steps, restarts)
    found = _open("flatness", ctx, checkpoints, subject, out)
    loss, threat = found.subjects.loss, found.subjects.threat
    found.each(
        lambda model, on_progress: flatness_analysis(
            loss(model), threat, settings, attack=attack, seed=seed, on_progress=on_progress
        )
    )

    def draw(names: Sequence[str]) -> Figure:
        records = {
            f"{name}, {part}" if len(parts) > 1 else name: found.results[name][part]
            for part in parts
            for name in names
        }
        return flatness_figure(records, f"Rise of the adversarial loss: {found.subjects.caption}")

    names = list(found.results)
    for name in names:
        found.draw(partial(draw, [name]), name=name)
    if len(names) > 1:
        found.draw(partial(draw, names))
    found.write([flatness_table(found.results)])


@analyze_app.command("smoothness")
@with_options(split="train")
def smoothness(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    subject: Attacked,
    out: Out = None,
    match: Annotated[
        str, typer.Option(help="Match L2 to L∞ at equal loss, accuracy, or corners (L2 ball through them).")
    ] = "loss",
    relative_norms: Annotated[
        str, typer.Option(help="The lengths ‖Δθ‖/‖θ‖ of the steps.")
    ] = "0.001,0.003,0.01,0.03,0.1",
    directions: Annotated[int, typer.Option(help="Random directions for each length.")] = 5,
    flatness: Annotated[
        bool, typer.Option("--flatness/--no-flatness", help="Measure the flatness in the input too.")
    ] = True,
    trajectory: Annotated[
        bool,
        typer.Option("--trajectory", help="Take the checkpoints of a folder as points of one training run."),
    ] = False,
) -> None:
    """Measure how fast the gradient turns, L∞ against L2.

    The gradient is that of the adversarial loss in the parameters. The attack is run again at each
    point.
    """
    from curvact.analysis.matching import MatchingRule
    from curvact.lab.analyses import SmoothnessSettings, smoothness_analysis
    from curvact.lab.report.analysis.smoothness import smoothness_figure, smoothness_tables, tradeoff_figure

    one_of("--match", match, get_args(MatchingRule))
    at_least("--directions", directions, 1)
    norms = numbers("--relative-norms", relative_norms)
    for value in norms:
        positive("--relative-norms", value)
    if len(set(norms)) < len(norms):
        raise CurvactError(f"--relative-norms {relative_norms}: one of them twice")
    if trajectory and len(checkpoints) < 2:
        raise CurvactError("--trajectory with 1 checkpoint: give the points of a training run, at least 2")
    attack, seed, rule = subject.pgd, subject.seed, cast("MatchingRule", match)
    settings = SmoothnessSettings(rule, tuple(norms), directions, flatness)
    found = _open("smoothness", ctx, checkpoints, subject, out)
    loss, threat, caption = found.subjects.loss, found.subjects.threat, found.subjects.caption
    if threat.norm == "l1":
        raise CurvactError(
            "--norm l1 in curvact analyze smoothness: it compares linf and l2, give one of them"
        )
    if trajectory:
        _trajectories(found, attack, seed, rule)
        return
    found.each(
        lambda model, on_progress: smoothness_analysis(
            loss(model), threat, settings, attack=attack, seed=seed, on_progress=on_progress
        )
    )
    found.draw_each(smoothness_figure)
    if flatness and len(found.results) > 1:
        title = f"Flat in the input, rough in the parameters? {caption}"
        found.draw(lambda: tradeoff_figure(found.results, title=title), part="tradeoff")
    found.write([t for name, record in found.results.items() for t in smoothness_tables(name, record)])


def _trajectories(found: Findings, attack: PGD, seed: int, rule: MatchingRule) -> None:
    """Smoothness along every run. The checkpoints of one folder are one run.

    The attacks of all runs are those that are matched at the end of the first one.
    """
    from curvact.analysis import match_radii, trajectory_smoothness
    from curvact.lab.analyses import linf_radius
    from curvact.lab.report.analysis.smoothness import trajectory_figure, trajectory_table

    checkpoints, loss = found.subjects.checkpoints, found.subjects.loss
    folders: dict[Path, list[str]] = {}
    for name, checkpoint in checkpoints.items():
        folders.setdefault(checkpoint.path.resolve().parent, []).append(name)
    for folder, names in folders.items():
        if len(names) < 2:
            raise CurvactError(f"--trajectory with 1 checkpoint of {folder}: give at least 2 of each run")
    alike = len({folder.name for folder in folders}) < len(folders)
    runs = {str(folder) if alike else folder.name: names for folder, names in folders.items()}
    cost: dict[str, float] | None = None
    if all("gradient_evaluations" in checkpoint.sidecar for checkpoint in checkpoints.values()):
        cost = {name: float(c.sidecar["gradient_evaluations"]) for name, c in checkpoints.items()}
    last = checkpoints[next(iter(runs.values()))[-1]].model

    def analyse(begin: Callable[[str], OnProgress]) -> dict[str, Any]:
        epsilon = linf_radius(found.subjects.threat, found.subjects.x)
        matched = match_radii(loss(last), epsilon, rule=rule, attack=attack, seed=seed)
        records = {
            run: {
                **trajectory_smoothness(
                    loss(checkpoints[names[-1]].model),
                    [checkpoints[name].model.state_dict() for name in names],
                    matched.attacks(attack, seed=seed),
                    positions=None if cost is None else [cost[name] for name in names],
                    on_progress=begin(run),
                ).as_dict(),
                "checkpoints": names,
                "matching": matched.as_dict(),
            }
            for run, names in runs.items()
        }
        return next(iter(records.values())) if len(records) == 1 else {"runs": records}

    found.all_at_once(analyse, parts=len(runs))
    result = found.results[found.together]
    records: dict[str, Any] = result.get("runs", {next(iter(runs)): result})
    label = "checkpoint" if cost is None else "gradient evaluations"
    first = next(iter(records.values()))
    caption = found.subjects.caption
    if len(records) == 1:
        found.draw(partial(trajectory_figure, records, None, caption, label))
    else:
        for kind in dict.fromkeys(row["attack"] for row in first["rows"]):
            title = f"{caption}; {kind} loss"
            found.draw(partial(trajectory_figure, records, [kind], title, label), part=kind)
    found.write([trajectory_table(record, runs[run], run) for run, record in records.items()])


@analyze_app.command("landscape")
@with_options(split="train", attack="pgd-10")
def landscape(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    subject: Attacked,
    out: Out = None,
    dimensions: Annotated[int, typer.Option(help="The number of random directions, 1 or 2.")] = 2,
    points: Annotated[
        int | None, typer.Option(help="Points in a direction, an odd number; by default 41 or 11.")
    ] = None,
    span: Annotated[float, typer.Option(help="Coordinates go from −span to span.")] = 1.0,
    surface: Annotated[bool, typer.Option("--surface", help="Draw two dimensions in space too.")] = False,
) -> None:
    """Measure the loss along random directions.

    The directions are filter-normalized (Li et al.). The attack of the adversarial loss is run
    again at each point.
    """
    if dimensions not in (1, 2):
        raise CurvactError(f"--dimensions {dimensions}: allowed are 1 and 2")
    if surface and dimensions == 1:
        raise CurvactError("--surface with --dimensions 1: a surface needs two dimensions")
    size = points if points is not None else {1: 41, 2: 11}[dimensions]
    if size < 3 or size % 2 == 0:
        raise CurvactError(f"--points {size}: an odd number from 3, so that one of them is the model")
    positive("--span", span)
    attack, seed = subject.pgd, subject.seed

    from curvact.analysis import loss_landscape, seeded
    from curvact.lab.analyses import own_parameters
    from curvact.lab.report.analysis.landscape import landscape_figure, landscape_table

    found = _open("landscape", ctx, checkpoints, subject, out)
    run = seeded(attack, found.subjects.threat, seed)

    def analyse(model: nn.Module, on_progress: OnProgress) -> dict[str, Any]:
        loss = found.subjects.loss(model).excluding(own_parameters(model))
        return loss_landscape(
            loss, run, directions=dimensions, points=size, span=span, seed=seed, on_progress=on_progress
        ).as_dict()

    found.each(analyse)
    found.draw_each(landscape_figure)
    if surface:
        found.draw_each(partial(landscape_figure, surface=True), "surface")
    found.write([landscape_table(found.results)])


@analyze_app.command("shape")
@with_options()
def shape(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    subject: Attacked,
    out: Out = None,
    largest_radius: Annotated[
        str | None, typer.Option(help="Where the search for the minimum radius begins; by default 4ε.")
    ] = None,
    radius_steps: Annotated[int, typer.Option(help="Halvings of that search.")] = 8,
    lipschitz_steps: Annotated[int, typer.Option(help="Ascent steps on the Lipschitz ratio.")] = 10,
    square_queries: Annotated[int, typer.Option(help="Queries of the Square attack; 0 leaves it out.")] = 0,
) -> None:
    """Compare the shapes of activations with robustness.

    A row a model: shape of its activations, accuracy, minimum radius, empirical Lipschitz constant.
    """
    at_least("--radius-steps", radius_steps, 1)
    at_least("--lipschitz-steps", lipschitz_steps, 1)
    at_least("--square-queries", square_queries, 0)
    largest = None if largest_radius is None else radius("--largest-radius", largest_radius, above_zero=True)
    attack = subject.pgd

    from curvact.analysis.shape import ShapeSettings, shape_table
    from curvact.lab.report.analysis.shape import shape_figure
    from curvact.lab.report.analysis.shape import shape_table as table_of

    settings = ShapeSettings(
        attack=attack,
        largest_radius=largest,
        halvings=radius_steps,
        lipschitz_steps=lipschitz_steps,
        square_queries=square_queries,
    )
    found = _open("shape", ctx, checkpoints, subject, out)
    subjects = found.subjects
    found.all_at_once(
        lambda begin: shape_table(
            subjects.models,
            subjects.x,
            subjects.y,
            subjects.threat,
            settings,
            seed=subject.seed,
            batch_size=subject.batch_size,
            on_progress=begin("shapes"),
        ).as_dict()
    )
    record = found.results[found.together]
    if any(row["kink"] or (row["max_curvature"] or 0) > 0 for row in record["rows"]):
        found.draw(lambda: shape_figure(record, found.subjects.caption))
    else:
        found.notes.append("no picture: the κ of no activation is known")
    found.write([table_of(record)])


@analyze_app.command("curvature")
@with_options(split="train")
def curvature(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    subject: Subject,
    out: Out = None,
    before: Annotated[
        Path | None, typer.Option(help="A checkpoint of the same network before training.")
    ] = None,
    initial_seed: Annotated[
        int | None, typer.Option(help="Build the network before training again, with this seed.")
    ] = None,
) -> None:
    """Measure κ and effective curvature κ·s at every activation.

    The share of curved units comes with them. With --before or --initial-seed, they are measured
    before and after training, and batch norm uses the statistics of each batch for both.
    """
    if before is not None and initial_seed is not None:
        raise CurvactError("--before and --initial-seed: give one of them")
    if before is not None and len(checkpoints) > 1:
        raise CurvactError(f"--before with {len(checkpoints)} checkpoints: give one checkpoint")

    from curvact.analysis.effective_curvature import effective_curvature, effective_curvature_change
    from curvact.lab.checkpoints import open_checkpoint
    from curvact.lab.cli.subjects import check_fit
    from curvact.lab.report.analysis.curvature import curvature_table, effective_curvature_figure
    from curvact.models import build
    from curvact.random import generator

    found = _open("curvature", ctx, checkpoints, subject, out)
    device, x = subject.torch_device, found.subjects.x
    earlier: dict[nn.Module, nn.Module] = {}
    for checkpoint in found.subjects.checkpoints.values():
        if before is not None:
            first = open_checkpoint(before, subject.weights, subject.network)
            first.model.to(device)
            check_fit(first, found.subjects)
            earlier[checkpoint.model] = first.model
        elif initial_seed is not None:
            if not checkpoint.architecture:
                raise CurvactError(
                    f"{checkpoint.path} does not say its architecture, which --initial-seed needs: give --before"
                )
            random = generator(initial_seed, "initialization")
            earlier[checkpoint.model] = build(**checkpoint.architecture, generator=random).to(device)

    def analyse(model: nn.Module, on_progress: OnProgress) -> dict[str, Any]:
        size = subject.batch_size
        if model in earlier:
            change = effective_curvature_change(
                earlier[model], model, x, batch_size=size, on_progress=on_progress
            )
            return change.as_dict()
        return effective_curvature(model, x, batch_size=size, on_progress=on_progress).as_dict()

    found.each(analyse)
    found.draw_each(effective_curvature_figure)
    found.write([curvature_table(name, record) for name, record in found.results.items()])


def _open(
    kind: str, ctx: typer.Context, checkpoints: Sequence[Path], subject: Subject, out: Path | None
) -> Findings:
    """Whatever is wrong with options, checkpoints and data is found here, before any work."""
    from curvact.lab.cli.findings import Findings
    from curvact.lab.cli.subjects import open_subjects

    subjects = open_subjects(f"analyze {kind}", checkpoints, subject)
    return Findings(kind, config_of(ctx), subjects, out)
