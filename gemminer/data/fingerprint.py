"""A digest of data, by which a checkpoint knows that it is of the same."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gemminer.data.batches import Batches, TensorBatches
from gemminer.data.loaders import LoaderBatches, Whole


def digest(*values: Any) -> str:
    """Twelve characters that depend on every tensor and number in `values`: shapes, types and contents."""
    found = hashlib.sha256()
    for leaf in tree_leaves(values):
        if isinstance(leaf, np.ndarray) and leaf.dtype != object:
            leaf = torch.from_numpy(np.ascontiguousarray(leaf)) if leaf.dtype.kind in "biufc" else repr(leaf.tolist())
        if isinstance(leaf, Tensor):
            found.update(f"{tuple(leaf.shape)} {leaf.dtype}\n".encode())
            found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(leaf, (str, bytes, int, float, complex, bool, np.generic, type(None))):
            found.update(f"{leaf!r}\n".encode())
        else:
            found.update(f"{type(leaf).__name__}\n".encode())
    return found.hexdigest()[:12]


def fingerprint(batches: Batches) -> str:
    """A digest of the data behind batches; it is the same in every process.

    Of tensors it is that of all examples, of a loader that of its first batch; a loader whose first batch is not the
    same twice, so that it cannot be known again, has none ("unrepeatable").
    """
    known = getattr(batches, "_fingerprint", None)
    if known is None:
        known = _fingerprint(batches)
        with contextlib.suppress(AttributeError):
            batches._fingerprint = known  # type: ignore[attr-defined]
    return str(known)


def some_rows(batches: Batches) -> str | None:
    """A digest of five rows of a loader's map-style data set, the first and the last among them, and None of others.

    It says what the first batch does not. Rows that are not the same twice, or that no number asks for, have none.
    """
    inner = batches.batches if isinstance(batches, Whole) else batches
    if not isinstance(inner, LoaderBatches):
        return None
    try:
        count = len(inner.loader.dataset)
        indices = sorted({count * k // 4 for k in range(4)} | {count - 1})
        first, again = (inner.rows(indices) for _ in range(2))
    except Exception:  # whatever a user's data set raises where its sampler would ask for something else
        return None
    return digest(first) if first is not None and digest(first) == digest(again) else None


def _fingerprint(batches: Batches) -> str:
    if isinstance(batches, Whole) and isinstance(batches.batches, TensorBatches):
        batches = batches.batches
    if isinstance(batches, TensorBatches):
        return digest(batches.inputs, batches.targets, batches.normalise)
    first, again = (digest(next(iter(batches.epoch(0)), None)) for _ in range(2))
    return first if first == again else "unrepeatable"
