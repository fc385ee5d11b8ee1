"""Models made sparse and dense again: training, copies, state dicts, bad input."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer import models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.sparse.training.convert import densify, sparsify
from gemminer.sparse.training.held import is_held
from gemminer.sparse.training.modules import SparseConv2d
from gemminer.training.engine import write_back
from gemminer.training.rules import KeepMask
from tests.sparse.training.helpers import close, noise, ticket_for


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_two_hundred_steps_give_the_same_losses(optimiser: str) -> None:
    model = models.build("resnet20", in_channels=1, image_size=8, width=0.25, norm="affine").double()
    ticket = ticket_for(model, 0.2)
    sparse = sparsify(model, ticket, engine="sparse")
    images, labels = noise(50, 1, 8, 8), torch.arange(50) % 10

    def losses(net: nn.Module, rule: KeepMask | None) -> list[float]:
        parameters = list(net.parameters())
        if optimiser == "sgd":
            optim: torch.optim.Optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-3)
        else:
            optim = torch.optim.AdamW(parameters, 1e-3, weight_decay=1e-2)
        out = []
        for step in range(200):
            batch = slice(step % 3 * 20, step % 3 * 20 + 20)  # 20, 20, 10
            optim.zero_grad()
            loss = F.cross_entropy(net(images[batch]), labels[batch])
            loss.backward()
            if rule is not None:
                rule.after_backward()
            optim.step()
            out.append(float(loss.detach()))
        return out

    expected = losses(model, KeepMask(model, ticket.masks))
    np.testing.assert_allclose(losses(sparse, None), expected, atol=1e-3)
    assert expected[-1] < expected[0] / 2
    model.load_state_dict(densify(sparse), strict=True)
    for name, mask in ticket.masks.items():
        assert not model.state_dict()[name][~mask].any()


class Others(nn.Module):
    """Layers the kernels do not know, a shared weight, and a control flow no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.line = nn.Conv1d(4, 4, 3, padding=1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.dilated(F.relu(self.conv(x)))).flatten(2)
        x = self.line(x)
        if x.sum() == 12345:
            return x
        x = x.transpose(1, 2)
        out: Tensor = self.second(F.relu(self.first(self.attention(x, x, x, need_weights=False)[0])))
        return out


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_other_layers_stay_dense_under_their_mask(optimiser: str) -> None:
    model = Others().double()
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    inner = sparse.net
    assert isinstance(inner, Others)
    assert isinstance(inner.conv, SparseConv2d)
    assert is_held(inner.dilated)
    assert is_held(inner.up)
    assert inner.first.values is inner.second.values
    x = noise(3, 2, 4, 4)
    close(sparse(x), model(x))
    if optimiser == "sgd":
        optim: torch.optim.Optimizer = torch.optim.SGD(sparse.parameters(), 1e-3, momentum=0.9, weight_decay=0.1)
    else:
        optim = torch.optim.AdamW(sparse.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        optim.zero_grad()
        sparse(x).square().sum().backward()
        optim.step()
    state = densify(sparse)
    for name, mask in ticket.masks.items():
        assert not state[name][~mask].any()
        assert state[name][mask].all()
    before = sparse(x)
    model.load_state_dict(state, strict=True)
    close(model(x), before)
    for name, tensor in sparse.state_dict().items():  # zeros are zeros there too, not only behind the mask
        if name in ("net.dilated.weight", "net.line.weight"):
            assert not tensor[~ticket.masks[name.removeprefix("net.").replace(".layer", "")]].any()


def test_copies_pickles_and_state_dicts() -> None:
    model = models.build("resnet20", in_channels=1, image_size=8, width=0.25).double()
    ticket = ticket_for(model, 0.2)
    sparse = sparsify(model, ticket, engine="sparse")
    x = noise(3, 1, 8, 8)
    sparse(x)
    sparse.eval()
    expected = sparse(x)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    fresh = sparsify(
        models.build("resnet20", in_channels=1, image_size=8, width=0.25).double(), ticket, engine="sparse"
    )
    fresh.load_state_dict(sparse.state_dict())
    for other in (
        copy.deepcopy(sparse),
        pickle.loads(pickle.dumps(sparse)),
        torch.load(file, weights_only=False),
        fresh.eval(),
    ):
        assert torch.equal(other(x), expected)
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in sparse.parameters()}
    wrong = sparsify(model, ticket_for(model, 0.1), engine="sparse")
    with pytest.raises(GemminerError, match="make the model from the ticket"):
        wrong.load_state_dict(sparse.state_dict())


class Versioned(nn.Module):
    """Loads by the version it was saved with, and writes one more entry."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.first, self.line = nn.Linear(4, 4), nn.Conv1d(1, 2, 3)
        self.register_state_dict_post_hook(
            lambda module, state, prefix, local: state.update({f"{prefix}kind": Tensor()})
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.first(x)[:, None])

    def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *rest: Any) -> None:
        assert local["version"] == 3
        del state[f"{prefix}kind"]
        super()._load_from_state_dict(state, prefix, local, *rest)


@pytest.mark.parametrize("around", [lambda net: net, nn.Sequential, nn.DataParallel], ids=["bare", "inside", "wrapped"])
def test_versions_and_hooks_of_a_state_dict_are_kept(around: Any) -> None:
    """torchvision's MNASNet loads no state dict without its version."""
    model = around(Versioned())
    ticket = ticket_for(model, 0.5)
    state = densify(sparsify(ticket.apply(model), ticket, engine="sparse"))
    plain = getattr(model, "module", model)
    assert list(state) == list(plain.state_dict())
    assert state._metadata == plain.state_dict()._metadata  # type: ignore[attr-defined]
    plain.load_state_dict(state)


def test_bad_input_is_explained() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    ticket = ticket_for(model, 1.0)
    with pytest.raises(UsageError, match="engine"):
        sparsify(model, ticket, engine="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="another model"):
        sparsify(nn.Sequential(nn.Linear(3, 2)), ticket)


class Counting(nn.Module):
    """Says its version, has a state of its own, one layer under two names, a hook that adds to the state dict."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Linear(4, 4), nn.ConvTranspose1d(4, 4, 1)
        self.again = self.first
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.steps, self.log, self.last, self.loaded = 0, [], None, None  # type: ignore[var-annotated]
        self.register_state_dict_post_hook(
            lambda m, state, prefix, meta: state.update({f"{prefix}added": torch.ones(1)})
        )
        self.register_load_state_dict_pre_hook(lambda m, state, prefix, *_: state.pop(f"{prefix}added"))

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        self.loaded = metadata.get("version")
        super()._load_from_state_dict(state, prefix, metadata, *rest)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.calls += 1
        self.log.append(self.steps)
        self.last = self.again(F.relu(self.first(x)))
        return self.up(self.last[..., None])[..., 0]  # type: ignore[no-any-return]


def test_a_dense_state_dict_is_the_plain_models_own() -> None:
    model = nn.Sequential(Counting(), nn.Linear(4, 2)).double()
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    sparse(noise(3, 4))
    state, plain = densify(sparse), model.state_dict()
    assert list(state) == list(plain)
    assert state._metadata == plain._metadata  # type: ignore[attr-defined]
    assert state["0._extra_state"] == {"steps": 1}
    model.load_state_dict(state, strict=True)
    assert model[0].loaded == 3
    assert model[0].steps == 1


def test_what_passes_leave_beside_the_state_dict_is_carried_back() -> None:
    model = nn.Sequential(Counting(), nn.Linear(4, 2)).double()
    log = model[0].log
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    for _ in range(3):
        sparse(noise(3, 4))
    write_back(sparse, model)
    assert (model[0].steps, float(model[0].calls)) == (3, 3.0)
    assert model[0].log is log
    assert log == [1, 2, 3]
    close(model[0].last, sparse.net[0].last)  # type: ignore[index, union-attr]


def test_layers_that_a_ticket_removes_are_gone() -> None:
    model = models.build("resnet20", in_channels=1, image_size=8, width=0.25, norm="affine").double()
    ticket = ticket_for(model, 0.2)
    removed = ("layer1.1", "layer3.2")
    masks = {n: m & (not n.startswith(tuple(f"{r}." for r in removed))) for n, m in ticket.masks.items()}
    ticket = ticket.replace(masks=masks, removed=removed)
    ticket.apply(model)
    sparse = sparsify(model, ticket, engine="sparse")
    assert isinstance(sparse.get_submodule("net.layer1.1"), nn.Identity)
    close(sparse(noise(6, 1, 8, 8)), model(noise(6, 1, 8, 8)))
    short = ticket.shallow(model)
    short.load_state_dict(densify(sparse))  # strictly
