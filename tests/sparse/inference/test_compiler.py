"""Compiled programs equal eager evaluation; what the compiler does not know is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer import models
from gemminer.core.errors import UsageError
from gemminer.core.layers import neutralise, without
from gemminer.core.model_state import named_state
from gemminer.core.randomness import generator
from gemminer.core.ticket import Ticket
from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.operations import Apply, Attention, Constant, Gather, Norm, Pool, Sum
from gemminer.sparse.inference.program import Program
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


def timm_net(name: str, **options: Any) -> nn.Module:
    """Of random weights, its biases and scales lived in, at a density of 5%."""
    model = pytest.importorskip("timm").create_model(name, num_classes=10, **options)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator("timm net"))
    return masked(model, 0.05, dead=0)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_networks_of_timm(name: str, tmp_path: Path) -> None:
    """Squeeze-excite with Hardswish, and a ViT with its class token, compile whole and are saved."""
    options = {"img_size": 48, "depth": 3} if "vit" in name else {}
    model = timm_net(name, **options)
    program = compile(model, input_shape=(3, 48, 48))
    x = images(5, 3, 48, 48)
    assert_equal(program, model, x, tolerance=1e-4)
    again = Program.load(program.save(tmp_path / "net"))
    assert repr(again) == repr(program)
    assert torch.equal(program(x), again(x))
    assert again.save(tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()
    kinds = {type(op) for op in program.operations}
    assert kinds >= ({Norm, Attention, Constant} if "vit" in name else {Sum, Pool, Apply})
    assert Gather not in kinds or "vit" in name  # one, of the patches: the tokens of all blocks lie as they are read
    assert sum(isinstance(op, Gather) for op in program.operations) <= 1


class Several(nn.Module):
    """Two inputs, of which one has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, shift: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
        if x.shape[1] != 4:
            raise ValueError("four features")
        out: Tensor = self.layer(x) * scale if shift is None else self.layer(x) + shift
        return out


def test_inputs_with_defaults_take_them() -> None:
    model = masked(Several(), 0.7)
    assert_equal(compile(model, input_shape=(4,)), model, images(3, 4))
    with pytest.raises(UsageError, match="several inputs: give all but the first a default"):
        compile(nn.Bilinear(4, 4, 2), input_shape=(4,))


def test_a_result_that_depends_on_the_batch_is_refused() -> None:
    """Batch or feature: the one image that is traced does not tell, so the model is asked about two."""
    crossing = Net(lambda m, x: m.a((x + x.flip(0)).flatten(1)), a=nn.Linear(8, 2))
    with pytest.raises(UsageError, match="depends on the others of its batch"):
        compile(crossing, input_shape=(2, 2, 2))
    one_image = Net(lambda m, x: m.a(x.reshape(8)[None]), a=nn.Linear(8, 2))
    with pytest.raises(UsageError, match="does not take a batch"):
        compile(one_image, input_shape=(2, 2, 2))


REFUSED: dict[str, tuple[tuple[int, ...], nn.Module, str]] = {
    "function": ((3, 4, 4), Net(lambda m, x: torch.linalg.qr(x)[0]), "qr"),
    "result of another type": ((3, 4, 4), Net(lambda m, x: x > 0), "gt"),
    "branch on data": ((3, 4, 4), Net(lambda m, x: x if x.sum() > 0 else -x), "must not branch"),
    "assignment": ((3, 4, 4), Net(lambda m, x: x.__setitem__(0, 1) or x), "to a part of a tensor"),  # type: ignore[func-returns-value]
    "wrong input": ((4, 4, 4), nn.Sequential(nn.Conv2d(3, 2, 1)), r"shape \(4, 4, 4\)"),
    "batch statistics": ((3, 4, 4), nn.BatchNorm2d(3, track_running_stats=False), "running statistics"),
    "random numbers": ((4,), Net(lambda m, x: F.dropout(x, 0.5, True) + torch.rand_like(x)), "rand_like"),
    "two results": ((4,), Net(lambda m, x: (x, x)), "one tensor"),  # type: ignore[arg-type, return-value]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_know_is_named(case: str) -> None:
    shape, model, words = REFUSED[case]
    with pytest.raises(UsageError, match=words) as error:
        compile(model, input_shape=shape)
    assert "\n" not in str(error.value)
