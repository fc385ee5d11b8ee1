"""Counts are exact, and schedules end, whatever the data promised and gave."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import gemminer
from gemminer import methods
from gemminer.training.clock import Clock
from tests.helpers import Notes, tiny_data, tiny_net

Came = Callable[[int], int]


class Lying:
    """Batches of 12, `came(epoch)` of them where `promised` are promised."""

    examples = 96

    def __init__(self, promised: int, came: Came) -> None:
        self.promised, self.came = promised, came
        self.inputs, self.targets = tiny_data(96)

    def __len__(self) -> int:
        return self.promised

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(96, generator=torch.Generator().manual_seed(index)).repeat(20)
        for chosen in order.split(12)[: self.came(index)]:
            yield self.inputs[chosen], self.targets[chosen]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Examples of a data set that claims a length, or has none; its later epochs may be shorter."""

    def __init__(self, came: Came) -> None:
        self.came, self.index = came, 0

    def set_epoch(self, index: int) -> None:
        self.index = index

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = tiny_data(96)
        yield from zip(inputs[: self.came(self.index)], targets, strict=False)


class Sized(Stream):
    def __len__(self) -> int:
        return 96


LIES: dict[str, tuple[int, Came]] = {
    "a quarter less": (8, lambda e: 6),
    "half": (8, lambda e: 4),
    "a claim ten times too large": (80, lambda e: 8),
    "twice as many": (4, lambda e: 8),
    "a short last epoch": (8, lambda e: 8 if e < 3 else 3),
    "a last epoch of one batch": (8, lambda e: 8 if e < 3 else 1),
    "a batch less in the last": (8, lambda e: 8 if e < 3 else 7),
    "now and then half": (8, lambda e: 8 if e % 2 else 4),
}


# --- the clock -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "skip"), [(0, 0), (2, 0), (1, 3)])
def test_a_promise_that_is_kept_makes_each_batch_a_step(first: int, skip: int) -> None:
    clock, seen = Clock(7, 5, first, skip), []
    for epoch in range(first, 5):
        for _ in range(7 - (skip if epoch == first else 0)):
            seen.append(clock.tick())
        clock.came()
        assert clock.next_epoch() == 7 * (epoch + 1)
    assert seen == list(range(7 * first + skip, 35))
    assert clock.told is None


@pytest.mark.parametrize("lie", list(LIES))
def test_a_clock_never_goes_back_and_is_at_the_end_when_the_epochs_are(lie: str) -> None:
    promised, came = LIES[lie]
    clock, steps = Clock(promised, 4), [-1]
    for epoch in range(4):
        for _ in range(came(epoch)):
            steps.append(clock.tick())
        clock.came()
        while clock.short:
            steps.append(clock.tick())
        clock.next_epoch()
    assert steps == sorted(steps)
    assert steps[-1] == 4 * promised - 1
    # What a short first epoch left undone is spread over all that follow.
    jumps = [b - a for a, b in itertools.pairwise(steps[1:])]
    assert max(jumps) <= 2 * promised / min(came(e) for e in range(3)) + 1
    assert (clock.told is None) == (lie == "twice as many")


def test_a_clock_goes_on_from_its_state() -> None:
    def steps(clock: Clock, epochs: range) -> list[int]:
        seen = []
        for epoch in epochs:
            seen += [clock.tick() for _ in range(3 + epoch % 2)]
            clock.came()
            clock.next_epoch()
        return seen

    whole, first, second = Clock(5, 6), Clock(5, 6), Clock(5, 6)
    expected = steps(whole, range(6))
    begun = steps(first, range(3))
    second.load_state_dict(first.state_dict())
    assert begun + steps(second, range(3, 6)) == expected
    assert second.told == whole.told


# --- every search ----------------------------------------------------------------------------------------------


def search(data: Any, method: str = "gem-miner", **options: Any) -> tuple[gemminer.Ticket, list[str]]:
    told = Notes()
    options = {"epochs": 4, **options} if methods.get(method).trains else options
    return gemminer.mine(tiny_net(norm=False), data, 0.1, method=method, monitor=told, **options), told.notes


SEARCHES: list[dict[str, Any]] = [
    {},
    {"ridge": 1e-4},
    {"freeze_every": 1},
    {"freeze_every": 1, "ridge": 0.0},
    {"repair": 0.0, "optimiser": "adam", "lr": 0.02},
    {"method": "edge-popup"},
    {"method": "edge-popup", "rung": "gradual"},
    {"method": "edge-popup", "rung": "ridge", "freeze_every": 2},
    {"method": "imp", "rate": 0.7},
    {"method": "imp", "rate": 0.7, "rewind": "warm", "rewind_steps": 5},
    {"method": "snip", "batches": 20},
    {"method": "prospr", "batches": 3},
]


@pytest.mark.parametrize("options", SEARCHES, ids=str)
@pytest.mark.parametrize("lie", ["half", "twice as many", "a last epoch of one batch", "now and then half"])
def test_counts_are_exact(lie: str, options: dict[str, Any]) -> None:
    promised, came = LIES[lie]
    ticket, notes = search(Lying(promised, came), **options)
    assert ticket.kept == 32
    trained = methods.get(options.get("method", "gem-miner")).trains
    said = [note for note in notes if "than its length promised" in note]
    assert bool(said) == (trained and lie != "twice as many")
    assert len(said) <= 1 + (options.get("rewind") == "warm")  # whose rounds are of two lengths
    assert ticket.provenance.get("notes", []) == said


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Sized(lambda e: 96), batch_size=12, num_workers=2, drop_last=True),
        DataLoader(Stream(lambda e: 96), batch_size=12),
        DataLoader(Stream(lambda e: 96 - 20 * e), batch_size=12),
        DataLoader(Sized(lambda e: 60 if e else 96), batch_size=12),
    ],
    ids=["workers", "no length", "ever shorter", "a long first epoch"],
)
def test_counts_are_exact_for_streams(loader: Any) -> None:
    assert search(loader)[0].kept == 32


@pytest.mark.parametrize(("epochs", "came"), [(4, lambda e: 8 * (e < 2)), (1, lambda e: 0)])
def test_an_empty_epoch_is_one_sentence(epochs: int, came: Came) -> None:
    with pytest.raises(gemminer.GemminerError, match=r"the training data gave no batch"):
        search(Lying(8, came), epochs=epochs)


@pytest.mark.parametrize("lie", ["half", "a claim ten times too large", "a last epoch of one batch"])
def test_no_live_weight_is_cut_at_the_end(lie: str) -> None:
    """Live weights are the ticket's before the last batch, as with a loader that keeps its promise."""
    promised, came = LIES[lie]
    seen: list[tuple[int, int]] = []

    class Watched(methods.gem_miner.GemMinerRule):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            seen.append((self.remaining, int(self.live().sum())))

        def after_epoch(self, step: int, last: bool) -> None:
            before = self.live()
            super().after_epoch(step, last)
            assert torch.equal(before, self.live())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemminer.methods.gem_miner.search.GemMinerRule", Watched)
        ticket, _ = search(Lying(promised, came))
    assert ticket.kept == 32
    assert seen[-1][0] == 32
    assert [live for _, live in seen][-3:] <= [32] * 3


@pytest.mark.parametrize("method", ["gem-miner", "imp"])
def test_a_killed_search_on_a_short_loader_ends_with_the_same_ticket(
    method: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")

    class Kill(gemminer.Monitor):
        def epoch(self, row: dict[str, Any]) -> None:
            if row["epoch"] == 3:
                raise KeyboardInterrupt

    net: nn.Module = tiny_net()
    more = {"rate": 0.7, "rewind": "warm", "rewind_steps": 5} if method == "imp" else {}

    def once(**how: Any) -> gemminer.Ticket:
        return gemminer.mine(net, Lying(8, lambda e: 5), 0.1, method=method, epochs=5, **how, **more)

    with pytest.raises(KeyboardInterrupt):
        once(checkpoint=tmp_path / "c", monitor=Kill())
    assert once(checkpoint=tmp_path / "c") == once()
