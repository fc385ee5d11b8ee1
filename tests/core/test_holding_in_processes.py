"""Two processes of DistributedDataParallel: zeros stay, on both, whether the model was held before it was wrapped."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import gemminer
from tests.helpers import drawn_ticket, tiny_data, tiny_net


def trained(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for order in ("held, then wrapped", "wrapped, then held", "wrapped alone"):
        model = tiny_net(rank, norm=False)  # DistributedDataParallel takes the first process's weights
        ticket = drawn_ticket(tiny_net(0, norm=False), 0.2)
        ticket.apply(model)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
        if order == "held, then wrapped":
            held = gemminer.hold(model, ticket, optimiser)
            wrapped = DistributedDataParallel(model)
        else:
            wrapped = DistributedDataParallel(model)
            held = gemminer.hold(wrapped, ticket, optimiser)
        if order == "wrapped alone":
            held.remove()
        inputs, targets = (each[rank::2] for each in tiny_data())
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(wrapped(inputs), targets).backward()
            norm = nn.utils.clip_grad_norm_(wrapped.parameters(), 0.1)
            optimiser.step()
        found[order] = {"moved": held.violations(), "norm": float(norm), "state": dict(model.state_dict())}
    torch.save(found, Path(folder) / str(rank))
    distributed.destroy_process_group()


def test_zeros_stay_on_both_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(trained, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    for order, own in first.items():
        assert (own["moved"] == 0) == (order != "wrapped alone"), order
        assert own["moved"] == second[order]["moved"]
        for name, tensor in own["state"].items():
            assert torch.equal(tensor, second[order]["state"][name]), (order, name)
    before, after = (first[order] for order in list(first)[:2])
    assert before["norm"] == after["norm"] < first["wrapped alone"]["norm"]
    assert all(torch.equal(tensor, after["state"][name]) for name, tensor in before["state"].items())
