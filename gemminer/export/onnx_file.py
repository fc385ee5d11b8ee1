"""ONNX files of ticketed networks, with the ticket's digest in their metadata, compared in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gemminer.core.errors import UsageError, in_words
from gemminer.core.files import as_path
from gemminer.core.ticket import Ticket
from gemminer.export.portable import Arguments, Exported, Portable, Run, portable, quiet, written

MISSING = "ONNX files need onnx and onnxscript: pip install 'gemminer[export]'"


def onnx(
    model: nn.Module,
    path: str | Path,
    example: Any,
    ticket: Ticket | Mapping[str, Tensor] | None = None,
    *,
    compact: bool = True,
    batch: int | None = None,
    opset: int | None = None,
) -> Exported:
    """Write a ticketed network as an ONNX file, in eval mode, by PyTorch's exporter.

    The file's metadata have the ticket's digest (`gemminer_ticket`), the density (`gemminer_density`) and gemminer's
    version. Pruned weights are zeros in it. Before anything is written, the file's outputs in ONNX Runtime are compared
    with the network's in PyTorch; without onnxruntime the result says that they were not. Replaces the file at `path`.

    Args:
        model: with the weights to keep: after training, those trained. It is left as it was.
        path: of the file.
        example: a batch as the model takes it: a tensor, a tuple of arguments or a dictionary of them by name. All
            sizes but the first, the batch's, are fixed by it.
        ticket: a ticket, boolean masks by parameter name, or None for the zeros that the model has.
        compact: cut out dead units and fold their constants, as `gemminer.compact` does; the features of linear
            layers keep their places then, since ONNX Runtime takes selections of features one by one.
        batch: the one size of batch that it takes; None for any.
        opset: the version of ONNX's operators; None for the one that PyTorch's exporter writes best.

    Returns:
        The path, its size, and how far its outputs are from the network's.

    Raises:
        UsageError: an example the model does not take, a ticket of another model, a model that cannot be exported or
            made smaller, outputs that differ, or onnx is not installed.
        GemminerError: a disk that is full.

    >>> import gemminer, tempfile, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> mask = torch.eye(8, 4).bool()
    >>> made = gemminer.export.onnx(net, f"{tempfile.mkdtemp()}/net.onnx", torch.randn(2, 4), {"0.weight": mask})
    >>> made.difference < 1e-6
    True
    """
    target = as_path("path, the file,", path)
    _require()
    found = portable(model, example, ticket, smaller=compact, batch=batch, plain_features=True)
    data = _serialised(found, opset)
    run, note = _in_onnxruntime(data)
    return written(target, data, None if run is None else found.difference(run), note)


def _require() -> None:
    try:
        import onnx  # noqa: F401 - asked for here, for a sentence in place of what the exporter says
        import onnxscript  # noqa: F401
    except ImportError:
        raise UsageError(MISSING) from None


def _serialised(found: Portable, opset: int | None) -> bytes:
    """The bytes of an ONNX file, its metadata at the end, where `core.ownership` looks for them."""
    from onnx import ModelProto

    kind = type(found.model).__name__
    with quiet():
        try:
            made = torch.onnx.export(
                found.program, dynamo=True, verbose=False, opset_version=opset, output_names=list(found.outputs)
            )
            assert made is not None
            proto = made.model_proto
        except Exception as error:  # whatever an operator's translation meets
            raise UsageError(f"{kind} cannot be exported to ONNX: {in_words(error)}") from None
    got = next(known.version for known in proto.opset_import if not known.domain)
    if opset is not None and got != opset:
        raise UsageError(f"{kind} cannot be written with opset {opset}, but with {got}: leave opset out, or give {got}")
    _name_batch(proto)
    facts = ModelProto()
    for name, text in found.facts.items():
        facts.metadata_props.add(key=name, value=text)
    try:
        return bytes(proto.SerializeToString() + facts.SerializeToString())  # to append is to merge, in protobuf
    except ValueError:
        raise UsageError(f"{kind} has more than 2 GB of weights, and one ONNX file cannot hold them") from None


def _name_batch(proto: Any) -> None:
    """Call the free first axis `batch`, whatever symbol it was traced under."""
    symbols = [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim[:1] if dim.dim_param]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info) if symbols else ():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(symbols[0])}\b", "batch", dim.dim_param)


def _in_onnxruntime(data: bytes) -> tuple[Run | None, str]:
    """What runs a file in ONNX Runtime, and its name; None, and why, where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None, "not compared with PyTorch: onnxruntime is not installed"
    name = f"ONNX Runtime {onnxruntime.__version__}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own errors have no class in common
        raise UsageError(f"{name} does not take the file ({in_words(error)}): nothing was written") from None

    def run(given: Arguments) -> list[Tensor]:
        args, kwargs = given
        names = [x.name for x in session.get_inputs()]
        places = iter([x for x in tree_leaves(args) if isinstance(x, Tensor)])
        feed = {x: (kwargs[x] if x in kwargs else next(places)).numpy() for x in names}
        return [torch.from_numpy(x) for x in session.run(None, feed)]

    return run, name
