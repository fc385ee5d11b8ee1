"""Names of a model's modules and tensors, the same whether it is wrapped or not: a ticket fits both.

A wrapper holds the model as its one child, whose name stands in every name: `module.` of DataParallel, `_orig_mod.` of
torch.compile. Names in tickets leave it out, so that a seed draws the same weights for both. Only modules whose class
says that they are wrappers count: a submodule that a user called `module` keeps its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

# Children that no user names so, whatever class holds them.
_MARKS = ("_orig_mod", "_checkpoint_wrapped_module", "_forward_module", "_fsdp_wrapped_module")
# Classes by name, for some are of packages that need not be installed.
_CLASSES = {"DataParallel": "module", "DistributedDataParallel": "module", "DeepSpeedEngine": "module"}
_OURS = {"SparseNetwork": "net", "Inside": "model"}
_CHANGES = {"Inside"}  # what it wraps cannot be called without it


def wrapped(module: nn.Module) -> str | None:
    """The name of the child that a wrapper wraps; None for any other module.

    >>> wrapped(nn.DataParallel(nn.Linear(1, 1))), wrapped(nn.Sequential(nn.Linear(1, 1)))
    ('module', None)
    """
    own = [_known(kind) for kind in type(module).__mro__]
    children = module._modules
    return next((name for name in (*own, *_MARKS) if name and children.get(name) is not None), None)


def _known(kind: type) -> str | None:
    ours = kind.__module__.startswith("gemminer.")
    return (_OURS if ours else _CLASSES).get(kind.__name__)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrappers, or the model itself."""
    while (name := wrapped(model)) is not None and type(model).__name__ not in _CHANGES:
        model = model.get_submodule(name)
    return model


def without_wrappers(model: nn.Module) -> nn.Module:
    """The model inside its wrappers; those further inside are taken out of it, so hand in a copy."""
    model = unwrapped(model)
    for module in model.modules():
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = unwrapped(child)
    return model


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, by its name in the plain model: a wrapper has the name of what it wraps, before it."""
    plain = _Plain(model)
    for name, module in model.named_modules():
        yield plain.modules[name], module


def named_parameters(model: nn.Module, *, ties: bool = False) -> dict[str, nn.Parameter]:
    """The parameters by their names in the plain model; tied ones once, under their first name, or under `ties` all.

    >>> list(named_parameters(nn.DataParallel(nn.Linear(1, 1))))
    ['weight', 'bias']
    """
    plain = _Plain(model)
    return {plain(name): p for name, p in nn.Module.named_parameters(model, remove_duplicate=not ties)}


def full_names(model: nn.Module) -> dict[str, str]:
    """The name that each parameter really has, by its name in the plain model: for `torch.func.functional_call`."""
    plain = _Plain(model)
    return {plain(name): name for name, _ in nn.Module.named_parameters(model)}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and saved buffers by their names in the plain model, tied ones under each of their names."""
    plain = _Plain(model)
    state = model.state_dict(keep_vars=True)
    return {plain(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


class _Plain:
    """The plain name of each name in a model."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, str] = {"": ""}
        self.wraps = False
        inside: dict[str, str] = {}  # what a wrapper wraps -> the wrapper
        for path, module in model.named_modules(remove_duplicate=False):
            parent, _, name = path.rpartition(".")
            if path in inside:
                self.modules[path] = self.modules[inside[path]]
            elif path:
                self.modules[path] = f"{self.modules[parent]}.{name}" if self.modules[parent] else name
            if (child := wrapped(module)) is not None:
                inside[f"{path}.{child}" if path else child] = path
                self.wraps = True

    def __call__(self, name: str) -> str:
        if not self.wraps:
            return name
        path, _, own = name.rpartition(".")
        while path not in self.modules:  # below a wrapper that takes its prefix out of the names by itself
            path, _, last = path.rpartition(".")
            own = f"{last}.{own}"
        return f"{self.modules[path]}.{own}" if self.modules[path] else own


def bare(names: Iterable[str]) -> dict[str, str]:
    """Names without wrappers' prefixes where no model is at hand to tell: of a state dict that was saved from one.

    `module.` is left out only where every name begins with it.

    >>> bare(["module._orig_mod.fc.weight"])
    {'module._orig_mod.fc.weight': 'fc.weight'}
    """
    found = {name: ".".join(part for part in name.split(".") if part not in _MARKS) for name in names}
    while found and all(name.startswith("module.") for name in found.values()):
        found = {name: short.removeprefix("module.") for name, short in found.items()}
    return found
