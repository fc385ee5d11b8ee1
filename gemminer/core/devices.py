"""What the host knows without waiting for a device.

A GPU works through its queue while Python goes on; a number that is read from it (`item`, `float`, `bool`, `tolist`,
`nonzero`, an index of booleans) makes Python wait until the queue is empty, and the queue then runs dry. Steps of a
training or a search therefore ask nothing; what they must know comes from schedules or stays on the device.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def at_hand(value: Tensor) -> Any:
    """The number that a tensor without dimensions holds, where it lies in the host's memory; None on another device.

    >>> import torch
    >>> at_hand(torch.tensor(2.0)), at_hand(torch.tensor(2.0, device="meta"))
    (2.0, None)
    """
    return value.detach().numpy().item() if value.device.type == "cpu" else None
