"""The examples of the command line, by task: the help of a command ends with its own."""

from __future__ import annotations

import typer

TASKS: dict[str, tuple[str, ...]] = {
    "Choose an activation": (
        "curvact activation 'rctaf(curvature=6)' gelu relu --plot curves.png",
        "curvact explore",
        "curvact search kappa.yaml",
    ),
    "Train a network": (
        "curvact train digits training.epochs=3 --out runs/mine",
        "curvact init run --data cifar10 --model resnet18 --out mine.yaml",
        "curvact data list",
        "curvact data fetch cifar10",
        "curvact data show cifar10",
    ),
    "Attack it": (
        "curvact evaluate runs/mine --n 200",
        "curvact evaluate runs/mine --attack adaptive",
        "curvact zoo",
        "curvact evaluate zoo:digits-resnet-rctaf6 --attack pgd-20",
        "curvact leaderboard runs/evaluations",
        "curvact corruptions runs/mine",
    ),
    "See the curvature of its loss": (
        "curvact analyze hessian runs/mine",
        "curvact analyze curvature runs/mine",
        "curvact analyze smoothness runs/mine",
        "curvact analyze flatness runs/mine",
        "curvact analyze landscape runs/mine",
        "curvact analyze shape runs/relu runs/mine",
    ),
    "Compare many": (
        "curvact sweep run sweep.yaml --out runs/study --resume",
        "curvact runs ls runs --where 'curvature>4' --sort -robust",
        "curvact sweep report runs/study",
        "curvact sweep list",
        "curvact sweep run demo",
        "curvact sweep cost sweep.yaml --rate measure",
        "curvact runs show runs/mine",
        "curvact runs export runs --out runs.csv",
        "curvact init sweep --data fashion-mnist --out sweep.yaml",
    ),
    "Change a trained network": (
        "curvact steer runs/mine --beta 0.7..0.99",
        "curvact transfer extract runs/mine --out learned.safetensors",
        "curvact transfer show learned.safetensors",
        "curvact transfer train learned.safetensors digits seed=1",
    ),
    "Set up": (
        "curvact doctor",
        "curvact --install-completion",
        "curvact schema sweep > sweep.schema.json",
    ),
}
"""task → commands. The first two of each are in the help of `curvact` itself."""

_AS_IT_IS = "\b\n"
"""Before a paragraph whose lines are not joined."""


def with_examples(app: typer.Typer) -> None:
    """End the help of every command of the app with its examples."""
    for path, command in commands_of(app).items():
        lines = [
            line
            for lines in TASKS.values()
            for line in lines
            if path == tuple(line.split())[1 : 1 + len(path)]
        ]
        if lines:
            command.epilog = "\n".join([f"{_AS_IT_IS}Example:", *(f"  {line}" for line in lines)])


def overview() -> str:
    """Each task with its first commands."""
    blocks = ("\n".join([f"{task}:", *(f"  {line}" for line in lines[:2])]) for task, lines in TASKS.items())
    return "\n\n".join(f"{_AS_IT_IS}{block}" for block in blocks)


def commands_of(
    app: typer.Typer, path: tuple[str, ...] = ()
) -> dict[tuple[str, ...], typer.models.CommandInfo]:
    """Every command by its path, such as ("sweep", "run")."""
    found = {}
    for command in app.registered_commands:
        name = command.name or str(getattr(command.callback, "__name__", "")).replace("_", "-")
        found[(*path, name)] = command
    for group in app.registered_groups:
        if group.typer_instance is not None and group.name:
            found |= commands_of(group.typer_instance, (*path, group.name))
    return found
