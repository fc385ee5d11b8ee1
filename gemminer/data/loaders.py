"""Batches from a user's DataLoader, data set, or pair of tensors."""

from __future__ import annotations

import copy
import itertools
import operator
import random
import re
import traceback
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from gemminer.core.errors import UsageError
from gemminer.core.numbers import whole
from gemminer.core.randomness import derive
from gemminer.data.batches import Batches, Data, TensorBatches, every, examples_in, laid_out
from gemminer.data.rewired import Watch, can_be_rewired, rewired
from gemminer.data.tensors import as_tensors, is_map_style

ENDLESS = 1_000_000  # batches after which a stream without a length is taken to have no end


# --- batches of a user's loader -------------------------------------------------------------------


class _Streams:
    """Random streams for a loader alone, swapped in for torch's, NumPy's and Python's while it works.

    Samplers, transforms and collate functions draw from global generators, at times lazily; so the streams
    are swapped in around each `next`, never across a `yield`, and the caller's streams are restored bit for bit.
    """

    def __init__(self, seed: int, index: int, generators: list[Any]) -> None:
        own = [g for g in generators if isinstance(g, torch.Generator)]
        self._generators = list({id(g): g for g in (torch.default_generator, *own)}.values())
        self._torch = [
            torch.Generator(device=g.device).manual_seed(derive(seed, index, n)).get_state()
            for n, g in enumerate(self._generators)
        ]
        self._numpy = np.random.RandomState(derive(seed, index, "numpy") % 2**32).get_state()
        self._python = random.Random(derive(seed, index, "python")).getstate()

    def _swap(self, *_: object) -> None:
        for i, generator in enumerate(self._generators):
            mine, self._torch[i] = self._torch[i], generator.get_state()
            generator.set_state(mine)
        numpy, self._numpy = self._numpy, np.random.get_state()  # noqa: NPY002 - what transforms use
        np.random.set_state(numpy)  # noqa: NPY002
        python, self._python = self._python, random.getstate()
        random.setstate(python)

    __enter__ = __exit__ = _swap


class LoaderBatches:
    """A DataLoader, or any object that can be iterated again and again over pairs (inputs, targets).

    Epoch `index` is a function of (seed, index): while the loader works, its own generator if it has one, and
    the global generators of torch, NumPy and Python, are seeded from these two; whenever the caller's code
    runs, all of them are restored. Workers that would live on (`persistent_workers`) are started anew each epoch,
    as their streams cannot be set otherwise. `set_epoch(index)` is called where a sampler or data set has it.
    The epochs of a data set that makes a random generator of its own are not reproducible.

    A stream without a length is read once to count it. A batch is a pair, a tuple of several inputs and the targets,
    or a dictionary as Hugging Face's: it is the inputs, and its "labels" are the targets, None where it has none.
    `epoch` raises UsageError for anything else.

    >>> loader = DataLoader([(0.0, 0), (0.1, 0), (0.2, 1)], batch_size=2, shuffle=True)
    >>> [len(targets) for _, targets in LoaderBatches(loader, seed=1).epoch(0)]
    [2, 1]
    """

    def __init__(self, loader: Any, seed: int = 0, *, channels_last: bool = False) -> None:
        if not hasattr(loader, "__iter__") or hasattr(loader, "__next__"):
            kind = type(loader).__name__
            raise UsageError(f"a {kind} cannot be iterated anew each epoch: pass a DataLoader")
        self.loader, self.seed, self.channels_last = loader, whole("seed", seed), channels_last
        self._draws: bool | None = None  # whether random numbers are needed to make a batch, or might be
        if _length(loader) == 0:
            raise UsageError("the loader gives no batch: no data, or fewer than one batch with drop_last")

    def __len__(self) -> int:
        length = _length(self.loader)
        return self._counted[0] if length is None else length

    @property
    def examples(self) -> int:
        loader = self.loader
        # Without a batch sampler the data set makes the batches, and its length does not count examples.
        if isinstance(loader, DataLoader) and loader.batch_sampler is not None:
            count = _length(loader.sampler)
            if count is not None:
                return count - count % (loader.batch_size or 1) if loader.drop_last else count
        return self._counted[1]

    @cached_property
    def _counted(self) -> tuple[int, int]:
        """(steps, examples) of an epoch, counted by reading it."""
        steps = examples = 0
        for batch in self.whole(0):
            steps += 1
            examples += examples_in(batch, targets_of(batch)) or 1
            if steps > ENDLESS:
                raise UsageError(f"no end of the loader after {ENDLESS} batches: give its data set a __len__")
        if not steps:
            raise UsageError("the loader gives no batch: its data set is empty")
        return steps, examples

    def epoch(self, index: int) -> Iterator[tuple[Any, Any]]:
        return map(self._laid_out, self.whole(index))

    def part(self, index: int, rank: int, world: int) -> Iterator[tuple[Any, Any] | None]:
        """`every` batch of the epoch, as `whole_part` reads them."""
        return (batch if batch is None else self._laid_out(batch) for batch in self.whole_part(index, rank, world))

    def _laid_out(self, batch: Any) -> tuple[Any, Any]:
        inputs, targets = pair_of(batch)
        return laid_out(inputs, self.channels_last), targets

    def whole(self, index: int) -> Iterator[Any]:
        """The batches of epoch `index` as the loader gives them."""
        return self._read(self.loader, index)

    def whole_part(self, index: int, rank: int, world: int) -> Iterator[Any]:
        """`every` batch as the loader gives it, bit for bit; of a map-style data set no others are loaded.

        But where a batch is made with random numbers, it depends on those before it: then, and of what is no map-style
        data set of a DataLoader, all are loaded.
        """
        count = 0
        if self._draws is None:
            self._draws = not can_be_rewired(self.loader)
        if not self._draws:
            watch = Watch(self.loader, rank, world)
            loader = rewired(self.loader, watch, watch, worker_init_fn=watch.in_worker)
            for drew, batch in self._read(loader, index):
                if drew:
                    self._draws = True
                    break
                yield batch
                count += 1
            else:
                if count * world < watch.batches:  # a last step in which others have one
                    yield None
                return
        yield from itertools.islice(every(self.whole(index), rank, world), count, None)

    def rows(self, indices: list[int]) -> list[Any] | None:
        """These rows of a map-style data set, in a process that the loader's would be in; None of what has none."""
        if not can_be_rewired(self.loader):
            return None
        workers = min(1, self.loader.num_workers)
        loader = rewired(self.loader, [indices], list, num_workers=workers, pin_memory=False)
        return cast(list[Any], next(self._read(loader, 0)))

    def _read(self, loader: Any, index: int) -> Iterator[Any]:
        """The batches of the epoch from this loader, or one like it, in random streams of their own."""
        if getattr(loader, "persistent_workers", False):
            loader = copy.copy(loader)
            loader._iterator = None
        parts = [loader if part is self.loader else part for part in _parts(self.loader)]
        generators = [getattr(part, "generator", None) for part in parts]
        streams = _Streams(self.seed, operator.index(index), generators)
        with streams:
            for part in parts:
                if callable(getattr(part, "set_epoch", None)):
                    part.set_epoch(index)
            iterator = iter(loader)
        while True:
            with streams:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except Exception as error:
                    if why := _unbatched(error):
                        raise UsageError(why) from None
                    raise
            yield batch


def _unbatched(error: Exception) -> str | None:
    """What is said of rows that PyTorch cannot make a batch of; None where something else has failed.

    What a worker of a loader raises has its traceback in its text, so both are read the same way.
    """
    text = "".join(traceback.format_exception(error))
    if re.findall(r'^\s*File "(.+?)"', text, re.MULTILINE)[-1:] != [default_collate.__code__.co_filename]:
        return None
    return (
        f"the rows of the data make no batch ({text.strip().splitlines()[-1]}): pass a DataLoader whose collate_fn "
        "makes one, by padding for instance; that of a Hugging Face Trainer is trainer.get_train_dataloader()"
    )


class Whole:
    """Batches whose inputs are the whole batch, as it was before it was taken apart; targets, if known, stand beside.

    >>> batch = next(Whole(as_batches([{"x": 1.0}, {"x": 2.0}])).epoch(0))
    >>> batch[0].keys(), batch[1]
    (dict_keys(['x']), None)
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def examples(self) -> int:
        return self.batches.examples

    def epoch(self, index: int) -> Iterator[tuple[Any, Any]]:
        if isinstance(self.batches, LoaderBatches):
            return ((batch, targets_of(batch)) for batch in self.batches.whole(index))
        return ((batch, batch[1]) for batch in self.batches.epoch(index))

    def part(self, index: int, rank: int, world: int) -> Iterator[tuple[Any, Any] | None]:
        if isinstance(self.batches, LoaderBatches):
            batches = self.batches.whole_part(index, rank, world)
            return (batch if batch is None else (batch, targets_of(batch)) for batch in batches)
        if isinstance(self.batches, TensorBatches):
            return (batch and (batch, batch[1]) for batch in self.batches.part(index, rank, world))
        return every(self.epoch(index), rank, world)


def _parts(loader: Any) -> list[Any]:
    """The loader, and the objects it may draw its order from, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = [getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)]
    parts = [loader, batch_sampler, *inner, getattr(loader, "dataset", None)]
    return list({id(part): part for part in parts if part is not None}.values())


def _length(thing: Any) -> int | None:
    try:
        return len(thing)
    except (TypeError, NotImplementedError):  # no __len__, or DataLoader's around a data set without one
        return None


def pair_of(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    if isinstance(batch, Mapping):
        return batch, targets_of(batch)
    got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else f"a {type(batch).__name__}"
    raise UsageError(
        f"a batch must be a pair (inputs, targets) or a dictionary, not {got}: let a collate_fn return the pair, or "
        "give step=, a function of the model and a batch that returns the loss"
    )


def label_of(inputs: Any) -> str | None:
    """The name of the targets in a dictionary; None where it has none."""
    names = inputs if isinstance(inputs, Mapping) else ()
    return next((name for name in ("labels", "label") if name in names), None)


def targets_of(batch: Any) -> Any:
    """What in a batch are the targets: the last of several parts, or the labels of a dictionary."""
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[-1]
    label = label_of(batch)
    return None if label is None else batch[label]


def _is_table(data: Any) -> bool:
    """Whether `data` is a list of dictionaries, each an example, or a data set of Hugging Face."""
    rows = isinstance(data, (list, tuple)) or (hasattr(data, "column_names") and hasattr(data, "__getitem__"))
    return rows and not isinstance(data, Mapping) and len(data) > 0 and isinstance(data[0], Mapping)


# --- anything -> batches --------------------------------------------------------------------------


def as_batches(
    data: Any, *, batch_size: int = 128, seed: int = 0, shuffle: bool = True, channels_last: bool = False
) -> Batches:
    """Batches from any container of pairs (inputs, targets) or dictionaries.

    A pair of tensors or NumPy arrays, a TensorDataset of two tensors or a Subset of one: whole batches by
    index. Another map-style Dataset, a list of dictionaries: a DataLoader around
    it. A DataLoader, which keeps its own batch size and order; an IterableDataset comes inside one. An object
    that already is Batches is returned as it is. Raises UsageError for anything else.

    >>> len(as_batches((np.zeros((100, 4)), np.zeros(100, int)), batch_size=30))
    4
    """
    if callable(getattr(data, "epoch", None)) and hasattr(data, "__len__"):
        return cast(Batches, data)
    size = whole("batch size", batch_size, least=1)
    if isinstance(data, DataLoader):
        return LoaderBatches(data, seed, channels_last=channels_last)
    tensors = as_tensors(data)
    if tensors is not None:
        inputs, targets = tensors
        return TensorBatches(inputs, targets, batch_size=size, shuffle=shuffle, seed=seed, channels_last=channels_last)
    if isinstance(data, IterableDataset):
        raise UsageError("an IterableDataset has an order of its own: pass it inside a DataLoader")
    if is_map_style(data) or _is_table(data):
        if not len(data):
            raise UsageError("the data set is empty: there must be at least one example")
        alone = shuffle and len(data) > size > 1 and len(data) % size == 1  # as in TensorBatches
        loader: DataLoader[Any] = DataLoader(data, batch_size=size, shuffle=shuffle, drop_last=alone)
        return LoaderBatches(loader, seed, channels_last=channels_last)
    plain = (Mapping, tuple, list, set, str, bytes, Tensor, np.ndarray)
    if hasattr(data, "__iter__") and not isinstance(data, plain):
        return LoaderBatches(data, seed, channels_last=channels_last)
    raise UsageError(
        "data must be a DataLoader, a Dataset, or a pair (inputs, targets) of tensors or NumPy arrays, "
        f"not a {type(data).__name__}{_instead(data)}"
    )


def _instead(data: Any) -> str:
    """What may be passed in place of something that is no data."""
    if isinstance(data, Dataset):
        return "; give it a __len__"
    if isinstance(data, Data):
        return "; pass its .train or .test"
    if callable(getattr(data, "get_train_dataloader", None)):  # Hugging Face's
        return "; pass trainer.get_train_dataloader()"
    if hasattr(data, "fit_loop"):  # Lightning's
        return (
            "; pass the DataLoader or DataModule that it fits, with step= where the loss is the module's own, or give "
            "the Trainer gemminer.integrations.lightning.TicketCallback(mine=dict(density=...))"
        )
    return ""


def as_wholes(data: Any, *, batch_size: int = 128, seed: int = 0, shuffle: bool = True) -> Whole:
    """Whole batches of any kind: of what `as_batches` takes, and of the rows of one tensor or array.

    >>> [batch.shape for batch, _ in as_wholes(torch.zeros(3, 5), batch_size=2, shuffle=False).epoch(0)]
    [torch.Size([2, 5]), torch.Size([1, 5])]
    """
    if isinstance(data, (Tensor, np.ndarray)) and data.ndim > 0:
        data = Subset(cast(Any, data), range(len(data)))
    return Whole(as_batches(data, batch_size=batch_size, seed=seed, shuffle=shuffle))
