"""What a model computes on an example, as a list of calls: recorded while it runs, so branches and shapes are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

# Functions that give fresh tensors of known numbers; what others give without reading a tensor is not known.
_FACTORIES = {"zeros", "ones", "full", "arange", "linspace", "eye", "tensor", "as_tensor", "triu", "tril"}
_LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
_ALIASES = {
    "truediv": "div", "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub", "concat": "cat",
    "concatenate": "cat", "clip": "clamp", "bmm": "matmul", "mm": "matmul", "negative": "neg",
}  # fmt: skip
# What takes numbers out of tensors, for Python to branch on.
_LEAKS = {"item", "tolist", "bool", "int", "float", "index", "numpy", "len", "contains"}
_OPERATORS = {"add", "sub", "mul", "truediv", "div", "pow", "matmul"}


@dataclass(frozen=True)
class Ref:
    """The place of a value among a call's arguments."""

    index: int


@dataclass(eq=False)
class Call:
    """One call of a function of PyTorch.

    Args:
        function: what was called.
        name: its name, the same for a function, a method, an operator and what works in place.
        args: its arguments, tensors as `Ref`.
        kwargs: those by name.
        outputs: the tensors it gave.
        module: the innermost module in whose forward it was called, by name.
        writes: whether it changed one of its arguments.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    module: str
    writes: bool

    @property
    def inputs(self) -> list[int]:
        """The values it reads, in the arguments' order."""
        return [x.index for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Ref)]

    def run(self, known: Callable[[int], Any]) -> tuple[Any, ...]:
        """Call the function on other tensors, of one's choice for each value."""
        args, kwargs = tree_map(lambda x: known(x.index) if isinstance(x, Ref) else x, (self.args, self.kwargs))
        return tuple(tensors(self.function(*args, **kwargs)))

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


@dataclass(eq=False)
class Trace:
    """The calls of one pass.

    Args:
        calls: in order.
        shapes: of each value.
        floats: whether each value is of real numbers.
        leaves: parameters, buffers and constants, by value.
        inputs: the values that the example gave.
        outputs: the values of the result.
        runs: how often each module ran, by name.
    """

    calls: list[Call] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    floats: list[bool] = field(default_factory=list)
    leaves: dict[int, Tensor] = field(default_factory=dict)
    inputs: set[int] = field(default_factory=set)
    outputs: list[int] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)

    def readers(self) -> dict[int, list[Call]]:
        """The calls that read each value."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            for index in call.inputs:
                found.setdefault(index, []).append(call)
        return found


def traced(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """Run the model in the mode it is in, without gradients, and record what it calls."""
    recorder = _Recorder()
    names = {module: name for name, module in model.named_modules()}
    handles: list[Any] = []
    for module in names:
        handles.append(module.register_forward_pre_hook(lambda m, _: recorder.enter(names[m])))
        handles.append(module.register_forward_hook(lambda m, _, __: recorder.leave(), always_call=True))
    try:
        with torch.no_grad():
            for tensor in tensors((args, kwargs)):
                recorder.trace.inputs.add(recorder.new(tensor))
            with recorder:
                result = model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    recorder.trace.outputs = [recorder.index(tensor) for tensor in tensors(result)]
    return recorder.trace


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a result or in arguments, whatever they stand in."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from tensors(getattr(value, part.name, None))


def name_of(function: Callable[..., Any]) -> str:
    """One name for a function, a method, an operator, a property and what works in place.

    >>> name_of(Tensor.__iadd__), name_of(Tensor.add_), name_of(torch.add), name_of(Tensor.T.__get__)
    ('add', 'add', 'add', 'T')
    """
    name = getattr(function, "__name__", str(function))
    if name == "__get__":
        return str(getattr(function.__self__, "__name__", name))  # type: ignore[attr-defined]
    plain = name.strip("_")
    if name.startswith("__") and plain[:1] in "ir" and plain[1:] in _OPERATORS:
        plain = "rsub" if plain == "rsub" else "rdiv" if plain in ("rdiv", "rtruediv") else plain[1:]
    return _ALIASES.get(plain, plain)


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self._known: dict[int, int] = {}  # id of a tensor -> its value at this moment
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._stack: list[str] = []

    def enter(self, name: str) -> None:
        self._stack.append(name)
        self.trace.runs[name] = self.trace.runs.get(name, 0) + 1

    def leave(self) -> None:
        self._stack.pop()

    def new(self, tensor: Tensor) -> int:
        index = len(self.trace.shapes)
        self.trace.shapes.append(tensor.shape)
        self.trace.floats.append(tensor.is_floating_point())
        self._known[id(tensor)] = index
        self._alive.append(tensor)
        return index

    def index(self, tensor: Tensor) -> int:
        """The value that a tensor holds; one that no call gave is a constant."""
        if (found := self._known.get(id(tensor))) is not None:
            return found
        index = self.new(tensor)
        self.trace.leaves[index] = tensor.detach().clone()
        return index

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        versions = [x._version for x in given]
        # Before it runs: what it changes is recorded as it was.
        refs = tree_map(lambda x: Ref(self.index(x)) if isinstance(x, Tensor) else x, (args, kwargs))
        result = func(*args, **kwargs)
        changed = [x for x, before in zip(given, versions, strict=True) if x._version != before]
        made = list(tensors(result))
        name = name_of(func)
        if (not given and name in _FACTORIES) or name in _LIKE:
            for tensor in made:
                self.index(tensor)
        elif made or changed or name in _LEAKS:
            self._record(func, name, refs, made, changed)
        return result

    def _record(
        self, func: Callable[..., Any], name: str, refs: Any, made: list[Tensor], changed: list[Tensor]
    ) -> None:
        fresh = [x for x in made if id(x) not in self._known or any(x is c for c in changed)]
        if not changed and any(id(x) in self._known for x in made) and len(made) == 1:
            return  # it gave its argument, as contiguous() may
        lost = self._sharing(changed, made)
        outputs = tuple(self.new(x) if any(x is f for f in fresh) else self._known[id(x)] for x in made)
        module = self._stack[-1] if self._stack else ""
        self.trace.calls.append(Call(func, name, refs[0], refs[1], outputs, module, bool(changed)))
        for tensor in lost:
            before = self._known[id(tensor)]
            reads = (Ref(before), *(Ref(i) for i in outputs), refs[0], refs[1])
            self.trace.calls.append(Call(func, "write", reads, {}, (self.new(tensor),), module, True))

    def _sharing(self, changed: list[Tensor], made: list[Tensor]) -> list[Tensor]:
        """The tensors whose numbers a write may have changed, but those that the call gives back."""
        places = {x.untyped_storage().data_ptr() for x in changed}
        places.discard(0)
        if not places:
            return []
        return [
            x for x in {id(t): t for t in self._alive}.values()
            if x.untyped_storage().data_ptr() in places and not any(x is m for m in made)
        ]  # fmt: skip
