"""Which weights are prunable."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from gemminer.core.errors import UsageError
from gemminer.core.layout import Layout
from gemminer.core.prunable import find_prunable, prunable_weights


@pytest.mark.parametrize(
    ("module", "weights"),
    [
        (nn.Conv1d(2, 3, 5), 30),
        (nn.Conv2d(4, 6, 3, groups=2), 108),
        (nn.Conv3d(2, 3, 2), 48),
        (nn.ConvTranspose1d(2, 3, 5), 30),
        (nn.ConvTranspose2d(2, 3, 3), 54),
        (nn.ConvTranspose3d(2, 3, 2), 48),
        (nn.Linear(7, 5), 35),
        (nn.Bilinear(2, 3, 4), 24),
        (nn.MultiheadAttention(8, 2), 3 * 64 + 64),
        (nn.MultiheadAttention(8, 2, kdim=6, vdim=4), 64 + 48 + 32 + 64),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_prunable_counts(module: nn.Module, weights: int) -> None:
    found = prunable_weights(nn.Sequential(module, nn.LayerNorm(3), nn.Embedding(4, 4)))
    assert sum(p.numel() for p in found.values()) == weights
    assert not any("bias" in name for name in found)


def test_prunable_in_the_models_order_with_embeddings_and_without_some() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Conv1d(1, 1, 3), nn.Linear(4, 2))
    assert list(prunable_weights(model)) == ["1.weight", "3.weight", "4.weight"]
    assert list(prunable_weights(model, embeddings=True)) == ["0.weight", "1.weight", "3.weight", "4.weight"]
    assert list(prunable_weights(model, exclude=["4.*"])) == ["1.weight", "3.weight"]
    assert list(prunable_weights(model, exclude=["1.*", "3.weight"])) == ["4.weight"]
    model[1].weight.requires_grad_(False)
    assert list(prunable_weights(model)) == ["3.weight", "4.weight"]


class Conv1D(nn.Module):
    """As transformers has it: y = x @ weight + bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))


class Adapted(Conv1D):
    """A class made from it."""


class Own(nn.Module):
    """A layer nobody knows, with its weight stored as Conv1D's."""

    def __init__(self, inputs: int = 3, outputs: int = 5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))


class Fused(nn.Module):
    """Experts in one parameter: as torch.bmm takes them, and (experts, outputs, inputs) with a bias that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 8)), nn.Parameter(torch.randn(4, 6, 8))
        self.down_bias, self.router = nn.Parameter(torch.randn(4, 6)), nn.Linear(6, 4)


@pytest.mark.parametrize(
    ("module", "layouts"),
    [
        (nn.ConvTranspose2d(4, 6, 3, groups=2), {"0.weight": Layout(1, 0, groups=2)}),
        (Conv1D(3, 5), {"0.weight": Layout(1, 0)}),
        (Adapted(3, 5), {"0.weight": Layout(1, 0)}),
        (
            nn.LSTM(3, 4, proj_size=2, bidirectional=True),
            {
                f"0.weight_{kind}_l0{way}": Layout() if kind == "hr" else Layout(gates=4)
                for way in ("", "_reverse")
                for kind in ("ih", "hh", "hr")
            },
        ),
        (nn.GRU(3, 4, num_layers=2), {f"0.weight_{k}_l{i}": Layout(gates=3) for i in (0, 1) for k in ("ih", "hh")}),
        (nn.RNN(3, 4), {"0.weight_ih_l0": Layout(), "0.weight_hh_l0": Layout()}),
        (nn.LSTMCell(3, 4), {"0.weight_ih": Layout(gates=4), "0.weight_hh": Layout(gates=4)}),
        (nn.GRUCell(3, 4), {"0.weight_ih": Layout(gates=3), "0.weight_hh": Layout(gates=3)}),
        (nn.RNNCell(3, 4), {"0.weight_ih": Layout(), "0.weight_hh": Layout()}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_layouts(module: nn.Module, layouts: dict[str, Layout]) -> None:
    assert dict(find_prunable(nn.Sequential(module)).layouts) == layouts


def test_tied_weights_count_once_and_a_tied_embedding_is_an_embedding() -> None:
    table, head, other = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
    head.weight, other.weight = table.weight, table.weight
    model = nn.Sequential(table, head, nn.Linear(4, 3), other)
    assert list(prunable_weights(model)) == ["2.weight"]
    assert [(one.name, one.reason) for one in find_prunable(model).left] == [("0.weight", "tied to an embedding")]
    for asked in ({"embeddings": True}, {"include": ["0.*"]}):
        assert {n: p.numel() for n, p in prunable_weights(model, **asked).items()} == {"0.weight": 24, "2.weight": 12}
    head.weight = other.weight = nn.Parameter(torch.ones(6, 4))  # two linear layers: one weight of theirs
    assert list(prunable_weights(model)) == ["1.weight", "2.weight"]


def test_include_takes_in_weights_without_a_rule() -> None:
    model = nn.Sequential(Own(), Fused(), nn.ParameterList([nn.Parameter(torch.ones(2, 3))]), nn.Embedding(4, 4))
    assert list(prunable_weights(model)) == ["1.router.weight"]
    everything = find_prunable(model, include="*")
    names = ["0.weight", "1.up", "1.down", "1.down_bias", "1.router.weight", "2.0", "3.weight"]
    assert list(everything.weights) == names
    assert everything.left == ()
    assert everything.layouts["0.weight"] == Layout(1, 0)
    assert everything.layouts["1.up"] == Layout(output=2, input=1, matrices=0)
    assert everything.layouts["1.down"] == Layout(output=1, input=2, matrices=0)
    assert everything.layouts["2.0"] == Layout()
    assert list(prunable_weights(model, include=["1.*"], exclude="1.down*")) == ["1.up", "1.router.weight"]
    reasons = {one.name: one.reason for one in find_prunable(model, include=["1.*"], exclude="1.down*").left}
    assert reasons["1.down"] == "excluded"
    assert reasons["0.weight"] == "no rule"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("7.*", "include='7.*' matches no parameter; it can take in: 0.weight"),
        ("0.bias", "include='0.bias' matches '0.bias', which has fewer than two dimensions.*can take in: 0.weight"),
        ("1.*orig", "matches '1.weight_orig', which stays dense: made by torch.nn.utils.prune: prune.remove it first"),
    ],
)
def test_an_include_that_takes_in_nothing_is_refused(pattern: str, text: str) -> None:
    model = nn.Sequential(Own(), nn.Linear(2, 2), nn.Linear(2, 2))
    prune.random_unstructured(model[1], "weight", 0.5)
    with pytest.raises(UsageError, match=text):
        prunable_weights(model, include=[pattern])


def reasons_of(model: nn.Module) -> dict[str, tuple[str, str]]:
    return {one.name: (one.module, one.reason) for one in find_prunable(model).left}


def test_weights_made_of_other_parameters_are_named() -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4))

    lstm, model = net(), net()
    torch.nn.utils.parametrizations.orthogonal(model[0])
    assert reasons_of(model) == {"0.parametrizations.weight.original": ("Linear", "made by orthogonal")}
    torch.nn.utils.parametrizations.weight_norm(lstm[1], "weight_hh_l0")
    names = [f"1.parametrizations.weight_hh_l0.original{i}" for i in (0, 1)]
    assert reasons_of(lstm) == dict.fromkeys(names, ("GRU", "made by weight_norm"))
    assert list(prunable_weights(lstm)) == ["0.weight", "1.weight_ih_l0"]
    model = net()
    torch.nn.utils.spectral_norm(model[0])
    assert reasons_of(model) == {"0.weight_orig": ("Linear", "made by spectral_norm")}
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    assert reasons_of(model) == {"0.weight_orig": ("Linear", "made by prune")}


def test_the_rest_of_two_and_more_dimensions_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Embedding(3, 2), nn.LayerNorm([2, 2]), nn.PReLU(3))
    model[0].requires_grad_(False)
    expected = {"0.weight": ("Linear", "frozen"), "2.weight": ("Embedding", "embedding")}
    assert reasons_of(model) == {**expected, "3.weight": ("LayerNorm", "no rule"), "3.bias": ("LayerNorm", "no rule")}


def test_nothing_to_prune_is_an_error() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    for model in (nn.LayerNorm(4), frozen, nn.Sequential()):
        with pytest.raises(UsageError, match="nothing to prune"):
            prunable_weights(model)
    with pytest.raises(UsageError, match="nothing to prune"):
        prunable_weights(nn.Linear(2, 2), exclude=["*"])
    with pytest.raises(UsageError, match=r"exclude='head\.\*' matches no prunable weight; they are: weight"):
        prunable_weights(nn.Linear(2, 2), exclude=["head.*"])
    made = nn.Linear(2, 2)
    prune.l1_unstructured(made, "weight", 0.5)
    with pytest.raises(UsageError, match=r"nothing to prune.*made by torch.nn.utils.prune: prune.remove it first"):
        prunable_weights(made)
    with pytest.raises(UsageError, match=r"nothing to prune.*dense are Own 0.weight and 1 more .*include='\*.weight'"):
        prunable_weights(nn.Sequential(Own(), Own()))
    with pytest.raises(UsageError, match="lazy layers: run one batch"):
        prunable_weights(nn.LazyLinear(3))
