"""A program file may hold anything: it is refused, or reads its own memory only."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import nn

from gemminer.core.errors import GemminerError
from gemminer.sparse.inference import program as programs
from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.program import Program
from gemminer.sparse.inference.validation import FLOATS, check_floats, whole
from tests.mutations.kinds import mutate
from tests.mutations.programs import defined, guarded, run_guarded


def signed(
    path: Path, operations: list[dict[str, Any]], inputs: list[int], outputs: list[int], index: list[int]
) -> Path:
    """A file of these operations with a right checksum."""
    rows = sum(op["shape"][0] for op in operations if op["kind"] == "sum")
    header = {"format": programs.FORMAT, "inputs": inputs, "outputs": outputs, "operations": operations}
    tensors = {
        "value": np.ones(sum(n < 128 for n in index), np.float32),
        "index": np.array(index, np.uint8),
        "bias": np.zeros(min(rows, 9), np.float32),
    }
    header["sha256"] = programs._checksum(header, tensors)
    path.write_bytes(save(tensors, metadata={"gemminer": json.dumps(header)}))
    return path


def one_sum(shape: list[int], *entries: list[Any]) -> dict[str, Any]:
    return {"kind": "sum", "shape": shape, "limits": [None, None], "entries": list(entries)}


def pool(shape: list[int], window: list[int], stride: list[int], padding: list[int], source: int = 0) -> dict[str, Any]:
    fields = {"source": source, "window": window, "stride": stride, "padding": padding}
    return {"kind": "max", "shape": shape, "channel": None, **fields}


BIG, LAST = 2**30, [255] * 7 + [127]  # the largest index of 7 bits a byte
ATTACKS: dict[str, tuple[list[dict[str, Any]], list[int], list[int], list[int]]] = {
    # 01 of the attacks: channel 8 times both strides is 2^63
    "strides": ([one_sum([1, 2, 2], [0, BIG, BIG, 0, 0, 1, 1, 1])], [9, 64, 64], [1, 2, 2], [8]),
    "a stride of one axis": ([one_sum([1, 2, 2], [0, 1, 2**62, 0, 0, 1, 1, 1])], [9, 64, 64], [1, 2, 2], [8]),
    "a stride of no number": ([one_sum([1, 2, 2], [0, 1, 1.5, 0, 0, 1, 1, 1])], [9, 64, 64], [1, 2, 2], [8]),
    "a window of the index": ([one_sum([1, 2, 2], [0, 1, 1, 0, 0, 2**40, 1, 1])], [9, 4, 4], [1, 2, 2], [8]),
    "no window": ([one_sum([1, 2, 2], [0, 1, 1, 0, 0, 0, 1, 1])], [9, 4, 4], [1, 2, 2], [8]),
    "an index that wraps": ([one_sum([1, 4, 4], [0, 1, 1, 0, 0, 1, 1, 300])], [9, 4, 4], [1, 4, 4], LAST * 300),
    "a row that wraps": ([one_sum([1, 1, 1], [0, 1, 1, 0, 0, 1, 1, 1])], [1], [1], [128, 128, 128, 128, 16]),
    "a position that wraps": ([one_sum([1, 4, 4], [0, 1, 1, 2**32, 0, 1, 1, 1])], [9, 4, 4], [1, 4, 4], [8]),
    "a later value": ([one_sum([1, 4, 4], [1, 1, 1, 0, 0, 1, 1, 1])], [9, 4, 4], [1, 4, 4], [8]),
    "a pool's stride": ([pool([9, 1, 1], [2, 2], [BIG, BIG], [0, 0])], [9, 4, 4], [9], []),
    "a pool's padding": ([pool([9, 1, 1], [2 * BIG, 2], [1, 1], [BIG, 0])], [9, 4, 4], [9], []),
    "a pool of all the memory": ([pool([9, 1, 1], [1 << 15, 1 << 15], [1, 1], [0, 0])], [9, 40000, 40000], [9], []),
    "channels of all the memory": ([pool([2**31 - 1, 1, 1], [1, 1], [1, 1], [0, 0])], [1, 1, 1], [1], []),
    "an input of all the memory": ([one_sum([1, 1, 1], [0, 1, 1, 0, 0, 1, 1, 1])], [2**31 - 1] * 3, [1], [0]),
    "planes of all the memory": (
        [one_sum([1, 5000, 5000], [0, 8, 8, -3, -3, 8, 8, 60])], [1, 9999, 9999], [1, 5000, 5000], [1] * 60
    ),
    "an output below nothing": ([one_sum([1, 2, 2], [0, 1, 1, 0, 0, 1, 1, 1])], [9, 2, 2], [-2, -2], [8]),
    "an output of too many axes": ([one_sum([1, 1, 1], [0, 1, 1, 0, 0, 1, 1, 1])], [1], [1] * 99, [0]),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_numbers_a_kernel_would_follow_astray_are_refused(attack: str, tmp_path: Path) -> None:
    with pytest.raises(GemminerError) as caught:
        Program.load(signed(tmp_path / "evil.program", *ATTACKS[attack]))
    assert len(str(caught.value).splitlines()) == 1


def test_mutated_programs_are_refused_or_right_and_read_their_own_memory(tmp_path: Path) -> None:
    found, faults = mutate("programs", range(300), tmp_path)
    assert not faults
    assert found["run"] > 20


@pytest.mark.parametrize(("at_end", "far"), [(True, 16), (False, -4), (True, 2**33), (False, -(2**33))])
def test_guards_see_a_number_too_far(at_end: bool, far: int) -> None:
    with guarded([np.arange(4, dtype=np.float32)], at_end=at_end) as (x,):
        assert x.tolist() == [0, 1, 2, 3]
        child = ctypes.CDLL(None).fork()  # os.fork warns of threads; this child calls nothing
        if child == 0:
            faulthandler.disable()
            ctypes.string_at(x.ctypes.data + far, 4)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSEGV


def test_a_definition_is_what_the_kernels_compute() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)).eval()
    program = compile(net, input_shape=(2, 8, 8))
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8)).astype(np.float32)
    want = net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(defined(program, x[1])[0], want[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run_guarded(program, x.reshape(2, -1), 2, at_end=True), want, rtol=1e-5, atol=1e-6)


def test_whole_numbers_and_memory_have_bounds() -> None:
    assert whole(0) == 0
    for value in (-1, 2**31, True, 1.0, "1", None, math.nan):
        with pytest.raises(GemminerError, match="a number out of bounds"):
            whole(value)
    check_floats(FLOATS)
    with pytest.raises(GemminerError, match="one image would take more than 2 GB"):
        check_floats(FLOATS + 1)
