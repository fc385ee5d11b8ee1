"""What becomes tensors, and what keeps its own items."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from gemminer.data import TensorBatches, as_batches
from tests.data.helpers import bits, order, same


def test_tensors_take_the_fast_path() -> None:
    inputs, targets = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    pairs = [
        (inputs, targets),
        [inputs.numpy(), targets.numpy().astype(np.int32)],
        TensorDataset(inputs, targets),
        Subset(Subset(TensorDataset(inputs, targets), [5, 4, 3, 2, 1, 0]), [5, 4, 3, 2, 1, 0]),
    ]
    found = [as_batches(pair, batch_size=4, seed=1) for pair in pairs]
    assert all(isinstance(batches, TensorBatches) for batches in found)
    assert all(same(bits(batches), bits(found[0])) for batches in found)


def test_arrays_of_any_kind_become_tensors() -> None:
    frozen = np.arange(6.0)[::-1]
    frozen.flags.writeable = False
    inputs, targets = next(as_batches((frozen, np.arange(6, dtype=np.int8)), shuffle=False).epoch(0))
    assert (inputs.dtype, targets.dtype) == (torch.float64, torch.int64)  # the model's type decides later
    assert inputs.tolist() == [5, 4, 3, 2, 1, 0]
    double = torch.zeros(3, dtype=torch.float64)  # a tensor's type was chosen, NumPy's was not
    assert next(as_batches((double, double)).epoch(0))[0].dtype == torch.float64


def test_a_subclass_of_tensor_dataset_keeps_its_own_items() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            return tuple(2 * tensor for tensor in super().__getitem__(index))

    batches = as_batches(Doubled(torch.arange(3), torch.arange(3)), shuffle=False)
    assert order(batches) == [0, 2, 4]
