"""Groups of images of every size, and rows of weights in float32."""

from __future__ import annotations

import numpy as np
import pytest

from gemminer import models
from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.operations import Sum
from tests.sparse.inference.helpers import assert_equal, images, masked


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32, 64])
def test_every_size_of_group(lanes: int) -> None:
    model = masked(models.build("mobilenet-v2", image_size=12, width=0.25), 0.4)
    program = compile(model, input_shape=(3, 12, 12))
    program._most_lanes = lanes
    assert_equal(program, model, images(lanes + 1, 3, 12, 12), threads=1)
    assert max(program._layouts) == lanes


def test_rows_are_weights_in_float32() -> None:
    program = compile(masked(models.build("conv-2", image_size=8, width=0.1)), input_shape=(3, 8, 8))
    for op in program.operations:
        if isinstance(op, Sum):
            assert op.bias.dtype == np.float32
            assert all(e.value.dtype == np.float32 for e in op.entries)
