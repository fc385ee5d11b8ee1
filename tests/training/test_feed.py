"""How a batch reaches the model: its type, and dictionaries and tuples unpacked."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gemminer
from gemminer import methods
from gemminer.core.errors import UsageError
from gemminer.training.feed import Feed, mapped, shapes
from tests.helpers import EXACT, Notes


class Two(nn.Module):
    """A model of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(input_ids * attention_mask).relu())
        return out


class Optional(Two):
    def forward(self, input_ids: Any = None, attention_mask: Any = None) -> Tensor:  # as transformers' are
        return super().forward(input_ids, attention_mask)


class Whole(Two):
    """Takes the dictionary or tuple itself."""

    def forward(self, batch: Any) -> Tensor:
        parts = batch.values() if hasattr(batch, "values") else batch
        return super().forward(*parts)


class Several(NamedTuple):
    input_ids: Tensor
    attention_mask: Tensor


X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
FORMS: dict[str, Any] = {
    "dict": lambda x, m: {"input_ids": x, "attention_mask": m},
    "turned": lambda x, m: {"attention_mask": m, "input_ids": x},
    "mapping": lambda x, m: UserDict({"input_ids": x, "attention_mask": m}),
    "tuple": lambda x, m: (x, m),
    "list": lambda x, m: [x, m],
    "named": Several,
}


def loader(form: Any, labels: bool = False) -> DataLoader[Any]:
    def collate(rows: list[int]) -> Any:
        inputs = form(X[rows], torch.ones(len(rows), 16))
        return {**inputs, "labels": Y[rows]} if labels else (inputs, Y[rows])

    return DataLoader(range(64), batch_size=16, collate_fn=collate)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [Two, Optional, Whole])
def test_inputs_of_several_parts_are_unpacked_where_the_model_wants_that(form: str, kind: type[Two]) -> None:
    torch.manual_seed(0)
    model, data = kind(), loader(FORMS[form])
    ticket = gemminer.mine(model, data, 0.3, epochs=1)
    assert ticket.kept == round(0.3 * 576)
    result = gemminer.train(model, ticket, data, data, epochs=4)
    assert result["test"] > 0.6


@pytest.mark.parametrize("method", EXACT)
def test_every_method_takes_dictionaries(method: str) -> None:
    how = {"epochs": 1} if methods.get(method).trains else {}
    assert gemminer.mine(Two(), loader(FORMS["mapping"]), 0.3, method=method, **how).kept == round(0.3 * 576)


def test_labels_inside_a_dictionary_are_the_targets() -> None:
    torch.manual_seed(0)
    model = Two()
    want = gemminer.mine(model, loader(FORMS["dict"]), 0.3, epochs=1)
    assert gemminer.mine(model, loader(FORMS["dict"], labels=True), 0.3, epochs=1) == want


def test_what_the_model_does_not_take_is_said_before_the_search() -> None:
    with pytest.raises(UsageError, match=r"does not take the training data's inputs \(x \(16, 16\) of torch.float32"):
        gemminer.mine(Two(), loader(lambda x, m: {"x": x, "m": m}), 0.3)
    with pytest.raises(UsageError, match=r"does not take the training data's inputs \(\(64, 9\) of torch.float32\)"):
        gemminer.mine(nn.Linear(8, 3), (torch.zeros(64, 9), Y), 0.3)
    for what, held in (("validation", {"validation_data": (torch.zeros(8, 9), Y[:8])}), ("complex", {})):
        data = (X.to(torch.complex64) if what == "complex" else X, Y)
        with pytest.raises(UsageError, match=r"does not take the (validation|training) data's inputs"):
            gemminer.mine(nn.Linear(16, 3), data, 0.3, **held)
    with pytest.raises(UsageError, match=r"the test data's inputs \(\(8, 9\)"):
        gemminer.train(
            nn.Linear(16, 3),
            gemminer.mine(nn.Linear(16, 3), (X, Y), 0.3, method="random"),
            (X, Y),
            (torch.zeros(8, 9), Y[:8]),
        )
    with pytest.raises(UsageError, match="Expected more than 1 value per channel"):
        gemminer.mine(nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4)), (X, Y), 0.3, batch_size=1)


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)).to(dtype)


def test_numbers_are_given_in_the_models_type() -> None:
    double = X.double() + 1e-9 * torch.randn(64, 16, dtype=torch.float64)
    want = gemminer.mine(mlp(), (double.float(), Y), 0.3, epochs=2)
    for data in ((double, Y), (double.numpy(), Y.numpy()), (double.numpy(), Y.numpy().astype(np.uint8))):
        assert gemminer.mine(mlp(), data, 0.3, epochs=2) == want
    exact = gemminer.mine(mlp(torch.float64), (double, Y), 0.3, epochs=2)
    assert gemminer.mine(mlp(torch.float64), (double.numpy(), Y.numpy()), 0.3, epochs=2) == exact
    assert gemminer.mine(mlp(torch.float64), (X, Y), 0.3, epochs=2).kept == exact.kept


def test_targets_in_double_precision() -> None:
    for dtype in (torch.float32, torch.float64):
        for given in (torch.float32, torch.float64):
            data = X.to(given).numpy(), X[:, :2].to(given).numpy()
            model = mlp(dtype)
            ticket = gemminer.mine(model, data, 0.3, epochs=1, loss=nn.functional.mse_loss, metric=negative)
            gemminer.train(model, ticket, data, data, epochs=1, loss=nn.functional.mse_loss, metric=negative)


def negative(output: Tensor, target: Tensor) -> Tensor:
    return -(output - target).square()


def test_whole_numbers_for_a_model_of_floats_and_for_one_of_tokens() -> None:
    whole, notes = (X * 4).long(), Notes()
    want = gemminer.mine(mlp(), (whole.float(), Y), 0.3, epochs=1)
    assert gemminer.mine(mlp(), (whole, Y), 0.3, epochs=1, monitor=notes) == want
    assert notes.notes == ["the inputs are whole numbers, which the model does not take: it gets them as torch.float32"]
    for kind in (torch.uint8, torch.int32, torch.bool):
        gemminer.mine(mlp(), (whole.to(kind), Y), 0.3, method="synflow", rounds=2)
    tokens = nn.Sequential(nn.Embedding(9, 16), nn.Flatten(), nn.Linear(64, 2))
    notes = Notes()
    gemminer.mine(tokens, (torch.randint(9, (64, 4)), Y), 0.3, epochs=1, monitor=notes)
    assert not any("whole numbers" in note for note in notes.notes)


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("method", EXACT)
def test_half_precision_through_every_method(dtype: torch.dtype, method: str) -> None:
    how = {"epochs": 1} if methods.get(method).trains else {}
    ticket = gemminer.mine(mlp(dtype), (X.to(dtype), Y), 0.3, method=method, **how)
    assert ticket.kept == round(0.3 * 576)
    assert ticket.initial["0.weight"].dtype == dtype


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_half_precision_trained_checked_saved_and_compiled(dtype: torch.dtype, engine: str, tmp_path: Any) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)).to(dtype)
    data = X.reshape(64, 1, 4, 4), Y  # in float32: given in the model's type
    ticket = gemminer.mine(net, data, 0.3, epochs=1, engine=engine)
    for file in (ticket.save(tmp_path / "a"), ticket.save(tmp_path / "b")):
        assert gemminer.Ticket.load(file) == ticket
    gemminer.train(net, ticket, data, data, epochs=1, engine=engine, lr=0.01)
    assert net[0].weight.dtype == dtype
    assert not net[0].weight[~ticket.masks["0.weight"]].any()
    gemminer.check(net, ticket, data, data, seeds=1, epochs=1, engine=engine, lr=0.01)
    half = data[0].to(dtype)
    with torch.no_grad():
        want = net.eval()(half)
        program = gemminer.sparse.compile(net, input_shape=(1, 4, 4))
        assert torch.allclose(torch.as_tensor(program(half)).float(), want.float(), atol=0.1)
        sparse = gemminer.sparse.sparsify(net, ticket, engine="sparse")
        assert torch.allclose(sparse(half).float(), want.float(), atol=0.1)


def test_a_structure_is_mapped_part_by_part() -> None:
    double = mapped(lambda t: t * 2, {"a": [torch.ones(1), "text"], "b": Several(torch.ones(1), torch.ones(1)), "c": 7})
    assert double["a"][0].item() == double["b"].attention_mask.item() == 2
    assert (double["a"][1], double["c"]) == ("text", 7)
    assert shapes({"x": torch.ones(2, 3), "n": [1, torch.ones(1)]}) == (
        "x (2, 3) of torch.float32, n int, (1,) of torch.float32"
    )
    assert Feed().typed(torch.ones(1), torch.float64).dtype == torch.float32


def test_bert_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **size))
    ids, mask = torch.randint(20, (32, 6)), torch.ones(32, 6, dtype=torch.long)
    labels = (ids[:, 0] > 9).long()
    rows = [{"input_ids": ids[i], "attention_mask": mask[i], "labels": labels[i]} for i in range(32)]
    data = DataLoader(rows, batch_size=8)  # type: ignore[arg-type]
    pairs = [({"input_ids": ids[i], "attention_mask": mask[i]}, labels[i]) for i in range(32)]
    own = gemminer.mine(bert, data, 0.3, epochs=1)
    loader = DataLoader(pairs, batch_size=8)  # type: ignore[arg-type]
    assert gemminer.mine(bert, loader, 0.3, epochs=1) == own, "of an output with logits they are taken"
    assert gemminer.mine(bert, data, 0.3, epochs=1, step=lambda model, batch: model(**batch).loss) == own
    assert gemminer.train(bert, own, loader, loader, epochs=1)["test"] >= 0, "and the metric is the accuracy"
    trained = gemminer.train(bert, own, rows, rows, epochs=1, batch_size=8)
    assert trained.test is not None
    assert trained.test < 0, "the metric is minus the loss that the model makes"
    how: dict[str, Any] = {
        "loss": lambda output, target: nn.functional.cross_entropy(output.logits, target),
        "metric": lambda output, target: (output.logits.argmax(1) == target).double(),
    }
    ticket = gemminer.mine(bert, data, 0.3, epochs=1, **how)
    assert gemminer.train(bert, ticket, data, data, epochs=1, **how)["test"] >= 0


class Owned(Two):
    """Makes its loss itself, of labels where it has them, as transformers' models."""

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> Any:
        logits = super().forward(input_ids, attention_mask)
        found = {"logits": logits}
        return found if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **found}


class Attribute(Two):
    """Its output has the loss as an attribute, and needs no labels."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        logits = super().forward(input_ids, attention_mask)
        return SimpleNamespace(loss=logits.square().mean(), logits=logits)


@pytest.mark.parametrize("method", EXACT)
def test_every_method_with_the_loss_of_the_models_output(method: str) -> None:
    how: dict[str, Any] = {"epochs": 1} if methods.get(method).trains else {}
    torch.manual_seed(0)
    plain, own = Two(), Owned()
    own.load_state_dict(plain.state_dict())
    data, notes = loader(FORMS["dict"], labels=True), Notes()
    how["options"] = {"temperature": 1.0} if method == "grasp" else {}
    options = how.pop("options")
    want = gemminer.mine(plain, data, 0.3, method=method, **how, **options)
    assert gemminer.mine(own, data, 0.3, method=method, monitor=notes, **how, **options) == want
    assert any("no temperature" in note for note in notes.notes) == (method == "grasp")


def test_which_loss_a_dictionary_has() -> None:
    torch.manual_seed(0)
    model = Owned()
    data = loader(FORMS["dict"], labels=True)
    ticket = gemminer.mine(model, data, 0.3, epochs=1)
    result = gemminer.train(model, ticket, data, data, epochs=2)
    assert result.test is not None
    assert -1 < result.test < 0

    def doubled(output: Any, labels: Tensor) -> Tensor:
        assert "loss" not in output, "a loss that is given goes before the model's"
        return 2 * nn.functional.cross_entropy(output["logits"], labels)

    assert gemminer.mine(model, data, 0.3, epochs=1, loss=doubled).kept == ticket.kept
    without = loader(FORMS["dict"])
    rows = [{"input_ids": x, "attention_mask": torch.ones(16)} for x in X]
    assert gemminer.mine(Attribute(), rows, 0.3, epochs=1).kept == ticket.kept
    with pytest.raises(UsageError, match=r"there is no loss for the training data .*give step="):
        gemminer.mine(Owned(), rows, 0.3, epochs=1)
    with pytest.raises(UsageError, match="there is no loss for the test data"):
        gemminer.train(model, ticket, data, rows, epochs=1)
    with pytest.raises(gemminer.GemminerError, match="the loss does not fit"):
        gemminer.mine(Owned(), without, 0.3, epochs=1)  # pairs: their targets are the loss's


@pytest.mark.parametrize("form", ["no labels", "lists", "lists and labels"])
def test_rows_of_words_without_labels_or_of_lists_are_told_what_to_give(form: str) -> None:
    """As tokenised for transformers, whose models call their embedding with whatever comes first."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 32), nn.Linear(32, 2)

        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
            logits = self.head(self.embedding(input_ids).mean(1))
            return {"logits": logits} | (
                {"loss": nn.functional.cross_entropy(logits, labels)} if labels is not None else {}
            )

    ids = torch.randint(20, (16, 6))
    label = {"labels": 1} if form == "lists and labels" else {}
    rows = [{"input_ids": x if form == "no labels" else x.tolist(), **label} for x in ids]
    said = (
        r'give the rows "labels", or a DataLoader whose collator'
        if form == "no labels"
        else "input_ids of the rows are"
    )
    with pytest.raises(UsageError, match=said):
        gemminer.mine(Words(), rows, 0.3, epochs=1)


def test_tuples_of_several_inputs() -> None:
    torch.manual_seed(0)
    model = Two()
    want = gemminer.mine(model, loader(FORMS["tuple"]), 0.3, epochs=1)
    flat = DataLoader(TensorDataset(X, torch.ones(64, 16), Y), batch_size=16)
    assert gemminer.mine(model, flat, 0.3, epochs=1) == want
    assert gemminer.train(model, want, flat, flat, epochs=4).test > 0.6  # type: ignore[operator]
