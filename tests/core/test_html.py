"""What a notebook shows of tickets and verdicts."""

from __future__ import annotations

from xml.etree import ElementTree

import torch
from torch import nn

import gemminer
from gemminer.core.html import table
from gemminer.core.ticket import Ticket
from tests.helpers import tiny_data, tiny_net


def cells(text: str) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in ElementTree.fromstring(text).iter("tr")]


def test_names_are_escaped_and_columns_kept() -> None:
    text = table("<b>", ("a", "b"), [("<script>", 1)])
    assert cells(text) == [["a", "b"], ["<script>", "1"]]
    assert "<script>" not in text


def test_a_ticket_is_a_table_of_its_layers() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    ticket = Ticket({"weight": mask}, nn.Linear(2, 2).state_dict(), {"method": "snip"})
    text = ticket._repr_html_()
    assert "snip, density 25.0000%, 1 of 4" in text
    assert cells(text)[1] == ["weight", "4", "1", "25.00%", "1"]


def test_a_verdict_is_a_table_of_its_checks() -> None:
    model, data = tiny_net(), tiny_data()
    ticket = gemminer.mine(model, data, 0.3, method="erk")
    verdict = gemminer.check(model, ticket, data, data, seeds=1, names=["shuffle", "uniform"], epochs=1, lr=0.1)
    rows = cells(verdict._repr_html_())
    assert [row[0] for row in rows] == ["check", "shuffle", "uniform"]
    assert rows[1][4] == verdict.checks["shuffle"].verdict
