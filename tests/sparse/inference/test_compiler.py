"""Compiled programs equal eager evaluation; what the compiler does not know is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gemminer import models
from gemminer.core.errors import UsageError
from gemminer.core.layers import neutralise, without
from gemminer.core.model_state import named_state
from gemminer.core.randomness import generator
from gemminer.core.ticket import Ticket
from gemminer.sparse.inference.compiler import compile
from tests.sparse.inference.helpers import RESNET20, Net, assert_equal, images, masked

CONVOLUTIONAL = [name for name in models.names() if name != "transformer"]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_network_equals_eager(name: str) -> None:
    channels, size = (1, 28) if name.startswith("lenet") else (3, 32)
    model = masked(models.build(name, in_channels=channels, image_size=size, width=0.25))
    program = compile(model, input_shape=(channels, size, size))
    for batch in (1, 3):
        assert_equal(program, model, images(batch, channels, size, size), threads=1 + batch % 2)


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_the_densities_of_the_paper(width: float) -> None:
    model = masked(models.build("resnet20", width=width), tuple(d / 100 for d in RESNET20), dead=0)
    assert_equal(compile(model, input_shape=(3, 32, 32)), model, images(5, 3, 32, 32))


def test_a_ticket_and_train_mode_leave_the_model_alone() -> None:
    model = models.build("resnet20", image_size=8, width=0.25)
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    masks = {n: torch.rand(p.shape, generator=generator("ticket", n)) < 0.2 for n, p in weights.items()}
    Ticket(masks, named_state(model)).apply(model).train()
    before = copy.deepcopy(model.state_dict())
    program = compile(model, images(2, 3, 8, 8))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert_equal(program, model.eval(), images(2, 3, 8, 8))


@pytest.mark.parametrize("norm", ["affine", "non-affine"])
def test_a_layer_at_zero_weights_costs_a_program_nothing(norm: str) -> None:
    """A ticket that removes layers leaves them in the model at zero: its program is that of the model without them."""
    model = masked(models.build("resnet20", image_size=8, width=0.25, norm=norm), 0.5, dead=0)
    short = without(model, ["layer1.1", "layer3.2"])
    neutralise(model, ["layer1.1", "layer3.2"])
    programs = [compile(one, input_shape=(3, 8, 8)) for one in (model, short)]
    assert len({(len(p.operations), repr(p)) for p in programs}) == 1
    assert torch.equal(*(program(images(2, 3, 8, 8)) for program in programs))


REFUSED: dict[str, tuple[tuple[int, ...], nn.Module, str]] = {
    "layer": ((3, 4, 4), nn.Sequential(nn.Conv2d(3, 2, 1), nn.GELU()), r"GELU \(1\)"),
    "function": ((3, 4, 4), Net(lambda m, x: torch.fft.fft(x).real), "fft"),
    "transformer": ((3, 32, 32), models.build("transformer", dim=16, depth=1), "cannot"),
    "branch on data": ((3, 4, 4), Net(lambda m, x: x if x.sum() > 0 else -x), "must not branch"),
    "wrong input": ((4, 4, 4), nn.Sequential(nn.Conv2d(3, 2, 1)), r"shape \(4, 4, 4\)"),
    "product of values": ((3, 4, 4), Net(lambda m, x: x * x), "only numbers and adds"),
    "batch statistics": ((3, 4, 4), nn.BatchNorm2d(3, track_running_stats=False), "running statistics"),
    "reflection": ((3, 4, 4), nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), "reflect"),
    "reshape of pixels": ((4, 4, 4), Net(lambda m, x: x.reshape(-1, 1, 8, 8)), "reshape"),
    "broadcast": ((4, 4, 4), Net(lambda m, x: x + x.mean((2, 3), keepdim=True)), "broadcast"),
    "two results": ((4,), Net(lambda m, x: (x, x)), "one tensor"),  # type: ignore[arg-type, return-value]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_know_is_named(case: str) -> None:
    shape, model, words = REFUSED[case]
    with pytest.raises(UsageError, match=words) as error:
        compile(model, input_shape=shape)
    assert "\n" not in str(error.value)
