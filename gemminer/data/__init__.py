"""Batches from whatever the user has, and the named data sets, `load("digits")`."""

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
