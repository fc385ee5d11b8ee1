"""Tickets in Hugging Face's own Trainer, with networks made here from random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, Trainer
from transformers import TrainingArguments as Arguments

import gemminer
from gemminer.core.errors import UsageError
from gemminer.core.ticket import Ticket
from gemminer.integrations.transformers import TicketTrainerCallback
from tests.helpers import drawn_ticket

pytestmark = pytest.mark.filterwarnings("ignore")  # advice about memory that only a GPU pins

WORDS = torch.randint(64, (48, 8), generator=torch.Generator().manual_seed(0))


def bert(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model: nn.Module = BertForSequenceClassification(BertConfig(vocab_size=64, max_position_embeddings=16, **size))
    return model


def gpt2(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    return model


def data(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    labels = WORDS if isinstance(model, GPT2LMHeadModel) else WORDS[:, 0] % 2
    return [{"input_ids": x, "labels": y} for x, y in zip(WORDS, labels, strict=True)]


def trainer(model: nn.Module, folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    options = {"num_train_epochs": 2, "save_strategy": "no", "learning_rate": 1e-2, **options}
    quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": 3}
    arguments = Arguments(str(folder), per_device_train_batch_size=8, **quiet, **options)
    return Trainer(model, arguments, train_dataset=data(model), callbacks=list(callbacks))


def moved(model: nn.Module, ticket: Ticket) -> int:
    """The pruned weights that are not zero."""
    weights = dict(model.named_parameters())
    return sum(int(weights[name].detach()[~mask].count_nonzero()) for name, mask in ticket.masks.items())


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"bf16": True},
    "accumulation": {"gradient_accumulation_steps": 3},
    "adafactor": {"optim": "adafactor"},
    "sgd": {"optim": "sgd"},
}


@pytest.mark.parametrize("make", [bert, gpt2])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_zeros_stay_and_the_rest_is_trained(
    make: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path
) -> None:
    model = make()
    callback = TicketTrainerCallback(ticket := drawn_ticket(model, 0.2))
    trainer(model, tmp_path, callback, **options).train()
    assert moved(model, ticket) == 0
    own = dict(model.named_parameters())
    assert any(not torch.equal(own[name][mask], ticket.initial[name][mask]) for name, mask in ticket.masks.items())
    assert callback.held.violations() == 0
    assert not any(p._backward_hooks for p in model.parameters())  # released


def test_without_the_callback_they_move(tmp_path: Path) -> None:
    model = gpt2()
    ticket = drawn_ticket(model, 0.2)
    trainer(ticket.apply(model), tmp_path).train()
    assert moved(model, ticket) > 0.7 * ticket.prunable


def test_clipping_sees_the_masked_norm(tmp_path: Path) -> None:
    """The norm that the Trainer clips to and logs is that of what is trained."""
    model, norms = gpt2(), []
    ticket = drawn_ticket(model, 0.05)

    class Look(TicketTrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            weights = dict(model.named_parameters())
            assert all(float(weights[n].grad[~mask].abs().sum()) == 0 for n, mask in ticket.masks.items())
            norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))

    run = trainer(model, tmp_path, Look(ticket), max_grad_norm=0.1, logging_steps=1)
    run.train()
    assert norms
    assert all(float(norm) == pytest.approx(0.1, rel=1e-3) for norm in norms)  # of the masked gradient, once clipped


@pytest.mark.parametrize("make", [bert, gpt2])
def test_resuming_is_exact(make: Callable[..., nn.Module], tmp_path: Path) -> None:
    ticket, each = drawn_ticket(make(), 0.2), {"num_train_epochs": 4, "save_strategy": "epoch"}
    whole = make()
    trainer(whole, tmp_path, TicketTrainerCallback(ticket), **each).train()
    resumed = make(seed=1)
    again = trainer(resumed, tmp_path, TicketTrainerCallback(ticket), **each)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert again.state.global_step == 24
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert moved(resumed, ticket) == 0


def test_a_checkpoint_of_another_ticket_is_refused(tmp_path: Path) -> None:
    model = bert()
    each = {"save_strategy": "epoch", "restore_callback_states_from_checkpoint": True}
    trainer(model, tmp_path, TicketTrainerCallback(drawn_ticket(bert(), 0.2)), **each).train()
    other = trainer(bert(), tmp_path, TicketTrainerCallback(drawn_ticket(bert(), 0.2, seed=1)), **each)
    with pytest.raises(UsageError, match="the checkpoint is of another ticket"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_a_second_training_goes_on_and_one_after_an_exception_is_held_once(tmp_path: Path) -> None:
    class Stop(TicketTrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if stop:
                raise RuntimeError("stop")

    model, stop = bert(), False
    file = drawn_ticket(model, 0.2).save(tmp_path / "gem.safetensors")
    run = trainer(model, tmp_path, Stop(file), learning_rate=0.0)
    run.train()
    with torch.no_grad():
        model.get_parameter("classifier.bias").fill_(0.5)
    run.train()
    assert torch.equal(model.get_parameter("classifier.bias"), torch.full((2,), 0.5))
    stop = True
    with pytest.raises(RuntimeError, match="stop"):
        run.train()
    stop = False
    run.train()
    assert not any(p._backward_hooks for p in model.parameters())


@pytest.mark.parametrize("new", ["a Trainer", "a callback"])
def test_another_ticket_may_follow_a_training_that_was_interrupted(new: str, tmp_path: Path) -> None:
    """Ctrl-C in a Trainer tells no callback, so the first ticket is still held when the second's training begins."""

    class Stop(TicketTrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            raise KeyboardInterrupt

    model = bert()
    first, second = (drawn_ticket(model, 0.2, seed=seed) for seed in range(2))
    with pytest.raises(KeyboardInterrupt):
        (run := trainer(model, tmp_path, Stop(first))).train()
    following = TicketTrainerCallback(second)
    if new == "a Trainer":
        run = trainer(model, tmp_path, following)
    else:
        run.remove_callback(Stop)
        run.add_callback(following)
    run.train()
    assert following.held is not None
    assert following.held.violations() == 0
    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[name] != 0, mask) for name, mask in second.masks.items())
    assert not any(p._backward_hooks for p in model.parameters())


def test_a_checkpoint_that_an_interrupted_training_of_another_ticket_spoilt_is_refused_once(tmp_path: Path) -> None:
    model, each = bert(), {"save_strategy": "epoch", "num_train_epochs": 2}
    first, second = (drawn_ticket(model, 0.2, seed=seed) for seed in range(2))
    trainer(model, tmp_path, TicketTrainerCallback(second), **each).train()
    TicketTrainerCallback(first).hold(model)
    run = trainer(model, tmp_path, TicketTrainerCallback(second), **each)
    with pytest.raises(UsageError, match="that hold has ended: call train again"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[name] != 0, mask) for name, mask in second.masks.items())


def test_callbacks_of_two_tickets_are_refused(tmp_path: Path) -> None:
    model = bert()
    both = [TicketTrainerCallback(drawn_ticket(model, 0.2, seed=seed)) for seed in range(2)]
    with pytest.raises(UsageError, match=r"callbacks of two tickets: take one away with trainer.remove_callback"):
        trainer(model, tmp_path, *both).train()


def test_a_model_that_is_held_at_another_ticket_is_refused(tmp_path: Path) -> None:
    model = bert()
    first, second = (drawn_ticket(model, 0.2, seed=seed) for seed in range(2))
    with (
        gemminer.hold(model, first),
        pytest.raises(UsageError, match=r"held at other masks already: end that first with its `Hold.remove\(\)`"),
    ):
        trainer(model, tmp_path, TicketTrainerCallback(second)).train()


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of sentences of several lengths, as a collator with a tokeniser makes one."""
    ids = nn.utils.rnn.pad_sequence(
        [torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=-1
    )
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids.clamp(min=0), "attention_mask": (ids >= 0).long(), "labels": labels}


@pytest.mark.parametrize("collate", [None, padded])
def test_a_ticket_that_was_mined_in_the_trainers_batches_is_trained(collate: Any, tmp_path: Path) -> None:
    other, model = bert(), bert()
    run = trainer(model, tmp_path)  # it seeds everything, and so the order of its batches
    lengths = [8 if collate is None else 5 + i % 3 for i in range(len(WORDS))]
    rows = [{"input_ids": x[:n], "labels": x[0] % 2} for x, n in zip(WORDS.tolist(), lengths, strict=True)]
    run.train_dataset, run.data_collator = rows, collate or run.data_collator
    ticket = gemminer.mine(model, run.get_train_dataloader(), 0.2, epochs=2)
    assert ticket == gemminer.mine(other, run.get_train_dataloader(), 0.2, epochs=2)
    run.add_callback(callback := TicketTrainerCallback(ticket))
    run.train()
    assert callback.held.violations() == moved(model, ticket) == 0


def test_deepspeed_is_refused() -> None:
    callback = TicketTrainerCallback(drawn_ticket(bert(), 0.2))
    with pytest.raises(UsageError, match=r"sharded \(DeepSpeed\)"):
        callback.on_train_begin(SimpleNamespace(deepspeed="zero3.json"), None, None)


@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_folder_holds_the_model_and_the_ticket_beside_each_other(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = make()
    ticket = drawn_ticket(model, 0.2)
    ticket.apply(model)
    trainer(model, tmp_path / "out", TicketTrainerCallback(ticket)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = tmp_path / "gem"
    model.save_pretrained(folder)  # type: ignore[operator]
    ticket.save(folder / "ticket.safetensors")

    again = type(model).from_pretrained(folder)  # type: ignore[attr-defined]
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    found = gemminer.Ticket.load(folder)
    assert found == ticket
    assert moved(again, found) == 0
    again.save_pretrained(folder)  # a second time, over the first: the ticket stays
    assert gemminer.Ticket.load(folder) == ticket
    with gemminer.hold(again, found) as held:
        assert held.violations() == 0


def test_a_ticketed_bert_is_an_onnx_file(tmp_path: Path) -> None:
    model = bert().eval()
    ticket = drawn_ticket(model, 0.05)
    ticket.apply(model)
    made = gemminer.export.onnx(model, tmp_path / "bert.onnx", {"input_ids": WORDS[:2]}, ticket)
    assert made.difference is not None
    assert made.difference < 1e-5
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    assert [x.name for x in (*session.get_inputs(), *session.get_outputs())] == ["input_ids", "logits"]
    with torch.no_grad():
        want = model(input_ids=WORDS[:7]).logits
    (found,) = session.run(None, {"input_ids": WORDS[:7].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), want)


def test_a_model_that_was_saved_after_a_ticket_was_trained_in_it_goes_on(tmp_path: Path) -> None:
    model = bert()
    ticket = drawn_ticket(model, 0.2)
    trainer(model, tmp_path, TicketTrainerCallback(ticket)).train()
    model.save_pretrained(tmp_path / "model")
    for keep, goes_on in ((None, True), (False, False)):
        again = BertForSequenceClassification.from_pretrained(tmp_path / "model")
        callback = TicketTrainerCallback(ticket, keep_weights=keep)
        trainer(again, tmp_path, callback, learning_rate=0.0).train()
        for name, mask in ticket.masks.items():
            wanted = model.get_parameter(name) if goes_on else ticket.initial[name] * mask
            assert torch.equal(again.get_parameter(name), wanted)


def test_what_the_callback_does_not_take_is_said() -> None:
    with pytest.raises(UsageError, match=r"does not search: ticket = gemminer.mine\(.*add_callback\("):
        TicketTrainerCallback(mine={"density": 0.2})  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="TicketTrainerCallback was not given ticket"):
        TicketTrainerCallback()  # type: ignore[call-arg]
