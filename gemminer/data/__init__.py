"""Batches from a user's data, and data sets by name: `load("digits")`."""

from gemminer.data.augment import Augment, augmentation
from gemminer.data.batches import Batches, Data, TensorBatches, examples_in
from gemminer.data.columns import from_columns
from gemminer.data.loaders import LoaderBatches, Whole, as_batches, as_wholes, label_of
from gemminer.data.modules import parts_of
from gemminer.data.named import describe, load, names

__all__ = [
    "Augment",
    "Batches",
    "Data",
    "LoaderBatches",
    "TensorBatches",
    "Whole",
    "as_batches",
    "as_wholes",
    "augmentation",
    "describe",
    "examples_in",
    "from_columns",
    "label_of",
    "load",
    "names",
    "parts_of",
]
