"""The loaders of a Lightning DataModule, or of any object with its methods; Lightning is not imported."""

from __future__ import annotations

from typing import Any

from gemminer.core.errors import UsageError


def parts_of(train: Any, validation: Any = None, test: Any = None, *, tested: bool = False) -> tuple[Any, Any, Any]:
    """The training, validation and test data of a call, where `train` may be a DataModule.

    Its `train_dataloader()` is the training data, and its `val_dataloader()` and `test_dataloader()`, where it has
    them, are what is not given otherwise. `prepare_data()` and `setup(stage)` are called before, as a Trainer would.

    Args:
        tested: whether test data is wanted: a search never asks for it.
    """
    if not callable(getattr(train, "train_dataloader", None)):
        return train, validation, test
    _call(train, "prepare_data")
    _call(train, "setup", "fit")
    if validation is None:
        validation = _call(train, "val_dataloader")
    loader = _call(train, "train_dataloader")
    if loader is None:
        raise UsageError(f"the train_dataloader() of {type(train).__name__} gives nothing to train on")
    if test is None and tested:
        _call(train, "setup", "test")
        test = _call(train, "test_dataloader")
    return loader, _single(validation, "val_dataloader"), _single(test, "test_dataloader")


def _call(module: Any, name: str, *stage: str) -> Any:
    """What a method gives, None where there is none of the user's own."""
    method = getattr(module, name, None)
    if not callable(method):
        return None
    try:
        return method(*stage)
    except Exception as error:  # Lightning's own methods raise where the user has none
        if isinstance(error, NotImplementedError) or "must be implemented" in str(error):
            return None
        raise


def _single(loader: Any, name: str) -> Any:
    if isinstance(loader, (list, tuple)) and all(hasattr(part, "dataset") for part in loader):
        if len(loader) > 1:
            raise UsageError(f"{name}() gives {len(loader)} loaders: pass the one to measure on by its own argument")
        return loader[0] if loader else None
    return loader
