"""`curvact zoo`: the networks that are trained already."""

from __future__ import annotations

from curvact.lab.cli.options import plain_console


def zoo() -> None:
    """List the networks that are trained already.

    Every command that takes a checkpoint takes zoo:NAME. Accuracies are those of the first test images, under the
    attack of the table and under the PGD of the run.
    """
    from rich.table import Table

    from curvact.attacks import ThreatModel
    from curvact.models import ZOO

    table = Table(box=None, pad_edge=False)
    left = ("name", "activation", "threat model")
    for column in (*left, "images", "clean %", "PGD %", "robust %", "attack"):
        table.add_column(column, justify="left" if column in (*left, "attack") else "right")
    for e in ZOO.values():
        shares = (f"{100 * share:.1f}" for share in (e.clean, e.pgd, e.robust))
        threat = str(ThreatModel(e.norm, e.epsilon))  # type: ignore[arg-type]
        table.add_row(e.name, e.activation, threat, f"{e.images:,}", *shares, e.attack)
    plain_console().print(table)
