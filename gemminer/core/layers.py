"""Whole layers that a network computes on without: which can go, on any module, and the network that is left.

A layer here is a module in the middle of a network, most often a residual block, y = x + f(x). It can go where it is
the identity once its weights are zero, which is tried: no names, no tracing, whatever the model's code does.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gemminer.core.copies import duplicate
from gemminer.core.errors import UsageError
from gemminer.core.left_dense import EXCLUDED, FROZEN
from gemminer.core.model_state import borrowed, has_statistics
from gemminer.core.names import named_modules, without_wrappers
from gemminer.core.prunable import RULES, Prunable
from gemminer.core.randomness import private_randomness, seed_globals
from gemminer.core.tracing import tensors

# Why a module is not removable.
REPEATED = "more than one run in a pass, as where layers share a module"
NOT_ONE_TENSOR = "no single tensor goes in and comes out (a tuple, a dictionary)"
RESHAPES = "its result has another shape or type than its input, as where a network samples down"
NO_IDENTITY = "not the identity with its weights at zero, as where the sum is outside of it or a norm stands on it"
SHARED = "a weight of it is used outside of it too"
DENSE = "weights in it are excluded or frozen"
READ = "the code around it reads more of it than its result"
IDLE = "it does not run"
_NAMED = 3  # modules in a sentence, for each reason
SAME = 1e-4  # what outputs may differ by, of the largest: other kernels may run where a layer is gone


@dataclass(frozen=True)
class Block:
    """A module that can be removed.

    Args:
        name: of the module.
        weights: the names of its prunable weights.
        stage: the shape that goes in and comes out; blocks of equal shape are a stage.
    """

    name: str
    weights: tuple[str, ...]
    stage: tuple[int, ...]


@dataclass(frozen=True)
class Blocks:
    """What the zero probe found in a network.

    Args:
        removable: in the model's order, none inside another.
        missed: the modules with layers in them that cannot go, and why, by name.
        fixed: stage -> how many further blocks give it that cannot go: modules of a removable block's class.
    """

    removable: tuple[Block, ...]
    missed: Mapping[str, str]
    fixed: Mapping[tuple[int, ...], int]

    def none(self) -> str:
        """The sentence for a network of which nothing can be removed: why, for each kind of module that is missed."""
        kinds: dict[str, list[str]] = {}
        for name, reason in self.missed.items():
            kinds.setdefault(reason, []).append(name)
        said = [f"{', '.join(names[:_NAMED])}{_more(names)}: {reason}" for reason, names in kinds.items()]
        return f"no removable layer: {'; '.join(said) or 'the model has no module that holds several layers'}"


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""


def find_blocks(model: nn.Module, run: Callable[[], Any], table: Prunable) -> Blocks:
    """The modules that can be removed, by the zero probe; the model is left as it was.

    In evaluation mode each module with prunable weights that runs once, and gives a tensor like its first argument, is
    run by itself on what it was given, its parameters zero. It can go where the result is its input, bit for bit; of
    those inside one another the innermost. Last the network is run without them, and must give what it gives with them
    at zero.

    Args:
        run: runs the model on a batch and returns its output.
        table: the prunable weights.
    """
    with borrowed(model), private_randomness(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.eval()
        probe = _Probe(model, table)
        with probe:
            _seeded(run)
        found = _innermost(probe.passed)
        needed = _read(model, run, found)
        missed = probe.missed() | dict.fromkeys(needed, READ)
    blocks = tuple(
        Block(name, probe.weights(probe.modules[name]), probe.passed[name]) for name in found if name not in needed
    )
    return Blocks(blocks, missed, probe.fixed(blocks))


def owned(name: str, layers: Sequence[str]) -> bool:
    """Whether a tensor or module of this name is in one of these layers."""
    return any(_inside(name, layer) for layer in layers)


def check_removed(removed: Sequence[str], kept: Mapping[str, int]) -> None:
    """Raise UsageError unless these layers have masks, keep none of their weights, and none is inside another.

    Args:
        kept: the weights kept by each mask's name.
    """
    for layer in removed:
        own = [name for name in kept if _inside(name, layer)]
        if not own:
            raise UsageError(f"the ticket removes {layer!r}, and has no mask in it")
        if some := [name for name in own if kept[name]]:
            raise UsageError(f"the ticket removes {layer!r}, and keeps weights of {some[0]!r} in it")
        if owned(layer, removed) or list(removed).count(layer) > 1:
            raise UsageError(f"the ticket removes {layer!r} twice: by itself, and in another or once more")


def renamed_layers(removed: Sequence[str], masks: Iterable[str], found: Mapping[str, str]) -> tuple[str, ...]:
    """Layers by the model's names, given the model's name for each of the ticket's tensors."""
    new = {layer: layer for layer in removed}
    for name in masks:
        for layer in removed:
            end = name.removeprefix(layer)
            if _inside(name, layer) and found[name].endswith(end):
                new[layer] = found[name].removesuffix(end)
    return tuple(new.values())


class Through(nn.Identity):
    """Stands for a removed layer that is called with more than one argument: gives back the first."""

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        return input


class Shortened:
    """A block in which removed modules are identities in the model itself; they are put back at its end.

    Args:
        model: maybe wrapped.
        names: the removed modules, by their names in the plain model.

    Raises:
        UsageError: the model has no such module.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        parents = {name: (module, key) for module, key, name in _children(model)}
        if odd := [name for name in names if name not in parents]:
            raise UsageError(f"the model has no module {odd[0]!r}, which the ticket removes: it is of another model")
        self._places = [parents[name] for name in names]
        self._blocks = [module._modules[key] for module, key in self._places]
        self._stand_ins = [_identity(block) for block in self._blocks]

    def __enter__(self) -> Shortened:
        self._put(self._stand_ins)
        return self

    def __exit__(self, *error: object) -> None:
        self._put(self._blocks)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """A block inside of it in which the model has all its modules."""
        self._put(self._blocks)
        try:
            yield
        finally:
            self._put(self._stand_ins)

    def _put(self, modules: Sequence[nn.Module | None]) -> None:
        for (parent, key), module in zip(self._places, modules, strict=True):
            parent._modules[key] = module


def without(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of the model, out of its wrappers, in which the named modules are identities; UsageError as `Shortened`.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    >>> without(net, ["1"])
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): Identity()
    )
    """
    copied = without_wrappers(duplicate(model))
    Shortened(copied, names).__enter__()
    return copied


def neutralise(model: nn.Module, names: Sequence[str]) -> None:
    """Make the named modules compute nothing, in place: parameters zero, and what their norms take for the mean.

    Raises UsageError as `Shortened` does.
    """
    modules = dict(reversed(list(named_modules(model))))
    if odd := [name for name in names if name not in modules]:
        raise UsageError(f"the model has no module {odd[0]!r}, which the ticket removes: it is of another model")
    with torch.no_grad():
        for name in names:
            for tensor in _neutral(modules[name]):
                tensor.zero_()


def _neutral(module: nn.Module) -> list[Tensor]:
    """The tensors of a module that are zero where it is neutral.

    The running means too: a norm without a scale would subtract them from nothing.
    """
    means = [m.running_mean for m in module.modules() if has_statistics(m)]
    return [*module.parameters(), *(mean for mean in means if mean is not None)]


@contextlib.contextmanager
def _at_zero(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A block in which these modules are neutral."""
    held = [(tensor, tensor.data) for module in modules for tensor in _neutral(module)]
    try:
        for tensor, data in held:
            tensor.data = torch.zeros_like(data)
        yield
    finally:
        for tensor, data in held:
            tensor.data = data


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Each module but the model: what holds it, as what, and its name in the plain model; a wrapper before its own."""
    names = {module: name for name, module in named_modules(model)}
    seen = {""}
    for module in model.modules():
        for key, child in module._modules.items():
            if child is not None and (name := names[child]) not in seen:
                seen.add(name)
                yield module, key, name


def _identity(block: nn.Module | None) -> nn.Module:
    """What stands for a block: the plain identity where one argument is all that it takes."""
    taken = inspect.signature(block.forward).parameters.values() if block is not None else ()
    alone = len(taken) == 1 and all(p.kind is p.POSITIONAL_OR_KEYWORD for p in taken)
    return (nn.Identity() if alone else Through()).train(block is not None and block.training)


def _seeded(run: Callable[[], Any]) -> Any:
    seed_globals(0)
    return run()


class _Probe:
    """Hooks that run each module by itself, at zero, right after it has run in the network."""

    def __init__(self, model: nn.Module, table: Prunable) -> None:
        self.names = {id(p): name for name, p in table.weights.items()}
        named = dict(reversed([(n, m) for n, m in named_modules(model) if n]))  # a wrapper, not what it wraps
        self.modules = {n: m for n, m in reversed(named.items()) if self.weights(m) and not _no_block(m)}
        kept_dense = {left.name for left in table.left if left.reason in (EXCLUDED, FROZEN)}
        self._dense = {n for n in self.modules if any(name.startswith(f"{n}.") for name in kept_dense)}
        self._shared = {n for n, m in self.modules.items() if _leaks(model, m)}
        self.passed: dict[str, tuple[int, ...]] = {}
        self.results: dict[str, Any] = {}  # the shape of what each gave, last
        self._reasons: dict[str, str] = {}
        self._runs = dict.fromkeys(self.modules, 0)
        self._inputs: list[Any] = []
        self._inside = False
        self._handles: list[Any] = []

    def weights(self, module: nn.Module) -> tuple[str, ...]:
        """The names of a module's prunable weights."""
        return tuple(self.names[id(p)] for p in module.parameters() if id(p) in self.names)

    def __enter__(self) -> None:
        for name, module in self.modules.items():
            self._handles += [
                module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True),
                module.register_forward_hook(self._after(name), with_kwargs=True),
            ]

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._inside:
            self._inputs.append(_copied((args, kwargs)))  # what is changed in place, as a cache is

    def _after(self, name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._inside:
                return
            given = self._inputs.pop()
            self._runs[name] += 1
            if self._runs[name] > 1:
                self._reasons[name] = REPEATED
                self.passed.pop(name, None)
                return
            first = _first(*given)
            self.results[name] = tuple(output.shape) if isinstance(output, Tensor) else None
            self._inside = True
            try:
                reason = self._reason(name, module, given, first, output)
            finally:
                self._inside = False
            if reason is None:
                self.passed[name] = tuple(first.shape)
            else:
                self._reasons[name] = reason

        return after

    def _reason(self, name: str, module: nn.Module, given: Any, first: Any, output: Any) -> str | None:
        """Why a module that has just run cannot go; None where it can."""
        if not isinstance(first, Tensor) or not isinstance(output, Tensor):
            return NOT_ONE_TENSOR
        if first.shape != output.shape or first.dtype is not output.dtype:
            return RESHAPES
        args, kwargs = given
        right = first.clone()
        try:
            with _at_zero([module]):
                found = module(*args, **kwargs)
        except Exception:  # whatever a module's own code says of zeros
            return NO_IDENTITY
        if not isinstance(found, Tensor) or not torch.equal(found, right):
            return NO_IDENTITY
        return SHARED if name in self._shared else DENSE if name in self._dense else None

    def missed(self) -> dict[str, str]:
        """Why each module with several layers cannot go that holds none that can, and is in none."""
        reasons = {n: self._reasons.get(n, IDLE) for n in self.modules if n not in self.passed}
        around = [n for n in reasons if any(_inside(p, n) or _inside(n, p) for p in self.passed)]
        return {n: reason for n, reason in reasons.items() if n not in around and _several(self.modules[n])}

    def fixed(self, blocks: Sequence[Block]) -> dict[tuple[int, ...], int]:
        """How many blocks of each stage cannot go: of a class of which others can, giving the stage's shape."""
        own, kinds = {b.name for b in blocks}, {type(self.modules[b.name]) for b in blocks}
        counts = dict.fromkeys((b.stage for b in blocks), 0)
        for name, shape in self.results.items():
            if shape in counts and name not in own and type(self.modules[name]) in kinds - {nn.Sequential}:
                counts[shape] += not any(_inside(b, name) for b in own)
        return counts


def _read(model: nn.Module, run: Callable[[], Any], names: Sequence[str]) -> list[str]:
    """Those of the modules whose place cannot be taken by an identity: the code around reads more of them."""

    def fits(removed: Sequence[str]) -> bool:
        with _at_zero([modules[name] for name in removed]):
            right = list(tensors(_seeded(run)))
        try:
            with Shortened(model, removed):
                found = list(tensors(_seeded(run)))
        except Exception:  # whatever the code around says of another module
            return False
        return len(found) == len(right) and all(map(_alike, found, right))

    modules = dict(reversed(list(named_modules(model))))
    return [] if not names or fits(names) else [name for name in names if not fits([name])]


def _alike(found: Tensor, right: Tensor) -> bool:
    if found.shape != right.shape or not right.is_floating_point():
        return torch.equal(found, right)
    most = float(right[right.isfinite()].abs().max()) if bool(right.isfinite().any()) else 1.0
    return torch.allclose(found, right, rtol=SAME, atol=SAME * most, equal_nan=True)


def _innermost(passed: Mapping[str, Any]) -> list[str]:
    return [name for name in passed if not any(_inside(other, name) for other in passed)]


def _inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _no_block(module: nn.Module) -> bool:
    """Whether it is a layer by itself, of which a zero weight makes zeros; a list; or nothing that takes such hooks."""
    others = (nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule)
    return any(rule.takes(module) for rule in RULES) or isinstance(module, others)


def _several(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _leaks(model: nn.Module, module: nn.Module) -> bool:
    """Whether a parameter of the module is one of a module outside of it too."""
    inside = set(module.modules())
    own = {id(p) for p in module.parameters()}
    return any(
        id(p) in own for m in model.modules() if m not in inside for p in m._parameters.values() if p is not None
    )


def _first(args: Any, kwargs: Any) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _copied(given: Any) -> Any:
    try:
        return copy.deepcopy(given)
    except Exception:  # of whatever a model hands on
        args, kwargs = given
        return tuple(x.clone() if isinstance(x, Tensor) else x for x in args), dict(kwargs)
