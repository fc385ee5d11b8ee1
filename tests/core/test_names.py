"""Names in a wrapped model are those of the plain one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from gemminer.core.model_state import named_state
from gemminer.core.names import bare, named_modules, named_parameters, named_tensors, unwrapped, wrapped


class Forward(nn.Module):
    """As Lightning's Fabric wraps a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module

    def forward(self, x: Tensor) -> Any:
        return self._forward_module(x)


class Own(nn.Module):
    """A user's module that calls a part of itself `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.module(x).relu())


def plain() -> nn.Sequential:
    norm = nn.Sequential(nn.BatchNorm1d(16), nn.ReLU())
    return nn.Sequential(nn.Linear(6, 16), norm, nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def inner(model: nn.Module) -> nn.Module:
    assert isinstance(model, nn.Sequential)
    model[1] = checkpoint_wrapper(model[1])
    model[2] = checkpoint_wrapper(model[2])
    return model


WRAPS = {
    "DataParallel": nn.DataParallel,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "Fabric": Forward,
    "checkpoint": checkpoint_wrapper,
    "inner": inner,
    "nested": lambda model: Forward(nn.DataParallel(torch.compile(inner(model), backend="eager"))),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("make", [plain, Own])
def test_a_wrapped_model_has_the_plain_ones_names(wrap: str, make: Any) -> None:
    if make is Own and wrap in ("inner", "nested"):
        return
    model = make()
    around = WRAPS[wrap](copy.deepcopy(model))
    assert list(named_parameters(around)) == [name for name, _ in model.named_parameters()]
    assert list(named_state(around)) == list(model.state_dict()) == list(named_tensors(around))
    assert list(dict.fromkeys(name for name, _ in named_modules(around))) == [name for name, _ in model.named_modules()]
    assert type(unwrapped(around)) is type(model)


def test_a_users_own_module_is_no_wrapper() -> None:
    assert next(iter(named_parameters(Own()))) == "module.weight"
    assert wrapped(Own()) is None
    assert list(named_parameters(nn.ModuleDict({"module": nn.Linear(1, 1)}))) == ["module.weight", "module.bias"]
    only = nn.Module()
    only.module = nn.Linear(1, 1)
    assert wrapped(only) is None


def test_a_saved_state_loses_its_prefixes() -> None:
    names = ["module._orig_mod.a._checkpoint_wrapped_module.weight", "module._orig_mod.module.weight"]
    assert list(bare(names).values()) == ["a.weight", "module.weight"]
    assert list(bare(["module.weight", "head.weight"]).values()) == ["module.weight", "head.weight"]
    assert bare([]) == {}
