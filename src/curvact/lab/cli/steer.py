"""`curvact steer`: the activations of a trained network replaced by Curvature Tuning's unit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from curvact.errors import CurvactError
from curvact.lab.cli.options import Attacked, OneCheckpoint, at_least, config_of, with_options


@with_options(n=1000, batch_size=250)
def steer(
    ctx: typer.Context,
    checkpoint: OneCheckpoint,
    subject: Attacked,
    beta: Annotated[str, typer.Option(help="Values of β, such as 0.7..0.99 or 0.8,0.9,0.95.")] = "0.7..0.99",
    steps: Annotated[int, typer.Option(help="How many values a range such as 0.7..0.99 has.")] = 8,
    c: Annotated[float, typer.Option("--c", help="The share of Swish in the unit.")] = 0.5,
    from_: Annotated[str, typer.Option("--from", help="The activation that is replaced.")] = "relu",
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; by default analysis/ beside the checkpoint.")
    ] = None,
) -> None:
    """Put ctu(β) in the place of a trained network's ReLUs.

    Nothing is trained. β is chosen by robust accuracy on the first N validation images. Then the first N test images
    are attacked once with this β, and once with the network as it is.
    """
    from curvact.attacks import named_attack
    from curvact.lab.cli.findings import Findings
    from curvact.lab.cli.subjects import data_of, open_subjects
    from curvact.lab.report.analysis.steering import steering_figure, steering_table
    from curvact.lab.steering import betas_of, steer

    at_least("--steps", steps, 2)
    if subject.split != "test":
        raise CurvactError(
            f"--split {subject.split} of steer: β is judged on test images, which no choice has seen"
        )
    betas, attack = betas_of(beta, steps), named_attack(subject.attack)
    subjects = open_subjects("steer", [checkpoint], subject)
    found = Findings("steer", config_of(ctx), subjects, out)
    splits = data_of(list(subjects.checkpoints.values()), subject).load()
    notes: list[str] = []

    def analyse(model, on_progress):  # type: ignore[no-untyped-def]
        result = steer(
            model,
            splits.validation.first(subject.n),
            subjects.images,
            subjects.threat,
            betas=betas,
            attack=attack,
            c=c,
            from_=from_,
            seed=subject.seed,
            batch_size=subject.batch_size,
            on_progress=on_progress,
        )
        notes.append(result.verdict)
        return result.as_dict()

    found.each(analyse)
    found.notes += notes
    for name, result in found.results.items():
        heading = f"{name}: {subjects.images.name.partition('/')[0]}, {attack}, {subjects.threat}"
        found.draw(partial(steering_figure, result, heading), name=name)
    found.write([steering_table(result) for result in found.results.values()])
