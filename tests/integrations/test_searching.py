"""A search before Lightning's loop: with the module's `training_step`, whatever its batches, its loss and its logs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import pytorch_lightning
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gemminer
from gemminer.core.errors import UsageError
from gemminer.integrations.lightning import TicketCallback
from tests.helpers import tiny_data

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice: more workers, fewer logs


class TwoViews(L.LightningModule):
    """As SimCLR: nobody has labels, `forward` gives no loss, and a batch is a dictionary with two views made of it."""

    def __init__(self, returns: str = "a tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.returns = returns
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12))
        self.head = nn.Linear(12, 4)
        self.numbers: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)  # type: ignore[no-any-return]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"views": [batch["x"] + 0.1 * torch.randn_like(batch["x"]) for _ in range(2)]}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = (nn.functional.normalize(self.head(self(view))) for view in batch["views"])
        loss = nn.functional.cross_entropy(first @ second.T / 0.2, torch.arange(len(first)))
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"of": float(self.trainer.max_epochs or 0)})
        self.numbers.append(batch_idx)
        if self.returns == "sometimes nothing" and batch_idx % 2:
            return None
        return {"loss": loss, "views": first} if self.returns == "a dictionary" else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def loader() -> DataLoader[Any]:
    rows: Any = [{"x": x} for x in tiny_data()[0]]
    return DataLoader(rows, batch_size=16)


def fit(module: L.LightningModule, *callbacks: Any) -> None:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    run = L.Trainer(accelerator="cpu", max_epochs=2, callbacks=list(callbacks), enable_checkpointing=False, **quiet)
    run.fit(module, loader())


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("returns", ["a tensor", "a dictionary", "sometimes nothing"])
def test_a_module_without_labels_is_searched_and_trained(returns: str, engine: str) -> None:
    module = TwoViews(returns)
    rows: list[dict[str, Any]] = []

    class Rows(gemminer.Monitor):
        def epoch(self, row: dict[str, Any]) -> None:
            rows.append(row)

    callback = TicketCallback(mine={"density": 0.3, "epochs": 6, "engine": engine, "monitor": Rows()})
    fit(module, callback)
    assert callback.ticket is not None
    assert callback.ticket.kept == round(0.3 * callback.ticket.prunable)
    assert callback.held is not None
    assert callback.held.violations() == 0
    assert module.numbers == 2 * list(range(6))  # of the training: what the search left in the module is gone
    assert not {"log", "log_dict"} & vars(module).keys()
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_it_is_the_ticket_of_the_same_step_without_lightning() -> None:
    callback = TicketCallback(mine={"density": 0.3, "epochs": 3, "seed": 5})
    fit(TwoViews(), callback)

    def step(model: Any, batch: Any) -> Tensor:
        first, second = (
            nn.functional.normalize(model.head(model.encoder(batch["x"] + 0.1 * torch.randn_like(batch["x"]))))
            for _ in range(2)
        )
        return nn.functional.cross_entropy(first @ second.T / 0.2, torch.arange(len(first)))

    assert callback.ticket == gemminer.mine(TwoViews(), loader(), 0.3, epochs=3, seed=5, step=step)


def test_a_loss_or_step_of_ones_own_is_taken_instead() -> None:
    def size(model: Any, batch: Any) -> Tensor:
        out: Tensor = model(batch["x"]).square().mean()
        return out

    fit(TwoViews(), callback := TicketCallback(mine={"density": 0.3, "epochs": 2, "step": size}))
    assert callback.ticket == gemminer.mine(TwoViews(), loader(), 0.3, epochs=2, step=size)


def test_a_module_that_optimises_by_hand_is_refused() -> None:
    module = TwoViews()
    module.automatic_optimization = False
    with pytest.raises(UsageError, match=r"automatic_optimization is False.*give mine=dict\(step=\.\.\.\)"):
        fit(module, TicketCallback(mine={"density": 0.3}))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sparsity": 0.7}, r"'density' \(density = 1 - sparsity\)"),
        ({"density": 0.3, "precison": "bf16"}, "'precision'"),
    ],
)
def test_misspelt_arguments_name_what_was_meant(given: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        fit(TwoViews(), TicketCallback(mine=given))


def test_a_trainer_is_no_data_and_its_sentence_says_what_is() -> None:
    theirs: Any = object.__new__(transformers.Trainer)  # to make one takes accelerate and a model
    with pytest.raises(UsageError, match=r"not a Trainer; pass trainer.get_train_dataloader\(\)"):
        gemminer.mine(TwoViews(), theirs, 0.3)
    with pytest.raises(UsageError, match=r"not a Trainer; pass the DataLoader .* with step= .*TicketCallback"):
        gemminer.mine(TwoViews(), L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), 0.3)


def test_after_a_search_that_fails_the_module_logs_again() -> None:
    class Broken(TwoViews):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 1.0)
            return 1.0

    module = Broken()
    with pytest.raises(UsageError, match="the step must return one number as a tensor with a gradient, not a float"):
        fit(module, TicketCallback(mine={"density": 0.3}))
    assert not {"log", "log_dict"} & vars(module).keys()


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
@pytest.mark.parametrize("library", [L.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_strategies_that_shard_are_refused(library: Any, name: str) -> None:
    kind = getattr(library.strategies, name)
    trainer = SimpleNamespace(strategy=kind.__new__(kind))  # a CPU makes no such Trainer
    with pytest.raises(UsageError, match=rf"weights are sharded \({name}\), so .*DistributedDataParallel"):
        TicketCallback(mine={"density": 0.3}).setup(trainer, TwoViews(), "fit")


def test_a_module_without_a_forward_is_told_of_its_own_training_step() -> None:
    class Bare(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 3)

    class Data(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(list(zip(*tiny_data(), strict=True)), batch_size=16)

    for module in (Bare(), nn.ModuleList([nn.Linear(6, 3)])):
        with pytest.raises(UsageError, match=r"has no forward.*give step=, .*TicketCallback\(mine=dict\(density"):
            gemminer.mine(module, Data(), 0.3, epochs=1)
    assert gemminer.mine(
        Bare(),
        Data(),
        0.3,
        epochs=1,
        step=lambda model, batch: nn.functional.cross_entropy(model.net(batch[0]), batch[1]),
    )
