"""The baselines of a compiled program: one network in eval mode, run by other engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.core.copies import duplicate

Run = Callable[[], Tensor]

# Floats of im2col columns in one product: a second-level cache of two megabytes.
COLUMNS = 2**19
MISSING = "not installed: pip install 'gemminer[export]'"


def reason(error: Exception) -> str:
    """An exception as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def eager(model: nn.Module, images: Tensor, *, channels_last: bool) -> Run:
    """The model run by plain PyTorch; the images are in its memory format beforehand."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = duplicate(model).to(memory_format=layout)
    images = images.to(memory_format=layout)
    return lambda: model(images)


def compiled(model: nn.Module, **options: Any) -> Any:
    """The model through torch.compile, for one shape of batch; it is compiled at the first call."""
    torch._dynamo.reset()
    return torch.compile(model, dynamic=False, options=options or None)


def torch_compile(model: nn.Module, images: Tensor) -> Run:
    """torch.compile with weights frozen, its fastest for inference; raises what the compiler raises."""
    run = compiled(duplicate(model), freezing=True)
    with torch.inference_mode():
        run(images)
    return lambda: run(images)


def onnxruntime(model: nn.Module, images: Tensor) -> Run:
    """ONNX Runtime on the dense weights, zeros included, on as many threads; raises ImportError where it is missing."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    session = ort.InferenceSession(_onnx(model, images), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _onnx(model: nn.Module, images: Tensor) -> bytes:
    """The network as an ONNX file for batches of this size."""
    import onnxscript  # noqa: F401 - what the exporter needs, asked for here for its ImportError

    program = torch.onnx.export(duplicate(model), (images,), dynamo=True, verbose=False)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def scipy_csr(model: nn.Module, images: Tensor) -> Run:
    """Every convolution as a CSR matrix times im2col columns, every linear layer as one times the batch, by scipy."""
    model = duplicate(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, _CsrConv2d(child))
            elif isinstance(child, nn.Linear):
                setattr(module, name, _CsrLinear(child))
    return lambda: model(images)


class _CsrConv2d(nn.Module):
    """A convolution as a sparse matrix (O, C * KH * KW); groups are blocks of it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.matrix, self.bias = scipy.sparse.csr_array(_rows(conv)), conv.bias
        self.kernel, self.dilation, self.stride = conv.kernel_size, conv.dilation, conv.stride
        self.padding = (int(conv.padding[0]), int(conv.padding[1]))

    def _out(self, size: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        return int((size + 2 * self.padding[axis] - reach - 1) // self.stride[axis] + 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self._out(x.shape[2], 0), self._out(x.shape[3], 1)
        at_once = max(1, COLUMNS // (self.matrix.shape[1] * height * width))
        y = torch.cat([self._product(part) for part in x.split(at_once)])
        y = y.view(len(x), -1, height, width)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def _product(self, x: Tensor) -> Tensor:
        columns = F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)
        n, rows, places = columns.shape
        flat = columns[0] if n == 1 else columns.transpose(0, 1).reshape(rows, n * places)
        y = torch.from_numpy(self.matrix @ flat.numpy())
        return y.view(-1, n, places).transpose(0, 1)


def _rows(conv: nn.Conv2d) -> np.ndarray[Any, Any]:
    """The weight as a matrix over all input channels, zero for those of other groups."""
    weight = conv.weight.detach()
    o, c, kh, kw = weight.shape
    full = torch.zeros(o, conv.groups, c, kh, kw)
    group = torch.arange(o) // (o // conv.groups)
    full[torch.arange(o), group] = weight
    return full.reshape(o, -1).numpy()


class _CsrLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.matrix, self.bias = scipy.sparse.csr_array(linear.weight.detach().numpy()), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.from_numpy(self.matrix @ x.numpy().T).T
        return y if self.bias is None else y + self.bias
