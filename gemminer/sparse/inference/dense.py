"""Parts of a network that no kernel knows, computed by PyTorch, image by image, from dense weights.

A part is captured as operations of PyTorch's core ATen set: some 180 functions of tensors and numbers, none of which
reads or writes anything else. A file names them with plain numbers for arguments, so loading one runs no code of its
own; before a program runs, each part is computed without numbers (on PyTorch's meta device) for its sizes.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gemminer.core.errors import GemminerError, UsageError
from gemminer.sparse.inference.operations import Dense

MOST_STEPS = 2**12
_GET = "getitem"  # of a step with several results
_NOT = ("aten.empty.", "aten.empty_strided.", "aten.as_strided.", "aten.sym_", "aten._local_scalar_dense.")
_TYPES = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.int64, torch.int32, torch.bool)}
_FORMATS = {"contiguous_format": torch.contiguous_format, "preserve_format": torch.preserve_format}


@functools.cache
def _function(name: str) -> Any:
    """A function of the core ATen set that draws no random numbers, writes nothing and gives no uninitialised memory.

    Raises:
        UsageError: the name is none of one.
    """
    words = re.fullmatch(r"aten\.(\w+)\.(\w+)", name)
    packet: Any = getattr(torch.ops.aten, words[1], None) if words else None
    kinds = packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else []
    found: Any = getattr(packet, words[2]) if words and words[2] in kinds else None
    core = any(torch.Tag.core in getattr(packet, kind).tags for kind in kinds)
    if not core or found is None or torch.Tag.nondeterministic_seeded in found.tags or found._schema.is_mutable:
        raise UsageError(f"{name:.50} is none of PyTorch's core functions of tensors")
    if name.startswith(_NOT):
        raise UsageError(f"{name} looks at memory")
    return found


def captured(part: Callable[..., Tensor], examples: Sequence[Tensor]) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """A function of tensors as steps, which are lists, words and numbers, and the constants that they name.

    Raises:
        UsageError: it needs an operation outside the core ATen set.
    """
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    whole = torch.func.functionalize(part, remove="mutations_and_views")
    # What is core already stays: some of it would come apart into what is not.
    table = {name: rule for name, rule in core_aten_decompositions().items() if torch.Tag.core not in name.tags}
    graph = make_fx(whole, decomposition_table=table)(*examples)
    places: dict[fx.Node, dict[str, int]] = {}
    steps: list[Any] = []
    constants: list[Tensor] = []
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            places[node] = {"operand": len(places)}
        elif node.op == "get_attr":
            places[node] = {"constant": len(constants)}
            constants.append(getattr(graph, str(node.target)).detach().clone())
        elif node.op == "output":
            result = node.args[0][0] if isinstance(node.args[0], tuple | list) else node.args[0]
            steps.append([_GET, [[places[result]], 0], {}])
        else:
            name = _GET if node.target is operator.getitem else str(node.target)
            if name != _GET:
                _function(name)
            written = [_written(part, places) for part in (list(node.args), dict(node.kwargs))]
            places[node] = {"step": len(steps)}
            steps.append([name, *written])
    return tuple(steps), tuple(constants)


def _written(value: Any, places: dict[fx.Node, dict[str, int]]) -> Any:
    if isinstance(value, fx.Node):
        return places[value]
    if isinstance(value, list | tuple):
        return [_written(part, places) for part in value]
    if isinstance(value, dict):
        return {key: _written(part, places) for key, part in value.items() if key not in ("layout", "pin_memory")}
    if isinstance(value, torch.device):
        return {"device": 0}
    for word, names in (("dtype", _TYPES), ("format", _FORMATS)):
        for name, known in names.items():
            if value is known:
                return {word: name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(f"cannot compile an argument {value!r:.50}")


def computed(op: Dense, operands: Sequence[Tensor], *, device: str = "cpu", most: int | None = None) -> Tensor:
    """What the steps give for the operands; on the device "meta" only its shape.

    Args:
        op: the part.
        operands: of its forms.
        device: where constants and new tensors are.
        most: how many numbers a result of a step may have.

    Raises:
        GemminerError: a step is none of the core ATen set, or its arguments do not fit.
    """
    results: list[Any] = []
    known = {"operand": operands, "step": results, "constant": [c.to(device) for c in op.constants]}

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(part) for part in value]
        if not isinstance(value, dict):
            return value
        ((word, at),) = value.items()
        if word in known:
            if type(at) is not int or not 0 <= at < len(known[word]):
                raise GemminerError("a dense part reads what is not there")
            return known[word][at]
        named: dict[str, Any] = {"dtype": _TYPES, "format": _FORMATS}
        return torch.device(device) if word == "device" else named[word][at]

    try:
        for name, args, kwargs in op.steps:
            given = read(args), {key: read(value) for key, value in kwargs.items()}
            results.append(given[0][0][given[0][1]] if name == _GET else _function(name)(*given[0], **given[1]))
            sizes = [r.numel() for r in (results[-1] if isinstance(results[-1], tuple) else (results[-1],))]
            if most is not None and max(sizes, default=0) > most:
                raise GemminerError("a dense part takes too much memory")
    except GemminerError:
        raise
    except Exception as error:  # whatever PyTorch says of arguments
        said = str(error).splitlines()
        raise GemminerError(f"a dense part of a program cannot be computed ({said[0] if said else name})") from None
    out = results[-1]
    if not isinstance(out, Tensor) or out.dtype != torch.float32 or out.numel() != math.prod(op.shape):
        raise GemminerError("a dense part gives another result than its shape says")
    return out


def sizes_of(op: Dense, most: int) -> None:
    """Raise GemminerError unless the part can be computed, of at most `most` numbers a step."""
    if not 0 < len(op.steps) <= MOST_STEPS:
        raise GemminerError("a dense part has too many steps")
    computed(op, [torch.empty(form, device="meta") for form in op.forms], device="meta", most=most)
