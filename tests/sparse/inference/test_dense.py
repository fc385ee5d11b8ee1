"""What no kernel knows is computed dense, by PyTorch, and said; a file can name its core functions only."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gemminer import models
from gemminer.core.errors import GemminerError
from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.operations import Dense
from gemminer.sparse.inference.program import Program
from tests.sparse.inference.helpers import Net, assert_equal, images, masked

PARTS: dict[str, nn.Module] = {
    "softmax": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softmax(1), nn.Conv2d(4, 3, 3)),
    "group norm": nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 3)),
    "transposed": nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.Hardswish(), nn.Conv2d(4, 2, 3)),
    "reflection": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 2, 1)),
    "ceiling": nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
    "upsampled": nn.Sequential(nn.Conv2d(3, 2, 3), nn.Upsample(scale_factor=2, mode="bilinear")),
    "causal": Net(lambda m, x: F.scaled_dot_product_attention(m.a(x), x, x, is_causal=True), a=nn.Linear(6, 6)),
    "masked": Net(lambda m, x: x.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf).softmax(-1)),
    "compared": Net(lambda m, x: torch.where(x > 0.1, x, m.a(x)) * (x < 1), a=nn.Conv2d(3, 3, 1)),
    "sorted": Net(lambda m, x: x.topk(3, dim=2)[0] + x.sort(2).values[:, :, :3]),
    "two of three": Net(lambda m, x: torch.maximum((y := x.chunk(3, 1))[0], y[2].permute(0, 1, 3, 2)) @ y[1]),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_equal_eager(case: str, tmp_path: Path) -> None:
    net = masked(copy.deepcopy(PARTS[case]), 0.8, dead=0)
    program = compile(net, input_shape=(3, 6, 6))
    assert program.dense
    again = Program.load(program.save(tmp_path / "net"))
    assert repr(again) == repr(program)
    assert again.save(tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()
    for batch, threads in ((1, 1), (5, 2), (37, 2)):
        x = images(batch, 3, 6, 6)
        assert_equal(program, net, x, threads=threads)
        assert torch.equal(again(x, threads=threads), program(x, threads=threads))


def test_a_transformer_written_out() -> None:
    model = masked(models.build("transformer", image_size=8, dim=16, depth=1), 0.3, dead=0)
    program = compile(model, input_shape=(3, 8, 8))
    assert_equal(program, model, images(3, 3, 8, 8))
    assert set(program.dense) == {f"{part} in blocks.0.attention" for part in ("matmul", "softmax", "matmul_1")}


def test_parts_are_said_with_their_reason(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 4, 1), nn.Softmax(1), nn.AvgPool2d(4, ceil_mode=True)
    )
    with caplog.at_level(logging.WARNING, logger="gemminer"):
        program = compile(net.eval(), input_shape=(3, 6, 6))
    pool = "a mean pool whose divisor varies (ceil_mode, count_include_pad) or is given (4)"
    said = f"Softmax, which is not known (1, 3); {pool}"
    assert repr(program).endswith(f"dense: {said})")
    assert [record.getMessage() for record in caplog.records] == [
        f"a part of the program is dense, by PyTorch, image by image: {said}"
    ]
    caplog.clear()
    assert compile(nn.Conv2d(3, 4, 1), input_shape=(3, 6, 6)).dense == {}
    assert not caplog.records


FORGED: dict[str, list[Any]] = {
    "a function that reads files": ["aten.from_file.default", ["/etc/passwd", False, 10], {}],
    "a function that writes": ["aten.relu_.default", [{"operand": 0}], {}],
    "a random function": ["aten.rand.default", [[3, 6, 6]], {}],
    "another library": ["prims.abs.default", [{"operand": 0}], {}],
    "no name": ["aten.__class__.__init__", [], {}],
    "memory of nobody": ["aten.empty.memory_format", [[3, 6, 6]], {"device": {"device": 0}}],
    "a step to come": ["aten.abs.default", [{"step": 0}], {}],
    "an operand beside": ["aten.abs.default", [{"operand": 7}], {}],
    "an operand before": ["aten.abs.default", [{"operand": -1}], {}],
    "all the memory": ["aten.full.default", [[2**20, 2**20], 1.0], {"device": {"device": 0}}],
    "another shape": ["aten.slice.Tensor", [{"operand": 0}, 1, 0, 1], {}],
    "another type": ["aten._to_copy.default", [{"operand": 0}], {"dtype": {"dtype": "int64"}}],
    "a type of nobody": ["aten._to_copy.default", [{"operand": 0}], {"dtype": {"dtype": "object"}}],
    "a word of nobody": ["aten.abs.default", [{"module": "os"}], {}],
}


@pytest.mark.parametrize("forgery", FORGED)
def test_forged_parts_are_refused(forgery: str) -> None:
    program = compile(nn.Softmax(1), input_shape=(3, 6, 6))
    (op,) = (op for op in program.operations if isinstance(op, Dense))
    same = replace(op, steps=(["aten.abs.default", [{"operand": 0}], {}],))
    change = [op if not isinstance(op, Dense) else same for op in program.operations]
    assert torch.equal(Program((3, 6, 6), (3, 6, 6), tuple(change))(images(2, 3, 6, 6)), images(2, 3, 6, 6).abs())
    change = [op if not isinstance(op, Dense) else replace(op, steps=(FORGED[forgery],)) for op in program.operations]
    with pytest.raises(GemminerError):
        Program((3, 6, 6), (3, 6, 6), tuple(change))
    for other in (
        replace(same, forms=((1, 3, 6, 5),)),
        replace(same, steps=()),
        replace(same, steps=same.steps * 5000),
    ):
        with pytest.raises(GemminerError):
            Program((3, 6, 6), (3, 6, 6), (other,))
