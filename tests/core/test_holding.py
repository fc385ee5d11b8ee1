"""Pruned weights stay zero, whatever the loop and its optimiser do."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.optimizer import _global_optimizer_pre_hooks as EVERY
from torch.optim.swa_utils import AveragedModel

import gemminer
from gemminer.core.errors import UsageError
from gemminer.core.holding import Hold, hold
from gemminer.core.model_state import named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from gemminer.core.zeros import Zeros
from tests.helpers import tiny_data, tiny_net

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMISERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD nesterov, decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1, t0=2),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "LBFGS wolfe": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
    "Muon": lambda p: torch.optim.Muon([w for w in p if w.dim() == 2], lr=0.02),
    "own": lambda p: _Own(p),
}


class _Own(torch.optim.Optimizer):
    """An optimiser that nobody knows: it moves every weight, and remembers something of each."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                self.state[p]["seen"] = torch.ones_like(p)
                p.add_(0.01).sub_(0.0 if p.grad is None else p.grad, alpha=0.01)


def model_and_ticket(seed: int = 0) -> tuple[nn.Module, Ticket]:
    model = tiny_net(seed)
    source = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(p.shape, generator=source) < 0.3 for name, p in prunable_weights(model).items()}
    return model, Ticket(masks, named_state(model))


def run(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int = 3, clip: float | None = None) -> None:
    inputs, targets = tiny_data()

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return loss

    for _ in range(steps):
        if isinstance(optimiser, torch.optim.LBFGS):
            optimiser.step(closure)
        else:
            closure()
            optimiser.step()


def remembered(model: nn.Module, ticket: Ticket, optimiser: torch.optim.Optimizer) -> int:
    """Numbers that an optimiser's state has for pruned weights."""
    named = dict(model.named_parameters())
    count = 0
    for name, mask in ticket.masks.items():
        for value in optimiser.state.get(named[name], {}).values():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                count += int(value[~mask].count_nonzero())
    return count


@pytest.mark.parametrize("given", [True, False], ids=["given", "met"])
@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_zeros_stay_zero_with_every_optimiser(make: Make, given: bool) -> None:
    """Begun with a state from before, and with one that is loaded in the middle; both of a dense training.

    An optimiser that hold was not given is met in its first step.
    """
    model, ticket = model_and_ticket()
    optimiser = make(list(model.parameters()))
    run(model, optimiser)
    dense, dense_state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimiser.state_dict())
    before = [p.clone() for p in model.parameters()]
    with hold(model, ticket, *([optimiser] if given else [])) as held:
        assert held.violations() == 0
        assert remembered(model, ticket, optimiser) == 0 or not given
        run(model, optimiser)
        assert held.violations() == 0
        assert remembered(model, ticket, optimiser) == 0
        model.load_state_dict(dense)
        assert held.violations() == 0
        optimiser.load_state_dict(dense_state)
        run(model, optimiser, 1)
        assert held.violations() == 0
        assert remembered(model, ticket, optimiser) == 0
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    run(model, optimiser)
    assert held.violations() > 0  # it has ended
    assert not any(map(len, (optimiser._optimizer_step_pre_hooks, optimiser._optimizer_step_post_hooks, EVERY)))


def test_without_it_they_move() -> None:
    """What the test above would miss if it could not fail."""
    model, ticket = model_and_ticket()
    ticket.apply(model)
    optimiser = OPTIMISERS["AdamW"](list(model.parameters()))
    held = hold(model, ticket)
    held.remove()
    run(model, optimiser)
    assert held.violations() > 100


def test_the_norm_for_clipping_is_the_masked_one() -> None:
    model, ticket = model_and_ticket()
    inputs, targets = tiny_data()
    with hold(model, ticket):
        for _ in range(2):  # accumulated
            nn.functional.cross_entropy(model(inputs), targets).backward()
        for name, mask in ticket.masks.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            assert gradient[~mask].count_nonzero() == 0
            assert gradient[mask].count_nonzero() > 0


def test_a_skipped_step_and_one_without_gradients_change_nothing() -> None:
    model, ticket = model_and_ticket()
    optimiser = OPTIMISERS["Adam"](list(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # overflows: the step is skipped
    inputs, targets = tiny_data()
    with hold(model, ticket, optimiser) as held:
        before = [p.clone() for p in model.parameters()]
        scaler.scale(nn.functional.cross_entropy(model(inputs), targets) * 1e30).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        optimiser.step()
        assert held.violations() == 0
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_gradients_written_by_hand_are_masked_before_the_step() -> None:
    model, ticket = model_and_ticket()
    optimiser = OPTIMISERS["AdamW"](list(model.parameters()))
    with hold(model, ticket, optimiser) as held:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimiser.step()
        assert held.violations() == 0
        assert remembered(model, ticket, optimiser) == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_model_that_changes_its_type_in_the_middle_is_still_held(overwrite: bool) -> None:
    """As `.to(device)` would; with `overwrite` PyTorch puts new parameters in the place of the old ones."""
    model, ticket = model_and_ticket()
    with hold(model, ticket) as held:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        try:
            model.double()
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
        inputs, targets = tiny_data()
        held.zero()
        nn.functional.cross_entropy(model(inputs.double()), targets).backward()
        name, mask = next(iter(ticket.masks.items()))
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.dtype is torch.float64
        assert gradient[~mask].count_nonzero() == 0


def test_weights_unfrozen_in_the_middle_are_held() -> None:
    model, ticket = model_and_ticket()
    model.requires_grad_(False)
    model[5].requires_grad_(True)  # type: ignore[index]
    optimiser = OPTIMISERS["AdamW"](list(model.parameters()))
    with hold(model, ticket, optimiser) as held:
        run(model, optimiser, 1)
        model.requires_grad_(True)
        run(model, optimiser, 3)
        assert held.violations() == 0
        assert remembered(model, ticket, optimiser) == 0


def test_wrapped_models_and_optimisers_are_held() -> None:
    class Prepared(torch.optim.Optimizer):
        """As accelerate's: it is an optimiser, and holds the real one."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.optimizer.zero_grad()

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.optimizer.step()

    model, ticket = model_and_ticket()
    wrapped = nn.DataParallel(model)
    optimiser = Prepared(OPTIMISERS["AdamW"](list(model.parameters())))
    with hold(wrapped, ticket, optimiser) as held:
        run(wrapped, optimiser)
        assert held.violations() == 0


def test_a_module_that_holds_the_model_is_found_and_two_are_refused() -> None:
    class Task(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.nets = nn.ModuleList(model_and_ticket()[0] for _ in range(count))
            self.own = nn.Linear(2, 2)

    ticket = model_and_ticket()[1]
    task = Task(1)
    with hold(task, ticket) as held:
        assert held.violations() == 0
        assert task.nets[0][0].weight.count_nonzero() == ticket.masks["0.weight"].sum()  # type: ignore[index]
    with pytest.raises(UsageError, match=r"fits nets\.0 and nets\.1: pass the one"):
        hold(Task(2), ticket)


def test_copies_and_files_of_a_held_model_are_free() -> None:
    model, ticket = model_and_ticket()
    optimiser = OPTIMISERS["AdamW"](list(model.parameters()))
    with hold(model, ticket, optimiser) as held:
        average = AveragedModel(model)
        run(model, optimiser)
        average.update_parameters(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        for other in (average.module, again):
            assert other[0].weight.count_nonzero() <= ticket.masks["0.weight"].sum()
        for other in (copy.deepcopy(model), again):
            free = OPTIMISERS["AdamW"](list(other.parameters()))
            run(other, free)
            assert other[0].weight.count_nonzero() > ticket.masks["0.weight"].sum()
        assert held.violations() == 0


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_hold_that_nobody_keeps_lives_as_long_as_the_model(given: bool, frozen: bool) -> None:
    model, ticket = model_and_ticket()
    model.requires_grad_(not frozen)
    optimiser = OPTIMISERS["AdamW"](list(model.parameters()))
    hold(model, ticket, *([optimiser] if given else []))
    gc.collect()
    model.requires_grad_(True)
    run(model, optimiser)
    assert model[0].weight.count_nonzero() <= ticket.masks["0.weight"].sum()  # type: ignore[index, union-attr, operator]
    assert len(EVERY) == 1
    before = weakref.ref(model)
    del model, optimiser
    gc.collect()
    assert before() is None
    assert len(EVERY) == 0


class FSDPModule(nn.Module):
    """By its name what `fully_shard` makes of a module."""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, t: hold(FSDPModule(), t), "sharded"),
        (lambda m, t: hold(m, t, torch.optim.SparseAdam(list(m.parameters()))), "SparseAdam takes sparse gradients"),
        (lambda m, t: hold(m, t, "AdamW"), "must be a torch.optim.Optimizer, not a str"),
        (lambda m, t: hold(nn.Linear(3, 3), t), "another model"),
        (lambda m, t: hold(m, {"0.wait": torch.ones(2)}), "mask for '0.wait', which is no parameter"),
        (lambda m, t: hold(m, {"0.weight": torch.ones(2).bool()}), r"has shape \(2,\)"),
        (lambda m, t: hold("model", t), "must be a torch.nn.Module"),
    ],
)
def test_what_cannot_be_held_is_refused_in_one_sentence(call: Callable[[nn.Module, Ticket], Hold], said: str) -> None:
    model, ticket = model_and_ticket()
    with pytest.raises(UsageError, match=said):
        call(model, ticket)


def test_sparse_gradients_of_an_embedding_are_masked() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    mask = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    optimiser = torch.optim.SGD(table.parameters(), lr=0.1)
    with gemminer.hold(table, {"weight": mask}, optimiser) as held:
        table(torch.tensor([1, 3])).square().sum().backward()
        optimiser.step()
        assert held.violations() == 0


def test_counting_after_the_end_holds_nothing_again() -> None:
    model, ticket = model_and_ticket()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with hold(model, ticket, optimiser) as held:
        run(model, optimiser)
    assert held.violations() == 0
    run(model, optimiser)
    assert held.violations() > 100


def test_an_optimiser_of_another_model_is_refused() -> None:
    """Made before the model was copied, it would move nothing that is held, and the real one would not be held."""
    model, ticket = model_and_ticket()
    with pytest.raises(UsageError, match="moves no parameter of this model"):
        hold(copy.deepcopy(model), ticket, OPTIMISERS["Adam"](list(model.parameters())))
    with pytest.raises(UsageError, match="must be boolean"):
        hold(model, {"0.weight": torch.full((16, 6), 0.5)})


def test_any_optimiser_that_moves_held_weights_is_held() -> None:
    """One that was made anew in the middle, one inside an optimiser that wraps it, one among several."""

    class Wrapping(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            super().__init__([p for group in optimizer.param_groups for p in group["params"]], {})
            self.optimizer = optimizer

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.optimizer.step()

    model, ticket = model_and_ticket()
    other = tiny_net(1)
    with hold(model, ticket, OPTIMISERS["AdamW"](list(model.parameters()))) as held:
        run(model, inner := OPTIMISERS["Adam"](list(model.parameters())))
        assert held.violations() == remembered(model, ticket, inner) == 0
        run(model, Wrapping(inner), 5)
        assert len(inner._optimizer_step_pre_hooks) == 1
        assert held.violations() == remembered(model, ticket, inner) == 0
        run(other, stranger := OPTIMISERS["Adam"](list(other.parameters())))
        assert len(stranger._optimizer_step_pre_hooks) == 0
        assert int(other[0].weight.count_nonzero()) == 96  # type: ignore[arg-type]


def test_another_ticket_is_refused_while_one_is_held_and_the_same_is_not() -> None:
    """Both together would keep what both do."""
    model, ticket = model_and_ticket()
    other = model_and_ticket(1)[1]
    optimiser = OPTIMISERS["AdamW"](list(model.parameters()))
    first = hold(model, ticket, optimiser)
    before = copy.deepcopy(model.state_dict())
    for inside in (other, {"0.weight": other.masks["0.weight"]}):
        with pytest.raises(UsageError, match=r"held at other masks already: end that first with its `Hold\.remove"):
            hold(nn.DataParallel(model), inside, optimiser)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert len(optimiser._optimizer_step_pre_hooks) == 1
    with hold(model, ticket, optimiser) as again, hold(model, {"3.weight": ticket.masks["3.weight"]}):
        run(model, optimiser)
    run(model, optimiser)
    assert first.violations() == again.violations() == 0
    free = copy.deepcopy(model)
    hold(free, other).remove()
    first.remove()
    other.apply(model)
    with hold(model, other, optimiser) as second:
        run(model, optimiser)
        assert second.violations() == 0
        assert first.violations() > 50
    kept = other.masks["0.weight"] & ~ticket.masks["0.weight"]
    assert int(model[0].weight[kept].count_nonzero()) == int(kept.sum())  # type: ignore[index, union-attr, operator]


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_search_and_a_training_of_the_package_are_free_of_what_holds_the_model(engine: str) -> None:
    """They borrow the model: what they find is that of a model that nobody holds, which is held again afterwards."""
    model, ticket = model_and_ticket()
    free, optimiser = copy.deepcopy(model), OPTIMISERS["AdamW"](list(model.parameters()))
    with hold(model, ticket, optimiser) as held:
        found = gemminer.mine(model, tiny_data(), 0.2, epochs=2, engine=engine)
        assert held.violations() == 0
        assert found == gemminer.mine(free, tiny_data(), 0.2, epochs=2, engine=engine)
        for net in (model, free):
            gemminer.train(net, found, tiny_data(), epochs=2, engine=engine)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in free.state_dict().items())
        assert held.violations() > 0  # it holds what was trained: another ticket
        run(model, optimiser, 1)
        assert held.violations() == 0


def test_a_held_weight_that_is_pruned_by_another_tool_is_named() -> None:
    model, ticket = model_and_ticket()
    with hold(model, ticket) as held:
        prune.random_unstructured(model[0], "weight", 0.5)  # type: ignore[index]
        with pytest.raises(UsageError, match="the 'weight' of a Linear is held, and is no parameter any more"):
            held.zero()


@pytest.mark.parametrize("name", ["Adam", "Adam amsgrad", "AdamW", "NAdam", "RAdam", "AdamW fused", "AdamW foreach"])
def test_what_is_lent_to_a_root_of_zeros_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's second moments of pruned weights are one for a moment, since roots of zeros are slow on a CPU."""
    how = name.partition(" ")[2]
    make = OPTIMISERS.get(name, lambda p: torch.optim.AdamW(p, lr=0.01, **{how: True}))
    found, lent = [], []
    lend = Zeros.lend

    def counted(zeros: Zeros, optimiser: torch.optim.Optimizer) -> None:
        lend(zeros, optimiser)
        lent.append(len(zeros._lent))

    for lends in (True, False):
        monkeypatch.setattr(Zeros, "lend", counted if lends else lambda *_: None)
        model, ticket = model_and_ticket()
        optimiser = make(list(model.parameters()))
        with hold(model, ticket, optimiser):
            run(model, optimiser, 8)
        state = [v for p in model.parameters() for v in optimiser.state[p].values()]
        found.append([*model.state_dict().values(), *state])
        assert remembered(model, ticket, optimiser) == 0
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert (max(lent) == len(ticket.masks)) == (name not in ("Adam amsgrad", "AdamW fused"))
