"""Processes that search or train together: one decision for all, from gradients that are means over all examples.

Each process is a rank of a `torch.distributed` group. They hold equal weights at every step: the first rank's at the
start, and after that the same steps from the same gradients. What a step decides is decided from these alone, so that
every rank decides the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gemminer.core.errors import GemminerError, UsageError, in_words

LOG = logging.getLogger("gemminer")
T = TypeVar("T")
Distributed: TypeAlias = "bool | dist.ProcessGroup | None"


class Ranks:
    """The processes of a group, by default all of them, seen from one of them.

    Args:
        group: of `torch.distributed`, which has begun; None is all processes.

    Raises:
        UsageError: this process is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise UsageError("this process is not in the group: let only its members call")
        nccl = dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self._have: tuple[tuple[bool, ...], Tensor] = (), torch.empty(0, dtype=torch.float64, device=self._device)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, logs and keeps checkpoints."""
        return self.rank == 0

    def mean(self, value: Tensor, examples: Tensor | int, gradients_of: Iterable[Tensor] = ()) -> Tensor:
        """The mean of a number over the examples of all ranks, of which this one has had so many; NaN of none.

            value := sum_r examples_r * value_r / sum_r examples_r,   and so each gradient

        A gradient that no rank has stays None. One message has the numbers, and who has which gradient, and one more
        all gradients of a type in a flat tensor. A device is waited for only by a rank that lacks a gradient.

        Args:
            gradients_of: tensors, the same on all ranks; of those that take none (`requires_grad`) none is touched.
        """
        tensors = [p for p in gradients_of if p.requires_grad]
        with _together():
            count = torch.zeros((), dtype=torch.float64, device=self._device) + self._sent(examples)
            own = torch.where(count > 0, value.detach().to(self._device).double() * count, 0.0)
            said = torch.cat([torch.stack([own, count]), self._who(tensors)])
            dist.all_reduce(said, group=self.group)
            lacking = any(p.grad is None for p in tensors)
            taking = said[2:].tolist() if lacking else [1.0] * len(tensors)
            for kind in dict.fromkeys((p.dtype, p.device) for p in tensors):
                alike = [(p, some) for p, some in zip(tensors, taking, strict=True) if (p.dtype, p.device) == kind]
                flat = torch.cat([_grad(p).reshape(-1) for p, _ in alike])
                flat = flat.to(self._device, torch.promote_types(flat.dtype, torch.float32))  # a count may not fit bf16
                flat.mul_(count)
                dist.all_reduce(flat, group=self.group)
                flat.div_(said[1].clamp(min=1))
                for (p, some), part in zip(alike, flat.split([p.numel() for p, _ in alike]), strict=True):
                    if some:
                        p.grad = torch.empty_like(p) if p.grad is None else p.grad
                        p.grad.copy_(part.reshape(p.shape))
            return (said[0] / said[1]).to(value.device)

    def _sent(self, number: Tensor | int) -> Tensor | int:
        return number.to(self._device, non_blocking=True) if isinstance(number, Tensor) else number

    def _who(self, tensors: list[Tensor]) -> Tensor:
        """1 for each tensor of which this rank has a gradient; sent to the device where that has changed."""
        have = tuple(p.grad is not None for p in tensors)
        if have != self._have[0]:
            said = torch.tensor(have, dtype=torch.float64)
            self._have = have, said.to(self._device, non_blocking=True)
        return self._have[1]

    def firsts(self, work: Callable[[], T]) -> T:
        """What the first rank's work returns, on every rank; what it raises, it raises on every rank."""
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = work()
            except Exception as error:
                said[1] = error
        with _together():
            dist.broadcast_object_list(said, group=self.group, group_src=0, device=self._device)
        if said[1] is not None:
            raise said[1]
        return said[0]  # type: ignore[no-any-return]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        found: list[Any] = [None] * self.world
        with _together():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def take_over(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first rank's values, in place."""
        with torch.no_grad(), _together():
            for tensor in tensors:
                place = tensor.detach().contiguous().to(self._device)
                dist.broadcast(place, group=self.group, group_src=0)
                tensor.copy_(place)


def _grad(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Where ranks wait for each other: one that has ended is said in one sentence."""
    try:
        yield
    except (dist.DistBackendError, dist.DistNetworkError, RuntimeError) as error:
        if isinstance(error, dist.DistBackendError | dist.DistNetworkError) or "peer" in str(error).lower():
            raise GemminerError(
                "another rank has ended or cannot be reached, and none can go on alone: see what it said, and start "
                "all of them again to go on from the last checkpoint"
            ) from error
        raise


def launched() -> int:
    """How many processes there are, by a group that has begun or a launcher as torchrun; 1 if neither says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        return 1


def is_first() -> bool:
    """Whether this process is to speak for all: the first of those that work together, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def ranks_of(distributed: Distributed) -> Ranks | None:
    """The ranks that work together, None for this process alone.

    Args:
        distributed: None refuses where there are several processes; True is all of them, begun here where a launcher
            says how (NCCL where there are GPUs, else gloo); a group those in it; False this process alone.

    Raises:
        UsageError: it has not been said what several processes are to do.
    """
    if distributed is None:
        if (several := launched()) > 1:
            raise UsageError(
                f"{several} processes run this: say distributed=True (--distributed) to search and train together, "
                "a process group for some of them to do so, or distributed=False for each alone"
            )
        return None
    if isinstance(distributed, bool):
        if not distributed:
            return None
        if launched() == 1 and not dist.is_initialized():
            LOG.warning(
                "distributed=True, but one process runs this, alone: start several by torchrun --nproc-per-node N"
            )
            return None
        if not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            try:
                dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            except ValueError as error:  # the environment lacks a name
                raise UsageError(
                    f"the {launched()} processes cannot find each other ({in_words(error)}): start them with torchrun"
                ) from None
        return Ranks()
    if not isinstance(distributed, dist.ProcessGroup):
        raise UsageError(f"distributed is True, False or a process group, not {distributed!r}")
    return Ranks(distributed)


def alone(model: nn.Module, ranks: Ranks | None) -> nn.Module:
    """The model that several ranks share the work of: what DistributedDataParallel holds, which would do it again.

    Raises UsageError for a model of which no rank has whole weights.
    """
    if ranks is None:
        return model
    kinds = {type(module).__name__ for module in model.modules()}
    if any(kind.startswith("FSDP") or kind == "FullyShardedDataParallel" for kind in kinds):
        raise UsageError("no rank of FSDP has a whole weight to mask: search and train a model that is not sharded")
    return model.module if isinstance(model, DistributedDataParallel) else model
