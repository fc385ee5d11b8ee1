"""Norms and ReLUs that put themselves off, without the detour of a call of PyTorch's that the recorder then sees.

Of a ResNet-20 step that detour was half a millisecond for its 19 batch norms, measured beside other work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gemminer.sparse.training.deferred import Deferred
from gemminer.sparse.training.modules import NormCall, deferring


class _DirectNorm(nn.modules.batchnorm._BatchNorm):
    """Before a batch norm's own class: its usual form, with running statistics, on a tensor not computed yet."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is Deferred and input.recorder is deferring.recorder:
            put_off = self._put_off(input)
            if put_off is not None:
                return put_off
        return super().forward(input)

    def _put_off(self, x: Deferred) -> Tensor | None:
        own, stats = self._parameters, self._buffers
        mean, var, count = (stats.get(name) for name in ("running_mean", "running_var", "num_batches_tracked"))
        if mean is None or var is None or count is None or not isinstance(self.momentum, float):
            return None
        if len(x.node.shape) != self.sizes or not self.track_running_stats:
            return None
        call = NormCall(mean, var, own["weight"], own["bias"], self.training, self.momentum, self.eps)
        with torch._C.DisableTorchFunction():
            put_off: Tensor | None = x.recorder.norm(x, call)
            if put_off is not None and self.training:
                count.add_(1)
        return put_off

    sizes: int


class DirectBatchNorm1d(_DirectNorm, nn.BatchNorm1d):
    """A batch norm of vectors."""

    sizes = 2


class DirectBatchNorm2d(_DirectNorm, nn.BatchNorm2d):
    """A batch norm of maps."""

    sizes = 4


class DirectReLU(nn.ReLU):
    """A ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is Deferred and input.recorder is deferring.recorder:
            with torch._C.DisableTorchFunction():
                put_off: Tensor | None = input.recorder.relu(input, in_place=self.inplace)
            if put_off is not None:
                return put_off
        return super().forward(input)


_DIRECT: dict[type[nn.Module], Any] = {
    nn.BatchNorm1d: DirectBatchNorm1d,
    nn.BatchNorm2d: DirectBatchNorm2d,
    nn.ReLU: DirectReLU,
}


def make_direct(net: nn.Module) -> None:
    """Give a sparse network's norms and ReLUs, where they are PyTorch's own, these classes."""
    for module in net.modules():
        module.__class__ = _DIRECT.get(type(module), type(module))
