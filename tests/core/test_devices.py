"""What is known without waiting for a device."""

from __future__ import annotations

import torch

from gemminer.core.devices import at_hand
from tests.helpers import Elsewhere


def test_only_what_lies_in_the_hosts_memory_is_at_hand() -> None:
    assert at_hand(torch.tensor(0.25, dtype=torch.float64, requires_grad=True)) == 0.25
    assert at_hand(torch.tensor(False)) is False
    assert at_hand(torch.tensor(True).as_subclass(Elsewhere)) is None
