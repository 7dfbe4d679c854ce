"""Data sets of labelled images, and augmented training batches of real and synthetic images."""

from curvact.data.arrays import from_arrays
from curvact.data.catalog import DATASETS, IMAGENETTE_OUTPUTS, class_map, data_root
from curvact.data.dataset import Dataset, Splits, split
from curvact.data.extra import ExtraImages, open_extra, pseudo_label
from curvact.data.images import LazyImages
from curvact.data.loading import OtherDataWarning, load, names_a_place
from curvact.data.pipeline import (
    Augmentation,
    augment,
    batches_per_epoch,
    epoch_batches,
    epoch_order,
    whole_batch,
)

__all__ = [
    "DATASETS",
    "IMAGENETTE_OUTPUTS",
    "Augmentation",
    "Dataset",
    "ExtraImages",
    "LazyImages",
    "OtherDataWarning",
    "Splits",
    "augment",
    "batches_per_epoch",
    "class_map",
    "data_root",
    "epoch_batches",
    "epoch_order",
    "from_arrays",
    "load",
    "names_a_place",
    "open_extra",
    "pseudo_label",
    "split",
    "whole_batch",
]
