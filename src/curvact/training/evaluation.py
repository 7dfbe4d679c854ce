"""The weights that are evaluated and kept after an epoch, and their accuracy under attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice

import torch
from torch import Tensor

from curvact.attacks import PGD, Accuracy, accuracy
from curvact.data import Dataset
from curvact.random import generator
from curvact.training.batches import Batches
from curvact.training.methods import batch_norm
from curvact.training.objectives import objective
from curvact.training.processes import average_buffers, process_mean, process_sum, rank_key
from curvact.training.recipe import Recipe
from curvact.training.step import Trainer, step_cost

RECALIBRATION_IMAGES = 512
"""Training images, attacked, that batch norm is recalibrated on."""

VALIDATED_AT_ONCE = 4096
"""Validation images that each process holds at once: a multiple of the batch of `accuracy`."""

GUARD_IMAGES = 512
"""Training images on which single-step training is checked for catastrophic overfitting."""


@contextmanager
def evaluated_weights(
    trainer: Trainer, batches: Batches, epoch: int, *, enter_average: bool = False
) -> Iterator[None]:
    """Inside, the model holds the weights to evaluate and keep.

    These are the outer weights (Entropy-SGD), the average, or the trained weights themselves. In the
    first two cases batch norm is recalibrated for them; see `recalibration_cost`.
    enter_average: take the weights into the average (SWA, ME-A) first.
    """
    with ExitStack() as stack:
        average_buffers(trainer.fabric, trainer.model)
        if trainer.entropy_sgd is not None:
            stack.enter_context(trainer.entropy_sgd.outer_weights())
        if trainer.average is not None:
            if enter_average:
                trainer.average.update()
            stack.enter_context(trainer.average.weights())
        if trainer.needs_recalibration:
            stack.enter_context(batch_norm.saved_statistics(trainer.model))
            images = _attacked_images(trainer, batches, epoch)
            batch_norm.recalibrate(
                trainer.model, images, reduce=lambda values: process_mean(trainer.fabric, values)
            )
        yield


def recalibration_cost(trainer: Trainer, batches: Batches) -> int:
    """Gradient evaluations of one recalibration of batch norm; 0 where none is needed."""
    if not trainer.needs_recalibration:
        return 0
    return _one_recalibration(trainer.recipe, batches.per_epoch)


def _one_recalibration(recipe: Recipe, per_epoch: int) -> int:
    each = objective(recipe.objective).entry.cost(recipe.attack.steps)
    return each * _recalibration_batches(recipe.batch_size, per_epoch)


def _recalibration_batches(batch_size: int, per_epoch: int) -> int:
    return max(1, min(RECALIBRATION_IMAGES // batch_size, per_epoch))


def most_evaluations(recipe: Recipe, steps_per_epoch: int) -> int:
    """At most so many gradient evaluations has a training: all its steps, and one recalibration of
    batch norm where other weights than the trained ones are evaluated.

    >>> most_evaluations(Recipe(epochs=2, attack="pgd-5"), 10)
    120
    >>> most_evaluations(Recipe(budget=100, attack="pgd-5"), 10)
    100
    """
    others = recipe.method_of("averaging")[0] != "none" or recipe.method_of("optimizer")[0] == "entropy-sgd"
    cost, last = step_cost(recipe), _one_recalibration(recipe, steps_per_epoch) if others else 0
    if recipe.budget is None:
        return recipe.epochs * steps_per_epoch * cost + last
    return max(recipe.budget, cost + last)


def _attacked_images(trainer: Trainer, batches: Batches, epoch: int) -> list[Tensor]:
    """Training images as the objective trains on them; in the attack batch norm is in train mode."""
    fabric, model = trainer.fabric, trainer.model
    random = generator(batches.seed, "recalibration", epoch, *rank_key(fabric), device=fabric.device)
    attack = trainer.attack(random, "train")
    images = []
    training = model.training
    model.train()
    with batch_norm.statistics_frozen(model), fabric.autocast():
        count = _recalibration_batches(batches.batch_size, batches.per_epoch)
        for x, y in islice(batches.of(epoch), count):
            if len(y) > 1:
                images.append(trainer.objective(trainer.forward, x, y, attack).x_adv.detach())
    model.train(training)
    return images


def validate(trainer: Trainer, data: Dataset, seed: int, epoch: int) -> tuple[float, float]:
    """Clean and robust accuracy on the validation split. Each process takes a part of it."""
    fabric = trainer.fabric
    random = generator(seed, "validation", epoch, *rank_key(fabric), device=fabric.device)
    attack = trainer.recipe.validation or trainer.recipe.attack
    counts = [0, 0, 0]
    # In parts: the images of a large data set are not in memory as floats, all at once.
    for start in range(fabric.global_rank, len(data), VALIDATED_AT_ONCE * fabric.world_size):
        stop = start + VALIDATED_AT_ONCE * fabric.world_size
        found = _accuracy(trainer, data, slice(start, stop, fabric.world_size), attack, random)
        for place, flags in enumerate((found.clean_correct, found.robust_correct)):
            counts[place] += int(flags.sum())
        counts[2] += len(found.clean_correct)
    sums = torch.tensor(counts, dtype=torch.float64, device=fabric.device)
    clean, robust, count = process_sum(fabric, sums).tolist()
    return clean / count, robust / count


def stronger_accuracy(trainer: Trainer, data: Dataset, seed: int, epoch: int) -> float:
    """PGD accuracy on training images, to notice catastrophic overfitting.

    PGD has the step of the training attack, and 10 steps or more.
    """
    fabric, attack = trainer.fabric, trainer.recipe.attack
    random = generator(seed, "guard", epoch, device=fabric.device)
    part = slice(fabric.global_rank, GUARD_IMAGES, fabric.world_size)
    robust = _accuracy(trainer, data, part, PGD(max(10, attack.steps), step=attack.length), random).robust
    return float(process_mean(fabric, torch.tensor(robust, dtype=torch.float64, device=fabric.device)))


def _accuracy(trainer: Trainer, data: Dataset, part: slice, attack: PGD, random: torch.Generator) -> Accuracy:
    with trainer.fabric.autocast():
        return accuracy(
            trainer.model, data.inputs(part), data.labels[part], attack.on(trainer.threat_model, random)
        )
