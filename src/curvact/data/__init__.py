"""Data sets as one small type, and batches of them."""

from curvact.data.datasets import DATASETS, Dataset, Splits, batches, load, split

__all__ = ["DATASETS", "Dataset", "Splits", "batches", "load", "split"]
