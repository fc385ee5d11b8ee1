"""Tickets fit wrapped models and tied weights; what holds no numbers is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import gemminer
from gemminer import methods, sparse
from gemminer.core.draw import Draw
from gemminer.core.errors import UsageError
from gemminer.core.model_state import named_state
from gemminer.core.names import bare
from gemminer.core.ticket import Ticket
from gemminer.runs import checks
from tests.core.test_names import WRAPS, Own, plain
from tests.helpers import EXACT, drawn_ticket, tiny_data


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(named_state(a).values(), named_state(b).values(), strict=True))


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_ticket_fits_the_plain_and_the_wrapped_model(wrap: str) -> None:
    model = plain().eval()
    around, ticket = WRAPS[wrap](copy.deepcopy(model)), drawn_ticket(model, 0.2)
    want = ticket.apply(copy.deepcopy(model))
    state = around.state_dict()
    full = {short: name for name, short in bare(state).items()}
    own = Ticket(
        {full[name]: mask for name, mask in ticket.masks.items()},
        {**state, **{full[name]: ticket.initial[name] for name in ticket.masks}},
    )  # with the wrappers' prefixes in its names, where the wrapper's state dict has them
    assert same(ticket.apply(around), want)
    assert same(own.apply(WRAPS[wrap](copy.deepcopy(model))), want)
    assert same(own.apply(copy.deepcopy(model)), want)
    assert list(own.fitted(model).masks) == list(ticket.masks)
    inputs = tiny_data()[0]
    assert torch.allclose(sparse.sparsify(around, own, engine="sparse")(inputs), want(inputs), atol=1e-5)
    assert torch.allclose(sparse.compile(around, input_shape=(6,))(inputs), want(inputs), atol=1e-5)
    copy.deepcopy(model).load_state_dict(sparse.densify(sparse.sparsify(around, own, engine="sparse")))


class Twice(nn.Module):
    """One linear layer under two names; `late` gives it the other first."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        first = nn.Linear(6, 6)
        for name in ("b", "a") if late else ("a", "b"):
            self.add_module(name, first)


@pytest.mark.parametrize("kind", ["wrapped", "tied"])
def test_a_ticket_fitted_to_other_names_is_saved_without_weights(kind: str, tmp_path: Path) -> None:
    """The seeds of a draw are of the names it was drawn under."""
    model = plain() if kind == "wrapped" else Twice(late=True)
    if kind == "wrapped":
        names = {name: f"_orig_mod.{name}" for name in named_state(model)}
    else:
        names = {"b.weight": "a.weight", "b.bias": "a.bias"}
    draw, state = Draw("kaiming-normal", 3), {names[n]: t for n, t in named_state(model).items()}
    state |= (drawn := draw.weights({n: t.shape for n, t in state.items() if t.dim() > 1}))
    ticket = Ticket({n: w > 0 for n, w in drawn.items()}, state, {}, draw)
    fitted = ticket.fitted(model)
    assert set(fitted.masks) == {n for n, old in names.items() if old in drawn}
    again = Ticket.load(fitted.save(tmp_path / "t", weights=False))
    assert again == fitted
    assert Ticket.load(again.fitted(model).save(tmp_path / "t", weights=False)) == fitted
    assert isinstance(hash(fitted.draw), int)
    fresh, own = checks.reinit(fitted, 5), checks.reinit(ticket, 5)
    assert all(torch.equal(fresh.initial[n], own.initial[old]) for n, old in names.items())
    assert Ticket.load(fresh.save(tmp_path / "t", weights=False)) == fresh


@pytest.mark.parametrize("method", EXACT)
def test_a_seed_gives_one_ticket_wrapped_or_not(method: str) -> None:
    data = tiny_data(32)
    how = {"epochs": 1} if methods.get(method).trains else {}
    model = nn.Sequential(nn.Linear(6, 16), nn.Sequential(nn.Linear(16, 12), nn.ReLU()), nn.Linear(12, 3))
    want = gemminer.mine(model, data, 0.2, method=method, **how)
    for wrap in ("DataParallel", "nested"):
        around = copy.deepcopy(model)
        assert gemminer.mine(WRAPS[wrap](around), data, 0.2, method=method, **how) == want


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_training_and_checking_a_wrapped_model(engine: str) -> None:
    model, data = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), tiny_data()
    ticket = gemminer.mine(model, data, 0.2, epochs=1)
    around = nn.DataParallel(copy.deepcopy(model))
    gemminer.train(model, ticket, data, epochs=2, engine=engine)
    gemminer.train(around, ticket, data, epochs=2, engine=engine)
    assert same(model, around)
    own = Ticket({f"module.{n}": m for n, m in ticket.masks.items()}, around.state_dict(), ticket.provenance)
    found = gemminer.check(model, own, data, data, seeds=1, epochs=1, engine=engine)
    assert set(found.checks) == {"shuffle", "reinit", "invert", "uniform", "erk"}


def test_a_users_own_module_keeps_its_name() -> None:
    ticket = gemminer.mine(Own(), tiny_data(), 0.2, epochs=1)
    assert list(ticket.masks) == ["module.weight", "head.weight"]
    ticket.apply(nn.DataParallel(Own()))
    with pytest.raises(UsageError, match=r"another model: the model has no 'module.weight', 'module.bias', 'head"):
        ticket.apply(nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 3)))


def test_a_ticket_of_another_model_says_which_has_not_what() -> None:
    ticket = drawn_ticket(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4)), 0.5)
    with pytest.raises(UsageError) as caught:
        ticket.apply(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)))
    assert str(caught.value) == (
        "this ticket is of another model: the model has no '2.weight', '2.bias'; the ticket has no '1.weight', '1.bias'"
    )
    with pytest.raises(UsageError, match=r"the model has no '0.weight', '0.bias', '2.weight' and 1 more; the ticket"):
        ticket.apply(Own())
    bare = drawn_ticket(nn.Sequential(nn.Linear(6, 4)), 0.5)
    with pytest.raises(UsageError, match=r"another model: the ticket has no '1.weight', '1.bias'$"):
        bare.apply(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)))


class Holds(nn.Module):
    """A model as part of one's own, beside what that counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("seen", torch.zeros(()))


def test_a_model_that_holds_the_tickets_is_named() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    around = Holds(copy.deepcopy(model))
    with pytest.raises(UsageError, match=r"the ticket has no .*: it fits what the model holds as 'model', so pass"):
        drawn_ticket(model, 0.5).apply(around)
    drawn_ticket(model, 0.5).apply(around.get_submodule("model"))
    with pytest.raises(UsageError, match="it is of a model that holds one like this as 'model', so pass that"):
        drawn_ticket(around, 0.5).apply(model)


def test_an_object_that_holds_a_model_says_where() -> None:
    class Trainer:
        model = nn.Linear(6, 4)

    with pytest.raises(UsageError, match=r"not a Trainer: pass its .model"):
        gemminer.mine(Trainer(), tiny_data(), 0.5)  # type: ignore[arg-type]


# --- ties ---------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, tie: bool = True, head_first: bool = False) -> None:
        super().__init__()
        if head_first:
            self.out = nn.Linear(16, 10, bias=False)
        self.emb, self.mid = nn.Embedding(10, 16), nn.Linear(16, 16)
        if not head_first:
            self.out = nn.Linear(16, 10, bias=False)
        if tie:
            self.out.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mid(self.emb(x)).relu())


@pytest.mark.parametrize("drop", [(), ("out.weight",), ("emb.weight",)])
def test_a_tie_is_known_under_either_name(drop: tuple[str, ...]) -> None:
    net = Tied()
    state = {name: value for name, value in net.state_dict().items() if name not in drop}
    masks = {name: torch.arange(value.numel()).reshape(value.shape) % 3 == 0 for name, value in state.items()}
    for chosen in (("mid.weight",), ("emb.weight",), ("out.weight",), ("emb.weight", "out.weight", "mid.weight")):
        own = {name: masks[name] for name in chosen if name in masks}
        if not own:
            continue
        ticket = Ticket(own, state)
        for other in (net, Tied(), Tied(head_first=True)):
            ticket.apply(other)
            assert torch.equal(other.mid.weight, state["mid.weight"] * own.get("mid.weight", torch.ones(16, 16)))
            tied = next((m for n, m in own.items() if n != "mid.weight"), torch.ones(10, 16))
            assert torch.equal(other.out.weight, next(iter(state[n] for n in state if n[0] in "eo")) * tied)
        data = (torch.arange(20).reshape(10, 2) % 10, torch.arange(20).reshape(10, 2) % 10)
        trained = Tied()
        gemminer.train(trained, ticket, data, epochs=1)
        assert not (trained.mid.weight[~own["mid.weight"]] if "mid.weight" in own else torch.zeros(1)).any()
        sparse.sparsify(ticket.apply(Tied()), ticket, engine="sparse")(data[0])


def test_a_ticket_of_an_untied_model_does_not_fit_the_tied_one() -> None:
    loose = Tied(tie=False)
    masks = {"mid.weight": torch.ones(16, 16, dtype=torch.bool)}
    with pytest.raises(UsageError, match=r"the model ties 'out.weight' to 'emb.weight', but the ticket's initial"):
        Ticket(masks, loose.state_dict()).apply(Tied())
    one_name = {name: value for name, value in Tied().state_dict().items() if name != "out.weight"}
    with pytest.raises(UsageError, match=r"the ticket has no 'out.weight'"):
        Ticket(masks, one_name).apply(loose)


# --- models without numbers -----------------------------------------------------------------------------------------

LAZY: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 16), nn.LazyLinear(3)),
    "norm": lambda: nn.Sequential(nn.Linear(6, 16), nn.LazyBatchNorm1d(affine=False), nn.Linear(16, 3)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.LazyConv1d(2, 3), nn.Flatten(), nn.Linear(8, 3)),
}


def all_calls(model: nn.Module, ticket: Ticket) -> dict[str, Callable[[], object]]:
    data = tiny_data()
    return {
        "apply": lambda: ticket.apply(model),
        "mine": lambda: gemminer.mine(model, data, 0.2, epochs=1),
        "random": lambda: gemminer.mine(model, data, 0.2, method="random"),
        "train": lambda: gemminer.train(model, ticket, data, epochs=1),
        "check": lambda: gemminer.check(model, ticket, data, data, epochs=1),
        "sparsify": lambda: sparse.sparsify(model, ticket),
        "compile": lambda: sparse.compile(model, input_shape=(6,)),
    }


@pytest.mark.parametrize("call", ["apply", "mine", "random", "train", "check", "sparsify", "compile"])
def test_a_model_without_numbers_is_refused(call: str) -> None:
    ticket = drawn_ticket(plain())
    partly = plain()
    partly[1][0].to("meta")  # type: ignore[index]
    for model in (plain().to("meta"), partly, nn.DataParallel(plain().to("meta"))):
        with pytest.raises(UsageError, match=r"is on the meta device, which holds no numbers: give the model memory"):
            all_calls(model, ticket)[call]()
    for lazy in LAZY.values():
        with pytest.raises(UsageError, match="the model has lazy layers"):
            all_calls(lazy(), ticket)[call]()


def test_a_model_made_in_inference_mode_can_be_written_but_not_trained() -> None:
    with torch.inference_mode():
        model = plain()
    ticket = drawn_ticket(plain(), 0.2)
    assert same(ticket.apply(model), ticket.apply(plain()))
    for call in ("mine", "train", "check"):
        with pytest.raises(UsageError, match=r"was made in torch.inference_mode, so it can have no gradient"):
            all_calls(model, ticket)[call]()
    gemminer.mine(copy.deepcopy(model), tiny_data(), 0.2, epochs=1)


def test_prospr_sees_the_weights_of_its_steps_under_checkpointing() -> None:
    """What is computed again in the backward pass would be computed from the weights before the steps."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    want = gemminer.mine(model, tiny_data(), 0.2, method="prospr")
    model[0] = checkpoint_wrapper(model[0])
    assert gemminer.mine(model, tiny_data(), 0.2, method="prospr") == want
