"""Learning rates, the steps at which methods act, and whether a run can be extended."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import lru_cache

from curvact.training.parsing import method
from curvact.training.recipe import METHODS, Kind, Recipe


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """The learning rate at `step` (from 0) of `total`: linear warm-up, then the schedule.

    >>> [round(learning_rate(Recipe(learning_rate=1.0, warmup=0.5), step, 8), 2) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15]
    >>> steps = Recipe(learning_rate=1.0, warmup=0, schedule="piecewise")
    >>> [round(learning_rate(steps, step, 8), 2) for step in range(8)]
    [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    rising = recipe.warmup * total
    if step < rising:
        return recipe.learning_rate * (step + 1) / math.ceil(rising)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule == "piecewise":
        return recipe.learning_rate * recipe.decay ** sum(step >= m * total for m in recipe.milestones)
    done = (step - rising) / (total - rising)
    left = 0.5 * (1 + math.cos(math.pi * done)) if recipe.schedule == "cosine" else 1 - done
    return recipe.final_rate + (recipe.learning_rate - recipe.final_rate) * left


def perturbs_weights(recipe: Recipe, step: int, total: int) -> bool:
    """Whether the step (from 0) takes a second gradient, at perturbed weights."""
    return step >= _start("perturbation", recipe.perturbation) * total


def averages_epoch(recipe: Recipe, steps_done: int, total: int) -> bool:
    """Whether the weights at the end of an epoch, after `steps_done` steps, enter the average of SWA,
    or that of ME-A.
    """
    name, settings = recipe.method_of("averaging")
    by_epoch = name == "swa" or settings.get("outer") == "swa"
    return by_epoch and steps_done > _start("averaging", recipe.averaging) * total


def pulls_weights(recipe: Recipe, step: int, total: int) -> bool:
    """Whether the slow copy of ME-A pulls the weights in the step (from 0)."""
    return (
        recipe.method_of("averaging")[0] == "me-a" and step >= _start("averaging", recipe.averaging) * total
    )


@lru_cache
def _start(kind: Kind, text: str) -> float:
    """The part of training at which a method begins; infinity where it is "none"."""
    name, settings = method(kind, text, METHODS[kind])
    return math.inf if name == "none" else float(settings.get("start", 0.0))


def extension_problem(before: Recipe, after: Recipe, steps_done: int, steps_per_epoch: int) -> str:
    """Why a run of recipe `before` cannot go on as a run of recipe `after`; empty if it can.

    It can where a fresh run of `after` would have had, at each of the first `steps_done` steps, the
    same learning rate and the same active methods. Then its weights would be the same too, bit for
    bit on a CPU. The recipes may differ in their epochs only.

    >>> short, long = (Recipe(schedule="constant", warmup=0, epochs=n) for n in (10, 40))
    >>> extension_problem(short, long, steps_done=260, steps_per_epoch=26)
    ''
    >>> print(extension_problem(Recipe(epochs=10), Recipe(epochs=40), steps_done=260, steps_per_epoch=26))
    step 0 of a cosine schedule with warmup=0.3 had the rate 0.000769, and has 0.000192 in 40
    epochs: ...
    """
    for name in (f.name for f in fields(Recipe) if f.name != "epochs"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            return f"{name} was {_plain(old)} and is {_plain(new)}: only epochs can change"
    if before.epochs == after.epochs:
        return ""
    if after.budget is not None:
        return f"budget={after.budget} ends training, whatever the epochs: train anew without a budget"
    totals = before.epochs * steps_per_epoch, after.epochs * steps_per_epoch
    if steps_done > totals[1]:
        return (
            f"epochs={after.epochs} is less than the {steps_done} steps of {steps_per_epoch} an epoch "
            "that are done"
        )
    anew = f"train {after.epochs} epochs anew, or choose"
    for step in range(steps_done):
        old, new = (learning_rate(r, step, t) for r, t in zip((before, after), totals, strict=True))
        if old != new:
            warmup = f" with warmup={after.warmup:g}" if after.warmup else ""
            return (
                f"step {step} of a {after.schedule} schedule{warmup} had the rate {old:.3g}, and has "
                f"{new:.3g} in {after.epochs} epochs: {anew} schedule=constant and warmup=0 from the start"
            )
        if perturbs_weights(before, step, totals[0]) != perturbs_weights(after, step, totals[1]):
            return f"{after.perturbation} starts at another step in {after.epochs} epochs: {anew} start=0"
        if pulls_weights(before, step, totals[0]) != pulls_weights(after, step, totals[1]):
            return f"{after.averaging} starts at another step in {after.epochs} epochs: {anew} start=0"
        done = step + 1
        if done % steps_per_epoch == 0 and (
            averages_epoch(before, done, totals[0]) != averages_epoch(after, done, totals[1])
        ):
            return f"{after.averaging} starts at another epoch in {after.epochs} epochs: {anew} start=0"
    return ""


def _plain(value: object) -> str:
    return "none" if value is None else str(value)
