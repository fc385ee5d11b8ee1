"""Calls of PyTorch's functions on what is deferred: put off too, or answered, or made on computed tensors."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gemminer.sparse.training.deferred import FACTS, Deferred, computed, suspended
from gemminer.sparse.training.modules import NormCall, deferring

_OUT = {"numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage"}  # hand the memory out


def may_change(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a function may write into its arguments, by the convention of PyTorch's names; a custom one may."""
    if _writes(getattr(func, "__name__", "")) or isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return True
    if kwargs and ("out" in kwargs or kwargs.get("inplace")):
        return True
    for a in args:  # noqa: SIM110 - called for each operation
        if a is True:
            return True
    return False


@functools.lru_cache(4096)
def _writes(name: Any) -> bool:
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _OUT or name in ("__setitem__", "__set__") or name.startswith("__i")


def called(func: Any, args: Any, kwargs: Any) -> Any:
    record = _RECORDED.get(func)
    result = None
    if record is None:
        if func in FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
    else:
        try:  # noqa: SIM105 - a context manager is slower, and this is called for each operation
            result = record(*args, **kwargs)
        except TypeError:  # a form of the call that we do not know
            pass
    return func(*computed(args), **computed(kwargs)) if result is None else result


def _norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: Any = False,
    momentum: Any = 0.1, eps: Any = 1e-5,
) -> Tensor | None:  # fmt: skip
    if not isinstance(input, Deferred) or not all(isinstance(x, float | int) for x in (momentum, eps)):
        return None
    call = NormCall(running_mean, running_var, weight, bias, bool(training), float(momentum), float(eps))
    return input.recorder.norm(input, call)  # type: ignore[no-any-return]


def _relu(input: Any, inplace: bool = False) -> Tensor | None:
    put_off: Tensor | None = input.recorder.relu(input, in_place=inplace) if isinstance(input, Deferred) else None
    return put_off


def _relu_(input: Any) -> Tensor | None:
    return _relu(input, True)


def _add(input: Any, other: Any) -> Tensor | None:
    recorder = next(x.recorder for x in (input, other) if isinstance(x, Deferred))
    return recorder.add(input, other)  # type: ignore[no-any-return]


def _add_(input: Any, other: Any) -> Tensor | None:
    return input.recorder.add(input, other, in_place=True) if isinstance(input, Deferred) else None


def _part(input: Any, index: Any) -> Tensor | None:
    all_ = slice(None)
    if not isinstance(input, Deferred) or not isinstance(index, tuple) or len(index) != 4:
        return None
    if not all(isinstance(i, slice) for i in index) or index[:2] != (all_, all_) or index[2] != index[3]:
        return None
    step = index[2].step
    ours = isinstance(step, int) and step >= 1 and index[2] == slice(None, None, step)
    return input.recorder.part(input, step) if ours else None


def _pad(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Tensor | None:
    if not isinstance(input, Deferred) or mode != "constant" or value or not isinstance(pad, tuple | list):
        return None
    if len(pad) != 6 or tuple(pad[:4]) != (0, 0, 0, 0) or not all(isinstance(n, int) and n >= 0 for n in pad):
        return None
    return input.recorder.pad(input, *pad[4:])  # type: ignore[no-any-return]


def _pool(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False,
    return_indices: Any = False,
) -> Tensor | None:  # fmt: skip
    sizes = [_pair(x) for x in (kernel_size, kernel_size if stride in (None, (), []) else stride, padding, dilation)]
    if not isinstance(input, Deferred) or None in sizes or sizes[3] != (1, 1) or ceil_mode or return_indices:
        return None
    return input.recorder.max_pool(input, *sizes[:3])  # type: ignore[no-any-return]


def _pair(x: Any) -> tuple[int, int] | None:
    pair = (x, x) if isinstance(x, int) else tuple(x) if isinstance(x, tuple | list) else ()
    return pair if len(pair) == 2 and all(type(n) is int for n in pair) else None


_RECORDED: dict[Any, Callable[..., Tensor | None]] = {
    F.batch_norm: _norm,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _relu_),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), _add_),
    Tensor.__getitem__: _part,
    F.pad: _pad,
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _pool),
}


class _Patch:
    """While a network lives, `autograd.Function.apply`, which no mode sees, computes the deferred among its arguments.

    Outside a pass it does as always. To change it in each pass costs a LeNet 40 microseconds of each, since Python then
    forgets what it knows of every subclass.
    """

    def __init__(self) -> None:
        self.lock, self.count = threading.RLock(), 0  # a network may be collected while this thread holds it
        self.original: Any = None

    def for_life_of(self, network: Any) -> None:
        weakref.finalize(network, self._leave).atexit = False
        with self.lock:
            self.count += 1
            if self.count == 1:
                original = self.original = vars(torch.autograd.Function)["apply"]

                def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
                    bound = original.__get__(None, cls)
                    if deferring.recorder is None:
                        return bound(*args, **kwargs)
                    args, kwargs = computed(args), computed(kwargs)
                    with suspended():
                        return bound(*args, **kwargs)

                torch.autograd.Function.apply = classmethod(apply)

    def _leave(self) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0:
                torch.autograd.Function.apply = self.original


patch = _Patch()
