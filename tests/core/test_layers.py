"""Removable layers: found by the zero probe, taken out, and what is left of them when they are at zero."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gemminer import models
from gemminer.core import layers
from gemminer.core.compacting import compact
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.holding import hold
from gemminer.core.layers import Blocks, Shortened, find_blocks, neutralise, without
from gemminer.core.model_state import named_state
from gemminer.core.prunable import find_prunable
from gemminer.core.ticket import Ticket
from tests.helpers import drawn_ticket


class Block(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x))


def net(count: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), *(Block() for _ in range(count)), nn.Linear(6, 2))


def found(model: nn.Module, *args: Any, **prunes: Any) -> Blocks:
    args = args or (torch.randn(5, 4, generator=torch.Generator().manual_seed(1)),)
    return find_blocks(model, functools.partial(model, *args), find_prunable(model, **prunes))


def names(blocks: Blocks) -> list[str]:
    return [block.name for block in blocks.removable]


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained_norms(model: nn.Module) -> nn.Module:
    """As after a training: scales, shifts and running statistics are no longer 1, 0, 0 and 1."""
    source = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                if tensor is not None:
                    tensor.data.add_(0.3 * torch.randn(tensor.shape, generator=source))
    return model


NETWORKS = {
    "non-affine norms": lambda: models.build("resnet20", width=0.25),
    "affine norms": lambda: models.build("resnet20", width=0.25, norm="affine"),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_at_zero_is_the_network_without_it_in_both_modes(name: str) -> None:
    """Zero weights alone are not: a norm's shift stays, and so does a running mean, which a norm without scale uses."""
    model = trained_norms(NETWORKS[name]())
    blocks = names(found(model, images()))
    assert len(blocks) == (5 if name == "torchvision" else 7)  # also of a trained network
    short = without(model, blocks[1:3])
    whole = named_state(model)
    assert set(named_state(short)) == {n for n in whole if not n.startswith(tuple(f"{b}." for b in blocks[1:3]))}
    neutralise(model, blocks[1:3])
    for training in (True, False):
        assert torch.equal(model.train(training)(images()), short.train(training)(images()))


def test_the_innermost_of_several_that_could_go() -> None:
    """A list of blocks could go as a whole: its blocks are what is removed."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(Block(), Block()), nn.Linear(6, 2))
    assert names(found(model)) == ["1.0", "1.1"]
    assert {b.stage for b in found(model).removable} == {(5, 6)}
    assert found(model).removable[0].weights == ("1.0.linear.weight",)


def test_names_are_those_of_the_plain_model() -> None:
    plain = net()
    assert names(found(nn.DataParallel(plain))) == names(found(plain)) == ["1", "2", "3"]
    short = without(nn.DataParallel(plain), ["2"])
    assert isinstance(short, nn.Sequential)
    assert isinstance(short[2], nn.Identity)
    assert isinstance(plain[2], Block)
    inside = nn.Sequential(plain[0], nn.DataParallel(plain[1]), plain[2], plain[4])
    assert names(found(inside)) == ["1", "2"]
    assert type(without(inside, ["1"])[1]) is nn.Identity  # the wrapper has gone too


def test_weights_that_must_stay_keep_their_layer() -> None:
    model = net()
    assert names(found(model, exclude="2.*")) == ["1", "3"]
    model[3].linear.weight.requires_grad_(False)
    assert names(found(model)) == ["1", "2"]
    frozen = nn.Sequential(nn.Linear(4, 6), nn.Sequential(Block(), nn.Linear(6, 6)))
    frozen[1][0].linear.bias.requires_grad_(False)  # a bias is no weight that is left dense
    assert names(found(frozen)) == ["1.0"]


def test_a_stage_knows_its_blocks_that_cannot_go() -> None:
    blocks = found(models.build("resnet20", width=0.25), images())
    counts = {block.stage: 0 for block in blocks.removable}
    for block in blocks.removable:
        counts[block.stage] += 1
    assert list(counts.values()) == [3, 2, 2]
    assert [blocks.fixed[stage] for stage in counts] == [0, 1, 1]  # those that sample down


def test_what_runs_in_place_is_probed_on_what_it_was_given() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x.add_(self.linear(x))

    assert names(found(nn.Sequential(nn.Linear(4, 6), nn.Sequential(InPlace()), nn.Linear(6, 2)))) == ["1.0"]


def test_an_input_that_is_zero_proves_nothing_of_others() -> None:
    """GELU(x + f(x)) is x at zero weights only where x is 0; the network's own values tell."""

    class Curved(Block):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.gelu(super().forward(x))

    model = nn.Sequential(nn.Linear(4, 6), Curved(), nn.Linear(6, 2))
    assert not found(model).removable
    assert found(model).none() == f"no removable layer: 1: {layers.NO_IDENTITY}"


def test_each_kind_that_is_missed_has_its_reason() -> None:
    class Pair(Block):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), None

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.idle = Pair(), Block()

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.pair(x)[0], x], 1)

    model = nn.Sequential(nn.Linear(4, 6), First(), nn.Linear(12, 2))
    assert found(model).missed == {"1": layers.RESHAPES, "1.pair": layers.NOT_ONE_TENSOR, "1.idle": layers.IDLE}
    said = found(model).none()
    assert said.startswith("no removable layer: ")
    assert all(reason in said for reason in (layers.RESHAPES, layers.NOT_ONE_TENSOR, layers.IDLE))
    assert "and 2 more" in found(nn.Sequential(*(nn.Sequential(nn.Linear(4, 4)) for _ in range(5)))).none()


def test_a_layer_with_further_arguments() -> None:
    class Masked(Block):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
            return x + self.linear(self.norm(x) * mask)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(4, 6), Masked(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.block(self.stem(x), mask=torch.ones(6)))
            return out

    model = Net()
    assert names(found(model)) == ["block"]
    short = without(model, ["block"])
    assert torch.equal(short(torch.ones(2, 4)), model.head(model.stem(torch.ones(2, 4))))


def test_a_shortened_model_is_put_back_whatever_happens() -> None:
    model = net()
    blocks = list(model)

    def fails() -> None:
        with Shortened(model, ["1", "3"]) as cut:
            assert [type(m) for m in (model[1], model[3])] == [nn.Identity, nn.Identity]
            with cut.whole():
                assert list(model) == blocks
            assert model[1] is not blocks[1]
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert list(model) == blocks


def test_a_module_that_is_not_there_is_of_another_model() -> None:
    for function in (without, neutralise):
        with pytest.raises(UsageError, match=r"the model has no module '9', which the ticket removes"):
            function(net(), ["1", "9"])


# --- a ticket that removes layers ---


def short_ticket(model: nn.Module, removed: tuple[str, ...] = ("2",), density: float = 0.5, **facts: Any) -> Ticket:
    """A random ticket without these layers."""
    ticket = drawn_ticket(model, density, **facts)
    masks = {n: m & (not layers.owned(n, removed)) for n, m in ticket.masks.items()}
    return ticket.replace(masks=masks, removed=removed)


def test_a_ticket_knows_the_layers_it_removes() -> None:
    model = net()
    ticket, plain = short_ticket(model), drawn_ticket(model, 0.5)
    assert (ticket.removed, plain.removed) == (("2",), ())
    assert ticket.kept == sum(int(m.sum()) for n, m in plain.masks.items() if n != "2.linear.weight")
    assert "1 layers removed" in repr(ticket)
    assert ticket.replace(note="x").removed == ("2",)
    assert ticket.digest != Ticket(ticket.masks, ticket.initial).digest
    assert "2.linear.weight" in ticket.initial  # its first values, which checks need
    for removed, said in (
        (["9"], "removes '9', and has no mask in it"),
        (["1"], "removes '1', and keeps weights of '1.linear.weight' in it"),
        (["2", "2.linear"], "removes '2.linear' twice"),
        (["2", "2"], "removes '2' twice"),
    ):
        with pytest.raises(UsageError, match=said):
            ticket.replace(removed=removed)


def test_it_survives_the_disk_in_a_format_that_older_readers_refuse(tmp_path: Path) -> None:
    ticket = short_ticket(net(), seed=1)
    for weights in (True, False):
        path = ticket.save(tmp_path / "t.safetensors", weights=weights)
        loaded = Ticket.load(path)
        assert loaded == ticket
        assert loaded.removed == ("2",)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["gemminer"])
    assert header["format"] == "gemminer.ticket/2"
    for change in ({"removed": []}, {"removed": ["1"]}, {"removed": None}, {"removed": ["2", "3"]}):
        save_file(load_file(path), tmp_path / "other", metadata={"gemminer": json.dumps({**header, **change})})
        with pytest.raises(GemminerError, match="damaged"):
            Ticket.load(tmp_path / "other")
    del header["removed"]
    save_file(load_file(path), tmp_path / "other", metadata={"gemminer": json.dumps(header)})
    with pytest.raises(GemminerError, match="damaged"):
        Ticket.load(tmp_path / "other")


def test_applied_a_removed_layer_computes_nothing_and_shallow_takes_it_out() -> None:
    model = trained_norms(torchvision.models.resnet18(num_classes=4))
    blocks = names(found(model, images()))[:2]
    ticket = short_ticket(model, tuple(blocks))
    short = ticket.shallow(ticket.apply(model))
    assert not any(p.any() for n, p in model.named_parameters() if layers.owned(n, blocks))
    assert set(named_state(short)) == set(ticket.shortened().initial)
    for training in (True, False):
        assert torch.equal(model.train(training)(images()), short.train(training)(images()))
    rest = ticket.shortened()
    assert (rest.removed, rest.kept) == ((), ticket.kept)
    assert rest.shortened() is rest
    rest.check_fits(short)
    wrapped = nn.DataParallel(model)
    assert ticket.fitted(wrapped).removed == tuple(blocks)
    assert type(ticket.shallow(wrapped)) is type(model)
    prefixed = Ticket(
        {f"module.{n}": m for n, m in ticket.masks.items()},
        {f"module.{n}": t for n, t in ticket.initial.items()},
        removed=[f"module.{n}" for n in blocks],
    )
    assert prefixed.fitted(model).removed == tuple(blocks)


def test_a_loop_of_ones_own_leaves_a_removed_layer_at_zero() -> None:
    """Under the weights' masks alone the norm's shift would train: the layer would become a learnt bias."""
    model = NETWORKS["affine norms"]()
    ticket = short_ticket(model, ("layer1.1",), 0.9)
    short = ticket.shallow(ticket.apply(model))
    for one, own in ((model, ticket), (short, ticket.shortened())):
        optimiser = torch.optim.SGD(one.train().parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        with hold(one, own, optimiser) as held:
            for seed in range(3):
                optimiser.zero_grad()
                x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
                one(x).square().sum().backward()
                optimiser.step()
        assert held.violations() == 0
    state = named_state(model)
    assert all(torch.allclose(t, state[n], atol=1e-6) for n, t in named_state(short).items())
    assert not any(p.any() for n, p in model.named_parameters() if n.startswith("layer1.1."))


def test_compact_takes_removed_layers_out_first() -> None:
    model = trained_norms(models.build("resnet20", width=0.5, norm="affine")).eval()
    ticket = short_ticket(model, ("layer1.1", "layer3.2"), 0.3)
    ticket.apply(model)
    small = compact(model, ticket, images(2))
    assert isinstance(small.get_submodule("layer1.1"), nn.Identity)
    assert small.removed.gone == ("layer1.1", "layer3.2")
    assert "layer1.1" in str(small.removed)
    assert small.removed.parameters[0] == sum(p.numel() for p in model.parameters())
    assert torch.allclose(small(images()), model(images()), atol=1e-4)


def test_torch_prune_has_no_word_for_it() -> None:
    model = net()
    ticket = short_ticket(model)
    with pytest.raises(UsageError, match=r"ticket.shortened\(\).to_prune\(ticket.shallow\(model\)\)"):
        ticket.to_prune(model)
    assert ticket.shortened().to_prune(ticket.shallow(model)) is not model
