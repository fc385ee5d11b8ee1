"""What passes write into a model's attributes is put back by whatever only looks at it."""

from __future__ import annotations

import contextlib
from collections import defaultdict, deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gemminer
from gemminer.core.attributes import attributes
from tests.helpers import tiny_data


class Counting(nn.Module):
    """Counts its passes, and keeps histories, an average and a cache, in an inner module too."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.inner = nn.Linear(6, 6), inner or nn.Linear(6, 3)
        self.passes, self.last = 0, None
        self.log: list[Any] = [[0]]
        self.recent: deque[int] = deque(maxlen=2)
        self.by_mode: dict[str, list[int]] = defaultdict(list)
        self.sizes, self.mean = {96}, torch.zeros(6)
        self.pair = ([1], self.log)
        self.log.append(self.log)  # holds itself

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.log[0].append(self.passes)
        self.recent.append(len(x))
        self.by_mode["train" if self.training else "eval"].append(self.passes)
        self.sizes.add(len(x))
        self.mean += x.detach().mean(0)
        self.pair[0].clear()
        self.last = self.cache = self.body(x)
        return self.inner(self.last.relu())  # type: ignore[no-any-return]


def seen(net: Counting) -> list[Any]:
    own = [
        net.passes,
        net.last,
        net.log[0],
        list(net.recent),
        dict(net.by_mode),
        net.sizes,
        net.mean.tolist(),
        net.pair[0],
    ]
    own.append([hasattr(net, "cache"), net.log[1] is net.log, net.pair[1] is net.log])
    return [repr(own), *(seen(net.inner) if isinstance(net.inner, Counting) else [])]


@pytest.mark.parametrize("call", ["mine", "snip", "check", "budget", "train's look"])
@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_call_that_leaves_the_model_as_it_was_leaves_its_attributes(call: str, engine: str) -> None:
    net, data = Counting(Counting(nn.Linear(6, 3))), tiny_data()
    before, parts = seen(net), (id(net.log), id(net.log[0]), id(net.mean), id(net.recent))
    ticket = gemminer.mine(net, data, 0.5, epochs=1, engine=engine)
    if call == "snip":
        gemminer.mine(net, data, 0.5, method="snip", engine=engine)
    elif call == "check":
        gemminer.check(net, ticket, data, data, epochs=1, seeds=1, lr="auto", engine=engine)
    elif call == "budget":
        gemminer.mine(net, data, 0.5, budget="0.01s", engine=engine)
    elif call == "train's look":
        with pytest.raises(gemminer.GemminerError):
            gemminer.train(net, ticket, data, data, epochs=1, optimiser="none")  # type: ignore[arg-type]
    assert seen(net) == before
    assert parts == (id(net.log), id(net.log[0]), id(net.mean), id(net.recent))


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_training_leaves_what_its_passes_wrote(engine: str) -> None:
    net, data = Counting(), tiny_data()
    gemminer.train(net, gemminer.mine(net, data, 0.5, method="erk"), data, data, epochs=2, batch_size=48, engine=engine)
    assert net.by_mode["train"] == [1, 2, 3, 4]
    assert net.passes >= 4


def test_what_goes_away_or_changes_its_kind_comes_back() -> None:
    net = nn.Linear(2, 2)
    vars(net).update(a=[1, {2: [3]}], b={"x": torch.ones(2)}, c=(4, [5]))
    tensor, inner = net.b["x"], net.a[1]  # type: ignore[operator, index]
    with contextlib.suppress(KeyError), attributes(net):
        net.a[1].clear()  # type: ignore[operator, union-attr, index]
        tensor.fill_(7)
        net.c[1].append(6)  # type: ignore[operator, union-attr, index]
        net.b, net.d = 8, 9  # type: ignore[assignment]
        del net.a
        raise KeyError
    assert net.a == [1, {2: [3]}]
    assert net.a[1] is inner  # type: ignore[operator, index]
    assert net.b["x"] is tensor  # type: ignore[operator, index]
    assert (tensor.tolist(), net.c, hasattr(net, "d")) == ([1, 1], (4, [5]), False)
