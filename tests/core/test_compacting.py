"""A smaller dense network that computes the same, from tickets of networks as people have them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gemminer
from gemminer import models, sparse
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.prunable import prunable_weights
from gemminer.sparse.inference.operations import Sum


def ours(name: str, **options: Any) -> nn.Module:
    return models.build(name, in_channels=3, classes=10, image_size=32, **options)


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10)  # type: ignore[no-any-return]


def timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=10, **options)  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: ours("resnet20"),
    "vgg16": lambda: ours("vgg16", width=0.25),
    "mobilenet-v2": lambda: ours("mobilenet-v2", width=0.5),
    "transformer": lambda: ours("transformer"),
    "torchvision resnet18": lambda: torchvision_model("resnet18"),
    "torchvision densenet121": lambda: torchvision_model("densenet121"),
    "timm vit": lambda: timm_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3),
    "timm efficientnet": lambda: timm_model("efficientnet_b0"),
}


def ticketed(name: str, density: float, kind: torch.dtype = torch.float32) -> nn.Module:
    """A network with a random ticket of this density, trained for some steps' worth of batch statistics."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    weights = prunable_weights(net)
    gemminer.hold(net, {n: torch.rand(w.shape) < density for n, w in weights.items()})
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 1:
                p += 0.1 * torch.randn_like(p)
        net.train()
        for _ in range(2):
            net(torch.randn(8, 3, 32, 32))
    return net.to(kind)


def far(a: nn.Module, b: nn.Module, x: Tensor, training: bool) -> float:
    with torch.no_grad():
        torch.manual_seed(0)
        old = copy.deepcopy(a).train(training)(x)
        torch.manual_seed(0)
        new = copy.deepcopy(b).train(training)(x)
    return float((old - new).abs().max() / old.abs().max().clamp(min=1e-30))


LARGE = {"mobilenet-v2", "torchvision densenet121", "timm efficientnet"}


@pytest.mark.parametrize(
    ("name", "density"),
    [
        pytest.param(name, density, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in NETWORKS
        for density in ((0.03,) if name in LARGE else (0.02, 0.08))
    ],
)
def test_outputs_are_equal_in_both_modes(name: str, density: float) -> None:
    for kind, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        net = ticketed(name, density, kind)
        before = copy.deepcopy(net.state_dict())
        small = gemminer.compact(net, None, torch.randn(2, 3, 32, 32, dtype=kind), every=density < 0.05)
        assert all(torch.equal(before[n], x) for n, x in net.state_dict().items())
        assert net.training
        assert "channels between layers" not in small.removed.left
        x = torch.randn(4, 3, 32, 32, dtype=kind)
        assert far(net, small, x, training=False) <= limit
        dropout = any(isinstance(m, nn.Dropout | nn.Dropout2d) and m.p > 0 for m in net.modules())
        if not dropout and "training" not in small.removed.left and kind == torch.float64:
            assert far(net, small, x, training=True) <= limit
    if density < 0.05:
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("density", [0.0059, 0.0144, 0.05])
@pytest.mark.parametrize("name", ["lenet-5", "conv-4", "resnet20", "vgg16", "mobilenet-v2"])
def test_it_finds_what_compile_finds(name: str, density: float) -> None:
    """Without norms and biases, a program's numbers are the kept weights that matter: the same are left here."""
    torch.manual_seed(0)
    width = {"vgg16": 0.5, "mobilenet-v2": 1.0}.get(name, 1.0)
    norm = {} if name in ("lenet-5", "conv-4") else {"norm": "none"}
    net = models.build(name, in_channels=3, classes=10, image_size=32, width=width, **norm)
    gemminer.hold(net, {n: torch.rand(w.shape) < density for n, w in prunable_weights(net).items()})
    x = torch.randn(2, 3, 32, 32)
    program, small = sparse.compile(net, x), gemminer.compact(net, None, x, every=True)
    entries = [e.value for op in program.operations if isinstance(op, Sum) for e in op.entries]
    theirs = np.concatenate([*entries, np.zeros(0, np.float32)])
    layers = [m.weight.detach().flatten() for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    here = torch.cat(layers).numpy()
    assert np.array_equal(np.sort(theirs[theirs != 1]), np.sort(here[here != 0]))


def test_what_was_removed_is_short_unless_printed() -> None:
    removed = gemminer.compact(ticketed("resnet20", 0.01), None, torch.randn(2, 3, 32, 32)).removed
    assert len(repr(removed)) < 100 < 1000 < len(str(removed))
    assert "parameters" in repr(removed)


def test_any_size_of_images_not_only_the_examples() -> None:
    net = ticketed("torchvision resnet18", 0.01, torch.float64)
    small = gemminer.compact(net, None, torch.randn(2, 3, 32, 32).double(), every=True)
    for size in (24, 48, 71):
        assert far(net, small, torch.randn(2, 3, size, size).double(), training=False) <= 1e-10


class Bordered(nn.Module):
    """A dead filter whose constant, 0.5, meets a border of zeros."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1)
        self.second = nn.Conv2d(4, 2, 3, padding=padding)
        with torch.no_grad():
            self.first.weight[2] = 0
            self.first.bias[2] = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_before_a_border_is_exact_there(padding: int) -> None:
    torch.manual_seed(0)
    net = Bordered(padding).double()
    small = gemminer.compact(net, None, torch.randn(2, 1, 6, 6).double(), every=True)
    assert small.first.out_channels == 3  # computed no more
    assert small.second.in_channels == (4 if padding else 3)  # but beside zeros it must be there to be read
    assert far(net, small, torch.randn(3, 1, 9, 9).double(), training=False) <= 1e-12
    kinds = {type(m).__module__ for m in small.modules()} - {Bordered.__module__}
    assert any("gapped" in kind for kind in kinds) == bool(padding)


def test_by_default_nothing_is_cut_that_makes_it_slower() -> None:
    """No selections of channels, and convolutions of whole blocks of eight stay so; with `every` all is cut."""
    net = ticketed("torchvision resnet18", 0.004, torch.float64)
    x = torch.randn(2, 3, 32, 32).double()
    small, smallest = gemminer.compact(net, None, x), gemminer.compact(net, None, x, every=True)
    assert not any("gapped" in type(m).__module__ for m in small.modules())
    assert all(m.out_channels % 8 == 0 for m in small.modules() if isinstance(m, nn.Conv2d))
    kept, least = (sum(cut.kept for cut in m.removed.layers) for m in (small, smallest))
    assert least < kept < sum(cut.units for cut in small.removed.layers)
    assert any("every=True" in why for why in small.removed.left.values())
    assert not any("every=True" in why for why in smallest.removed.left.values())
    assert far(net, small, x, training=True) <= 1e-10


def test_a_layer_that_keeps_all_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 0.0, 0.5  # a constant for all that reads it, but seven is no whole block
    small = gemminer.compact(net, None, torch.randn(2, 1, 5, 5))
    assert "every=True" in small.removed.left["0"]
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in small.state_dict().items())
    every = gemminer.compact(net, None, torch.randn(2, 1, 5, 5), every=True)
    assert (every[0].out_channels, every[2].bias is None) == (7, False)


def test_a_shift_that_differs_between_the_modes_stays_and_is_named() -> None:
    """Running statistics that are not the dead channel's own give another constant in eval mode than in training."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)).double()
    with torch.no_grad():
        net[0].weight[1] = 0
        net[1].running_mean.fill_(-2.0)
        net[1].bias += 0.3
    x = torch.randn(4, 1, 5, 5).double()
    both, one = gemminer.compact(net, None, x), gemminer.compact(net, None, x, eval_only=True)
    assert (both[0].out_channels, one[0].out_channels) == (3, 2)
    assert "eval_only=True" in both.removed.left["1"]
    assert "eval_only" in str(both.removed)
    assert far(net, both, x, training=True) <= 1e-10
    assert far(net, one, x, training=False) <= 1e-10 < far(net, one, x, training=True)


def test_it_trains_saves_compiles_and_exports(tmp_path: Any) -> None:
    net = ticketed("resnet20", 0.01)
    x = torch.randn(4, 3, 32, 32)
    small = gemminer.compact(net, None, x, every=True)
    names = {n for n, _ in net.named_parameters()}
    assert {n for n, _ in small.named_parameters() if not n.endswith("bias")} <= names
    F.cross_entropy(small.train()(x), torch.arange(4)).backward()
    assert all(p.grad is not None for p in small.parameters())
    torch.save(small, tmp_path / "small.pt")
    loaded = torch.load(tmp_path / "small.pt", weights_only=False)
    assert torch.equal(loaded.eval()(x), small.eval()(x))
    exported = torch.export.export(small, (x,)).module()
    assert torch.allclose(exported(x), small(x), atol=1e-6)


def test_code_that_counts_on_sizes_is_cut_inside_layers_alone() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            if h.shape[1] != 8:
                raise ValueError("eight features, please")
            return self.b(h)  # type: ignore[no-any-return]

    net = Counts()
    mask = torch.ones(8, 5).bool()
    mask[2:5] = False
    small = gemminer.compact(net, {"a.weight": mask}, torch.randn(4, 5), every=True)
    assert small.a.out_features == small.b.in_features == 5
    assert "eight features" in small.removed.left["channels between layers"]
    gemminer.hold(net, {"a.weight": mask})
    assert far(net, small, torch.randn(6, 5), training=False) <= 1e-6


class Words(nn.Module):
    """A network that moves the whole numbers of its input about before it looks them up, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.one, self.two = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, words: Tensor) -> Tensor:
        both = words[:, None].expand(-1, 2, -1)
        known = (both > 2).unsqueeze(-1).expand(-1, -1, -1, 6)
        y: Tensor = self.two(torch.relu(self.one(self.table(both) * known)))
        return y


def test_whole_numbers_of_the_input_may_be_moved() -> None:
    torch.manual_seed(0)
    model, words = Words().eval(), torch.randint(9, (3, 5))
    with torch.no_grad():
        model.one.weight[:5] = 0
    small = gemminer.compact(model, None, words)
    assert small.one.out_features == 3
    assert far(model, small, words, False) < 1e-6


class Scalars(nn.Module):
    """A network with a number alone: a learned scale, and a sum that its code branches on."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.scale = nn.Linear(6, 8), nn.Linear(8, 2), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x)) * self.scale
        y = y + 1 if float(x.square().sum()) > 0 else y
        z: Tensor = self.two(y)
        return z * z.std()


def test_a_number_alone_is_a_tensor_as_others_are() -> None:
    torch.manual_seed(0)
    model, x = Scalars(), torch.randn(4, 6)
    with torch.no_grad():
        model.one.weight[:5] = 0
    small = gemminer.compact(model, None, x)
    assert small.one.out_features == 3
    assert far(model, small, x, True) < 1e-6


def test_layers_that_are_shared_stay_and_are_named() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(self.a(x))))  # type: ignore[no-any-return]

    small = gemminer.compact(Twice(), {"a.weight": torch.eye(4).bool()}, torch.randn(4, 4))
    assert small.a.weight.shape == (4, 4)
    assert "more than once" in small.removed.left["a"]


def test_what_is_no_example_or_no_fixed_function_is_said() -> None:
    net = nn.Linear(4, 2)
    with pytest.raises(UsageError, match="does not take the example"):
        gemminer.compact(net, None, torch.randn(3, 5))
    with pytest.raises(UsageError, match="example must be a batch"):
        gemminer.compact(net, None, "images")

    class Noisy(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Noisy.calls += 1
            return x * Noisy.calls

    with pytest.raises(GemminerError, match="cannot be made smaller"):
        gemminer.compact(nn.Sequential(net, Noisy()), None, torch.randn(3, 4))


def encoder(density: float, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
    net = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 2))
    gemminer.hold(net, {n: torch.rand(w.shape) < density for n, w in prunable_weights(net).items()}).remove()
    return net


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"bias": False}, {"dropout": 0.0}])
def test_pytorchs_fused_layer_gives_the_same(density: float, options: Any) -> None:
    """In eval mode without gradients it reads the weights of its layers past their forward."""
    net, x = encoder(density, **options), torch.randn(3, 5, 8)
    small = gemminer.compact(net, None, x)
    assert far(net, small, x, training=False) <= 1e-5
    assert torch.allclose(small.eval()(x), net.eval()(x), atol=1e-5)  # with gradients: not fused
    assert small[1].linear1.out_features < 16 or density > 0.2
    assert "training" not in small.removed.left


class Back(nn.Module):
    """Reads its layer's weights itself too, in a way that no trace shows where `hidden`."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.first, self.layer, self.hidden = nn.Linear(6, 6), nn.Linear(6, 8), hidden

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.tensor(self.layer.weight.tolist()).to(x.dtype) if self.hidden else self.layer.weight
        return F.linear(torch.relu(self.layer(torch.relu(self.first(x)))), weight.t())


@pytest.mark.parametrize("hidden", [False, True])
def test_a_layer_whose_weights_other_code_reads_stays(hidden: bool) -> None:
    net = Back(hidden)
    with torch.no_grad():
        net.layer.weight[:5] = 0
        net.first.weight[:2] = 0
    x = torch.randn(4, 6)
    small = gemminer.compact(net, None, x)
    assert small.layer.weight.shape == (8, 6)
    assert far(net, small, x, training=False) <= 1e-6


@pytest.mark.parametrize("drop", [nn.Dropout, nn.AlphaDropout, lambda p: Functional(p), lambda p: nn.Dropout(p, True)])
def test_dropout_is_no_other_function(drop: Any) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), drop(0.5), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight[:5] = 0
    small = gemminer.compact(net, None, torch.randn(4, 6))
    assert small[0].out_features == 3
    assert "training" not in small.removed.left


class Functional(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


class Deep(Functional):
    """Stochastic depth."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full((len(x), 1), 0.5, dtype=x.dtype)) if self.training else x


def test_what_calls_other_functions_while_training_is_named() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Deep(0.5), nn.Linear(8, 2))
    assert "other functions" in gemminer.compact(net, None, torch.randn(4, 6)).removed.left["training"]


def test_a_model_whose_results_are_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))
        model[0].weight[1] = 0
    with pytest.raises(GemminerError, match="its own outputs on the example are not finite"):
        gemminer.compact(model, None, torch.ones(3, 4))
