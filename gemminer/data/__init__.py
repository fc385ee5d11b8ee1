"""Batches from a user's data, and data sets by name: `load("digits")`."""

from gemminer.data.augment import Augment, augmentation
from gemminer.data.batches import Batches, Data, TensorBatches
from gemminer.data.loaders import LoaderBatches, as_batches
from gemminer.data.named import describe, load, names

__all__ = [
    "Augment",
    "Batches",
    "Data",
    "LoaderBatches",
    "TensorBatches",
    "as_batches",
    "augmentation",
    "describe",
    "load",
    "names",
]
