"""Any batch on any number of threads, image by image."""

from __future__ import annotations

import pytest
import torch

from gemminer import models
from gemminer.sparse.inference.compiler import compile
from tests.sparse.inference.helpers import assert_equal, images, masked


@pytest.mark.parametrize("batch", [1, 2, 3, 16, 17, 128, 512])
@pytest.mark.parametrize("threads", [1, 2])
def test_batch_sizes(batch: int, threads: int) -> None:
    model = masked(models.build("resnet20", image_size=9, width=0.5), 0.2)
    program = compile(model, input_shape=(3, 9, 9))
    assert_equal(program, model, images(batch, 3, 9, 9), threads=threads)


def test_nothing_crosses_images() -> None:
    """Equal groups give equal bits, whatever the other images hold and however many threads there are."""
    program = compile(masked(models.build("resnet20", image_size=16, width=0.5)), input_shape=(3, 16, 16))
    x = images(64, 3, 16, 16)
    want = program(x, threads=1)
    assert torch.equal(want, program(x, threads=2))
    broken = x.clone()
    broken[[0, 7, 33]] = torch.tensor([float("nan"), float("inf"), 1e30])[:, None, None, None]
    program(broken, threads=1)
    assert torch.equal(want, program(x, threads=1)), "what one call leaves behind does not reach the next"
    others = [i for i in range(64) if i not in (0, 7, 33)]
    assert torch.equal(want[others], program(broken, threads=2)[others])
