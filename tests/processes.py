"""Processes that work together in a test: `together(work, folder)` is what each of two returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def _begun(rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(work(*arguments), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def together(work: Callable[..., Any], folder: Path, *arguments: Any, world: int = 2) -> list[Any]:
    """What `work(*arguments)` returns in each of several processes, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    multiprocessing.spawn(_begun, (world, str(folder), work, arguments), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
