"""A ticket of a tiny network."""

from __future__ import annotations

import pytest

from gemminer.core.ticket import Ticket
from tests.helpers import drawn_ticket, tiny_net


@pytest.fixture
def ticket() -> Ticket:
    return drawn_ticket(tiny_net(), seed=3, options={"lr": 0.1, "milestones": [1, 2]})
