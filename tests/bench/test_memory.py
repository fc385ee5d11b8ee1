"""Peak memory: measured, compared, or one sentence why not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from gemminer.bench import memory
from gemminer.bench.measure import Setup
from gemminer.core.errors import GemminerError

LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system tells no peak memory")


@LINUX
def test_the_memory_of_steps_is_weights_gradients_and_momentum_at_least() -> None:
    found = memory.measured(Setup("lenet-300-100", batch=8), "dense NCHW")
    assert found == pytest.approx(3 * 4 * 266_610, rel=0.3)  # a batch of 8 adds little


@LINUX
def test_memory_is_compared_with_each_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"dense NCHW": 8.0, "dense channels-last": 10.0, "ours": 2.0}
    monkeypatch.setattr(memory, "measured", lambda setup, kind: used[kind] * 2**20)
    nchw, last = memory.compare(Setup("resnet20"))
    assert (nchw.baseline, nchw.memory_ratio, nchw.baseline_mib) == ("dense NCHW, peak memory", 0.25, 8.0)
    assert (last.baseline, last.memory_ratio, last.ours_mib) == ("dense channels-last, peak memory", 0.2, 2.0)


def test_memory_that_cannot_be_measured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(GemminerError, match=r"measuring the memory of resnet20 \(ours\) failed: no message"):
        memory.measured(Setup("resnet20"), "ours")
