"""PyTorch's own files of exported programs: loaded and run without the network's class, and without gemminer."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gemminer.core.files import as_path
from gemminer.core.ownership import NOTE
from gemminer.core.ticket import Ticket
from gemminer.core.tracing import tensors
from gemminer.export.portable import Arguments, Exported, portable, quiet, written


def pt2(
    model: nn.Module,
    path: str | Path,
    example: Any,
    ticket: Ticket | Mapping[str, Tensor] | None = None,
    *,
    compact: bool = True,
    batch: int | None = None,
) -> Exported:
    """Write a ticketed network as a program of `torch.export`, in one file.

    `torch.export.load(path).module()` is the network in eval mode, without its class and without gemminer; it needs the
    PyTorch that wrote it, or a later one. It is compiled, quantised and lowered (ExecuTorch) like any exported
    program; to train on, keep the module of `gemminer.compact` itself. Its metadata are in the archive's
    `gemminer.json`: version, density, the ticket's digest. Replaces the file at `path`; compares what was written with
    the network before.

    Args:
        model: as in `onnx`.
        path: of the file, by custom NAME.pt2.
        example: as in `onnx`.
        ticket: as in `onnx`.
        compact: cut out dead units, by `gemminer.compact`.
        batch: as in `onnx`.

    Returns:
        The path, its size, and how far its outputs are from the network's.

    Raises:
        UsageError: an example the model does not take, a ticket of another model, a model that cannot be exported or
            made smaller.
        GemminerError: a disk that is full.

    >>> import gemminer, tempfile, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> made = gemminer.export.pt2(net, f"{tempfile.mkdtemp()}/net.pt2", torch.randn(2, 4))
    >>> torch.export.load(made.path).module()(torch.randn(5, 4)).shape
    torch.Size([5, 2])
    """
    target = as_path("path, the file,", path)
    found = portable(model, example, ticket, smaller=compact, batch=batch)
    archive = io.BytesIO()
    with quiet():
        torch.export.save(found.program, archive, extra_files={NOTE: json.dumps(found.facts)})
        archive.seek(0)
        loaded = torch.export.load(archive).module()

    def run(given: Arguments) -> list[Tensor]:
        with torch.no_grad():
            return list(tensors(loaded(*given[0], **given[1])))

    note = f"a program of PyTorch {torch.__version__.partition('+')[0]}"
    return written(target, archive.getvalue(), found.difference(run), note)
