"""A network's calls on one image, as a `torch.fx` graph whose every value is there to be asked.

`torch.fx.symbolic_trace` knows no value, so a forward that asks for a shape and branches on it stops there. Here each
call is computed as it is recorded: shapes, sizes and types are plain numbers, and only what images hold stays unknown.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from gemminer.core.errors import UsageError

# Containers of PyTorch's own that are looked into; all else of torch.nn is one layer.
_OPEN = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.Transformer)
_PLAIN = ("dtype", "device", "layout", "is_cuda", "is_sparse", "is_nested", "is_quantized", "requires_grad", "is_meta")


class Whole(nn.Module):
    """A network of one input; its others have their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)


class _Value(fx.Proxy):
    """What a call gave, to go on with: its facts are those of the real tensor."""

    @property
    def real(self) -> Any:
        return self.tracer.real[self.node]  # type: ignore[attr-defined]

    @property
    def shape(self) -> Any:
        return self.real.shape

    @property
    def ndim(self) -> int:
        return int(self.real.ndim)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name) if name in _PLAIN or name.startswith("new_") else super().__getattr__(name)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise UsageError("cannot compile an assignment to a part of a tensor: write the result to a new name")

    def size(self, dim: int | None = None) -> Any:
        return self.real.size() if dim is None else self.real.size(dim)

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return int(self.real.numel())

    def is_floating_point(self) -> bool:
        return bool(self.real.is_floating_point())

    def __len__(self) -> int:
        return len(self.real)

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(len(self.real)))  # type: ignore[index]

    def __bool__(self) -> bool:
        return bool(super().__bool__()) if isinstance(self.real, Tensor) else bool(self.real)


class Tracer(fx.Tracer):
    """Records the calls of `Whole(model)` on one image; `real` has what each gave.

    Args:
        example: one image, with its batch.
        leaves: types of modules that are one call each, beside those of torch.nn.
    """

    def __init__(self, example: Tensor, leaves: Callable[[type], bool]) -> None:
        super().__init__()
        self.example, self.leaves = example, leaves
        self.real: dict[fx.Node, Any] = {}
        self._computing = False

    def traced(self, model: nn.Module) -> fx.Graph:
        """The graph of `Whole(model)`, which is `root` from here on; a GraphModule would register code of its own."""
        return self.trace(Whole(model))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.leaves(type(m)) or (super().is_leaf_module(m, module_qualified_name) and not isinstance(m, _OPEN))

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Parameters as they are: only what images come into is recorded."""
        return attr_val

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._computing else super().call_module(m, forward, args, kwargs)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        if kind == "call_function" and _opaque(target):
            return target(*args, **kwargs)
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if kind != "output":
            self.real[proxy.node] = self._compute(proxy.node)
        return proxy

    def _compute(self, node: fx.Node) -> Any:
        for constant in node.all_input_nodes:  # fx adds tensors that it finds among arguments without asking
            if constant.op == "get_attr" and constant not in self.real:
                self.real[constant] = _attribute(self.root, str(constant.target))
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.real[n])
        target: Any = node.target
        self._computing = True
        try:
            if node.op == "placeholder":
                return self.example
            if node.op == "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)
        except Exception as error:
            what = f"the model does not take an input of shape {tuple(self.example.shape[1:])}"
            raise UsageError(f"{what}: {reason(error)}") from None
        finally:
            self._computing = False


def _opaque(target: Any) -> bool:
    """Whether a function is Python's, of a package that asked `torch.fx.wrap` not to look inside."""
    home = (getattr(target, "__module__", None) or "").split(".")[0]
    return isinstance(target, types.FunctionType) and home not in ("torch", "_operator", "math", "builtins")


def _attribute(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name)
    return root


def reason(error: Exception) -> str:
    """The first line of what an error says.

    >>> reason(ValueError("no"))
    'no'
    """
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def inputs_of(model: nn.Module) -> int:
    """How many inputs without defaults a model takes; one where its forward does not say.

    >>> inputs_of(nn.Bilinear(2, 2, 2))
    2
    """
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)
