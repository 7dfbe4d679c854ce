"""The batches of each epoch, as one process of a training takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from curvact.attacks.batch import Guarded
from curvact.data import (
    Augmentation,
    Dataset,
    ExtraImages,
    Splits,
    batches_per_epoch,
    epoch_batches,
    epoch_order,
    whole_batch,
)
from curvact.errors import CurvactError
from curvact.models.modes import mode
from curvact.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Batches:
    """Training batches.

    per_epoch: their number in an epoch, without a last batch of less than two images a process.

    Raises CurvactError where no batch is left.
    """

    def __init__(
        self, data: Dataset, extra: ExtraImages | None, recipe: Recipe, seed: int, fabric: Fabric
    ) -> None:
        self.data, self.extra, self.seed = data, extra, seed
        self.batch_size = recipe.batch_size
        self.augmentation = Augmentation(crop=recipe.crop, flip=recipe.flip, cutout=recipe.cutout)
        self.rank, self.world_size = fabric.global_rank, fabric.world_size
        self.per_epoch = batches_per_epoch(data, recipe.batch_size, extra)
        # Batch norm has no variance of one value.
        if self.size(self.per_epoch - 1) < 2 * self.world_size:
            self.per_epoch -= 1
        if self.per_epoch < 1:
            raise CurvactError(
                f"{len(data)} training images: at least two for each of {self.world_size} processes"
            )

    def of(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of each batch of an epoch: images in [0, 1] and labels."""
        return epoch_batches(
            self.data,
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            augmentation=self.augmentation,
            extra=self.extra,
            rank=self.rank,
            world_size=self.world_size,
        )

    def size(self, batch: int) -> int:
        """Number of images of a batch (from 0) over all processes."""
        return whole_batch(self.data, self.batch_size, batch, self.extra)

    def first_images(self, epoch: int, batch: int) -> list[int]:
        """Indices of the first four images of a batch; empty where synthetic images are mixed in."""
        if self.extra is not None:
            return []
        order = epoch_order(self.data, self.seed, epoch)
        return [int(i) for i in order[batch * self.batch_size :][:4]]


def check_fit(
    model: nn.Module, data: Splits, extra: ExtraImages | None = None, helper: nn.Module | None = None
) -> None:
    """One image passes the model, and the helper, in eval mode. CurvactError where one of them does not
    take it, where the model has no output for a label, and where the helper has other outputs.
    """
    train = data.train
    x = train.inputs(slice(0, 1))
    outputs = _outputs(model, x, "fit")
    if helper is not None:
        try:
            theirs = _outputs(helper, x, "fit", finite=True)
        except CurvactError as error:
            raise CurvactError(f"helper: {error}") from None
        if theirs != outputs:
            raise CurvactError(
                f"helper: it has {theirs} outputs and the model {outputs}; both must have the same classes"
            )
    given = [("training", train.labels), ("validation", data.validation.labels)]
    if extra is not None and extra.labels is not None:
        given.append(("extra", extra.labels))
    for what, labels in given:
        low, high = (int(v) for v in torch.aminmax(labels))
        if low < 0 or high >= outputs:
            raise CurvactError(
                f"the {what} labels of {train.name} lie in {low} … {high}, and the model has "
                f"{outputs} outputs: build it with classes={len(train.classes)}"
            )


def _outputs(model: nn.Module, x: Tensor, where: str, finite: bool = False) -> int:
    device = next((p.device for p in model.parameters()), x.device)
    with mode(model, training=False), torch.no_grad():
        found = Guarded(model, where)(x.to(device, copy=True))
    if finite and not bool(found.isfinite().all()):
        raise CurvactError("its outputs at the first training image are not finite")
    return found.shape[1]
