"""A network whose sparse layers run in chains with the norms, additions and ReLUs behind them."""

from __future__ import annotations

from typing import Any

from torch import nn

from gemminer.sparse.memory import BufferPool
from gemminer.sparse.training.calls import patch
from gemminer.sparse.training.direct import make_direct
from gemminer.sparse.training.modules import SparseLayer, as_plain, refuse_tracing
from gemminer.sparse.training.plan import Chain
from gemminer.sparse.training.recorder import Plans, Recorder


class SparseNetwork(nn.Module):
    """A model with sparse layers. Its own forward runs in each pass; what it does with sparse layers is put off, so
    that a chain of them is one operation (`recorder`)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = net.training
        self.chains: list[Chain] = []  # of the last pass
        self._patched = False
        self._pool, self._plans = BufferPool(), Plans()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        refuse_tracing()
        if not self._patched:
            self._patched = True
            patch.for_life_of(self)
        self.chains = []
        with Recorder(self._plans, self._pool, self.chains.append) as recorder:
            output = self.net(*args, **kwargs)
            recorder.finish()
        return output

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.state_dict(*args, **kwargs) if as_plain.get() else super().state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the plain model's users ask it for, such as a Transformer's `config`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "net" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.net, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": BufferPool(), "_plans": {}, "chains": [], "_patched": False}


def fused(net: nn.Module) -> nn.Module:
    """`net` as a `SparseNetwork`, or itself where there is nothing to fuse."""
    if isinstance(net, SparseLayer) or not any(isinstance(m, SparseLayer) for m in net.modules()):
        return net
    make_direct(net)
    return SparseNetwork(net)
