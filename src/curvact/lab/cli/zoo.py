"""`curvact zoo`: the networks that are trained already."""

from __future__ import annotations

from curvact.lab.cli.options import plain_console


def zoo() -> None:
    """List the networks that are trained already.

    Every command that takes a checkpoint takes zoo:NAME. Accuracies are those of the first test images, under the
    attack of the table and under the PGD of the run.
    """
    from curvact.attacks import ThreatModel
    from curvact.lab.report.text import to_terminal
    from curvact.lab.statistics.question import Grid
    from curvact.models import ZOO

    heads = ("name", "activation", "threat model", "images", "clean %", "PGD %", "robust %", "attack")
    lines = tuple(
        (
            e.name,
            e.activation,
            str(ThreatModel(e.norm, e.epsilon)),  # type: ignore[arg-type]
            f"{e.images:,}",
            *(f"{100 * share:.1f}" for share in (e.clean, e.pgd, e.robust)),
            e.attack,
        )
        for e in ZOO.values()
    )
    console = plain_console()
    for table in to_terminal(Grid("The zoo", heads, lines), console.width):
        console.print(table)
