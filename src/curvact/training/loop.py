"""One short training loop: any objective, SGD with a cosine schedule, every random number from an explicit generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from curvact.attacks import Attack, ThreatModel, evaluate, pgd
from curvact.data import Augmentation, Dataset, ExtraImages, Splits, batches_per_epoch, epoch_batches
from curvact.errors import CurvactError
from curvact.random import generator
from curvact.training.objectives import objective


class Diverged(RuntimeError):
    """Training was stopped because the loss is no longer finite; the message names step and learning rate."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    objective: "pgd-at" or "standard".
    epochs, batch_size: as usual.
    learning_rate: the highest; it rises linearly over the first `warmup` part of all steps and falls to 0 along a cosine after.
    momentum: Nesterov's.
    attack_steps, attack_step_size: of the PGD inside the objective; the step size in input units.
    crop, flip, cutout: augmentation of the training images, see `curvact.data.Augmentation`.
    """

    objective: str = "pgd-at"
    epochs: int = 10
    batch_size: int = 48
    learning_rate: float = 0.06
    warmup: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    attack_steps: int = 5
    attack_step_size: float = 0.08
    crop: int = 0
    flip: bool = False
    cutout: int = 0


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch's training batches, as they were trained on, and accuracies on the validation split after it.

    train_accuracy: on the (attacked) training batches. gradient_evaluations: forward-backward passes of a batch since the
    start.
    """

    epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float
    validation_robust_accuracy: float
    learning_rate: float
    gradient_evaluations: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def fit(
    model: nn.Module,
    data: Splits,
    recipe: Recipe,
    threat_model: ThreatModel,
    *,
    seed: int,
    extra: ExtraImages | None = None,
    extra_fraction: float = 0.5,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train the model in place, on the device that holds it and the data, and return what happened, epoch by epoch.

    extra, extra_fraction: synthetic images and the part of every batch that they make up; an epoch is one pass over the real
    ones.

    A last batch of one image is left out. Only the training and the validation split are looked at, never the test split.

    Raises Diverged as soon as an epoch's loss is not finite.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> model = MiniResNet("rctaf(curvature=6)", channels=1, width=2)
    >>> recipe = Recipe(epochs=1, attack_steps=1)
    >>> [epoch.epoch for epoch in fit(model, load("digits"), recipe, ThreatModel("linf", 0.2), seed=0)]
    [1]
    """
    compute_loss = objective(recipe.objective)
    if recipe.epochs < 1 or recipe.batch_size < 2 or not 0 <= recipe.warmup < 1:
        raise CurvactError(
            f"epochs={recipe.epochs}, batch_size={recipe.batch_size}, warmup={recipe.warmup}: "
            "epochs >= 1, batch_size >= 2, 0 <= warmup < 1"
        )
    device = data.train.images.device
    augmentation = Augmentation(crop=recipe.crop, flip=recipe.flip, cutout=recipe.cutout)
    steps_per_epoch = batches_per_epoch(data.train, recipe.batch_size, extra, extra_fraction)
    total = recipe.epochs * steps_per_epoch
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    history: list[Epoch] = []
    step = evaluations = 0
    for epoch in range(1, recipe.epochs + 1):
        attack = training_attack(recipe, threat_model, generator(seed, "attack", epoch, device=device))
        model.train()
        losses, right, seen, rate = [], [], 0, recipe.learning_rate
        for x, y in epoch_batches(
            data.train,
            recipe.batch_size,
            seed=seed,
            epoch=epoch,
            augmentation=augmentation,
            extra=extra,
            extra_fraction=extra_fraction,
        ):
            if len(y) == 1:  # batch norm has no variance of one value
                continue
            rate = learning_rate(recipe, step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = compute_loss(model, x, y, attack, recipe.attack_steps)
            optimizer.zero_grad(set_to_none=True)
            loss.value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.value.detach())
            right.append((loss.logits.argmax(1) == y).sum())
            seen += len(y)
            evaluations += loss.gradient_evaluations
            step += 1
        values = torch.stack(losses)
        if not bool(values.isfinite().all()):
            first = int((~values.isfinite()).nonzero()[0])
            at = step - len(losses) + first
            raise Diverged(
                f"the loss became {float(values[first])} at step {at} of {total} (epoch {epoch}, learning rate {rate:.3g})"
            )
        clean, robust = accuracies(model, data.validation, recipe, threat_model, seed, epoch)
        record = Epoch(
            epoch=epoch,
            loss=float(values.mean()),
            train_accuracy=float(torch.stack(right).sum()) / seen,
            validation_accuracy=clean,
            validation_robust_accuracy=robust,
            learning_rate=rate,
            gradient_evaluations=evaluations,
        )
        history.append(record)
        on_epoch(record)
    return history


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """The rate at a step, counted from 0: linear warm-up, then half a cosine.

    >>> [round(learning_rate(Recipe(learning_rate=1.0, warmup=0.5), step, 8), 2) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    rising = recipe.warmup * total
    if step < rising:
        return recipe.learning_rate * (step + 1) / math.ceil(rising)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))


def training_attack(recipe: Recipe, threat_model: ThreatModel, random: torch.Generator) -> Attack:
    """The PGD of the recipe as an attack `(model, x, y) -> x_adv`."""

    def attack(
        model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        return pgd(
            model,
            x,
            y,
            threat_model,
            steps=recipe.attack_steps,
            step_size=recipe.attack_step_size,
            generator=random,
        )

    return attack


def accuracies(
    model: nn.Module, dataset: Dataset, recipe: Recipe, threat_model: ThreatModel, seed: int, epoch: int
) -> tuple[float, float]:
    """Clean and robust accuracy under the training attack."""
    attack = training_attack(
        recipe, threat_model, generator(seed, "validation", epoch, device=dataset.images.device)
    )
    result = evaluate(model, dataset.inputs(), dataset.labels, attack)
    return result.clean, result.robust
