"""Dead units, worked out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.core.structure import Structure


def looked_at(net: nn.Module, x: Tensor, **options: bool) -> Structure:
    return Structure(net.eval(), (x,), {}, **options)


class Residual(nn.Module):
    """x -> a -> (a + b(relu(a))) -> head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h + self.b(torch.relu(h))
        return self.head(h)  # type: ignore[no-any-return]


def zeroed(layer: nn.Module, *rows: int, columns: tuple[int, ...] = ()) -> None:
    with torch.no_grad():
        layer.weight[list(rows)] = 0  # type: ignore[index]
        layer.weight[:, list(columns)] = 0  # type: ignore[index]


def test_a_constant_goes_through_a_sum_only_if_both_sides_are() -> None:
    net = Residual()
    zeroed(net.a, 0, 1)
    zeroed(net.b, 0, 2)
    found = looked_at(net, torch.randn(2, 3))
    assert found.layers["a"].dead.tolist() == [True, True, False, False]
    assert found.layers["b"].dead.tolist() == [True, False, True, False]
    # Channel 0 is constant everywhere; 1 and 2 are on one side of the sum only, so they stay between the layers.
    assert found.layers["head"].absent_in.tolist() == [True, False, False, False]
    assert torch.allclose(found.layers["a"].constants[:2], net.a.bias[:2].double())
    total = net.a.bias[0] + net.b.bias[0]
    assert torch.isclose(found.layers["head"].given[0], total.double())


def test_what_nothing_reads_is_dead_back_to_the_input() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    zeroed(net[4], columns=(1, 2))
    with torch.no_grad():
        net[2].weight[[0, 3], 3] = 0  # of the units that are left, none reads unit 3 of the first layer
    found = looked_at(net, torch.randn(2, 3))
    assert found.layers["2"].dead.tolist() == [False, True, True, False]
    assert found.layers["0"].dead.tolist() == [False, False, False, True]


def test_a_layer_norm_and_a_result_keep_their_channels() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    zeroed(net[0], 1)
    zeroed(net[2], 0)
    found = looked_at(net, torch.randn(2, 3))
    assert found.layers["0"].dead.tolist() == [False, True, False, False]  # computed no more, but there
    assert not found.layers["2"].absent_in.any()
    assert found.layers["2"].dead.tolist() == [True, False]
    assert not found.layers["2"].absent_out.any()


def test_attention_is_a_mean_of_values() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))  # type: ignore[no-any-return]

    net = Attention()
    zeroed(net.v, 0)  # constant in every token: so is the mean
    zeroed(net.out, columns=(1,))
    zeroed(net.q, 2)
    with torch.no_grad():
        net.q.bias[2] = 0  # a query's feature that is zero meets nothing in the key
    found = looked_at(net, torch.randn(2, 5, 4))
    assert found.layers["v"].dead.tolist() == [True, True, False, False]
    assert found.layers["q"].dead.tolist() == [False, False, True, False]
    assert found.layers["k"].dead.tolist() == [False, False, True, False]
    assert torch.isclose(found.layers["out"].given[0], net.v.bias[0].double())


def test_channels_of_a_zero_padded_shortcut_are_zero_beside_what_varies() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.a(x) + F.pad(x[:, :2], (1, 1))))  # type: ignore[no-any-return]

    net = Padded()
    zeroed(net.a, 0, 1)
    with torch.no_grad():
        net.a.bias.fill_(0.5)
    given = looked_at(net, torch.randn(2, 3)).layers["head"].given
    assert given[0] == 0.5
    assert given[1:].isnan().all()


def test_without_bundles_nothing_goes_between_layers() -> None:
    net = Residual()
    zeroed(net.a, 0)
    zeroed(net.b, 0)
    assert looked_at(net, torch.randn(2, 3)).layers["head"].absent_in.any()
    assert not looked_at(net, torch.randn(2, 3), bundles=False).layers["head"].absent_in.any()


def test_writing_into_a_view_is_not_followed_but_safe() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h[:, :2] = x[:, :2]
            return self.b(h)  # type: ignore[no-any-return]

    net = Writes()
    zeroed(net.a, 0, 3)
    found = looked_at(net, torch.randn(2, 3))
    assert not found.layers["b"].absent_in.any()
    assert found.layers["b"].given.isnan().all()
